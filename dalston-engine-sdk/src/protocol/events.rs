//! Section 2.4: the events about jobs and tasks.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::ProtocolError;
use super::json::{Object, Wrong};
use super::timestamp::Timestamp;

/// An event about a job or a task, in the two forms of the platform.
///
/// The orchestrator acts on the durable copy, an entry of
/// [`EVENT_STREAM`](super::keys::EVENT_STREAM). The copy on
/// [`EVENT_CHANNEL`](super::keys::EVENT_CHANNEL) has the same content as one flat object, for all
/// other readers.
///
/// ```
/// use dalston_engine_sdk::protocol::{Event, EventKind, Timestamp};
///
/// let job = "0b6f7f6e-2c0a-4f0e-9d59-0d3f5b1f6a11";
/// let created = Event::new(EventKind::JobCreated, job, Timestamp::now()).request_id("req_5f");
/// let read = Event::from_fields(created.fields())?;
/// assert_eq!((read.kind, read.job_id.as_deref()), (EventKind::JobCreated, Some(job)));
/// # Ok::<(), dalston_engine_sdk::protocol::ProtocolError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its type.
    pub kind: EventKind,
    /// When it happened, by the clock of its writer. `None` if it was read without a valid time.
    pub timestamp: Option<Timestamp>,
    /// The job. A UUID with dashes.
    pub job_id: Option<String>,
    /// The task, of an event about one. A UUID with dashes.
    pub task_id: Option<String>,
    /// The engine of the task, not the instance.
    pub engine_id: Option<String>,
    /// The error of a failure.
    pub error: Option<String>,
    /// The gateway's request id. The orchestrator passes it to the tasks that it queues because of
    /// this event.
    pub request_id: Option<String>,
    /// The trace context as a JSON object. Anything else is omitted from both copies.
    pub trace_context: Option<String>,
}

/// The types of events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// `job.created`: the gateway accepted a job.
    JobCreated,
    /// `job.completed`: the transcript of the job is in storage.
    JobCompleted,
    /// `job.failed`, with an error.
    JobFailed,
    /// `job.cancel_requested`: the gateway received the cancellation of a job.
    JobCancelRequested,
    /// `job.cancelled`: no task of a cancelled job runs any more.
    JobCancelled,
    /// `task.started`: work began. It precedes every other event: the orchestrator ignores the
    /// failure of a task that never started.
    TaskStarted,
    /// `task.completed`: the response is in storage and the artifacts are in the index.
    TaskCompleted,
    /// `task.failed`, with an error.
    TaskFailed,
    /// A type that this crate does not know.
    Other(String),
}

impl EventKind {
    const KNOWN: [Self; 8] = [
        Self::JobCreated,
        Self::JobCompleted,
        Self::JobFailed,
        Self::JobCancelRequested,
        Self::JobCancelled,
        Self::TaskStarted,
        Self::TaskCompleted,
        Self::TaskFailed,
    ];

    /// The value of `type`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::JobCreated => "job.created",
            Self::JobCompleted => "job.completed",
            Self::JobFailed => "job.failed",
            Self::JobCancelRequested => "job.cancel_requested",
            Self::JobCancelled => "job.cancelled",
            Self::TaskStarted => "task.started",
            Self::TaskCompleted => "task.completed",
            Self::TaskFailed => "task.failed",
            Self::Other(name) => name,
        }
    }

    /// The type of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|kind| kind.as_str() == name);
        known.unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn is_about_task(&self) -> bool {
        matches!(self, Self::TaskStarted | Self::TaskCompleted | Self::TaskFailed)
    }
}

impl Event {
    /// An event about a job.
    #[must_use]
    pub fn new(kind: EventKind, job_id: impl Into<String>, timestamp: Timestamp) -> Self {
        Self {
            kind,
            timestamp: Some(timestamp),
            job_id: Some(job_id.into()),
            task_id: None,
            engine_id: None,
            error: None,
            request_id: None,
            trace_context: None,
        }
    }

    /// Sets the task and its engine.
    #[must_use]
    pub fn task(mut self, task_id: impl Into<String>, engine_id: impl Into<String>) -> Self {
        self.task_id = Some(task_id.into());
        self.engine_id = Some(engine_id.into());
        self
    }

    /// Sets the error of a failure.
    #[must_use]
    pub fn error(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
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

    /// The fields of the durable copy.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("type", self.kind.as_str().to_owned())];
        fields.extend(self.timestamp.map(|time| ("timestamp", time.to_string())));
        fields.push(("payload", self.payload()));
        fields.extend(self.trace_context_field().map(|json| ("_trace_context", json)));
        fields
    }

    /// The copy on the channel.
    #[must_use]
    pub fn published(&self) -> String {
        to_json(&Published {
            kind: self.kind.as_str(),
            timestamp: self.timestamp,
            payload: self.payload_object(),
            trace_context: self.trace_context_object(),
        })
    }

    /// Reads the durable copy. Unknown fields and unknown keys of the payload are ignored, and so
    /// are a time and a trace context that can't be read.
    ///
    /// The orchestrator retries no event that can't be read: it goes to the dead letters,
    /// [`EVENT_DEAD_LETTERS`](super::keys::EVENT_DEAD_LETTERS).
    ///
    /// # Errors
    ///
    /// If `type` or `payload` is missing, the payload is not a JSON object, a key has the wrong
    /// type, or the id of the job (for events about tasks: of the task) is not a UUID.
    pub fn from_fields<N: AsRef<str>, V: AsRef<str>>(
        fields: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, ProtocolError> {
        const DOCUMENT: &str = "event";
        let fields: BTreeMap<String, String> = fields
            .into_iter()
            .map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()))
            .collect();
        let required = |name: &str| {
            fields.get(name).ok_or_else(|| ProtocolError::Field {
                document: DOCUMENT,
                path: name.to_owned(),
                problem: "is missing: expected a string".to_owned(),
            })
        };
        let kind = EventKind::of(required("type")?);
        let payload = required("payload")?;
        super::error::read(DOCUMENT, payload.as_bytes(), |payload| {
            let mut event = Self::read(kind, payload)?;
            event.timestamp = fields.get("timestamp").and_then(|time| time.parse().ok());
            event.trace_context = fields.get("_trace_context").cloned();
            Ok(event)
        })
    }

    fn read(kind: EventKind, payload: Value) -> Result<Self, Wrong> {
        let mut payload = Object::new("payload", payload)?;
        let id = |payload: &mut Object, key: &str, is_required: bool| {
            let text = match is_required {
                true => Some(payload.name(key)?),
                false => payload.text(key)?,
            };
            match text {
                Some(text) if Uuid::try_parse(&text).is_err() => {
                    let path = payload.path_of(key);
                    Err(Wrong::expected(&path, &Value::String(text), "a UUID"))
                }
                text => Ok(text),
            }
        };
        let is_known = !matches!(kind, EventKind::Other(_));
        Ok(Self {
            job_id: id(&mut payload, "job_id", is_known && !kind.is_about_task())?,
            task_id: id(&mut payload, "task_id", kind.is_about_task())?,
            engine_id: payload.text("engine_id")?,
            error: payload.text("error")?,
            request_id: payload.text("request_id")?,
            kind,
            timestamp: None,
            trace_context: None,
        })
    }

    /// The field `payload` of the durable copy.
    pub(crate) fn payload(&self) -> String {
        to_json(&self.payload_object())
    }

    /// The field `_trace_context` of the durable copy, if there is a trace context.
    pub(crate) fn trace_context_field(&self) -> Option<String> {
        self.trace_context_object().as_ref().map(to_json)
    }

    fn payload_object(&self) -> Payload<'_> {
        Payload {
            task_id: self.task_id.as_deref(),
            job_id: self.job_id.as_deref(),
            engine_id: self.engine_id.as_deref(),
            error: self.error.as_deref(),
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
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Published<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<Timestamp>,
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
    const JOB: &str = "9d9fc0e3-5b7e-4a35-8e0c-0f3c4b7d2a10";
    const TASK: &str = "1d0f5e0a-6a0d-4c2f-9c43-7b8c2f3d4e5f";

    fn event(kind: EventKind) -> Event {
        let time = "2026-11-20T18:17:06.690014+00:00".parse().unwrap();
        Event::new(kind, JOB, time).task(TASK, "faster-whisper")
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn started_and_completed_carry_three_ids() {
        for (kind, name) in [
            (EventKind::TaskStarted, "task.started"),
            (EventKind::TaskCompleted, "task.completed"),
        ] {
            let event = event(kind);
            assert_eq!(event.kind.as_str(), name);
            let ids = json!({"task_id": TASK, "job_id": JOB, "engine_id": "faster-whisper"});
            assert_eq!(value(&event.payload()), ids);
            assert_eq!(event.trace_context_field(), None);
        }
    }

    #[test]
    fn failure_carries_error_and_request_id() {
        let event = event(EventKind::TaskFailed)
            .error("no \"audio\": 404 🙁")
            .request_id("req_5f");
        assert_eq!(
            value(&event.payload()),
            json!({"task_id": TASK, "job_id": JOB, "engine_id": "faster-whisper",
                "error": "no \"audio\": 404 🙁", "request_id": "req_5f"})
        );
    }

    #[test]
    fn trace_context_is_text_in_one_copy_and_object_in_the_other() {
        let event = event(EventKind::TaskCompleted).trace_context(TRACE);
        assert_eq!(event.trace_context_field().as_deref(), Some(TRACE));
        assert_eq!(
            value(&event.published()),
            json!({"type": "task.completed", "task_id": TASK, "job_id": JOB, "engine_id": "faster-whisper",
                "timestamp": "2026-11-20T18:17:06.690014+00:00", "_trace_context": value(TRACE)})
        );
    }

    #[test]
    fn invalid_trace_context_is_omitted() {
        for broken in ["", "null", "[]", "\"x\"", "{", "{}"] {
            let event = event(EventKind::TaskStarted).trace_context(broken);
            assert_eq!(event.trace_context_field(), None, "{broken}");
            assert_eq!(value(&event.published()).get("_trace_context"), None, "{broken}");
        }
    }

    #[test]
    fn written_event_is_read_back_unchanged() {
        for kind in EventKind::KNOWN {
            let written = event(kind)
                .error("disk full")
                .request_id("req_5f")
                .trace_context(TRACE);
            assert_eq!(Event::from_fields(written.fields()).unwrap(), written);
        }
    }

    #[test]
    fn event_of_another_writer_is_read() {
        let payload = format!(r#"{{"task_id":"{TASK}","new":[1],"error":null}}"#);
        let fields = [
            ("type", "task.failed"),
            ("payload", &*payload),
            ("timestamp", "now"),
            ("x", ""),
        ];
        let read = Event::from_fields(fields).unwrap();
        assert_eq!(
            (read.kind, read.task_id.as_deref()),
            (EventKind::TaskFailed, Some(TASK))
        );
        assert_eq!((read.timestamp, read.error, read.job_id), (None, None, None));
        let unknown = Event::from_fields([("type", "engine.needed"), ("payload", "{}")]).unwrap();
        assert_eq!(unknown.kind, EventKind::Other("engine.needed".to_owned()));
    }

    #[test]
    fn malformed_event_is_refused_with_its_field() {
        let refusal = |fields: &[(&str, &str)]| Event::from_fields(fields.iter().copied()).unwrap_err();
        for (fields, expected) in [
            (
                &[("payload", "{}")][..],
                "event: type is missing: expected a string",
            ),
            (
                &[("type", "job.created")],
                "event: payload is missing: expected a string",
            ),
            (
                &[("type", "job.created"), ("payload", "[]")],
                "event: payload is an empty list: expected an object",
            ),
            (
                &[("type", "job.created"), ("payload", "{}")],
                "event: payload.job_id is missing: expected a non-empty string",
            ),
            (
                &[("type", "task.started"), ("payload", r#"{"task_id":"T"}"#)],
                "event: payload.task_id is \"T\": expected a UUID",
            ),
        ] {
            assert_eq!(refusal(fields).to_string(), expected);
        }
        let syntax = refusal(&[("type", "job.created"), ("payload", "{")]);
        assert!(matches!(syntax, ProtocolError::Syntax { .. }), "{syntax}");
    }
}
