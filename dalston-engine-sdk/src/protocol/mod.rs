//! The wire format of the live platform: field names and JSON types, without any I/O.
//!
//! Brokers, stores and the runner read and write these documents; engine authors meet them only in tests and tools.
//! Section numbers refer to the description of the Dalston engine protocol:
//!
//! | here | section |
//! |---|---|
//! | [`TaskRequestData`] | 3.2, `request.json` |
//! | [`RequestBinding`], [`ArtifactSelector`], [`ArtifactReference`] | 3.3 |
//! | [`TaskResponseData`] | 3.4, `response.json` |
//! | [`keys`] | 2.1, names in Redis |
//! | [`TaskEvent`] | 2.4, events |
//! | [`RegistryRecord`], [`Heartbeat`], [`Capabilities`] | 2.5, the registry of engines |
//! | [`Timestamp`] | 12, item 20 |
//!
//! Documents that come in are read with patience: unknown keys are ignored, a `null` counts as an absent key. What is
//! wrong is reported with the path of the key (`artifact_index.P:audio.size`), because the person who reads the message
//! has the document and not our code. Documents that go out are written exactly as the platform's own programs write them.

mod artifact;
mod events;
pub(crate) mod json;
pub mod keys;
mod registry;
mod request;
mod response;
mod timestamp;

pub use artifact::{ArtifactReference, ArtifactSelector, RequestBinding};
pub use events::{TaskEvent, TaskEventKind};
pub use registry::{
    Capabilities, Field, HEARTBEAT_SECONDS, Heartbeat, InstanceStatus, NodeIdentity, RECORD_TTL_SECONDS,
    RegistryRecord, SCHEMA_VERSION, VocabularySupport,
};
pub use request::TaskRequestData;
pub use response::TaskResponseData;
pub use timestamp::{InvalidTimestamp, Timestamp};

/// Why a document of the platform could not be read.
///
/// ```
/// use dalston_engine_sdk::protocol::TaskRequestData;
///
/// let error = TaskRequestData::from_slice(br#"{"task_id": 7, "job_id": "J"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "request.json: task_id is 7: expected a non-empty string");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The document is not JSON.
    #[error("{document} is not valid JSON: {source}")]
    Syntax {
        /// Which document, for example `request.json`.
        document: &'static str,
        /// Where and why the JSON parser stopped.
        source: serde_json::Error,
    },
    /// A key is missing, or its value is not what it has to be.
    #[error("{document}: {path} {problem}")]
    Field {
        /// Which document, for example `request.json`.
        document: &'static str,
        /// The path of the key, for example `request_bindings[0].slot`.
        path: String,
        /// What was found there and what is accepted.
        problem: String,
    },
}

impl ProtocolError {
    fn field(document: &'static str, wrong: json::Wrong) -> Self {
        Self::Field {
            document,
            path: wrong.path,
            problem: wrong.problem,
        }
    }
}
