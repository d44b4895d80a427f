//! The pieces of a transcript: segments, words, characters and phonemes.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::check::{each, optional_probability, probability, rounded_into_range, times};
use super::metadata::Metadata;
use super::timing::AlignmentMethod;
use super::validation::ValidationError;

/// A stretch of speech with its text.
///
/// ```
/// use dalston_engine_sdk::stage::Segment;
///
/// let segment = Segment::new(1.0, 2.5, "seven three").confidence(0.9).tokens(&[3407, 1045]).temperature(0.0);
/// assert_eq!(segment.metadata.get("tokens"), Some(&serde_json::json!([3407, 1045])));
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Segment {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The text.
    pub text: String,
    /// The words with their times.
    #[serde(default)]
    pub words: Option<Vec<Word>>,
    /// The language, if it differs from that of the transcript.
    #[serde(default)]
    pub language: Option<String>,
    /// The confidence in the language, 0 to 1.
    #[serde(default)]
    pub language_confidence: Option<f64>,
    /// The confidence in the text, 0 to 1. It is written to the metadata, too: the platform
    /// assembles the final transcript from there.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// Whether the text is final.
    #[serde(default)]
    pub is_final: Option<bool>,
    /// Whether it is speech.
    #[serde(default)]
    pub is_speech: Option<bool>,
    /// Facts without a field of their own. The platform shows `tokens`, `avg_logprob`,
    /// `compression_ratio`, `no_speech_prob`, `temperature` and `decoder_type`, which have methods
    /// here.
    #[serde(default)]
    pub metadata: Metadata,
}

impl Segment {
    /// A segment from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(start: f64, end: f64, text: impl Into<String>) -> Self {
        Self {
            id: None,
            start,
            end,
            text: text.into(),
            words: None,
            language: None,
            language_confidence: None,
            confidence: None,
            is_final: None,
            is_speech: None,
            metadata: Metadata::new(),
        }
    }

    /// Sets the id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the words, in order.
    #[must_use]
    pub fn words(mut self, words: impl IntoIterator<Item = Word>) -> Self {
        self.words = Some(words.into_iter().collect());
        self
    }

    /// Sets a language that differs from that of the transcript.
    #[must_use]
    pub fn language(mut self, code: impl Into<String>) -> Self {
        self.language = Some(code.into());
        self
    }

    /// Sets the confidence in the text, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the model's tokens of the text.
    #[must_use]
    pub fn tokens(self, tokens: &[u32]) -> Self {
        self.metadata("tokens", tokens)
    }

    /// Sets the mean log probability of the tokens.
    #[must_use]
    pub fn avg_logprob(self, value: f64) -> Self {
        self.metadata("avg_logprob", value)
    }

    /// Sets the compression ratio of the text. A high value shows repetitions.
    #[must_use]
    pub fn compression_ratio(self, value: f64) -> Self {
        self.metadata("compression_ratio", value)
    }

    /// Sets the probability of no speech, 0 to 1.
    #[must_use]
    pub fn no_speech_prob(self, probability: f64) -> Self {
        self.metadata("no_speech_prob", rounded_into_range(probability))
    }

    /// Sets the temperature at which the text was sampled.
    #[must_use]
    pub fn temperature(self, value: f64) -> Self {
        self.metadata("temperature", value)
    }

    /// Sets the kind of decoder, for example `ctc`.
    #[must_use]
    pub fn decoder_type(self, name: impl Into<String>) -> Self {
        self.metadata("decoder_type", name.into())
    }

    /// Adds a fact without a field of its own.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.metadata.insert(name, value);
        self
    }

    pub(super) fn validate(&self) -> Result<(), ValidationError> {
        times(self.start, self.end)?;
        optional_probability("language_confidence", self.language_confidence)?;
        optional_probability("confidence", self.confidence)?;
        self.metadata
            .validate()
            .map_err(|error| error.within("metadata"))?;
        if let Some(value) = self
            .metadata
            .get("no_speech_prob")
            .and_then(serde_json::Value::as_f64)
        {
            probability("metadata.no_speech_prob", value)?;
        }
        each(
            "words",
            self.words.as_deref().unwrap_or_default(),
            |word| word.start,
            Word::validate,
        )
    }
}

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut segment = serializer.serialize_struct("Segment", 11)?;
        segment.serialize_field("id", &self.id)?;
        segment.serialize_field("start", &self.start)?;
        segment.serialize_field("end", &self.end)?;
        segment.serialize_field("text", &self.text)?;
        segment.serialize_field("words", &self.words)?;
        segment.serialize_field("language", &self.language)?;
        segment.serialize_field("language_confidence", &self.language_confidence)?;
        segment.serialize_field("confidence", &self.confidence)?;
        segment.serialize_field("is_final", &self.is_final)?;
        segment.serialize_field("is_speech", &self.is_speech)?;
        // The platform drops the field when it assembles the final transcript, and reads the
        // metadata instead.
        match self.confidence {
            Some(confidence) if self.metadata.get("confidence").is_none() => {
                let mut metadata = self.metadata.clone();
                metadata.insert("confidence", confidence);
                segment.serialize_field("metadata", &metadata)?;
            }
            _ => segment.serialize_field("metadata", &self.metadata)?,
        }
        segment.end()
    }
}

/// A word with its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Word {
    /// The word, with its punctuation.
    pub text: String,
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The confidence in the word, 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// The method that found the times.
    #[serde(default, deserialize_with = "null_is_default")]
    pub alignment_method: AlignmentMethod,
    /// The language, if it differs from that of the segment.
    #[serde(default)]
    pub language: Option<String>,
    /// The characters with their times.
    #[serde(default)]
    pub characters: Option<Vec<Character>>,
    /// The phonemes with their times.
    #[serde(default)]
    pub phonemes: Option<Vec<Phoneme>>,
    /// Facts without a field of their own, for example `logprob`.
    #[serde(default)]
    pub metadata: Metadata,
}

/// In the answers of `align`, the method may be `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

impl Word {
    /// A word from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(start: f64, end: f64, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            start,
            end,
            confidence: None,
            alignment_method: AlignmentMethod::Unknown,
            language: None,
            characters: None,
            phonemes: None,
            metadata: Metadata::new(),
        }
    }

    /// Sets the confidence in the word, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the method that found the times.
    #[must_use]
    pub fn alignment_method(mut self, method: AlignmentMethod) -> Self {
        self.alignment_method = method;
        self
    }

    /// Sets a language that differs from that of the segment.
    #[must_use]
    pub fn language(mut self, code: impl Into<String>) -> Self {
        self.language = Some(code.into());
        self
    }

    /// Sets the characters, in order.
    #[must_use]
    pub fn characters(mut self, characters: impl IntoIterator<Item = Character>) -> Self {
        self.characters = Some(characters.into_iter().collect());
        self
    }

    /// Sets the phonemes, in order.
    #[must_use]
    pub fn phonemes(mut self, phonemes: impl IntoIterator<Item = Phoneme>) -> Self {
        self.phonemes = Some(phonemes.into_iter().collect());
        self
    }

    /// Adds a fact without a field of its own, for example `logprob`.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.metadata.insert(name, value);
        self
    }

    fn validate(&self) -> Result<(), ValidationError> {
        times(self.start, self.end)?;
        optional_probability("confidence", self.confidence)?;
        self.metadata
            .validate()
            .map_err(|error| error.within("metadata"))?;
        let characters = self.characters.as_deref().unwrap_or_default();
        each(
            "characters",
            characters,
            |character| character.start,
            Character::validate,
        )?;
        each(
            "phonemes",
            self.phonemes.as_deref().unwrap_or_default(),
            |phoneme| phoneme.start,
            Phoneme::validate,
        )
    }
}

/// A character of a word with its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Character {
    /// The character.
    #[serde(rename = "char")]
    pub character: char,
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The confidence in it, 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// The phonemes with their times.
    #[serde(default)]
    pub phonemes: Option<Vec<Phoneme>>,
}

impl Character {
    /// A character from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(start: f64, end: f64, character: char) -> Self {
        Self {
            character,
            start,
            end,
            confidence: None,
            phonemes: None,
        }
    }

    /// Sets the confidence in it, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the phonemes, in order.
    #[must_use]
    pub fn phonemes(mut self, phonemes: impl IntoIterator<Item = Phoneme>) -> Self {
        self.phonemes = Some(phonemes.into_iter().collect());
        self
    }

    fn validate(&self) -> Result<(), ValidationError> {
        times(self.start, self.end)?;
        optional_probability("confidence", self.confidence)?;
        each(
            "phonemes",
            self.phonemes.as_deref().unwrap_or_default(),
            |phoneme| phoneme.start,
            Phoneme::validate,
        )
    }
}

/// A phoneme with its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Phoneme {
    /// The phoneme, in the alphabet of the engine.
    pub phoneme: String,
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The confidence in it, 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// 0 none, 1 primary, 2 secondary.
    #[serde(default)]
    pub stress: Option<u8>,
}

impl Phoneme {
    /// A phoneme from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(start: f64, end: f64, phoneme: impl Into<String>) -> Self {
        Self {
            phoneme: phoneme.into(),
            start,
            end,
            confidence: None,
            stress: None,
        }
    }

    /// Sets the confidence in it, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the stress: 0 none, 1 primary, 2 secondary.
    #[must_use]
    pub fn stress(mut self, stress: u8) -> Self {
        self.stress = Some(stress);
        self
    }

    fn validate(&self) -> Result<(), ValidationError> {
        times(self.start, self.end)?;
        optional_probability("confidence", self.confidence)?;
        match self.stress {
            Some(stress @ 3..) => Err(ValidationError::new(
                "stress",
                format!("is {stress}: expected 0, 1 or 2"),
            )),
            _ => Ok(()),
        }
    }
}
