//! Segments in the form that `align` has for them.
//!
//! The known facts of the metadata are keys of the segment there. There is no place for further
//! facts, for those of words, and for the confidence in the language.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::schema::{Kind, Schema, optional, required};
use super::segment::{Character, Phoneme, Segment, Word};
use super::timing::AlignmentMethod;

#[derive(Serialize)]
struct AlignedSegment<'a> {
    id: &'a Option<String>,
    start: f64,
    end: f64,
    text: &'a str,
    words: Option<Vec<AlignedWord<'a>>>,
    confidence: Option<f64>,
    tokens: Option<&'a Value>,
    temperature: Option<&'a Value>,
    avg_logprob: Option<&'a Value>,
    compression_ratio: Option<&'a Value>,
    no_speech_prob: Option<&'a Value>,
    language: &'a Option<String>,
    is_speech: Option<bool>,
    is_final: Option<bool>,
}

#[derive(Serialize)]
struct AlignedWord<'a> {
    text: &'a str,
    start: f64,
    end: f64,
    confidence: Option<f64>,
    characters: &'a Option<Vec<Character>>,
    phonemes: &'a Option<Vec<Phoneme>>,
    alignment_method: AlignmentMethod,
    language: &'a Option<String>,
}

impl<'a> From<&'a Segment> for AlignedSegment<'a> {
    fn from(segment: &'a Segment) -> Self {
        let fact = |name| segment.metadata.get(name);
        Self {
            id: &segment.id,
            start: segment.start,
            end: segment.end,
            text: &segment.text,
            words: segment
                .words
                .as_ref()
                .map(|words| words.iter().map(AlignedWord::from).collect()),
            confidence: segment.confidence,
            tokens: fact("tokens"),
            temperature: fact("temperature"),
            avg_logprob: fact("avg_logprob"),
            compression_ratio: fact("compression_ratio"),
            no_speech_prob: fact("no_speech_prob"),
            language: &segment.language,
            is_speech: segment.is_speech,
            is_final: segment.is_final,
        }
    }
}

impl<'a> From<&'a Word> for AlignedWord<'a> {
    fn from(word: &'a Word) -> Self {
        Self {
            text: &word.text,
            start: word.start,
            end: word.end,
            confidence: word.confidence,
            characters: &word.characters,
            phonemes: &word.phonemes,
            alignment_method: word.alignment_method,
            language: &word.language,
        }
    }
}

pub(super) fn serialize<S: Serializer>(segments: &[Segment], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(segments.iter().map(AlignedSegment::from))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Segment>, D::Error> {
    #[derive(Deserialize)]
    struct Read {
        #[serde(flatten)]
        segment: Segment,
        tokens: Option<Value>,
        temperature: Option<Value>,
        avg_logprob: Option<Value>,
        compression_ratio: Option<Value>,
        no_speech_prob: Option<Value>,
    }

    let segments = Vec::<Read>::deserialize(deserializer)?.into_iter().map(|read| {
        let mut segment = read.segment;
        for (name, fact) in [
            ("tokens", read.tokens),
            ("temperature", read.temperature),
            ("avg_logprob", read.avg_logprob),
            ("compression_ratio", read.compression_ratio),
            ("no_speech_prob", read.no_speech_prob),
        ] {
            if let Some(fact) = fact {
                segment.metadata.insert(name, fact);
            }
        }
        segment
    });
    Ok(segments.collect())
}

pub(super) static SEGMENT: Schema = Schema::piece(&[
    optional("id", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    required("text", Kind::Text),
    optional("words", Kind::Ordered(&WORD)),
    optional("confidence", Kind::Share),
    optional("tokens", Kind::List(&Kind::Whole(0))),
    optional("temperature", Kind::Number),
    optional("avg_logprob", Kind::Number),
    optional("compression_ratio", Kind::Number),
    optional("no_speech_prob", Kind::Share),
    optional("language", Kind::Text),
    optional("is_speech", Kind::Flag),
    optional("is_final", Kind::Flag),
]);

static WORD: Schema = Schema::piece(&[
    required("text", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
    optional("characters", Kind::Ordered(&CHARACTER)),
    optional("phonemes", PHONEMES),
    optional("alignment_method", Kind::OneOf(AlignmentMethod::NAMES)),
    optional("language", Kind::Text),
]);

pub(super) static CHARACTER: Schema = Schema::piece(&[
    required("char", Kind::Letter),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
    optional("phonemes", PHONEMES),
]);

pub(super) const PHONEMES: Kind = Kind::Ordered(&PHONEME);

static PHONEME: Schema = Schema::piece(&[
    required("phoneme", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
    optional("stress", Kind::Stress),
]);
