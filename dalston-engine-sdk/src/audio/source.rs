//! The trait of audio formats: [`Source`], a sequence of blocks of samples.

use std::io::{self, Read};

use super::error::AudioErrorKind;
use super::format::{HIGHEST_SAMPLE_RATE, LOWEST_SAMPLE_RATE, MAX_CHANNELS};

/// A file that is decoded block by block.
pub(super) trait Source {
    /// Replaces the samples of `block` with the next ones. Returns `false` at the end.
    fn next_block(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind>;

    /// The header of the file. Its values may be wrong.
    fn header(&self) -> Header;

    /// Problems that did not prevent decoding. Complete after the last block.
    fn warnings(&self) -> Vec<String>;
}

/// Some samples, at most a few seconds: the largest packets have 65 536 frames.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) sample_rate: u32,
    pub(super) channels: usize,
    /// Interleaved: one sample of every channel, then the next ones.
    pub(super) samples: Vec<f32>,
    /// Whether the samples come from integers and so are numbers from -1 to 1.
    pub(super) bounded: bool,
}

/// The header of a file.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) container: &'static str,
    pub(super) codec: String,
    pub(super) sample_rate: Option<u32>,
    pub(super) channels: Option<usize>,
    /// Frames at the sample rate of the file.
    pub(super) frames: Option<u64>,
}

/// Fills `buffer` up to the end of the file.
pub(super) fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Refuses rates and channels out of range.
pub(super) fn check_shape(sample_rate: u32, channels: usize) -> Result<(), AudioErrorKind> {
    if !(1..=MAX_CHANNELS).contains(&channels) {
        return Err(AudioErrorKind::Channels(channels));
    }
    if !(LOWEST_SAMPLE_RATE..=HIGHEST_SAMPLE_RATE).contains(&sample_rate) {
        return Err(AudioErrorKind::SampleRate(sample_rate));
    }
    Ok(())
}
