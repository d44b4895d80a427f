//! Audio files and stretches of speech: [`AudioMedia`] and [`SpeechRegion`].

use serde::{Deserialize, Serialize};

use super::check::rounded_into_range;
use super::schema::{Kind, Schema, optional, required};

/// An audio file among the artifacts of a job.
///
/// ```
/// use dalston_engine_sdk::stage::AudioMedia;
///
/// let media = AudioMedia::new("T:prepared_audio", "wav", 2.44, 16_000, 1).bit_depth(16);
/// assert_eq!(media.sample_rate, 16_000);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AudioMedia {
    /// The id of the artifact. That of an output file is `{task_id}:{name}`.
    pub artifact_id: String,
    /// The format, for example `wav` or `mp3`.
    pub format: String,
    /// The duration in seconds.
    pub duration: f64,
    /// The sample rate in Hz, at least 1.
    pub sample_rate: u32,
    /// The number of channels, at least 1.
    pub channels: u32,
    /// Bits of a sample. `None` for lossy formats.
    #[serde(default)]
    pub bit_depth: Option<u32>,
}

impl AudioMedia {
    /// A file with this duration in seconds and this sample rate in Hz.
    #[must_use]
    pub fn new(
        artifact_id: impl Into<String>,
        format: impl Into<String>,
        duration: f64,
        sample_rate: u32,
        channels: u32,
    ) -> Self {
        Self {
            artifact_id: artifact_id.into(),
            format: format.into(),
            duration,
            sample_rate,
            channels,
            bit_depth: None,
        }
    }

    /// Sets the bits of a sample.
    #[must_use]
    pub fn bit_depth(mut self, bits: u32) -> Self {
        self.bit_depth = Some(bits);
        self
    }
}

/// A stretch of the recording with speech.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SpeechRegion {
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The confidence in it, 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
}

impl SpeechRegion {
    /// A stretch from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(start: f64, end: f64) -> Self {
        Self {
            start,
            end,
            confidence: None,
        }
    }

    /// Sets the confidence in it, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }
}

pub(super) static MEDIA: Schema = Schema::of(&[
    required("artifact_id", Kind::Name),
    required("format", Kind::Text),
    required("duration", Kind::Seconds),
    required("sample_rate", Kind::Whole(1)),
    required("channels", Kind::Whole(1)),
    optional("bit_depth", Kind::Whole(1)),
]);

pub(super) static REGION: Schema = Schema::piece(&[
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
]);
