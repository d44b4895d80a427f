//! What a transcription reads, reports to, and returns.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;

use crate::options::Options;

/// Samples of any length at the model's rate, one channel, read piece by piece.
pub trait Samples {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples in `range`, which lies within [`len`](Self::len).
    ///
    /// # Errors
    /// When reading fails.
    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>>;
}

impl Samples for [f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>> {
        self.get(range)
            .map(Cow::Borrowed)
            .ok_or_else(|| "range beyond the samples".into())
    }
}

impl<S: Samples + ?Sized> Samples for &S {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>> {
        (**self).read(range)
    }
}

/// A recording of several that are transcribed at once.
pub struct Recording<'a> {
    /// Its samples.
    pub samples: Box<dyn Samples + 'a>,
    /// How to transcribe it.
    pub options: Options,
    /// Observes and can stop it.
    pub observer: Box<dyn Observer + 'a>,
    /// The parent of its spans.
    pub span: tracing::Span,
}

impl fmt::Debug for Recording<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("samples", &self.samples.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Observes and can stop a transcription.
pub trait Observer {
    /// Whether to continue. Called before each window and each step of the decoder.
    fn keep_going(&mut self) -> bool {
        true
    }

    /// Reports the transcribed fraction of the recording, 0 to 1.
    fn advanced(&mut self, _fraction: f32) {}
}

impl<O: Observer + ?Sized> Observer for &mut O {
    fn keep_going(&mut self) -> bool {
        (**self).keep_going()
    }

    fn advanced(&mut self, fraction: f32) {
        (**self).advanced(fraction);
    }
}

/// Ignores progress and never stops.
impl Observer for () {}

/// A transcribed recording.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Transcription {
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// Language code; `None` if none was given and the recording has no speech to detect it from.
    pub language: Option<String>,
    /// Probability of the detected language; `None` if it was given.
    pub language_probability: Option<f64>,
    /// Seconds of the recording.
    pub duration: f64,
    /// Start and end of the parts of speech in seconds; `None` unless
    /// [`vad_filter`](crate::Options::vad_filter) is on.
    pub speech: Option<Vec<(f64, f64)>>,
    /// Number of decoded windows.
    pub windows: usize,
    /// Warnings for the reader of the transcript.
    pub warnings: Vec<String>,
}

impl Transcription {
    /// The text of all segments.
    #[must_use]
    pub fn text(&self) -> String {
        self.segments
            .iter()
            .map(|segment| segment.text.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A part of a transcript.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Segment {
    /// Start, in seconds from the start of the recording.
    pub start: f64,
    /// End, in seconds from the start of the recording.
    pub end: f64,
    /// The text, stripped.
    pub text: String,
    /// Token ids, timestamps included.
    pub tokens: Vec<i64>,
    /// The window's: see [`Hypothesis::avg_logprob`](crate::Hypothesis::avg_logprob).
    pub avg_logprob: f64,
    /// The window's: see [`Hypothesis::no_speech_prob`](crate::Hypothesis::no_speech_prob).
    pub no_speech_prob: f64,
    /// The window's: see [`compression_ratio`](crate::compression_ratio).
    pub compression_ratio: f64,
    /// The temperature that the window was decoded at.
    pub temperature: f64,
    /// The words with their times; `None` unless
    /// [`word_timestamps`](crate::Options::word_timestamps) is on.
    pub words: Option<Vec<Word>>,
}

/// A word with its times.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// The word with its punctuation, and with the blank before it.
    pub text: String,
    /// Start, in seconds from the start of the recording.
    pub start: f64,
    /// End, in seconds from the start of the recording.
    pub end: f64,
    /// The mean probability of its tokens.
    pub probability: f64,
}
