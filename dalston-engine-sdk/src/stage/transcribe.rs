//! The request of `transcribe`: section 4.1 of the protocol.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{ConfigError, model_id};
use super::timing::TimestampGranularity;
use crate::protocol::json::{Object, Wrong};

/// The options of a `transcribe` task.
///
/// ```
/// use dalston_engine_sdk::stage::TranscribeRequest;
///
/// let config = serde_json::json!({"language": "auto", "beam_size": 5, "temperature": [0.0, 0.2]});
/// let request = TranscribeRequest::from_config(config.as_object().unwrap())?;
/// assert_eq!(request.language, None);
/// assert_eq!(request.beam_size, Some(5));
/// assert_eq!(request.temperature, [0.0, 0.2]);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TranscribeRequest {
    /// The model. `None`: the default of the engine.
    pub loaded_model_id: Option<String>,
    /// The channel of the recording, if channels are transcribed separately.
    pub channel: Option<u32>,
    /// The language, in lower case. `None`: detect it. The platform writes `auto` for that.
    pub language: Option<String>,
    /// Whether to transcribe or to translate. Default: transcribe.
    pub task: TranscribeTask,
    /// The text before the audio, or expected words.
    pub prompt: Option<String>,
    /// The finest pieces that must have times. Default: words.
    pub timestamp_granularity: TimestampGranularity,
    /// Whether words must have times, if the request says so. Batch jobs of the platform never do;
    /// see [`wants_words`](Self::wants_words).
    pub word_timestamps: Option<bool>,
    /// Expected words, at most 100.
    pub vocabulary: Option<Vec<String>>,
    /// The chunking strategy of an OpenAI client for long audio.
    pub chunking_strategy: Option<Map<String, Value>>,
    /// Whether the answer must have log probabilities. Default: no.
    pub include_transcription_logprobs: bool,
    /// Tokens that must not appear.
    pub suppress_tokens: Option<Vec<String>>,
    /// Whether the text may not start with a blank. Default: yes.
    pub suppress_blank: bool,
    /// Whether to leave out audio without speech. Default: yes.
    pub vad_filter: bool,
    /// Sampling temperatures from 0 to 1, tried in order. Never empty. Default: 0, which is greedy
    /// or beam search.
    pub temperature: Vec<f64>,
    /// The width of the beam search, at least 1.
    pub beam_size: Option<u32>,
    /// How many pieces of speech to process in one batch, at least 1.
    pub vad_batch_size: Option<u32>,
    /// How many candidates to sample if the temperature is not 0, at least 1.
    pub best_of: Option<u32>,
    /// The ignored keys of the configuration, for the logs or the warnings of the transcript.
    pub warnings: Vec<String>,
}

impl TranscribeRequest {
    /// Reads the options of a task.
    ///
    /// Unknown keys are ignored with a warning, except those that start with `_`: programs of the
    /// platform leave them for each other.
    ///
    /// # Errors
    ///
    /// If a value has the wrong type or is out of range. The error names the key and the accepted
    /// values.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ConfigError> {
        Self::from_config_with(config, &[])
    }

    /// Reads the options of a task for an engine with further keys, which cause no warning.
    ///
    /// # Errors
    ///
    /// As [`from_config`](Self::from_config).
    pub fn from_config_with(config: &Map<String, Value>, more_keys: &[&str]) -> Result<Self, ConfigError> {
        Ok(Self::read(config, more_keys)?)
    }

    /// Whether the answer must have the times of words.
    ///
    /// This is `true` unless the configuration says otherwise: batch jobs do not pass requests for
    /// a coarser answer to their engines, and the platform removes the times that a client did not
    /// request.
    #[must_use]
    pub fn wants_words(&self) -> bool {
        self.word_timestamps
            .unwrap_or(self.timestamp_granularity >= TimestampGranularity::Word)
    }

    fn read(config: &Map<String, Value>, more_keys: &[&str]) -> Result<Self, Wrong> {
        let mut config = Object::new("", Value::Object(config.clone()))?;
        let mut request = Self {
            loaded_model_id: model_id(&mut config)?,
            channel: config.integer("channel", 0)?,
            language: config.text("language")?.and_then(known_language),
            task: config
                .one_of("task", &["transcribe", "translate"])?
                .unwrap_or_default(),
            prompt: config.text("prompt")?,
            timestamp_granularity: config
                .one_of("timestamp_granularity", TimestampGranularity::NAMES)?
                .unwrap_or(TimestampGranularity::Word),
            word_timestamps: config.boolean("word_timestamps")?,
            vocabulary: config.texts("vocabulary")?,
            chunking_strategy: config.object("chunking_strategy")?,
            include_transcription_logprobs: config
                .boolean("include_transcription_logprobs")?
                .unwrap_or(false),
            suppress_tokens: config.texts("suppress_tokens")?,
            suppress_blank: config.boolean("suppress_blank")?.unwrap_or(true),
            vad_filter: config.boolean("vad_filter")?.unwrap_or(true),
            temperature: temperatures(&mut config)?,
            beam_size: config.integer("beam_size", 1)?,
            vad_batch_size: config.integer("vad_batch_size", 1)?,
            best_of: config.integer("best_of", 1)?,
            warnings: Vec::new(),
        };
        if let Some(words) = request
            .vocabulary
            .as_ref()
            .filter(|words| words.len() > MOST_VOCABULARY)
        {
            let problem = format!("has {} entries: expected at most {MOST_VOCABULARY}", words.len());
            return Err(Wrong::new("vocabulary", problem));
        }
        request.warnings = unknown_keys(config, more_keys);
        Ok(request)
    }
}

impl Default for TranscribeRequest {
    /// The request of an empty configuration.
    fn default() -> Self {
        Self {
            loaded_model_id: None,
            channel: None,
            language: None,
            task: TranscribeTask::Transcribe,
            prompt: None,
            timestamp_granularity: TimestampGranularity::Word,
            word_timestamps: None,
            vocabulary: None,
            chunking_strategy: None,
            include_transcription_logprobs: false,
            suppress_tokens: None,
            suppress_blank: true,
            vad_filter: true,
            temperature: vec![0.0],
            beam_size: None,
            vad_batch_size: None,
            best_of: None,
            warnings: Vec::new(),
        }
    }
}

/// Whether to transcribe or to translate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TranscribeTask {
    /// Write the speech in its own language.
    #[default]
    Transcribe,
    /// Write the speech in English.
    Translate,
}

impl TranscribeTask {
    /// The name in the documents of the platform.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transcribe => "transcribe",
            Self::Translate => "translate",
        }
    }
}

const MOST_VOCABULARY: usize = 100;

fn known_language(code: String) -> Option<String> {
    let code = code.trim().to_lowercase();
    (!code.is_empty() && code != "auto").then_some(code)
}

fn temperatures(config: &mut Object) -> Result<Vec<f64>, Wrong> {
    const KEY: &str = "temperature";
    const EXPECTED: &str = "a number from 0 to 1";
    let one = |path: &str, value: &Value| {
        let number = value.as_f64().filter(|number| (0.0..=1.0).contains(number));
        number.ok_or_else(|| Wrong::expected(path, value, EXPECTED))
    };
    match config.take(KEY) {
        None => Ok(vec![0.0]),
        Some(Value::Array(values)) if !values.is_empty() => {
            let numbered = values.iter().enumerate();
            numbered
                .map(|(index, value)| one(&format!("{KEY}[{index}]"), value))
                .collect()
        }
        Some(value @ Value::Number(_)) => Ok(vec![one(KEY, &value)?]),
        Some(value) => Err(Wrong::expected(
            KEY,
            &value,
            &format!("{EXPECTED}, or a list of such numbers"),
        )),
    }
}

/// A warning for each key left, but not for thousands of them.
fn unknown_keys(config: Object, more_keys: &[&str]) -> Vec<String> {
    const MOST: usize = 10;
    let unknown = config
        .rest()
        .filter(|key| !key.starts_with('_') && !more_keys.contains(&key.as_str()));
    let unknown: Vec<_> = unknown.collect();
    let shown = unknown.iter().take(MOST).map(|key| {
        let key: String = key.chars().take(64).collect();
        format!("config key {key} is not one of the transcribe stage and was ignored")
    });
    let mut warnings: Vec<_> = shown.collect();
    if unknown.len() > MOST {
        warnings.push(format!("{} more config keys were ignored", unknown.len() - MOST));
    }
    warnings
}
