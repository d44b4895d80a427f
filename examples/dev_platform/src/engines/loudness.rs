//! The loudness of a recording: BS.1770, in constant memory.

use ebur128::{EbuR128, Mode};

/// Measures frames that come one after another.
#[derive(Debug)]
pub(super) struct Loudness {
    /// `None` if the standard has no answer for this form.
    meter: Option<EbuR128>,
}

impl Loudness {
    pub(super) fn new(channels: usize, sample_rate: u32) -> Self {
        // With a histogram, its memory does not grow with the length of the recording.
        let mode = Mode::I | Mode::HISTOGRAM;
        let channels = u32::try_from(channels).ok();
        let meter = channels.and_then(|channels| EbuR128::new(channels, sample_rate, mode).ok());
        Self { meter }
    }

    /// Adds frames whose channels stand side by side.
    pub(super) fn add(&mut self, frames: &[f32]) {
        if let Some(meter) = &mut self.meter
            && meter.add_frames_f32(frames).is_err()
        {
            self.meter = None;
        }
    }

    /// The integrated loudness in LUFS; `None` for silence and for less than 0.4 s.
    pub(super) fn integrated(&self) -> Option<f64> {
        let loudness = self.meter.as_ref()?.loudness_global().ok()?;
        loudness.is_finite().then(|| (loudness * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 16_000;

    /// The loudness of a tone of 997 Hz with this amplitude.
    fn tone(channels: usize, amplitude: f32, seconds: f32) -> Option<f64> {
        let mut loudness = Loudness::new(channels, RATE);
        let frames: Vec<f32> = (0..(seconds * RATE as f32) as u32)
            .flat_map(|frame| {
                let phase = frame as f32 / RATE as f32 * 997.0 * std::f32::consts::TAU;
                vec![phase.sin() * amplitude; channels]
            })
            .collect();
        frames
            .chunks(1_000 * channels)
            .for_each(|part| loudness.add(part));
        loudness.integrated()
    }

    #[test]
    fn tone_has_the_loudness_of_the_standard() {
        // A full-scale tone of 997 Hz on one channel has -3.01 LUFS, on two 0 LUFS.
        for (channels, amplitude, expected) in [(1, 1.0, -3.01), (2, 1.0, 0.0), (2, 0.1, -20.0)] {
            let found = tone(channels, amplitude, 2.0).unwrap();
            assert!((found - expected).abs() < 0.1, "{found} for {expected}");
        }
    }

    #[test]
    fn silence_and_short_audio_have_no_loudness() {
        assert_eq!(tone(1, 0.0, 2.0), None);
        assert_eq!(tone(1, 1.0, 0.3), None);
        assert_eq!(tone(1, 1.0, 0.0), None);
    }

    #[test]
    fn memory_does_not_grow_with_the_length() {
        let mut loudness = Loudness::new(1, RATE);
        let second: Vec<f32> = (0..RATE).map(|frame| (frame as f32).sin()).collect();
        let used = allocation_counter::measure(|| (0..600).for_each(|_| loudness.add(&second)));
        assert_eq!(used.count_total, 0);
        assert!(loudness.integrated().is_some());
    }
}
