//! The stage `align`: section 4.3 of the protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::aligned::{self, SEGMENT};
use super::check::{each, rounded_into_range};
use super::config::{self, ConfigError, model_id};
use super::schema::{Kind, Schema, defaulted, optional, required};
use super::segment::Segment;
use super::status::{AnswerStatus, answer};
use super::timing::TimestampGranularity;
use super::transcript::{Transcript, known_language};

/// The options of an `align` task.
///
/// ```
/// use dalston_engine_sdk::stage::{AlignRequest, TimestampGranularity};
///
/// let config = serde_json::json!({"return_char_alignments": true, "word_timestamps": true});
/// let request = AlignRequest::from_config(config.as_object().unwrap())?;
/// assert!(request.return_char_alignments);
/// assert_eq!(request.target_granularity, TimestampGranularity::Word);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AlignRequest {
    /// The model. `None`: the default of the engine.
    pub loaded_model_id: Option<String>,
    /// The finest pieces that must have times. Default: words.
    pub target_granularity: TimestampGranularity,
    /// The quality below which segments are aligned again, 0 to 1.
    pub realign_if_quality_below: Option<f64>,
    /// Whether words must have their characters. Default: no.
    pub return_char_alignments: bool,
    /// Whether words must have their phonemes. Default: no.
    pub return_phoneme_alignments: bool,
}

impl AlignRequest {
    /// Reads the options of a task. Unknown keys are ignored.
    ///
    /// # Errors
    ///
    /// If a value has the wrong type or is out of range. The error names the key and the accepted
    /// values.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ConfigError> {
        config::read(config, |config| {
            Ok(Self {
                loaded_model_id: model_id(config)?,
                target_granularity: config
                    .one_of("target_granularity", TimestampGranularity::NAMES)?
                    .unwrap_or(TimestampGranularity::Word),
                realign_if_quality_below: config.number("realign_if_quality_below", 0.0..=1.0)?,
                return_char_alignments: config.boolean("return_char_alignments")?.unwrap_or(false),
                return_phoneme_alignments: config.boolean("return_phoneme_alignments")?.unwrap_or(false),
            })
        })
    }
}

/// The answer of the `align` stage: a transcript whose words have times.
///
/// The platform has no place here for facts about words, for facts about segments that have no
/// method at [`Segment`], and for [`Segment::language_confidence`]: they are left out.
///
/// ```
/// use dalston_engine_sdk::stage::{Alignment, AlignmentMethod, StageOutput};
/// use dalston_engine_sdk::{Segment, Transcript, Word};
///
/// let segment = Segment::new(0.0, 1.0, "seven three");
/// let transcript = Transcript::from_segments([segment]).requested_language("en");
/// let words = [Word::new(0.1, 0.5, "seven"), Word::new(0.5, 0.9, "three")]
///     .map(|word| word.alignment_method(AlignmentMethod::Ctc));
/// let segments = transcript.segments.iter().map(|segment| segment.clone().words(words.clone()));
///
/// let alignment = Alignment::of(&transcript, segments).alignment_confidence(0.93);
/// assert!(alignment.word_timestamps);
/// assert_eq!(alignment.text, "seven three");
/// assert_eq!(alignment.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Alignment {
    /// The segments, in order of their starts.
    #[serde(with = "aligned")]
    pub segments: Vec<Segment>,
    /// The whole text.
    pub text: String,
    /// ISO 639-1 code, or `und` if it is not known.
    pub language: String,
    /// Whether words have times.
    #[serde(default)]
    pub word_timestamps: bool,
    /// The quality of the whole, 0 to 1.
    #[serde(default)]
    pub alignment_confidence: Option<f64>,
    /// The words without times.
    #[serde(default)]
    pub unaligned_words: Vec<String>,
    /// The part of the words without times, 0 to 1.
    #[serde(default)]
    pub unaligned_ratio: f64,
    /// The finest pieces that have times.
    #[serde(default = "words")]
    pub granularity_achieved: TimestampGranularity,
    /// Whether the stage was skipped, and warnings.
    #[serde(flatten)]
    pub status: AnswerStatus,
}

impl Alignment {
    /// The segments of this transcript with new times. Its text and language stay.
    ///
    /// The granularity is [`Word`](TimestampGranularity::Word) if a segment has words, else
    /// [`Segment`](TimestampGranularity::Segment).
    #[must_use]
    pub fn of(transcript: &Transcript, segments: impl IntoIterator<Item = Segment>) -> Self {
        let new = Transcript::new(transcript.text.as_str(), segments);
        Self {
            segments: new.segments,
            text: new.text,
            language: transcript.language.clone(),
            word_timestamps: new.timestamp_granularity == TimestampGranularity::Word,
            alignment_confidence: None,
            unaligned_words: Vec::new(),
            unaligned_ratio: 0.0,
            granularity_achieved: new.timestamp_granularity,
            status: AnswerStatus::default(),
        }
    }

    /// Sets the quality of the whole, 0 to 1.
    #[must_use]
    pub fn alignment_confidence(mut self, confidence: f64) -> Self {
        self.alignment_confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the words without times, and the part of all words that they are, 0 to 1.
    #[must_use]
    pub fn unaligned<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>, ratio: f64) -> Self {
        self.unaligned_words = words.into_iter().map(Into::into).collect();
        self.unaligned_ratio = rounded_into_range(ratio);
        self
    }

    /// Sets the finest pieces that have times.
    #[must_use]
    pub fn granularity_achieved(mut self, granularity: TimestampGranularity) -> Self {
        self.granularity_achieved = granularity;
        self
    }
}

/// The granularity of an answer that names none.
fn words() -> TimestampGranularity {
    TimestampGranularity::Word
}

answer!(
    Alignment,
    Align,
    // The metadata keeps what it refused to itself: it has no place in the JSON.
    own = |answer| each(
        "segments",
        &answer.segments,
        |segment| segment.start,
        Segment::validate
    ),
    fn language(&self) -> Option<&str> {
        known_language(&self.language)
    }
);

pub(super) static ANSWER: Schema = Schema::answer(&[
    required("segments", Kind::Ordered(&SEGMENT)),
    required("text", Kind::Text),
    required("language", Kind::Text),
    defaulted("word_timestamps", Kind::Flag),
    optional("alignment_confidence", Kind::Share),
    defaulted("unaligned_words", Kind::List(&Kind::Text)),
    defaulted("unaligned_ratio", Kind::Share),
    defaulted("granularity_achieved", Kind::OneOf(TimestampGranularity::NAMES)),
]);
