//! Section 2.4: the events that an engine sends.

use serde::Serialize;
use serde_json::{Map, Value};

use super::timestamp::Timestamp;

/// An event about a task, in the two forms of the platform.
///
/// The orchestrator acts on the durable copy. The published copy has the same content as one flat
/// object, for all other readers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskEvent {
    pub(crate) kind: TaskEventKind,
    /// A UUID with dashes; the orchestrator drops an event with anything else.
    pub(crate) task_id: String,
    /// A UUID with dashes.
    pub(crate) job_id: String,
    /// The engine, not the instance.
    pub(crate) engine_id: String,
    pub(crate) timestamp: Timestamp,
    /// The gateway's request id. The orchestrator passes it to the tasks that it queues because of
    /// this event.
    pub(crate) request_id: Option<String>,
    /// The trace context as a JSON object. Anything else is omitted from both copies.
    pub(crate) trace_context: Option<String>,
}

/// The kinds of events about a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TaskEventKind {
    /// Work began. It precedes every other event: the orchestrator ignores the failure of a task
    /// that never started.
    Started,
    /// The response is in storage and the artifacts are in the index.
    Completed,
    /// The task failed with this error.
    Failed(String),
}

impl TaskEventKind {
    /// The value of `type`.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Started => "task.started",
            Self::Completed => "task.completed",
            Self::Failed(_) => "task.failed",
        }
    }
}

impl TaskEvent {
    /// An event without request id and trace context.
    pub(crate) fn new(
        kind: TaskEventKind,
        task_id: impl Into<String>,
        job_id: impl Into<String>,
        engine_id: impl Into<String>,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            kind,
            task_id: task_id.into(),
            job_id: job_id.into(),
            engine_id: engine_id.into(),
            timestamp,
            request_id: None,
            trace_context: None,
        }
    }

    /// The field `payload` of the durable copy.
    pub(crate) fn payload(&self) -> String {
        to_json(&self.payload_object())
    }

    /// The field `_trace_context` of the durable copy, if there is a trace context.
    pub(crate) fn trace_context_field(&self) -> Option<String> {
        self.trace_context_object().as_ref().map(to_json)
    }

    /// The copy on the channel.
    pub(crate) fn published(&self) -> String {
        to_json(&Published {
            kind: self.kind.as_str(),
            timestamp: self.timestamp,
            payload: self.payload_object(),
            trace_context: self.trace_context_object(),
        })
    }

    fn payload_object(&self) -> Payload<'_> {
        Payload {
            task_id: &self.task_id,
            job_id: &self.job_id,
            engine_id: &self.engine_id,
            error: match &self.kind {
                TaskEventKind::Failed(error) => Some(error),
                TaskEventKind::Started | TaskEventKind::Completed => None,
            },
            request_id: self.request_id.as_deref(),
        }
    }

    fn trace_context_object(&self) -> Option<Map<String, Value>> {
        let object: Map<String, Value> = serde_json::from_str(self.trace_context.as_deref()?).ok()?;
        (!object.is_empty()).then_some(object)
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    task_id: &'a str,
    job_id: &'a str,
    engine_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Published<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: Timestamp,
    #[serde(flatten)]
    payload: Payload<'a>,
    #[serde(rename = "_trace_context", skip_serializing_if = "Option::is_none")]
    trace_context: Option<Map<String, Value>>,
}

fn to_json(object: &impl Serialize) -> String {
    serde_json::to_string(object).expect("the keys are strings and no field fails to serialize")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TRACE: &str = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

    fn event(kind: TaskEventKind) -> TaskEvent {
        let time = "2026-11-20T18:17:06.690014+00:00".parse().unwrap();
        TaskEvent::new(kind, "T", "J", "faster-whisper", time)
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn started_and_completed_carry_three_ids() {
        for (kind, name) in [
            (TaskEventKind::Started, "task.started"),
            (TaskEventKind::Completed, "task.completed"),
        ] {
            let event = event(kind);
            assert_eq!(event.kind.as_str(), name);
            let ids = json!({"task_id": "T", "job_id": "J", "engine_id": "faster-whisper"});
            assert_eq!(value(&event.payload()), ids);
            assert_eq!(event.trace_context_field(), None);
        }
    }

    #[test]
    fn failure_carries_error_and_request_id() {
        let mut event = event(TaskEventKind::Failed("no \"audio\": 404 🙁".to_owned()));
        event.request_id = Some("req_5f".to_owned());
        assert_eq!(
            value(&event.payload()),
            json!({"task_id": "T", "job_id": "J", "engine_id": "faster-whisper",
                "error": "no \"audio\": 404 🙁", "request_id": "req_5f"})
        );
    }

    #[test]
    fn trace_context_is_text_in_one_copy_and_object_in_the_other() {
        let mut event = event(TaskEventKind::Completed);
        event.trace_context = Some(TRACE.to_owned());
        assert_eq!(event.trace_context_field().as_deref(), Some(TRACE));
        assert_eq!(
            value(&event.published()),
            json!({"type": "task.completed", "task_id": "T", "job_id": "J", "engine_id": "faster-whisper",
                "timestamp": "2026-11-20T18:17:06.690014+00:00", "_trace_context": value(TRACE)})
        );
    }

    #[test]
    fn invalid_trace_context_is_omitted() {
        for broken in ["", "null", "[]", "\"x\"", "{", "{}"] {
            let mut event = event(TaskEventKind::Started);
            event.trace_context = Some(broken.to_owned());
            assert_eq!(event.trace_context_field(), None, "{broken}");
            assert_eq!(value(&event.published()).get("_trace_context"), None, "{broken}");
        }
    }
}
