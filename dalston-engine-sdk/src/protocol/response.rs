//! Section 3.4: `response.json`.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::artifact::ArtifactReference;
use super::error::{self, ProtocolError};
use super::json::{self, Object, Wrong};
use super::timestamp::Timestamp;

/// The response of a task: `response.json`. A failed task writes none.
///
/// ```
/// use std::time::Duration;
/// use dalston_engine_sdk::protocol::{TaskResponseData, Timestamp};
///
/// let took = Duration::from_millis(1234);
/// let response = TaskResponseData::new("T", Timestamp::now(), took, serde_json::json!({}));
/// assert_eq!(response.processing_time_seconds, 1.23);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskResponseData {
    /// The id of the task.
    pub task_id: String,
    /// When the task was completed.
    pub completed_at: Timestamp,
    /// The duration of the whole task in seconds, with two decimals.
    pub processing_time_seconds: f64,
    /// The stage's response. Keys without a value are written as `null`.
    pub data: Value,
    /// The files that the task stored beside this document.
    pub produced_artifacts: Vec<ArtifactReference>,
    /// The ids of `produced_artifacts`.
    pub produced_artifact_ids: Vec<String>,
    /// The locator of the final transcript, if the task produced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_transcript_uri: Option<String>,
}

impl TaskResponseData {
    /// A response without artifacts.
    #[must_use]
    pub fn new(
        task_id: impl Into<String>,
        completed_at: Timestamp,
        processing_time: Duration,
        data: Value,
    ) -> Self {
        Self {
            task_id: task_id.into(),
            completed_at,
            processing_time_seconds: (processing_time.as_secs_f64() * 100.0).round() / 100.0,
            data,
            produced_artifacts: Vec::new(),
            produced_artifact_ids: Vec::new(),
            canonical_transcript_uri: None,
        }
    }

    /// Adds artifacts that the task stored.
    ///
    /// A final transcript among them (kind `transcript`, role `final`) becomes the
    /// [`canonical_transcript_uri`](Self::canonical_transcript_uri).
    #[must_use]
    pub fn artifacts(mut self, artifacts: impl IntoIterator<Item = ArtifactReference>) -> Self {
        for artifact in artifacts {
            if artifact.kind == "transcript" && artifact.role.as_deref() == Some("final") {
                self.canonical_transcript_uri = Some(artifact.storage_locator.clone());
            }
            self.produced_artifact_ids.push(artifact.artifact_id.clone());
            self.produced_artifacts.push(artifact);
        }
        self
    }

    /// Writes `response.json` as the platform's engines do, indented by two spaces.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        json::pretty(self)
    }

    /// Reads `response.json`.
    ///
    /// # Errors
    ///
    /// If it is not JSON, lacks `task_id`, `completed_at` or `data`, or has a value of the wrong
    /// type.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ProtocolError> {
        error::read("response.json", bytes, Self::read)
    }

    fn read(value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new("", value)?;
        let task_id = object.name("task_id")?;
        let completed_at = object.name("completed_at")?;
        let completed_at = completed_at.parse().map_err(|_| {
            let expected = "a time such as 2026-01-31T12:00:00+00:00";
            Wrong::expected("completed_at", &Value::String(completed_at), expected)
        })?;
        let processing_time_seconds = match object.take("processing_time_seconds") {
            None => 0.0,
            Some(value) => value.as_f64().filter(|seconds| *seconds >= 0.0).ok_or_else(|| {
                Wrong::expected("processing_time_seconds", &value, "a number of at least 0")
            })?,
        };
        let data = object
            .take("data")
            .ok_or_else(|| Wrong::new("data", "is missing: expected an object"))?;
        let mut produced_artifacts = Vec::new();
        let artifacts = object.list("produced_artifacts")?.unwrap_or_default();
        for (index, artifact) in artifacts.into_iter().enumerate() {
            let path = format!("produced_artifacts[{index}]");
            produced_artifacts.push(ArtifactReference::read(path, artifact)?);
        }
        Ok(Self {
            task_id,
            completed_at,
            processing_time_seconds,
            data,
            produced_artifacts,
            produced_artifact_ids: object.texts("produced_artifact_ids")?.unwrap_or_default(),
            canonical_transcript_uri: object.text("canonical_transcript_uri")?,
        })
    }
}
