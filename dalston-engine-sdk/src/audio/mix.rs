//! From the channels of a file to the channels that an engine wants.

use super::error::AudioErrorKind;
use super::source::Block;

/// Louder than any recording, even of programs that write integers as floating point.
const LOUDEST: f32 = 1e6;

/// Gives the samples of `block` on `channels` channels, interleaved.
///
/// `before` is the number of frames that came before the block.
pub(super) fn mix(
    block: &Block,
    channels: usize,
    before: u64,
    mixed: &mut Vec<f32>,
) -> Result<(), AudioErrorKind> {
    if let Some(at) = block
        .samples
        .iter()
        .position(|sample| sample.is_nan() || sample.abs() > LOUDEST)
    {
        let frame = before + (at / block.channels) as u64;
        let value = block.samples[at];
        return Err(AudioErrorKind::ImpossibleSample {
            value,
            at: frame as f64 / f64::from(block.sample_rate),
        });
    }
    mixed.clear();
    if block.channels == channels {
        mixed.extend_from_slice(&block.samples);
    } else {
        let share = 1.0 / block.channels as f32;
        for frame in block.samples.chunks_exact(block.channels) {
            let mean = frame.iter().sum::<f32>() * share;
            mixed.extend(std::iter::repeat_n(mean, channels));
        }
    }
    Ok(())
}
