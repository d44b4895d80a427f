//! The answer of `transcribe`: section 3.5 of the protocol.

use serde::{Deserialize, Serialize};

use super::check::{each, optional_probability, probability, rounded_into_range, seconds};
use super::metadata::Metadata;
use super::output::{OutputDefaults, StageOutput};
use super::segment::Segment;
use super::timing::{AlignmentMethod, TimestampGranularity};
use super::validation::ValidationError;

/// The answer of the `transcribe` stage.
///
/// Times are seconds from the start of the recording. The runner checks the answer (see
/// [`validate`](StageOutput::validate)). An invalid field fails the task, because the platform
/// would refuse the whole transcript.
///
/// The runner fills in missing values of `engine_id`, `channel`, `duration`, `model_id` in the
/// metadata, and warnings about the recording.
///
/// ```
/// use dalston_engine_sdk::stage::{Segment, StageOutput, Transcript, Word};
///
/// let transcript = Transcript::from_segments([
///     Segment::new(0.2, 0.71, "five")
///         .words([Word::new(0.2, 0.71, "five").confidence(0.98)])
///         .avg_logprob(-0.11)
///         .no_speech_prob(0.02),
/// ])
/// .detected_language("en", 0.93);
///
/// assert_eq!(transcript.text, "five");
/// assert_eq!(transcript.validate(), Ok(()));
/// ```
#[doc(alias = "TaskOutput")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Transcript {
    /// Always `1`.
    #[serde(default)]
    pub schema_version: SchemaVersion,
    /// The whole text.
    pub text: String,
    /// The text in pieces with times, in order of their starts. May be empty.
    pub segments: Vec<Segment>,
    /// ISO 639-1 code, or `und` if it is not known. Never a guess.
    pub language: String,
    /// The confidence in the language, 0 to 1.
    #[serde(default)]
    pub language_confidence: Option<f64>,
    /// Whether the language was requested or detected.
    #[serde(default)]
    pub language_source: Option<LanguageSource>,
    /// All languages of a recording that has several.
    #[serde(default)]
    pub languages: Option<Vec<LanguageShare>>,
    /// The duration of the audio in seconds.
    #[serde(default)]
    pub duration: Option<f64>,
    /// The finest pieces that have times.
    #[serde(default)]
    pub timestamp_granularity: TimestampGranularity,
    /// The method that found the times.
    #[serde(default)]
    pub alignment_method: AlignmentMethod,
    /// The id of the engine. The runner fills it in.
    pub engine_id: String,
    /// The channel of the recording, if channels are transcribed separately. The runner fills it
    /// in.
    #[serde(default)]
    pub channel: Option<u32>,
    /// Warnings for the user, for example the reason for an empty text. They reach the final
    /// transcript.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Facts without a field of their own, for example `model_id`.
    #[serde(default)]
    pub metadata: Metadata,
}

impl Transcript {
    /// A transcript in an unknown language (`und`).
    ///
    /// The granularity is [`Word`](TimestampGranularity::Word) if a segment has words, else
    /// [`Segment`](TimestampGranularity::Segment).
    #[must_use]
    pub fn new(text: impl Into<String>, segments: impl IntoIterator<Item = Segment>) -> Self {
        let segments: Vec<_> = segments.into_iter().collect();
        let has_words = segments
            .iter()
            .any(|segment| segment.words.as_ref().is_some_and(|words| !words.is_empty()));
        Self {
            schema_version: SchemaVersion::V1,
            text: text.into(),
            segments,
            language: UNKNOWN_LANGUAGE.to_owned(),
            language_confidence: None,
            language_source: None,
            languages: None,
            duration: None,
            timestamp_granularity: if has_words {
                TimestampGranularity::Word
            } else {
                TimestampGranularity::Segment
            },
            alignment_method: AlignmentMethod::Unknown,
            engine_id: String::new(),
            channel: None,
            warnings: Vec::new(),
            metadata: Metadata::new(),
        }
    }

    /// A transcript whose text is that of its segments, trimmed and with a space between two.
    #[must_use]
    pub fn from_segments(segments: impl IntoIterator<Item = Segment>) -> Self {
        let segments: Vec<_> = segments.into_iter().collect();
        let texts = segments
            .iter()
            .map(|segment| segment.text.trim())
            .filter(|text| !text.is_empty());
        let text = texts.collect::<Vec<_>>().join(" ");
        Self::new(text, segments)
    }

    /// Sets a language that was requested.
    #[must_use]
    pub fn requested_language(mut self, code: impl AsRef<str>) -> Self {
        self.set_language(code.as_ref());
        self.language_source = Some(LanguageSource::Requested);
        self
    }

    /// Sets a language that the engine detected, and its confidence, 0 to 1.
    #[must_use]
    pub fn detected_language(mut self, code: impl AsRef<str>, confidence: f64) -> Self {
        self.set_language(code.as_ref());
        self.language_source = Some(LanguageSource::Detected);
        self.language_confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the languages of a recording that has several.
    #[must_use]
    pub fn languages(mut self, languages: impl IntoIterator<Item = LanguageShare>) -> Self {
        self.languages = Some(languages.into_iter().collect());
        self
    }

    /// Sets the duration of the audio in seconds.
    #[must_use]
    pub fn duration(mut self, seconds: f64) -> Self {
        self.duration = Some(seconds);
        self
    }

    /// Sets the finest pieces that have times.
    #[must_use]
    pub fn timestamp_granularity(mut self, granularity: TimestampGranularity) -> Self {
        self.timestamp_granularity = granularity;
        self
    }

    /// Sets the method that found the times.
    #[must_use]
    pub fn alignment_method(mut self, method: AlignmentMethod) -> Self {
        self.alignment_method = method;
        self
    }

    /// Sets the channel of the recording.
    #[must_use]
    pub fn channel(mut self, channel: u32) -> Self {
        self.channel = Some(channel);
        self
    }

    /// Adds a warning for the user.
    #[must_use]
    pub fn warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }

    /// Adds a fact without a field of its own.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.metadata.insert(name, value);
        self
    }

    fn set_language(&mut self, code: &str) {
        let code = code.trim();
        self.language = if code.is_empty() {
            UNKNOWN_LANGUAGE.to_owned()
        } else {
            code.to_lowercase()
        };
    }
}

impl StageOutput for Transcript {
    fn fill_in(&mut self, defaults: &OutputDefaults<'_>) {
        if self.engine_id.is_empty() {
            defaults.engine_id.clone_into(&mut self.engine_id);
        }
        self.channel = self.channel.or(defaults.channel);
        self.duration = self.duration.or(defaults.duration);
        for warning in defaults.warnings {
            if !self.warnings.contains(warning) {
                self.warnings.push(warning.clone());
            }
        }
        if let Some(model_id) = defaults.model_id
            && self.metadata.get("model_id").is_none()
        {
            self.metadata.insert("model_id", model_id);
        }
    }

    /// Checks what the types can't ensure.
    ///
    /// - every time is a finite number, not negative, and no piece ends before it starts;
    /// - segments, the words of a segment and the characters and phonemes of a word are in order of
    ///   their starts (they may overlap);
    /// - every probability and confidence is from 0 to 1;
    /// - every language has a code, and no more than one of `languages` is the primary one;
    /// - JSON can represent all values of the metadata.
    fn validate(&self) -> Result<(), ValidationError> {
        if self.language.is_empty() {
            return Err(ValidationError::new(
                "language",
                "is empty: expected an ISO 639-1 code, or und",
            ));
        }
        optional_probability("language_confidence", self.language_confidence)?;
        for (index, share) in self.languages.iter().flatten().enumerate() {
            share
                .validate()
                .map_err(|error| error.within(format_args!("languages[{index}]")))?;
        }
        if self
            .languages
            .iter()
            .flatten()
            .filter(|share| share.is_primary)
            .count()
            > 1
        {
            return Err(ValidationError::new(
                "languages",
                "has more than one primary language: expected one",
            ));
        }
        if let Some(duration) = self.duration {
            seconds("duration", duration)?;
        }
        self.metadata
            .validate()
            .map_err(|error| error.within("metadata"))?;
        each(
            "segments",
            &self.segments,
            |segment| segment.start,
            Segment::validate,
        )
    }

    fn language(&self) -> Option<&str> {
        known_language(&self.language)
    }
}

/// One of several languages in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LanguageShare {
    /// ISO 639-1 code.
    pub code: String,
    /// The confidence in it, 0 to 1.
    pub confidence: f64,
    /// Whether it is the main one.
    pub is_primary: bool,
}

impl LanguageShare {
    /// A language beside the main one, with a confidence from 0 to 1.
    #[must_use]
    pub fn new(code: impl Into<String>, confidence: f64) -> Self {
        Self {
            code: code.into(),
            confidence: rounded_into_range(confidence),
            is_primary: false,
        }
    }

    /// Makes it the main one.
    #[must_use]
    pub fn primary(mut self) -> Self {
        self.is_primary = true;
        self
    }

    fn validate(&self) -> Result<(), ValidationError> {
        if self.code.is_empty() {
            return Err(ValidationError::new(
                "code",
                "is empty: expected an ISO 639-1 code",
            ));
        }
        probability("confidence", self.confidence)
    }
}

/// The version of the format of transcripts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SchemaVersion {
    /// The format described here.
    #[default]
    #[serde(rename = "1")]
    V1,
}

/// The source of the language of a transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LanguageSource {
    /// The request named the language.
    Requested,
    /// The engine detected the language.
    Detected,
}

pub(super) fn known_language(code: &str) -> Option<&str> {
    (code != UNKNOWN_LANGUAGE).then_some(code)
}

/// The code of a language that is not known.
const UNKNOWN_LANGUAGE: &str = "und";
