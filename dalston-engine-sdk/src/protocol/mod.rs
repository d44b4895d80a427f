//! The wire format of the live platform: field names and JSON types, without any I/O.
//!
//! Brokers, stores and the runner read and write these documents. Engine authors meet them only in
//! tests and tools. Section numbers refer to the description of the Dalston engine protocol:
//!
//! | Item | Section |
//! |---|---|
//! | [`TaskRequestData`] | 3.2, `request.json` |
//! | [`RequestBinding`], [`ArtifactSelector`], [`ArtifactReference`] | 3.3 |
//! | [`TaskResponseData`] | 3.4, `response.json` |
//! | [`keys`] | 2.1, names in Redis |
//! | [`RegistryRecord`], [`Heartbeat`], [`Capabilities`] | 2.5, the registry of engines |
//! | [`Timestamp`] | 12, item 20 |
//!
//! Readers of incoming documents ignore unknown keys and treat `null` as an absent key. An error
//! names the path of the key (`artifact_index.P:audio.size`), because its reader has the document
//! and not the code. Outgoing documents have exactly the form in which the platform's own programs
//! write them.

mod artifact;
mod error;
#[cfg(feature = "redis")]
mod events;
pub(crate) mod json;
pub mod keys;
mod registry;
mod request;
mod response;
mod timestamp;

pub use self::artifact::{ArtifactReference, ArtifactSelector, RequestBinding};
pub use self::error::ProtocolError;
#[cfg(feature = "redis")]
pub(crate) use self::events::{TaskEvent, TaskEventKind};
pub(crate) use self::registry::HEARTBEAT_SECONDS;
pub use self::registry::{
    Capabilities, Heartbeat, InstanceStatus, NodeIdentity, RECORD_TTL_SECONDS, RegistryRecord,
    VocabularySupport,
};
pub use self::request::TaskRequestData;
pub use self::response::TaskResponseData;
pub use self::timestamp::Timestamp;
