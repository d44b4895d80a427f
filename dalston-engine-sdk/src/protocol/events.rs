//! Section 2.4: the events that an engine sends.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Timestamp;

/// An event about a task, in the two forms in which the platform wants it.
///
/// The durable copy is what the orchestrator acts on. The published copy is for everyone else; it has the same content as
/// one flat object.
///
/// ```
/// use dalston_engine_sdk::protocol::{TaskEvent, TaskEventKind};
///
/// let event = TaskEvent::new(TaskEventKind::Started, "T", "J", "my-asr", "2026-01-31T12:00:00Z".parse()?);
/// let payload: serde_json::Value = serde_json::from_str(&event.payload())?;
/// assert_eq!(payload, serde_json::json!({"task_id": "T", "job_id": "J", "engine_id": "my-asr"}));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskEvent {
    /// What happened.
    pub kind: TaskEventKind,
    /// A UUID with dashes; the orchestrator drops an event with anything else.
    pub task_id: String,
    /// A UUID with dashes.
    pub job_id: String,
    /// The engine, not the instance.
    pub engine_id: String,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The gateway's request id. The orchestrator gives it to the tasks that it queues because of this event.
    pub request_id: Option<String>,
    /// The trace context as a JSON object. Anything else is left out of both copies.
    pub trace_context: Option<String>,
}

/// What an event says about a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskEventKind {
    /// Work began. It must come before any other event: the orchestrator ignores the failure of a task that never started.
    Started,
    /// The response is in storage and the artifacts are in the index.
    Completed,
    /// It failed, for this reason.
    Failed(String),
}

impl TaskEventKind {
    /// The value of `type`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Started => "task.started",
            Self::Completed => "task.completed",
            Self::Failed(_) => "task.failed",
        }
    }

    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Started | Self::Completed => None,
        }
    }
}

impl TaskEvent {
    /// An event without request id and trace context.
    #[must_use]
    pub fn new(
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
    #[must_use]
    pub fn payload(&self) -> String {
        self.payload_object().to_json()
    }

    /// The field `_trace_context` of the durable copy, if there is something to say.
    #[must_use]
    pub fn trace_context_field(&self) -> Option<String> {
        trace_context_json(self.trace_context.as_deref()?)
    }

    /// The copy on the channel.
    #[must_use]
    pub fn published(&self) -> String {
        text(&Published {
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
            error: self.kind.error(),
            request_id: self.request_id.as_deref(),
        }
    }

    fn trace_context_object(&self) -> Option<Map<String, Value>> {
        trace_context_object(self.trace_context.as_deref()?)
    }
}

/// What the payload of an event says, without an event of its own.
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

impl Payload<'_> {
    fn to_json(&self) -> String {
        text(self)
    }
}

/// A trace context as both copies have it, if it is one.
fn trace_context_json(context: &str) -> Option<String> {
    trace_context_object(context).as_ref().map(text)
}

fn trace_context_object(context: &str) -> Option<Map<String, Value>> {
    let object: Map<String, Value> = serde_json::from_str(context).ok()?;
    (!object.is_empty()).then_some(object)
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

fn text(object: &impl Serialize) -> String {
    serde_json::to_string(object).expect("its keys are strings and no `Serialize` of it fails")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
    const JOB: &str = "0d4c2b1a-9f8e-4d7c-b6a5-443322110000";
    const TRACE: &str = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

    fn event(kind: TaskEventKind) -> TaskEvent {
        let time = "2026-11-20T18:17:06.690014+00:00".parse().unwrap();
        TaskEvent::new(kind, TASK, JOB, "faster-whisper", time)
    }

    /// The documents are compared as values where the order of keys is not fixed by the platform.
    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn started_and_completed_carry_the_three_ids() {
        for (kind, name) in [
            (TaskEventKind::Started, "task.started"),
            (TaskEventKind::Completed, "task.completed"),
        ] {
            let event = event(kind);
            assert_eq!(event.kind.as_str(), name);
            assert_eq!(
                event.payload().parse::<Value>().unwrap(),
                value(
                    r#"{"task_id": "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44",
                        "job_id": "0d4c2b1a-9f8e-4d7c-b6a5-443322110000", "engine_id": "faster-whisper"}"#
                )
            );
            assert_eq!(event.trace_context_field(), None);
        }
    }

    #[test]
    fn a_failure_carries_its_error_and_everything_carries_the_request_id() {
        let mut event = event(TaskEventKind::Failed("no \"audio\": 404 🙁".to_owned()));
        event.request_id = Some("req_5f".to_owned());
        assert_eq!(
            value(&event.payload()),
            value(
                r#"{"task_id": "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44", "job_id": "0d4c2b1a-9f8e-4d7c-b6a5-443322110000",
                    "engine_id": "faster-whisper", "error": "no \"audio\": 404 🙁", "request_id": "req_5f"}"#
            )
        );
    }

    #[test]
    fn the_trace_context_is_text_in_the_durable_copy_and_an_object_in_the_published_one() {
        let mut event = event(TaskEventKind::Completed);
        event.trace_context = Some(TRACE.to_owned());
        assert_eq!(event.trace_context_field().as_deref(), Some(TRACE));
        assert_eq!(
            value(&event.published()),
            value(
                r#"{"type": "task.completed", "task_id": "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44",
                    "job_id": "0d4c2b1a-9f8e-4d7c-b6a5-443322110000", "engine_id": "faster-whisper",
                    "timestamp": "2026-11-20T18:17:06.690014+00:00",
                    "_trace_context": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}"#
            )
        );
    }

    #[test]
    fn a_trace_context_that_is_no_object_is_left_out() {
        for broken in ["", "null", "[]", "\"x\"", "{", "{}"] {
            let mut event = event(TaskEventKind::Started);
            event.trace_context = Some(broken.to_owned());
            assert_eq!(event.trace_context_field(), None, "{broken}");
            assert_eq!(value(&event.published()).get("_trace_context"), None, "{broken}");
        }
    }
}
