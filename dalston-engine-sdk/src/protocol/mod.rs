//! The wire format of the live platform: field names and JSON types, without any I/O.
//!
//! Brokers, stores and the runner read and write these documents, and so does a platform. Engine
//! authors meet them only in tests and tools. Section numbers refer to the description of the
//! Dalston engine protocol:
//!
//! | Item | Section |
//! |---|---|
//! | [`QueuedTask`] | 2.2 and 2.3, a task in its queue and its metadata |
//! | [`Event`] | 2.4, events about jobs and tasks |
//! | [`TaskRequestData`] | 3.2, `request.json` |
//! | [`RequestBinding`], [`ArtifactSelector`], [`ArtifactReference`] | 3.3 |
//! | [`TaskResponseData`] | 3.4, `response.json` |
//! | [`keys`] | 2.1, names in Redis |
//! | [`RegistryRecord`], [`Heartbeat`], [`Capabilities`] | 2.5, the registry of engines |
//! | [`Timestamp`] | 12, item 20 |
//!
//! # The side of the orchestrator
//!
//! A task is queued in this order, so that an engine that sees the entry also finds the rest:
//! `request.json` ([`TaskRequestData::to_vec`]) into the storage, the metadata
//! ([`QueuedTask::metadata`]) into the hash [`keys::task`], then the entry
//! ([`QueuedTask::entry`]) into the stream [`keys::task_stream`], whose group
//! [`keys::TASK_GROUP`] begins at 0. A retry writes the metadata and adds an entry again. The
//! orchestrator reads [`keys::EVENT_STREAM`] as the group [`keys::ORCHESTRATOR_GROUP`]. It cancels
//! a job with the key [`keys::job_cancelled`].
//!
//! # Forms
//!
//! Readers of incoming documents ignore unknown keys and treat `null` as an absent key. An error
//! names the path of the key (`artifact_index.P:audio.size`), because its reader has the document
//! and not the code. Outgoing documents have exactly the form in which the platform's own programs
//! write them.

mod artifact;
mod error;
mod events;
pub(crate) mod json;
pub mod keys;
mod queued;
mod registry;
mod request;
mod response;
mod timestamp;

pub use self::artifact::{ArtifactReference, ArtifactSelector, RequestBinding};
pub use self::error::ProtocolError;
pub use self::events::{Event, EventKind};
pub use self::queued::QueuedTask;
pub(crate) use self::registry::HEARTBEAT_SECONDS;
pub use self::registry::{
    Capabilities, Heartbeat, InstanceStatus, NodeIdentity, RECORD_TTL_SECONDS, RegistryRecord,
    VocabularySupport,
};
pub use self::request::TaskRequestData;
pub use self::response::TaskResponseData;
pub use self::timestamp::Timestamp;
