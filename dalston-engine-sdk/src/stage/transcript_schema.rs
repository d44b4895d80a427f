//! The keys that the platform accepts in the answer of a `transcribe` task: section 3.5 of the
//! protocol.

use super::aligned::{CHARACTER, PHONEMES};
use super::schema::{Field, Kind, Schema, defaulted, optional, required};
use super::timing::{AlignmentMethod, TimestampGranularity};

pub(super) static ANSWER: Schema = Schema::of(&[
    defaulted("schema_version", Kind::OneOf(&["1"])),
    required("text", Kind::Text),
    required("segments", Kind::Ordered(&SEGMENT)),
    required("language", Kind::Name),
    optional("language_confidence", Kind::Share),
    optional("language_source", Kind::OneOf(&["requested", "detected"])),
    optional("languages", Kind::List(&Kind::Object(&LANGUAGE))),
    optional("duration", Kind::Seconds),
    defaulted("timestamp_granularity", Kind::OneOf(TimestampGranularity::NAMES)),
    defaulted("alignment_method", Kind::OneOf(AlignmentMethod::NAMES)),
    required("engine_id", Kind::Text),
    optional("channel", Kind::Whole(0)),
    defaulted("warnings", Kind::List(&Kind::Text)),
    METADATA,
]);

static LANGUAGE: Schema = Schema::of(&[
    required("code", Kind::Name),
    required("confidence", Kind::Share),
    required("is_primary", Kind::Flag),
]);

static SEGMENT: Schema = Schema::piece(&[
    optional("id", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    required("text", Kind::Text),
    optional("words", Kind::Ordered(&WORD)),
    optional("language", Kind::Text),
    optional("language_confidence", Kind::Share),
    optional("confidence", Kind::Share),
    optional("is_final", Kind::Flag),
    optional("is_speech", Kind::Flag),
    METADATA,
]);

static WORD: Schema = Schema::piece(&[
    required("text", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
    defaulted("alignment_method", Kind::OneOf(AlignmentMethod::NAMES)),
    optional("language", Kind::Text),
    optional("characters", Kind::Ordered(&CHARACTER)),
    optional("phonemes", PHONEMES),
    METADATA,
]);

/// Facts under any keys.
const METADATA: Field = defaulted("metadata", Kind::Object(&ANYTHING));

static ANYTHING: Schema = Schema {
    open: true,
    ..Schema::of(&[])
};
