//! Mixing the channels of a file to those of the requested format.

use super::error::AudioErrorKind;
use super::source::Block;

/// Mixes the samples of `block` to `channels` channels. `before` is the number of frames before the
/// block.
pub(super) fn mix(block: &mut Block, channels: usize, before: u64) -> Result<(), AudioErrorKind> {
    check(block, before)?;
    if block.channels == channels {
        return Ok(());
    }
    let share = 1.0 / block.channels as f32;
    if channels == 1 {
        let frames = block.samples.len() / block.channels;
        for frame in 0..frames {
            let start = frame * block.channels;
            let sum: f32 = block.samples[start..start + block.channels].iter().sum();
            block.samples[frame] = sum * share;
        }
        block.samples.truncate(frames);
    } else {
        let mixed = block.samples.chunks_exact(block.channels).flat_map(|frame| {
            let mean = frame.iter().sum::<f32>() * share;
            std::iter::repeat_n(mean, channels)
        });
        block.samples = mixed.collect();
    }
    block.channels = channels;
    Ok(())
}

/// Louder than any recording, even of programs that write integers as floating point numbers.
const LOUDEST: f32 = 1e6;

fn check(block: &Block, before: u64) -> Result<(), AudioErrorKind> {
    if block.bounded {
        return Ok(());
    }
    let impossible = |sample: &f32| sample.is_nan() || sample.abs() > LOUDEST;
    match block.samples.iter().position(impossible) {
        None => Ok(()),
        Some(at) => {
            let frame = before + (at / block.channels) as u64;
            let at_seconds = frame as f64 / f64::from(block.sample_rate);
            Err(AudioErrorKind::ImpossibleSample {
                value: block.samples[at],
                at: at_seconds,
            })
        }
    }
}
