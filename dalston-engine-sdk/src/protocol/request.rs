//! Section 3.2: `request.json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::artifact::{ArtifactReference, RequestBinding};
use super::error::{self, ProtocolError};
use super::json::{self, Object, Wrong};

/// The request of a task: `request.json`.
///
/// The stage is not part of it but of the task's metadata. Unknown keys are ignored.
///
/// ```
/// use dalston_engine_sdk::protocol::TaskRequestData;
///
/// let document = br#"{"task_id": "T", "job_id": "J", "config": {"language": "en"}}"#;
/// let request = TaskRequestData::from_slice(document)?;
/// assert_eq!(request.config["language"], "en");
/// # Ok::<(), dalston_engine_sdk::protocol::ProtocolError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskRequestData {
    /// A UUID with dashes.
    pub task_id: String,
    /// A UUID with dashes.
    pub job_id: String,
    /// Data of the task. Only `prepare` tasks have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Map<String, Value>>,
    /// The artifact of each slot.
    pub request_bindings: Vec<RequestBinding>,
    /// Slot to artifact id. A value in the task's metadata is newer and wins.
    pub resolved_artifact_ids: BTreeMap<String, String>,
    /// Artifact id to artifact: every artifact of the job so far, not only those that this task
    /// needs.
    pub artifact_index: BTreeMap<String, ArtifactReference>,
    /// Stage to response, for the direct dependencies only. The response of a channel has two keys,
    /// for example `transcribe_ch0` and `transcribe`.
    pub previous_responses: Map<String, Value>,
    /// The options of the stage, see for example
    /// [`TranscribeRequest`](crate::stage::TranscribeRequest).
    pub config: Map<String, Value>,
}

impl TaskRequestData {
    /// A request without configuration and inputs.
    #[must_use]
    pub fn new(task_id: impl Into<String>, job_id: impl Into<String>) -> Self {
        Self {
            task_id: task_id.into(),
            job_id: job_id.into(),
            payload: None,
            request_bindings: Vec::new(),
            resolved_artifact_ids: BTreeMap::new(),
            artifact_index: BTreeMap::new(),
            previous_responses: Map::new(),
            config: Map::new(),
        }
    }

    /// Reads `request.json`.
    ///
    /// # Errors
    ///
    /// If it is not JSON, has no `task_id` or `job_id`, or has a value of the wrong type; the error
    /// names the path.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ProtocolError> {
        error::read("request.json", bytes, Self::read)
    }

    /// Writes `request.json` as the orchestrator does: indented by two spaces, without keys that
    /// have no value.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        json::pretty(self)
    }

    fn read(value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new("", value)?;
        let mut request = Self::new(object.name("task_id")?, object.name("job_id")?);
        request.payload = object.object("payload")?;
        if let Some(bindings) = object.list("request_bindings")? {
            request.request_bindings = RequestBinding::read_list("request_bindings", bindings)?;
        }
        for (slot, id) in object.object("resolved_artifact_ids")?.into_iter().flatten() {
            // An optional slot may have no artifact.
            if !id.is_null() {
                let id = json::string(&json::join("resolved_artifact_ids", &slot), id)?;
                request.resolved_artifact_ids.insert(slot, id);
            }
        }
        for (id, reference) in object.object("artifact_index")?.into_iter().flatten() {
            let reference = ArtifactReference::read(json::join("artifact_index", &id), reference)?;
            request.artifact_index.insert(id, reference);
        }
        request.previous_responses = object.object("previous_responses")?.unwrap_or_default();
        request.config = object.object("config")?.unwrap_or_default();
        Ok(request)
    }
}
