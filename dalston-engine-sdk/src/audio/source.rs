//! A file as a sequence of blocks of samples.

use std::io::{self, Read};

use super::error::AudioErrorKind;
use super::format::{HIGHEST_SAMPLE_RATE, LOWEST_SAMPLE_RATE, MOST_CHANNELS};

/// What a file is decoded from, one block after the other.
pub(super) trait Source {
    /// Replaces the samples of `block` by the next ones. `false` at the end.
    fn next_block(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind>;

    /// What the file says about itself. Trust none of it.
    fn header(&self) -> Header;

    /// What was wrong and did not keep us from decoding. Complete when the end was reached.
    fn warnings(&self) -> Vec<String>;
}

/// Some samples. At most a few seconds: the largest packets of the formats have 65 536 frames.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) sample_rate: u32,
    pub(super) channels: usize,
    /// Interleaved: one sample of every channel, then the next ones.
    pub(super) samples: Vec<f32>,
    /// Whether the samples come from integers, which can't be anything but numbers from -1 to 1.
    pub(super) bounded: bool,
}

/// What a file says about itself.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) container: &'static str,
    pub(super) codec: String,
    pub(super) sample_rate: Option<u32>,
    pub(super) channels: Option<usize>,
    /// Frames, by the file's own sample rate.
    pub(super) frames: Option<u64>,
}

/// Fills `buffer` as far as the file goes.
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

/// Refuses rates and channels that no audio has.
pub(super) fn check_shape(sample_rate: u32, channels: usize) -> Result<(), AudioErrorKind> {
    if !(1..=MOST_CHANNELS).contains(&channels) {
        return Err(AudioErrorKind::Channels(channels));
    }
    if !(LOWEST_SAMPLE_RATE..=HIGHEST_SAMPLE_RATE).contains(&sample_rate) {
        return Err(AudioErrorKind::SampleRate(sample_rate));
    }
    Ok(())
}
