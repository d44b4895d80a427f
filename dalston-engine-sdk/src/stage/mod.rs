//! The stages of a job: the request and the answer of their tasks.
//!
//! The `transcribe` stage has types for both: [`TranscribeRequest`] and [`Transcript`]. An engine
//! of another stage answers with a [`serde_json::Value`] or with its own type, see [`StageOutput`].

mod check;
mod finite;
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
pub use transcribe::{ConfigError, TranscribeRequest, TranscribeTask};
pub use transcript::{LanguageShare, LanguageSource, SchemaVersion, Transcript};
pub use validation::ValidationError;
