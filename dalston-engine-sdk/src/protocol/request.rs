//! Section 3.2: `request.json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::json::{self, Object, Wrong};
use super::{ArtifactReference, ProtocolError, RequestBinding};

const DOCUMENT: &str = "request.json";

/// What the orchestrator asks of a task: `request.json`.
///
/// The stage is not part of it; it comes with the task's metadata. Unknown keys are ignored.
///
/// ```
/// use dalston_engine_sdk::protocol::TaskRequestData;
///
/// let request = TaskRequestData::from_slice(br#"{"task_id": "T", "job_id": "J", "config": {"language": "en"}}"#)?;
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
    /// Data of the task itself. Only `prepare` tasks have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Map<String, Value>>,
    /// Which artifact belongs in which slot.
    pub request_bindings: Vec<RequestBinding>,
    /// Slot to artifact id. The task's metadata may hold a later value, which then counts.
    pub resolved_artifact_ids: BTreeMap<String, String>,
    /// Artifact id to artifact: every artifact of the job known so far, not only those that this task needs.
    pub artifact_index: BTreeMap<String, ArtifactReference>,
    /// Stage to that stage's response, for the direct dependencies only. Responses of a channel stand under
    /// `transcribe_ch0` and under `transcribe`.
    pub previous_responses: Map<String, Value>,
    /// The options of the stage, see for example [`TranscribeRequest`](crate::stage::TranscribeRequest).
    pub config: Map<String, Value>,
}

impl TaskRequestData {
    /// A request with an empty configuration and no inputs, to be filled in.
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
    /// If it is not JSON, has no `task_id` or `job_id`, or has a value of the wrong type; the error names the path.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let value = serde_json::from_slice(bytes).map_err(|source| ProtocolError::Syntax {
            document: DOCUMENT,
            source,
        })?;
        Self::read(value).map_err(|wrong| ProtocolError::field(DOCUMENT, wrong))
    }

    /// Writes `request.json` as the orchestrator does: two spaces of indent, no keys without a value.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        json::pretty(self)
    }

    fn read(value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new("", value)?;
        let mut request = Self::new(object.name("task_id")?, object.name("job_id")?);
        request.payload = object.object("payload")?;
        for (index, binding) in object.list("request_bindings")?.into_iter().flatten().enumerate() {
            request.request_bindings.push(RequestBinding::read(
                format!("request_bindings[{index}]"),
                binding,
            )?);
        }
        for (slot, id) in object.object("resolved_artifact_ids")?.into_iter().flatten() {
            // An optional slot that nothing fills may be there without an id.
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
