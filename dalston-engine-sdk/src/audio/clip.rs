//! Decoded audio: [`Audio`].

use std::borrow::Cow;
use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use super::error::{AudioError, AudioErrorKind};
use super::format::{AudioFormat, HIGHEST_SAMPLE_RATE};
use super::store::Store;

/// Decoded audio in the requested format. Cheap to clone and safe to share between threads.
///
/// Samples are `f32` from -1 to 1. Resampling and floating point files may exceed that a little.
/// Several channels are interleaved: one sample of every channel, then the next ones. Lengths and
/// positions are in frames, that is samples per channel.
///
/// ```
/// use dalston_engine_sdk::audio::{Audio, AudioFormat};
///
/// let audio = Audio::from_samples(vec![0.0; 16_000], AudioFormat::MONO_16K);
/// assert_eq!(audio.duration().as_secs_f64(), 1.0);
/// assert_eq!(audio.read(15_000..)?.len(), 1_000);
/// # Ok::<(), dalston_engine_sdk::audio::AudioError>(())
/// ```
#[derive(Clone)]
pub struct Audio {
    name: Arc<str>,
    format: AudioFormat,
    store: Store,
    warnings: Arc<[String]>,
}

impl Audio {
    /// Audio from samples in memory, for tests and for engines that generate audio.
    ///
    /// Samples of several channels are interleaved. An incomplete frame at the end is ignored.
    #[must_use]
    pub fn from_samples(samples: impl Into<Vec<f32>>, format: AudioFormat) -> Self {
        let format = format.clamped();
        let mut samples = samples.into();
        samples.truncate(samples.len() - samples.len() % usize::from(format.channels));
        Self::new("audio", format, Store::Memory(samples.into()), Vec::new())
    }

    pub(super) fn new(name: &str, format: AudioFormat, store: Store, warnings: Vec<String>) -> Self {
        Self {
            name: name.into(),
            format,
            store,
            warnings: warnings.into(),
        }
    }

    /// The number of frames, that is samples per channel.
    #[must_use]
    pub fn len(&self) -> usize {
        // A store in memory fits into `usize`, and a spooled one stays below the decoder's limit on
        // the duration.
        usize::try_from(self.frames()).unwrap_or(usize::MAX)
    }

    /// Whether there are no samples. Never true for a decoded file, because a file without audio is
    /// an error.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames() == 0
    }

    /// The duration.
    #[must_use]
    pub fn duration(&self) -> Duration {
        debug_assert!(self.format.sample_rate <= HIGHEST_SAMPLE_RATE);
        Duration::from_secs_f64(self.frames() as f64 / f64::from(self.format.sample_rate))
    }

    /// The requested format.
    #[must_use]
    pub fn format(&self) -> AudioFormat {
        self.format
    }

    /// Samples per second and channel.
    #[must_use]
    pub fn sample_rate(&self) -> u32 {
        self.format.sample_rate
    }

    /// Problems of the file that did not prevent decoding. The runner adds them to the warnings of
    /// a transcript.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// All samples, if they are in memory: by default up to ten minutes.
    #[must_use]
    pub fn in_memory(&self) -> Option<&[f32]> {
        match &self.store {
            Store::Memory(samples) => Some(samples),
            Store::Spooled { .. } => None,
        }
    }

    /// The samples of a range of frames. Frames beyond the end are ignored.
    ///
    /// They are borrowed if the audio is in memory, else read from the temporary file: read no more
    /// than needed at a time.
    ///
    /// # Errors
    ///
    /// If the temporary file can't be read.
    pub fn read(&self, frames: impl RangeBounds<usize>) -> Result<Cow<'_, [f32]>, AudioError> {
        let channels = u64::from(self.format.channels);
        let range = self.clip(frames);
        let range = range.start * channels..range.end * channels;
        self.store
            .read(range)
            .map_err(|error| AudioError::new(&*self.name, AudioErrorKind::Spool(error)))
    }

    /// The whole audio in pieces of `frames`, in order. The last piece may be shorter. 0 counts as
    /// 1.
    #[must_use]
    pub fn windows(&self, frames: usize) -> Windows<'_> {
        Windows {
            audio: self,
            next: 0,
            frames: frames.max(1),
        }
    }

    fn frames(&self) -> u64 {
        self.store.len() / u64::from(self.format.channels)
    }

    fn clip(&self, frames: impl RangeBounds<usize>) -> Range<u64> {
        let start = match frames.start_bound() {
            Bound::Included(&start) => start as u64,
            Bound::Excluded(&start) => (start as u64).saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match frames.end_bound() {
            Bound::Included(&end) => (end as u64).saturating_add(1),
            Bound::Excluded(&end) => end as u64,
            Bound::Unbounded => u64::MAX,
        };
        let start = start.min(self.frames());
        start..end.clamp(start, self.frames())
    }
}

impl fmt::Debug for Audio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audio")
            .field("name", &self.name)
            .field("format", &self.format)
            .field("duration", &self.duration())
            .field("spooled", &self.in_memory().is_none())
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// The pieces of an audio, see [`Audio::windows`].
#[derive(Debug, Clone)]
pub struct Windows<'a> {
    audio: &'a Audio,
    next: usize,
    frames: usize,
}

impl<'a> Iterator for Windows<'a> {
    type Item = Result<Cow<'a, [f32]>, AudioError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.audio.len() {
            return None;
        }
        let start = self.next;
        self.next = start.saturating_add(self.frames);
        Some(self.audio.read(start..self.next))
    }
}
