//! The stages of a job: what a task of each is asked, and what it answers.
//!
//! The `transcribe` stage has types for both directions, [`TranscribeRequest`] and [`Transcript`]. An engine of another
//! stage answers with a [`serde_json::Value`] or with a type of its own, see [`StageOutput`].

mod check;
mod confined;
mod input_slot;
mod language;
mod metadata;
mod name;
mod output;
mod segment;
mod timing;
mod transcribe;
mod transcript;
mod validation;

pub use input_slot::input_slot;
pub(crate) use language::language_tag;
pub use metadata::Metadata;
pub use name::{OtherStage, Stage, StageName};
pub use output::{OutputDefaults, StageOutput};
pub use segment::{Character, Phoneme, Segment, Word};
pub use timing::{AlignmentMethod, TimestampGranularity};
pub use transcribe::{ConfigError, TranscribeRequest, TranscribeTask, audio_duration};
pub use transcript::{LanguageShare, LanguageSource, SchemaVersion, Transcript};
pub use validation::ValidationError;
