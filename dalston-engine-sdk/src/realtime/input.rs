//! The audio of a client as samples for the engine: [`Input`].

use std::time::{Duration, Instant};

use crate::audio::{AudioErrorKind, Encoding, Resampler, convert};

/// Decodes, mixes and resamples the binary messages of a session. Nothing depends on where the
/// messages begin and end: an incomplete sample waits for the next message.
pub(super) struct Input {
    encoding: Encoding,
    channels: usize,
    from: u32,
    to: u32,
    block: usize,
    /// The first bytes of an incomplete frame.
    carry: Vec<u8>,
    /// `None` if the rates are equal.
    resampler: Option<Resampler>,
    decoded: Vec<f32>,
    resampling: Duration,
    /// Received frames, at the rate of the client.
    received: u64,
    /// Samples that were given, at the rate of the engine.
    given: u64,
}

/// How long the resampling of audio took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resampled {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) time: Duration,
}

/// The length of the filter of the resampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quality {
    Fast,
    Balanced,
    High,
}

impl Quality {
    /// Frames of the lower rate in a block.
    fn block(self) -> usize {
        match self {
            Self::Fast => 128,
            Self::Balanced => 256,
            Self::High => 1024,
        }
    }
}

impl Input {
    pub(super) fn new(
        encoding: Encoding,
        channels: u16,
        from: u32,
        to: u32,
        quality: Quality,
    ) -> Result<Self, AudioErrorKind> {
        let mut input = Self {
            encoding,
            channels: usize::from(channels.max(1)),
            from,
            to,
            block: quality.block(),
            carry: Vec::new(),
            resampler: None,
            decoded: Vec::new(),
            resampling: Duration::ZERO,
            received: 0,
            given: 0,
        };
        input.resampler = input.new_resampler()?;
        Ok(input)
    }

    /// The bytes of this much audio.
    pub(super) fn bytes(&self, length: Duration) -> usize {
        let frames = length.as_secs_f64() * f64::from(self.from);
        // A duration of some seconds, so the number is small.
        frames as usize * self.frame_bytes()
    }

    /// The length of the received audio.
    pub(super) fn received(&self) -> Duration {
        Duration::from_secs_f64(self.received as f64 / f64::from(self.from))
    }

    /// Appends the samples of a message. Returns whether all of them are numbers; others become
    /// silence.
    pub(super) fn push(&mut self, bytes: &[u8], samples: &mut Vec<f32>) -> Result<bool, AudioErrorKind> {
        let size = self.frame_bytes();
        self.decoded.clear();
        let mut rest = bytes;
        if !self.carry.is_empty() {
            let missing = (size - self.carry.len()).min(rest.len());
            let (first, others) = rest.split_at(missing);
            self.carry.extend_from_slice(first);
            rest = others;
            if self.carry.len() < size {
                return Ok(true);
            }
            convert(self.encoding, &self.carry, &mut self.decoded);
            self.carry.clear();
        }
        let (frames, rest) = rest.split_at(rest.len() - rest.len() % size);
        convert(self.encoding, frames, &mut self.decoded);
        self.carry.extend_from_slice(rest);

        let mut is_valid = true;
        for sample in &mut self.decoded {
            if !sample.is_finite() {
                *sample = 0.0;
                is_valid = false;
            }
            *sample = sample.clamp(-LOUDEST, LOUDEST);
        }
        if self.channels > 1 {
            let frames = self.decoded.len() / self.channels;
            for frame in 0..frames {
                let sum: f32 = self.decoded[frame * self.channels..][..self.channels]
                    .iter()
                    .sum();
                self.decoded[frame] = sum / self.channels as f32;
            }
            self.decoded.truncate(frames);
        }
        self.received += self.decoded.len() as u64;
        let before = samples.len();
        match &mut self.resampler {
            Some(resampler) => {
                let begun = Instant::now();
                resampler.push(&self.decoded, samples)?;
                self.resampling += begun.elapsed();
            }
            None => samples.extend_from_slice(&self.decoded),
        }
        self.given += (samples.len() - before) as u64;
        Ok(is_valid)
    }

    /// Appends the samples that the resampler holds back, so that all received audio was given.
    pub(super) fn flush(&mut self, samples: &mut Vec<f32>) -> Result<(), AudioErrorKind> {
        let Some(mut resampler) = self.resampler.take() else {
            return Ok(());
        };
        self.resampler = self.new_resampler()?;
        let before = samples.len();
        resampler.finish(samples)?;
        self.given += (samples.len() - before) as u64;
        // Each flush rounds the length, and the sum of that must not move later times.
        let exact = self.received * u64::from(self.to) / u64::from(self.from);
        while self.given < exact {
            samples.push(samples.last().copied().unwrap_or_default());
            self.given += 1;
        }
        while self.given > exact && samples.len() > before {
            samples.pop();
            self.given -= 1;
        }
        Ok(())
    }

    /// The resampling since the last call, if there was any.
    pub(super) fn take_resampled(&mut self) -> Option<Resampled> {
        let time = std::mem::take(&mut self.resampling);
        (time > Duration::ZERO).then_some(Resampled {
            from: self.from,
            to: self.to,
            time,
        })
    }

    fn frame_bytes(&self) -> usize {
        self.encoding.bytes() as usize * self.channels
    }

    fn new_resampler(&self) -> Result<Option<Resampler>, AudioErrorKind> {
        if self.from == self.to {
            return Ok(None);
        }
        Resampler::with_block(self.from, self.to, 1, self.block).map(Some)
    }
}

/// Louder than any recording. Larger numbers overflow in the models of engines.
const LOUDEST: f32 = 16.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of pseudo-random numbers, so that a failure can be repeated.
    pub(super) struct Random(pub(super) u64);

    impl Random {
        pub(super) fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) as usize % end
        }
    }

    fn tone(rate: u32, seconds: f64, channels: usize) -> Vec<f32> {
        let frames = (f64::from(rate) * seconds) as usize;
        (0..frames)
            .flat_map(|frame| {
                let time = frame as f64 / f64::from(rate);
                let sample = (time * 440.0 * std::f64::consts::TAU).sin() as f32 * 0.5;
                std::iter::repeat_n(sample, channels)
            })
            .collect()
    }

    fn encoded(encoding: Encoding, samples: &[f32]) -> Vec<u8> {
        let bytes = samples.iter().map(|sample| match encoding {
            Encoding::Float32 => sample.to_le_bytes().to_vec(),
            Encoding::Signed16 => ((sample * 32_767.0) as i16).to_le_bytes().to_vec(),
            // Any byte is a sample.
            _ => vec![(sample * 127.0) as i8 as u8],
        });
        bytes.flatten().collect()
    }

    fn all_at_once(input: &mut Input, bytes: &[u8]) -> Vec<f32> {
        let mut samples = Vec::new();
        input.push(bytes, &mut samples).unwrap();
        input.flush(&mut samples).unwrap();
        samples
    }

    #[test]
    fn odd_message_boundaries_change_no_sample() {
        let mut random = Random(1);
        for encoding in [
            Encoding::Signed16,
            Encoding::Float32,
            Encoding::MuLaw,
            Encoding::ALaw,
        ] {
            for (channels, rate) in [(1, 16_000), (2, 16_000), (1, 8_000), (2, 44_100), (1, 48_000)] {
                let bytes = encoded(encoding, &tone(rate, 0.7, usize::from(channels)));
                let new = || Input::new(encoding, channels, rate, 16_000, Quality::Balanced).unwrap();
                let expected = all_at_once(&mut new(), &bytes);
                let mut pieces = new();
                let (mut samples, mut rest) = (Vec::new(), &bytes[..]);
                while !rest.is_empty() {
                    let (piece, others) = rest.split_at((1 + random.below(999)).min(rest.len()));
                    pieces.push(piece, &mut samples).unwrap();
                    rest = others;
                }
                pieces.flush(&mut samples).unwrap();
                assert!(
                    samples == expected,
                    "{encoding:?}, {channels} channels, {rate} Hz"
                );
            }
        }
    }

    #[test]
    fn random_chunks_and_flushes_move_no_time() {
        let mut random = Random(7);
        for rate in [8_000, 11_025, 22_050, 24_000, 44_100, 48_000] {
            let mut input = Input::new(Encoding::Signed16, 1, rate, 16_000, Quality::Fast).unwrap();
            let bytes = encoded(Encoding::Signed16, &tone(rate, 20.0, 1));
            let (mut samples, mut rest) = (Vec::new(), &bytes[..]);
            while !rest.is_empty() {
                let (piece, others) = rest.split_at((1 + random.below(5_000)).min(rest.len()));
                input.push(piece, &mut samples).unwrap();
                if random.below(3) == 0 {
                    input.flush(&mut samples).unwrap();
                }
                rest = others;
                let given = samples.len() as f64 / 16_000.0;
                let received = input.received().as_secs_f64();
                // A block of the resampler and its filter.
                assert!(
                    (-0.001..0.12).contains(&(received - given)),
                    "{rate} Hz: {given} of {received}"
                );
            }
            input.flush(&mut samples).unwrap();
            assert_eq!(samples.len(), 320_000, "{rate} Hz");
        }
    }

    #[test]
    fn tone_keeps_its_pitch_at_each_rate() {
        for rate in [8_000, 24_000, 44_100, 48_000] {
            let mut input = Input::new(Encoding::Float32, 1, rate, 16_000, Quality::Balanced).unwrap();
            let samples = all_at_once(&mut input, &encoded(Encoding::Float32, &tone(rate, 1.0, 1)));
            let crossings = samples
                .windows(2)
                .filter(|pair| pair[0] <= 0.0 && pair[1] > 0.0)
                .count();
            assert!((438..=442).contains(&crossings), "{rate} Hz: {crossings}");
        }
    }

    #[test]
    fn stereo_is_mixed_and_not_read_as_mono() {
        let left_only: Vec<f32> = (0..1_600).flat_map(|_| [0.5, 0.0]).collect();
        let mut input = Input::new(Encoding::Float32, 2, 16_000, 16_000, Quality::Balanced).unwrap();
        let samples = all_at_once(&mut input, &encoded(Encoding::Float32, &left_only));
        assert_eq!(samples, vec![0.25; 1_600]);
        assert_eq!(input.received(), Duration::from_millis(100));
    }

    #[test]
    fn impossible_numbers_become_silence() {
        let mut input = Input::new(Encoding::Float32, 1, 16_000, 16_000, Quality::Balanced).unwrap();
        let mut samples = Vec::new();
        let bytes = encoded(Encoding::Float32, &[f32::NAN, 0.5, f32::INFINITY, 1e30]);
        assert!(!input.push(&bytes, &mut samples).unwrap());
        assert_eq!(samples, [0.0, 0.5, 0.0, LOUDEST]);
        assert!(
            input
                .push(&encoded(Encoding::Float32, &[0.1]), &mut samples)
                .unwrap()
        );
    }
}
