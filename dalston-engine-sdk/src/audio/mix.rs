//! Mixing the channels of a file to those of the requested format.

use std::time::Duration;

use super::error::AudioErrorKind;
use super::source::Block;

/// Mixes the channels of a file.
///
/// Channels of opposite phase, as from a wrongly wired microphone, cancel each other in the mean.
/// There the loudest channel is used instead.
#[derive(Debug, Default)]
pub(super) struct Mixer {
    /// The energy of each channel, and of the sum of all, in the last second or so.
    channels: Vec<f64>,
    sum: f64,
    /// Seconds in which the channels cancelled each other.
    cancelled: f64,
}

impl Mixer {
    /// Mixes the samples of `block` to `channels` channels. `before` is the duration before the
    /// block.
    pub(super) fn mix(
        &mut self,
        block: &mut Block,
        channels: usize,
        before: Duration,
    ) -> Result<(), AudioErrorKind> {
        check(block, before)?;
        if block.channels == channels {
            return Ok(());
        }
        let count = block.channels;
        let loudest = if count > 1 { self.cancelling(block) } else { None };
        let share = 1.0 / count as f32;
        let one = |frame: &[f32]| match loudest {
            Some(loudest) => frame[loudest],
            None => frame.iter().sum::<f32>() * share,
        };
        if channels == 1 {
            let frames = block.samples.len() / count;
            for frame in 0..frames {
                block.samples[frame] = one(&block.samples[frame * count..][..count]);
            }
            block.samples.truncate(frames);
        } else {
            let mixed = block.samples.chunks_exact(count);
            let mixed = mixed.flat_map(|frame| std::iter::repeat_n(one(frame), channels));
            block.samples = mixed.collect();
        }
        block.channels = channels;
        Ok(())
    }

    /// The loudest channel, if the channels cancel each other.
    fn cancelling(&mut self, block: &Block) -> Option<usize> {
        let count = block.channels;
        let seconds = (block.samples.len() / count) as f64 / f64::from(block.sample_rate);
        let rest = (-seconds / MEMORY_SECONDS).exp();
        self.channels.resize(count, 0.0);
        self.channels.iter_mut().for_each(|energy| *energy *= rest);
        self.sum *= rest;
        for frame in block.samples.chunks_exact(count) {
            let mut sum = 0.0;
            for (energy, sample) in self.channels.iter_mut().zip(frame) {
                sum += f64::from(*sample);
                *energy += f64::from(*sample).powi(2);
            }
            self.sum += sum * sum;
        }
        let louder = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
        let (loudest, energy) = self.channels.iter().enumerate().max_by(louder)?;
        if self.sum >= *energy * LEAST_SUM {
            return None;
        }
        self.cancelled += seconds;
        Some(loudest)
    }

    pub(super) fn warning(&self) -> Option<String> {
        (self.cancelled > 0.0).then(|| {
            format!(
                "its channels cancel each other (opposite phase): for {:.3} s the loudest one was used instead of \
                 their mean",
                self.cancelled
            )
        })
    }
}

/// Long enough for a decision about the recording and not about one sound.
const MEMORY_SECONDS: f64 = 1.0;

/// The least energy of the sum of all channels, compared with the loudest channel. One channel
/// alone has 1, two equal ones of opposite phase 0, with a correlation of -0.8 0.4.
const LEAST_SUM: f64 = 0.4;

/// Louder than any recording, even of programs that write integers as floating point numbers.
const LOUDEST: f32 = 1e6;

fn check(block: &Block, before: Duration) -> Result<(), AudioErrorKind> {
    if block.bounded {
        return Ok(());
    }
    let impossible = |sample: &f32| sample.is_nan() || sample.abs() > LOUDEST;
    match block.samples.iter().position(impossible) {
        None => Ok(()),
        Some(at) => {
            let frame = (at / block.channels) as f64;
            let at_seconds = before.as_secs_f64() + frame / f64::from(block.sample_rate);
            Err(AudioErrorKind::ImpossibleSample {
                value: block.samples[at],
                at: at_seconds,
            })
        }
    }
}
