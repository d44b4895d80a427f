//! The stage `audio_redact`: section 4.6 of the protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::{self, ConfigError};
use super::schema::{Kind, Schema, defaulted, required};
use super::status::{AnswerStatus, answer};
use super::validation::ValidationError;

/// The options of an `audio_redact` task.
///
/// ```
/// use dalston_engine_sdk::stage::{AudioRedactRequest, RedactionMode};
///
/// let config = serde_json::json!({"redaction_mode": "beep"});
/// let request = AudioRedactRequest::from_config(config.as_object().unwrap())?;
/// assert_eq!(request.redaction_mode, RedactionMode::Beep);
/// assert_eq!(request.buffer_ms, 50);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AudioRedactRequest {
    /// The sound in place of the personal data. Default: silence.
    pub redaction_mode: RedactionMode,
    /// How much audio before and after an entity is replaced, too, in milliseconds. Default: 50.
    pub buffer_ms: u32,
    /// The channel of the recording, if channels are processed separately.
    pub channel: Option<u32>,
}

impl AudioRedactRequest {
    /// Reads the options of a task. Unknown keys are ignored.
    ///
    /// # Errors
    ///
    /// If a value has the wrong type or is out of range. The error names the key and the accepted
    /// values.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ConfigError> {
        config::read(config, |config| {
            Ok(Self {
                redaction_mode: config
                    .one_of("redaction_mode", RedactionMode::NAMES)?
                    .unwrap_or_default(),
                buffer_ms: config.integer("buffer_ms", 0)?.unwrap_or(50),
                channel: config.integer("channel", 0)?,
            })
        })
    }
}

/// The sound in place of personal data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RedactionMode {
    /// Silence.
    #[default]
    Silence,
    /// A tone of 1 kHz.
    Beep,
}

impl RedactionMode {
    const NAMES: &'static [&'static str] = &["silence", "beep"];
}

/// The answer of the `audio_redact` stage.
///
/// The redacted file is also an output file of the task, with the kind `audio`, the role `redacted`
/// and the name `redacted_audio`, or `redacted_audio_ch{n}` for a channel.
///
/// ```
/// use dalston_engine_sdk::stage::{AudioRedactRequest, AudioRedaction, RedactedRange, StageOutput};
///
/// let request = AudioRedactRequest::from_config(&serde_json::Map::new())?;
/// let redaction = AudioRedaction::new("T:redacted_audio", &request)
///     .entities_redacted(1)
///     .redaction_map([RedactedRange::new(0.85, 1.35, ["name"])]);
/// assert_eq!(redaction.validate(), Ok(()));
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AudioRedaction {
    /// The id of the artifact with the redacted audio: `{task_id}:{name}` of the output file.
    pub redacted_audio_artifact_id: String,
    /// The sound in place of the personal data.
    pub redaction_mode: RedactionMode,
    /// How much audio before and after an entity was replaced, too, in milliseconds.
    pub buffer_ms: u32,
    /// The number of entities that are not audible any more.
    pub entities_redacted: u64,
    /// The replaced stretches of audio. One stretch may hold several entities.
    #[serde(default)]
    pub redaction_map: Vec<RedactedRange>,
    /// Whether the stage was skipped, and warnings.
    #[serde(flatten)]
    pub status: AnswerStatus,
}

impl AudioRedaction {
    /// A file in which nothing was replaced, with the options of the request.
    #[must_use]
    pub fn new(redacted_audio_artifact_id: impl Into<String>, request: &AudioRedactRequest) -> Self {
        Self {
            redacted_audio_artifact_id: redacted_audio_artifact_id.into(),
            redaction_mode: request.redaction_mode,
            buffer_ms: request.buffer_ms,
            entities_redacted: 0,
            redaction_map: Vec::new(),
            status: AnswerStatus::default(),
        }
    }

    /// Sets the number of entities that are not audible any more.
    #[must_use]
    pub fn entities_redacted(mut self, entities: u64) -> Self {
        self.entities_redacted = entities;
        self
    }

    /// Sets the replaced stretches of audio.
    #[must_use]
    pub fn redaction_map(mut self, ranges: impl IntoIterator<Item = RedactedRange>) -> Self {
        self.redaction_map = ranges.into_iter().collect();
        self
    }
}

/// A replaced stretch of audio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RedactedRange {
    /// The start in seconds.
    pub start_time: f64,
    /// The end in seconds.
    pub end_time: f64,
    /// The types of the entities in it, for example `iban`.
    pub entity_types: Vec<String>,
}

impl RedactedRange {
    /// A stretch from `start` to `end`, in seconds, with entities of these types.
    #[must_use]
    pub fn new<S: Into<String>>(start: f64, end: f64, entity_types: impl IntoIterator<Item = S>) -> Self {
        Self {
            start_time: start,
            end_time: end,
            entity_types: entity_types.into_iter().map(Into::into).collect(),
        }
    }
}

answer!(AudioRedaction, AudioRedact);

pub(super) static ANSWER: Schema = Schema {
    rule: count_and_map_agree,
    ..Schema::answer(&[
        required("redacted_audio_artifact_id", Kind::Name),
        required("redaction_mode", Kind::OneOf(RedactionMode::NAMES)),
        required("buffer_ms", Kind::Whole(0)),
        required("entities_redacted", Kind::Whole(0)),
        defaulted("redaction_map", Kind::List(&Kind::Object(&RANGE))),
    ])
};

/// The platform leaves the keys of a range to the engine. These are the ones of its own engine.
static RANGE: Schema = Schema {
    open: true,
    spans: &[("start_time", "end_time")],
    ..Schema::of(&[
        defaulted("start_time", Kind::Seconds),
        defaulted("end_time", Kind::Seconds),
    ])
};

fn count_and_map_agree(answer: &Map<String, Value>) -> Result<(), ValidationError> {
    let ranges = answer
        .get("redaction_map")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    match answer["entities_redacted"].as_f64() {
        Some(0.0) if ranges > 0 => Err(ValidationError::new(
            "entities_redacted",
            format!("is 0: expected at least 1, because redaction_map has {ranges} entries"),
        )),
        _ => Ok(()),
    }
}
