//! Section 3.2: `request.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
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
        // A document of known keys alone needs no map of them. What is wrong with another one, or strange, is found out below.
        if let Some(request) = Parts::of(bytes).and_then(Parts::read) {
            return Ok(request);
        }
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
        request.request_bindings = read_bindings(object.list("request_bindings")?)?;
        request.resolved_artifact_ids = read_artifact_ids(object.object("resolved_artifact_ids")?)?;
        request.artifact_index = read_artifacts(object.object("artifact_index")?)?;
        request.previous_responses = object.object("previous_responses")?.unwrap_or_default();
        request.config = object.object("config")?.unwrap_or_default();
        Ok(request)
    }
}

/// The keys of a document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    task_id: String,
    job_id: String,
    payload: Option<Map<String, Value>>,
    request_bindings: Option<Vec<Value>>,
    resolved_artifact_ids: Option<Map<String, Value>>,
    artifact_index: Option<Map<String, Value>>,
    previous_responses: Option<Map<String, Value>>,
    config: Option<Map<String, Value>>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Option<Self> {
        // A list of the values would do otherwise.
        let is_object = bytes.trim_ascii_start().first() == Some(&b'{');
        is_object.then(|| serde_json::from_slice(bytes).ok())?
    }

    fn read(self) -> Option<TaskRequestData> {
        let are_named = !self.task_id.is_empty() && !self.job_id.is_empty();
        are_named.then_some(TaskRequestData {
            task_id: self.task_id,
            job_id: self.job_id,
            payload: self.payload,
            request_bindings: read_bindings(self.request_bindings).ok()?,
            resolved_artifact_ids: read_artifact_ids(self.resolved_artifact_ids).ok()?,
            artifact_index: read_artifacts(self.artifact_index).ok()?,
            previous_responses: self.previous_responses.unwrap_or_default(),
            config: self.config.unwrap_or_default(),
        })
    }
}

fn read_bindings(list: Option<Vec<Value>>) -> Result<Vec<RequestBinding>, Wrong> {
    let bindings = list.into_iter().flatten().enumerate();
    bindings
        .map(|(index, binding)| RequestBinding::read(format!("request_bindings[{index}]"), binding))
        .collect()
}

fn read_artifact_ids(object: Option<Map<String, Value>>) -> Result<BTreeMap<String, String>, Wrong> {
    let mut ids = BTreeMap::new();
    for (slot, id) in object.into_iter().flatten() {
        // An optional slot that nothing fills may be there without an id.
        if !id.is_null() {
            let id = json::string(&json::join("resolved_artifact_ids", &slot), id)?;
            ids.insert(slot, id);
        }
    }
    Ok(ids)
}

fn read_artifacts(object: Option<Map<String, Value>>) -> Result<BTreeMap<String, ArtifactReference>, Wrong> {
    let mut artifacts = BTreeMap::new();
    for (id, reference) in object.into_iter().flatten() {
        let reference = ArtifactReference::read(json::join("artifact_index", &id), reference)?;
        artifacts.insert(id, reference);
    }
    Ok(artifacts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_the_same_with_keys_that_nobody_knows_and_without() {
        let known = r#""task_id": "T", "job_id": "J", "payload": {"media": null}, "config": {"beam_size": 5},
            "request_bindings": [{"slot": "a", "selector": {"producer_stage": "prepare", "kind": "audio"}}],
            "resolved_artifact_ids": {"a": "A", "b": null}, "previous_responses": {"prepare": {"warnings": []}},
            "artifact_index": {"A": {"artifact_id": "A", "kind": "audio", "storage_locator": "s3://b/k", "size": 7.0}}"#;
        let document = format!(" {{{known}}} ");
        let direct = Parts::of(document.as_bytes()).and_then(Parts::read).unwrap();
        for more in [
            "",
            r#", "priority": [1, {}]"#,
            r#", "config": 7, "config": {"beam_size": 5}"#,
        ] {
            let document = format!("{{{known}{more}}}");
            assert_eq!(TaskRequestData::from_slice(document.as_bytes()).unwrap(), direct);
        }
    }

    #[test]
    fn no_document_is_read_that_would_not_be_by_way_of_its_values() {
        for document in [
            r#"["T", "J", null, null, null, null, null, null]"#,
            r#"{"task_id": "", "job_id": "J"}"#,
            r#"{"task_id": "T", "job_id": "J", "unknown": 1e999}"#,
            r#"{"task_id": "T", "job_id": "J", "config": 7}"#,
            r#"{"task_id": "T", "job_id": "J", "artifact_index": {"A": {"artifact_id": "A"}}}"#,
            r#"{"task_id": "T", "task_id": null, "job_id": "J"}"#,
            r#"{"task_id": "T", "job_id": "J"} {}"#,
        ] {
            assert!(
                TaskRequestData::from_slice(document.as_bytes()).is_err(),
                "{document}"
            );
        }
    }
}
