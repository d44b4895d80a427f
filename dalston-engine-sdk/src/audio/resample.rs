//! Resampling a file to the rate of the requested format.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _, WindowFunction};

use super::error::AudioErrorKind;

/// Resamples a stream block by block.
///
/// The output has `round(frames × to / from)` frames and starts with the first frame of the input.
/// The delay of the filter is removed from the front, and silence behind the end flushes the last
/// frames.
pub(crate) struct Resampler {
    fft: Fft<f32>,
    from: u64,
    to: u64,
    channels: usize,
    /// Input that does not fill a chunk yet.
    waiting: Vec<f32>,
    /// A buffer for one chunk of output.
    chunk: Vec<f32>,
    /// Frames of output that must still be dropped.
    delay: u64,
    taken: u64,
    given: u64,
}

impl Resampler {
    pub(super) fn new(from: u32, to: u32, channels: usize) -> Result<Self, AudioErrorKind> {
        Self::with_block(from, to, channels, SHORTEST_BLOCK)
    }

    /// With blocks of at least so many frames of the lower rate. A short block gives its output
    /// sooner and passes less of the highest frequencies.
    pub(crate) fn with_block(
        from: u32,
        to: u32,
        channels: usize,
        shortest: usize,
    ) -> Result<Self, AudioErrorKind> {
        let (from, to) = (from as usize, to as usize);
        let divisor = greatest_common_divisor(from, to);
        let (least_in, least_out) = (from / divisor, to / divisor);
        // An even number of the smallest blocks makes the delay of half a block a whole number of
        // frames on both sides.
        let blocks = shortest.div_ceil(least_in.min(least_out)).next_multiple_of(2);
        let chunk = blocks * least_in;
        let window = WindowFunction::BlackmanHarris2;
        let fft = Fft::new_custom(from, to, chunk, 1, channels, window, FixedSync::Both)
            .map_err(|error| unexpected(&error))?;
        let room = fft.output_frames_max() * channels;
        Ok(Self {
            delay: fft.output_delay() as u64,
            fft,
            from: from as u64,
            to: to as u64,
            channels,
            waiting: Vec::new(),
            chunk: vec![0.0; room],
            taken: 0,
            given: 0,
        })
    }

    /// Takes interleaved samples and appends finished ones to `output`.
    pub(crate) fn push(&mut self, samples: &[f32], output: &mut Vec<f32>) -> Result<(), AudioErrorKind> {
        self.taken += (samples.len() / self.channels) as u64;
        self.waiting.extend_from_slice(samples);
        let chunk = self.fft.input_frames_next() * self.channels;
        let mut start = 0;
        while self.waiting.len() - start >= chunk {
            self.resample(start..start + chunk, output)?;
            start += chunk;
        }
        self.waiting.drain(..start);
        Ok(())
    }

    /// Appends the rest at the end.
    pub(crate) fn finish(&mut self, output: &mut Vec<f32>) -> Result<(), AudioErrorKind> {
        let total = (u128::from(self.taken) * u128::from(self.to) + u128::from(self.from) / 2)
            / u128::from(self.from);
        // One or two samples must not round to none.
        let total = u64::try_from(total)
            .unwrap_or(u64::MAX)
            .max(u64::from(self.taken > 0));
        let chunk = self.fft.input_frames_next() * self.channels;
        while self.given < total {
            self.waiting.resize(chunk, 0.0);
            let before = output.len();
            self.resample(0..chunk, output)?;
            let surplus = self.given.saturating_sub(total);
            output.truncate(output.len() - surplus as usize * self.channels);
            self.given -= surplus;
            self.waiting.clear();
            debug_assert!(output.len() >= before, "no more than the chunk is cut off");
        }
        Ok(())
    }

    fn resample(
        &mut self,
        range: std::ops::Range<usize>,
        output: &mut Vec<f32>,
    ) -> Result<(), AudioErrorKind> {
        let frames_in = self.fft.input_frames_next();
        let frames_out = self.fft.output_frames_next();
        let input = InterleavedSlice::new(&self.waiting[range], self.channels, frames_in)
            .map_err(|e| unexpected(&e))?;
        let mut room = InterleavedSlice::new_mut(&mut self.chunk, self.channels, frames_out)
            .map_err(|e| unexpected(&e))?;
        let (_, given) = self
            .fft
            .process_into_buffer(&input, &mut room, None::<&Indexing>)
            .map_err(|e| unexpected(&e))?;
        let dropped = self.delay.min(given as u64);
        self.delay -= dropped;
        self.given += given as u64 - dropped;
        output.extend_from_slice(&self.chunk[dropped as usize * self.channels..given * self.channels]);
        Ok(())
    }
}

/// The fewest frames of the side with the lower rate. The filter is as long as a block, and this
/// length passes everything up to 97 % of half the lower rate.
const SHORTEST_BLOCK: usize = 1024;

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// The sizes come from the resampler itself, so this does not happen.
fn unexpected(error: &dyn std::fmt::Display) -> AudioErrorKind {
    AudioErrorKind::Damaged(format!("it could not be resampled: {error}"))
}
