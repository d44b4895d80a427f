//! Sections 2.2 and 2.3: a task in its queue.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::artifact::RequestBinding;
use super::request::TaskRequestData;
use super::timestamp::Timestamp;

/// How much longer the metadata of a task lives than all of its attempts may take.
const METADATA_MARGIN: Duration = Duration::from_secs(3600);

/// A task as the orchestrator writes it to Redis: the metadata, and the entry in the stream of its
/// engine. The rest of the task is `request.json`, [`TaskRequestData`].
///
/// ```
/// use std::time::Duration;
/// use dalston_engine_sdk::protocol::{QueuedTask, TaskRequestData, Timestamp, keys};
///
/// let request = TaskRequestData::new("T", "J");
/// let queued_at = Timestamp::now();
/// let task = QueuedTask::new(&request, "prepare", "audio-prepare", queued_at, Duration::from_secs(60));
/// assert_eq!(keys::task(&task.task_id), "dalston:task:T");
/// assert_eq!(task.entry()[1], ("job_id", "J".to_owned()));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueuedTask {
    /// A UUID with dashes.
    pub task_id: String,
    /// A UUID with dashes.
    pub job_id: String,
    /// The stage, with a channel suffix if it has one: `transcribe_ch0`.
    pub stage: String,
    /// The engine. Its id is the end of the name of the stream.
    pub engine_id: String,
    /// How the platform runs the engine. Default `container`.
    pub execution_profile: String,
    /// When it was queued, this time.
    pub enqueued_at: Timestamp,
    /// How long this attempt may take, counted from `enqueued_at`.
    pub timeout: Duration,
    /// The gateway's request id, for log lines.
    pub request_id: Option<String>,
    /// The trace context as a JSON object.
    pub trace_context: Option<String>,
    /// The artifact of each slot. Wins over `request.json`.
    pub request_bindings: Vec<RequestBinding>,
    /// Slot to artifact id. Wins over `request.json`.
    pub resolved_artifact_ids: BTreeMap<String, String>,
}

impl QueuedTask {
    /// The task of a request, queued now for an engine.
    #[must_use]
    pub fn new(
        request: &TaskRequestData,
        stage: impl Into<String>,
        engine_id: impl Into<String>,
        enqueued_at: Timestamp,
        timeout: Duration,
    ) -> Self {
        Self {
            task_id: request.task_id.clone(),
            job_id: request.job_id.clone(),
            stage: stage.into(),
            engine_id: engine_id.into(),
            execution_profile: "container".to_owned(),
            enqueued_at,
            timeout,
            request_id: None,
            trace_context: None,
            request_bindings: request.request_bindings.clone(),
            resolved_artifact_ids: request.resolved_artifact_ids.clone(),
        }
    }

    /// Sets the id of the gateway's request.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Sets the trace context, a JSON object.
    #[must_use]
    pub fn trace_context(mut self, json: impl Into<String>) -> Self {
        self.trace_context = Some(json.into());
        self
    }

    /// The fields of the hash [`keys::task`](super::keys::task).
    #[must_use]
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        let resolved: Map<String, Value> = self
            .resolved_artifact_ids
            .iter()
            .map(|(slot, id)| (slot.clone(), id.as_str().into()))
            .collect();
        let mut fields = vec![
            ("job_id", self.job_id.clone()),
            ("stage", self.stage.clone()),
            ("engine_id", self.engine_id.clone()),
            ("queue_id", self.engine_id.clone()),
            ("execution_profile", self.execution_profile.clone()),
            ("enqueued_at", self.enqueued_at.to_string()),
            ("request_bindings_json", json!(self.request_bindings).to_string()),
            ("resolved_artifact_ids_json", Value::Object(resolved).to_string()),
        ];
        fields.extend(self.request_id.clone().map(|id| ("request_id", id)));
        fields.extend(self.trace_context.clone().map(|json| ("_trace_context", json)));
        fields
    }

    /// How long that hash lives: as long as all attempts may take, and an hour.
    #[must_use]
    pub fn metadata_lifetime(&self, max_retries: u32) -> Duration {
        let attempts = self.timeout.saturating_mul(max_retries.saturating_add(1));
        attempts.saturating_add(METADATA_MARGIN)
    }

    /// The fields of the entry in the stream [`keys::task_stream`](super::keys::task_stream).
    #[must_use]
    pub fn entry(&self) -> [(&'static str, String); 4] {
        let timeout_at = self.enqueued_at + self.timeout;
        [
            ("task_id", self.task_id.clone()),
            ("job_id", self.job_id.clone()),
            ("enqueued_at", self.enqueued_at.to_string()),
            ("timeout_at", timeout_at.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ArtifactSelector;

    fn task() -> QueuedTask {
        let mut request = TaskRequestData::new("T", "J");
        let selector = ArtifactSelector::new("prepare", "audio")
            .role("prepared")
            .channel(1);
        request.request_bindings = vec![RequestBinding::new("audio", selector)];
        request.resolved_artifact_ids = [("audio".to_owned(), "P:prepared_audio_ch1".to_owned())].into();
        let time = "2026-11-20T18:17:06.690014Z".parse().unwrap();
        QueuedTask::new(
            &request,
            "transcribe_ch1",
            "faster-whisper",
            time,
            Duration::from_secs(90),
        )
    }

    #[test]
    fn metadata_has_the_fields_of_the_platform() {
        let trace = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
        let fields = task().request_id("req_5f").trace_context(trace).metadata();
        let bindings = concat!(
            r#"[{"selector":{"channel":1,"kind":"audio","producer_stage":"prepare","required":true,"#,
            r#""role":"prepared"},"slot":"audio"}]"#
        );
        let expected = [
            ("job_id", "J"),
            ("stage", "transcribe_ch1"),
            ("engine_id", "faster-whisper"),
            ("queue_id", "faster-whisper"),
            ("execution_profile", "container"),
            ("enqueued_at", "2026-11-20T18:17:06.690014+00:00"),
            ("request_bindings_json", bindings),
            (
                "resolved_artifact_ids_json",
                r#"{"audio":"P:prepared_audio_ch1"}"#,
            ),
            ("request_id", "req_5f"),
            ("_trace_context", trace),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name, value.to_owned())));
        let names: Vec<_> = task().metadata().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 8, "{names:?}");
    }

    #[test]
    fn entry_has_four_fields_with_the_deadline() {
        let expected = [
            ("task_id", "T"),
            ("job_id", "J"),
            ("enqueued_at", "2026-11-20T18:17:06.690014+00:00"),
            ("timeout_at", "2026-11-20T18:18:36.690014+00:00"),
        ];
        assert_eq!(
            task().entry(),
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn metadata_outlives_all_attempts() {
        assert_eq!(task().metadata_lifetime(2), Duration::from_secs(3 * 90 + 3600));
        let mut endless = task();
        endless.timeout = Duration::MAX;
        assert_eq!(endless.metadata_lifetime(u32::MAX), Duration::MAX);
    }
}
