//! The stages of a job: the request and the answer of their tasks.
//!
//! | Stage | Request | Answer |
//! |---|---|---|
//! | `prepare` | [`PrepareRequest`] | [`Preparation`] |
//! | `transcribe` | [`TranscribeRequest`] | [`Transcript`] |
//! | `align` | [`AlignRequest`] | [`Alignment`] |
//! | `diarize` | [`DiarizeRequest`] | [`Diarization`] |
//! | `pii_detect` | [`PiiDetectRequest`] | [`PiiDetection`] |
//! | `audio_redact` | [`AudioRedactRequest`] | [`AudioRedaction`] |
//!
//! [`TaskRequest`](crate::TaskRequest) has a method for each request, and
//! [`previous_as`](crate::TaskRequest::previous_as) for the answer of an earlier stage.
//!
//! An engine may also answer with a [`serde_json::Value`] or with its own type, see
//! [`StageOutput`]. The runner checks every answer of these stages before its upload, because the
//! platform drops an answer with an unknown key, or fails the job.

mod align;
mod aligned;
mod answer;
mod audio_redact;
mod check;
mod config;
mod diarize;
mod finite;
mod input_slot;
mod language;
mod media;
mod metadata;
mod name;
mod output;
mod pii_detect;
mod prepare;
mod schema;
mod segment;
mod status;
mod timing;
mod transcribe;
mod transcript;
mod transcript_schema;
mod validation;

pub use align::{AlignRequest, Alignment};
pub(crate) use answer::check_answer;
pub use audio_redact::{AudioRedactRequest, AudioRedaction, RedactedRange, RedactionMode};
pub use config::ConfigError;
pub(crate) use config::ConfigProblem;
pub use diarize::{Diarization, DiarizeRequest, SpeakerTurn};
pub use input_slot::input_slot;
pub(crate) use language::language_tag;
pub use media::{AudioMedia, SpeechRegion};
pub use metadata::Metadata;
pub use name::{OtherStage, Stage, StageName};
pub use output::{OutputDefaults, StageOutput};
pub use pii_detect::{PiiCategory, PiiDetectRequest, PiiDetection, PiiEntity};
pub use prepare::{Preparation, PrepareRequest};
pub use segment::{Character, Phoneme, Segment, Word};
pub use status::AnswerStatus;
pub use timing::{AlignmentMethod, TimestampGranularity};
pub use transcribe::{TranscribeRequest, TranscribeTask};
pub use transcript::{LanguageShare, LanguageSource, SchemaVersion, Transcript};
pub use validation::ValidationError;
