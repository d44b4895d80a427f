//! A voice detector for audio of another rate than its own: [`AtRate`].

use crate::audio::VoiceDetector;

/// Gives a detector frames of another rate. Each frame is resampled by itself, which is good enough
/// for a detector and needs no state.
pub(super) struct AtRate {
    detector: Box<dyn VoiceDetector + Send>,
    rate: u32,
    frame_len: usize,
    resampled: Vec<f32>,
}

impl AtRate {
    /// `detector` for audio of this rate.
    pub(super) fn wrap(detector: Box<dyn VoiceDetector + Send>, rate: u32) -> Box<dyn VoiceDetector + Send> {
        let own = detector.sample_rate().max(1);
        if own == rate {
            return detector;
        }
        let seconds = detector.frame_len().max(1) as f64 / f64::from(own);
        // A few thousand samples at most.
        let frame_len = (seconds * f64::from(rate)).round().max(1.0) as usize;
        Box::new(Self {
            resampled: vec![0.0; detector.frame_len().max(1)],
            detector,
            rate,
            frame_len,
        })
    }
}

impl VoiceDetector for AtRate {
    fn sample_rate(&self) -> u32 {
        self.rate
    }

    fn frame_len(&self) -> usize {
        self.frame_len
    }

    fn probability(&mut self, frame: &[f32]) -> f32 {
        resample(frame, &mut self.resampled);
        self.detector.probability(&self.resampled)
    }

    fn reset(&mut self) {
        self.detector.reset();
    }

    fn delay(&self) -> usize {
        self.detector.delay()
    }

    fn hangover(&self) -> usize {
        self.detector.hangover()
    }
}

/// The mean of the samples that a new sample stands for, or a line between two of them.
fn resample(from: &[f32], to: &mut [f32]) {
    let step = from.len() as f64 / to.len() as f64;
    let at = |index: usize| from.get(index.min(from.len() - 1)).copied().unwrap_or_default();
    if from.is_empty() {
        return to.fill(0.0);
    }
    for (index, sample) in to.iter_mut().enumerate() {
        let (begin, end) = (index as f64 * step, (index + 1) as f64 * step);
        // Positions in a frame, so they are small and not negative.
        let (first, last) = (begin as usize, (end as usize).min(from.len()));
        *sample = if last > first + 1 {
            from[first..last].iter().sum::<f32>() / (last - first) as f32
        } else {
            let rest = (begin - first as f64) as f32;
            at(first) * (1.0 - rest) + at(first + 1) * rest
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probability is the mean of the frame.
    struct Mean;

    impl VoiceDetector for Mean {
        fn sample_rate(&self) -> u32 {
            16_000
        }

        fn frame_len(&self) -> usize {
            256
        }

        fn probability(&mut self, frame: &[f32]) -> f32 {
            assert_eq!(frame.len(), 256);
            frame.iter().sum::<f32>() / 256.0
        }

        fn reset(&mut self) {}
    }

    #[test]
    fn frame_of_each_rate_has_the_same_length_and_content() {
        for (rate, length) in [
            (8_000, 128),
            (16_000, 256),
            (22_050, 353),
            (44_100, 706),
            (48_000, 768),
        ] {
            let mut detector = AtRate::wrap(Box::new(Mean), rate);
            assert_eq!(detector.frame_len(), length, "{rate}");
            let ramp: Vec<f32> = (0..length).map(|at| at as f32 / length as f32).collect();
            let mean = detector.probability(&ramp);
            assert!((mean - 0.5).abs() < 0.01, "{rate}: {mean}");
        }
    }
}
