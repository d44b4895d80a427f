//! The stage `pii_detect`: section 4.5 of the protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::rounded_into_range;
use super::config::{self, ConfigError, model_id};
use super::schema::{Kind, Schema, defaulted, optional, required};
use super::status::{AnswerStatus, answer};
use super::validation::ValidationError;

/// The options of a `pii_detect` task.
///
/// ```
/// use dalston_engine_sdk::stage::PiiDetectRequest;
///
/// let config = serde_json::json!({"entity_types": ["iban"], "post_processing": true});
/// let request = PiiDetectRequest::from_config(config.as_object().unwrap())?;
/// assert_eq!(request.entity_types, Some(vec!["iban".to_owned()]));
/// assert_eq!(request.confidence_threshold, 0.5);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PiiDetectRequest {
    /// The model. `None`: the default of the engine.
    pub loaded_model_id: Option<String>,
    /// The types of entities to find, for example `iban`. `None`: the default of the engine.
    pub entity_types: Option<Vec<String>>,
    /// The smallest confidence of an entity in the answer, 0 to 1. Default: 0.5.
    pub confidence_threshold: f64,
}

impl PiiDetectRequest {
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
                entity_types: config.texts("entity_types")?,
                confidence_threshold: config.number("confidence_threshold", 0.0..=1.0)?.unwrap_or(0.5),
            })
        })
    }
}

/// The answer of the `pii_detect` stage: the personal data in a transcript.
///
/// ```
/// use dalston_engine_sdk::stage::{PiiCategory, PiiDetection, PiiEntity, StageOutput};
///
/// let name = PiiEntity::new("name", PiiCategory::Pii, "Ada")
///     .offsets(11, 14)
///     .times(0.9, 1.3)
///     .confidence(0.97)
///     .redacted_value("[NAME]");
/// let detection = PiiDetection::new("My name is [NAME].", [name]);
/// assert_eq!(detection.entity_count_by_type["name"], 1);
/// assert_eq!(detection.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PiiDetection {
    /// The entities.
    pub entities: Vec<PiiEntity>,
    /// The text of the transcript with the redacted values in place of the entities.
    pub redacted_text: String,
    /// The number of entities of each type.
    #[serde(default)]
    pub entity_count_by_type: BTreeMap<String, u64>,
    /// The number of entities of each category.
    #[serde(default)]
    pub entity_count_by_category: BTreeMap<String, u64>,
    /// How long the detection took, in milliseconds.
    pub processing_time_ms: u64,
    /// Whether the stage was skipped, and warnings.
    #[serde(flatten)]
    pub status: AnswerStatus,
}

impl PiiDetection {
    /// The entities with their counts, and the text without them. The processing time is 0.
    #[must_use]
    pub fn new(redacted_text: impl Into<String>, entities: impl IntoIterator<Item = PiiEntity>) -> Self {
        let entities: Vec<_> = entities.into_iter().collect();
        let count = |key: fn(&PiiEntity) -> &str| {
            let mut counts = BTreeMap::new();
            for entity in &entities {
                *counts.entry(key(entity).to_owned()).or_default() += 1;
            }
            counts
        };
        Self {
            entity_count_by_type: count(|entity| &entity.entity_type),
            entity_count_by_category: count(|entity| entity.category.as_str()),
            entities,
            redacted_text: redacted_text.into(),
            processing_time_ms: 0,
            status: AnswerStatus::default(),
        }
    }

    /// Sets how long the detection took.
    #[must_use]
    pub fn processing_time(mut self, time: Duration) -> Self {
        self.processing_time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self
    }
}

/// A piece of personal data in a transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PiiEntity {
    /// Its type, for example `credit_card_number`.
    pub entity_type: String,
    /// Its category.
    pub category: PiiCategory,
    /// The number of characters of the text before it.
    pub start_offset: u64,
    /// The number of characters of the text up to its end.
    pub end_offset: u64,
    /// The start in the recording, in seconds.
    pub start_time: f64,
    /// The end in the recording, in seconds.
    pub end_time: f64,
    /// The confidence in it, 0 to 1.
    pub confidence: f64,
    /// The id of the speaker, if the recording was diarized.
    #[serde(default)]
    pub speaker: Option<String>,
    /// The text that replaces it, for example `****7890`.
    pub redacted_value: String,
    /// Its own text.
    pub original_text: String,
}

impl PiiEntity {
    /// An entity with this text, at the start of text and recording, with confidence 1 and the
    /// redacted value `[REDACTED]`.
    #[must_use]
    pub fn new(
        entity_type: impl Into<String>,
        category: PiiCategory,
        original_text: impl Into<String>,
    ) -> Self {
        Self {
            entity_type: entity_type.into(),
            category,
            start_offset: 0,
            end_offset: 0,
            start_time: 0.0,
            end_time: 0.0,
            confidence: 1.0,
            speaker: None,
            redacted_value: "[REDACTED]".to_owned(),
            original_text: original_text.into(),
        }
    }

    /// Sets the place in the text: the numbers of characters (not bytes) before it, and up to its
    /// end.
    #[must_use]
    pub fn offsets(mut self, start: u64, end: u64) -> Self {
        (self.start_offset, self.end_offset) = (start, end);
        self
    }

    /// Sets the place in the recording, in seconds.
    #[must_use]
    pub fn times(mut self, start: f64, end: f64) -> Self {
        (self.start_time, self.end_time) = (start, end);
        self
    }

    /// Sets the confidence in it, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = rounded_into_range(confidence);
        self
    }

    /// Sets the id of the speaker.
    #[must_use]
    pub fn speaker(mut self, speaker: impl Into<String>) -> Self {
        self.speaker = Some(speaker.into());
        self
    }

    /// Sets the text that replaces it.
    #[must_use]
    pub fn redacted_value(mut self, text: impl Into<String>) -> Self {
        self.redacted_value = text.into();
        self
    }
}

/// The categories of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PiiCategory {
    /// About a person: names, addresses, numbers of documents.
    Pii,
    /// About payments: numbers of cards and accounts.
    Pci,
    /// About health.
    Phi,
}

impl PiiCategory {
    const NAMES: &'static [&'static str] = &["pii", "pci", "phi"];

    /// The name in the documents of the platform.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pii => "pii",
            Self::Pci => "pci",
            Self::Phi => "phi",
        }
    }
}

answer!(PiiDetection, PiiDetect);

pub(super) static ANSWER: Schema = Schema {
    rule: counts_agree,
    ..Schema::answer(&[
        required("entities", Kind::List(&Kind::Object(&ENTITY))),
        required("redacted_text", Kind::Text),
        defaulted("entity_count_by_type", Kind::Counts),
        defaulted("entity_count_by_category", Kind::Counts),
        required("processing_time_ms", Kind::Whole(0)),
    ])
};

static ENTITY: Schema = Schema {
    spans: &[("start_offset", "end_offset"), ("start_time", "end_time")],
    ..Schema::of(&[
        required("entity_type", Kind::Text),
        required("category", Kind::OneOf(PiiCategory::NAMES)),
        required("start_offset", Kind::Whole(0)),
        required("end_offset", Kind::Whole(0)),
        required("start_time", Kind::Seconds),
        required("end_time", Kind::Seconds),
        required("confidence", Kind::Share),
        optional("speaker", Kind::Text),
        required("redacted_value", Kind::Text),
        required("original_text", Kind::Text),
    ])
};

/// Counts may be left out as a whole. Otherwise they are those of the entities.
fn counts_agree(answer: &Map<String, Value>) -> Result<(), ValidationError> {
    for (counts, key) in [
        ("entity_count_by_type", "entity_type"),
        ("entity_count_by_category", "category"),
    ] {
        let mut left: BTreeMap<&str, f64> = BTreeMap::new();
        for entity in answer["entities"].as_array().into_iter().flatten() {
            *left.entry(entity[key].as_str().unwrap_or_default()).or_default() += 1.0;
        }
        let given = answer.get(counts).and_then(Value::as_object);
        let Some(given) = given.filter(|given| !given.is_empty()) else {
            continue;
        };
        for (name, count) in given {
            let entities = left.remove(name.as_str()).unwrap_or_default();
            if count.as_f64() != Some(entities) {
                let problem =
                    format!("is {count}: expected the number of such entities, which is {entities}");
                return Err(ValidationError::new(format!("{counts}.{name}"), problem));
            }
        }
        if let Some((name, entities)) = left.pop_first() {
            let problem = format!("is missing: expected the number of such entities, which is {entities}");
            return Err(ValidationError::new(format!("{counts}.{name}"), problem));
        }
    }
    Ok(())
}
