//! The spans of a task, in one place.
//!
//! ```text
//! (the producer's span)
//! ├─ engine.queue_wait
//! └─ engine.{engine_id}.process
//!    ├─ engine.download_input
//!    ├─ engine.model_load        only when the inference thread has no such model yet
//!    │  └─ engine.model_download only when this machine has no such model yet
//!    ├─ engine.process           with the engine's own spans below it
//!    └─ engine.upload_output
//! ```
//!
//! A request over HTTP has two more around them:
//!
//! ```text
//! (the caller's span)
//! └─ engine.{engine_id}.http_process
//!    ├─ engine.receive_input     the upload, or the download of a URL
//!    ├─ engine.queue_wait        until a turn was free
//!    └─ engine.{engine_id}.process
//!       └─ …
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use dalston_telemetry::names::{attr, event, span};
use dalston_telemetry::opentelemetry::trace::{Status, TraceContextExt};
use dalston_telemetry::opentelemetry::{Context, KeyValue};
use dalston_telemetry::{TelemetryHandle, TimedSpan, propagate};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::error::TaskError;
use crate::protocol::Timestamp;
use crate::task::TaskInfo;

/// The spans of one task, and the context that they stand in.
#[derive(Debug, Clone)]
pub(crate) struct TaskSpans {
    telemetry: TelemetryHandle,
    /// What the producer sent along.
    carried: Context,
    task: Span,
    open: OpenSpans,
}

impl TaskSpans {
    /// Opens `engine.{engine_id}.process` as a child of the carried context. `queue` is the kind of queue that the task came
    /// from, if it came from one.
    pub(crate) fn open(
        telemetry: &TelemetryHandle,
        carried: Context,
        info: &TaskInfo,
        queue: Option<&'static str>,
    ) -> Self {
        let task = if telemetry.traces_enabled() {
            open_task_span(&carried, info, queue)
        } else {
            Span::none()
        };
        let open = OpenSpans::default();
        Self {
            telemetry: telemetry.clone(),
            carried,
            task: open.list(task),
            open,
        }
    }

    /// The span around all of the task.
    pub(crate) fn task(&self) -> &Span {
        &self.task
    }

    /// The spans of the task.
    pub(crate) fn open_spans(&self) -> &OpenSpans {
        &self.open
    }

    /// Says on all spans of the task that are open, and on those that open later, what happens to the machine.
    pub(crate) fn interrupted(&self, action: &Arc<str>) {
        self.open.mark(action);
    }

    /// Ends the span around the task, and with that exports it.
    ///
    /// It would end by itself when its last handle is gone, but an engine that does not return keeps one.
    pub(crate) fn end(&self) {
        if !self.task.is_disabled() {
            self.task.context().span().end();
        }
    }

    /// The JSON that carries the context on, in events. With tracing off the producer's context passes through.
    pub(crate) fn carrier(&self) -> Option<String> {
        if self.task.is_disabled() {
            return propagate::inject_json(&self.carried);
        }
        propagate::inject_json(&self.task.context())
    }

    /// Records `engine.queue_wait` beside the task's span.
    pub(crate) fn queue_wait(&self, info: &TaskInfo, wait: QueueWait) {
        if !self.telemetry.traces_enabled() {
            return;
        }
        let mut span = TimedSpan::new(
            span::QUEUE_WAIT,
            &self.carried,
            wait.from.to_system_time(),
            wait.to.to_system_time(),
        );
        span.attributes
            .push(KeyValue::new(attr::ENGINE_ID, info.engine_id.clone()));
        span.attributes
            .push(KeyValue::new(attr::TASK_ID, info.task_id.clone()));
        span.attributes
            .push(KeyValue::new(attr::QUEUE_WAIT_SECONDS, wait.seconds));
        self.task.set_attribute(attr::QUEUE_WAIT_SECONDS, wait.seconds);
        if let Some(raw) = wait.skew {
            span.attributes.push(KeyValue::new(attr::CLOCK_SKEW_SECONDS, raw));
            self.task.set_attribute(attr::CLOCK_SKEW_SECONDS, raw);
        }
        self.telemetry.record_span(span);
    }

    pub(crate) fn download_input(&self) -> Span {
        self.open
            .list(info_span!(parent: &self.task, span::DOWNLOAD_INPUT))
    }

    pub(crate) fn upload_output(&self) -> Span {
        self.open
            .list(info_span!(parent: &self.task, span::UPLOAD_OUTPUT))
    }

    pub(crate) fn audio_seconds(&self, seconds: f64) {
        self.task.set_attribute(attr::AUDIO_DURATION_SECONDS, seconds);
    }

    pub(crate) fn language(&self, language: &str) {
        self.task.set_attribute(attr::LANGUAGE, language.to_owned());
    }

    pub(crate) fn model(&self, model: &str) {
        self.task.set_attribute(attr::MODEL, model.to_owned());
    }

    pub(crate) fn realtime_factor(&self, factor: f64) {
        self.task.set_attribute(attr::REALTIME_FACTOR, factor);
    }
}

/// `engine.{engine_id}.http_process`, as a child of the caller's context.
#[cfg(feature = "worker")]
pub(crate) fn http_request(
    telemetry: &TelemetryHandle,
    carried: &Context,
    engine_id: &str,
    attributes: [(&'static str, String); 5],
) -> Span {
    if !telemetry.traces_enabled() {
        return Span::none();
    }
    let name = span::http_request(engine_id);
    let span = info_span!(parent: None, "engine.http", otel.name = name, otel.kind = "server");
    // Fails only where no OpenTelemetry layer listens; then there is nothing to be a child of.
    let _ = span.set_parent(carried.clone());
    span.set_attribute(attr::ENGINE_ID, engine_id.to_owned());
    span.set_attribute(attr::TRANSPORT, "http");
    span.set_attribute(attr::HTTP_REQUEST_METHOD, "POST");
    for (name, value) in attributes {
        span.set_attribute(name, value);
    }
    span
}

/// `engine.receive_input`, below the current span.
#[cfg(feature = "worker")]
pub(crate) fn receive_input() -> Span {
    info_span!(span::RECEIVE_INPUT)
}

/// `engine.model_load`, below the current span.
pub(crate) fn model_load(model: &str, open: &OpenSpans) -> Span {
    let span = open.list(info_span!(span::MODEL_LOAD));
    span.set_attribute(attr::MODEL, model.to_owned());
    span
}

/// `engine.model_download`, below the current span.
pub(crate) fn model_download(model: &str) -> Span {
    let span = info_span!(span::MODEL_DOWNLOAD);
    span.set_attribute(attr::MODEL, model.to_owned());
    span
}

/// Says what came of a download: how much, and from where unless another process brought it.
pub(crate) fn downloaded(span: &Span, bytes: u64, source: Option<&'static str>) {
    span.set_attribute(attr::DOWNLOAD_BYTES, i64::try_from(bytes).unwrap_or(i64::MAX));
    if let Some(source) = source {
        span.set_attribute(attr::MODEL_SOURCE, source);
    }
}

/// Says on the span around a task how much GPU memory was in use, at most.
pub(crate) fn gpu_memory_peak(task: &Span, bytes: u64) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    task.set_attribute(attr::GPU_MEMORY_PEAK_BYTES, bytes);
}

/// `engine.process`, below the current span.
pub(crate) fn process(open: &OpenSpans) -> Span {
    open.list(info_span!(span::PROCESS))
}

/// The spans of a task, so that what happens to the machine can be said on all of them. Shared with the inference thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenSpans {
    shared: Arc<Mutex<Listed>>,
}

#[derive(Debug, Default)]
struct Listed {
    /// Contexts, because a span stays open for as long as somebody has a handle to it. Never more than the five kinds of spans
    /// that a task has; saying something on one that has ended does nothing.
    spans: Vec<Context>,
    interruption: Option<Arc<str>>,
}

impl OpenSpans {
    fn list(&self, span: Span) -> Span {
        if !span.is_disabled() {
            let mut listed = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(action) = &listed.interruption {
                span.set_attribute(attr::SPOT_INTERRUPTION, action.to_string());
            }
            listed.spans.push(span.context());
        }
        span
    }

    fn mark(&self, action: &Arc<str>) {
        let mut listed = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        listed.interruption = Some(Arc::clone(action));
        for span in &listed.spans {
            span.span()
                .set_attribute(KeyValue::new(attr::SPOT_INTERRUPTION, action.to_string()));
        }
    }
}

/// Marks a span as failed: status, `error.type`, and the exception as an event.
pub(crate) fn record_failure(span: &Span, error: &TaskError) {
    if span.is_disabled() {
        return;
    }
    let message = error.to_string();
    span.set_attribute(attr::ERROR_TYPE, error.code());
    span.add_event(
        event::EXCEPTION,
        vec![
            KeyValue::new(attr::EXCEPTION_TYPE, error.code()),
            KeyValue::new(attr::EXCEPTION_MESSAGE, message.clone()),
        ],
    );
    span.set_status(Status::error(message));
}

/// How long a task waited, made fit to be shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QueueWait {
    from: Timestamp,
    to: Timestamp,
    pub(crate) seconds: f64,
    /// The negative difference that two machines' clocks made of it.
    skew: Option<f64>,
}

impl QueueWait {
    /// `None` for a wait of more than a week: then one of the times is wrong and the bar would dwarf the trace.
    pub(crate) fn between(enqueued_at: Timestamp, read_at: Timestamp) -> Option<Self> {
        const A_WEEK: f64 = 7.0 * 86_400.0;
        let raw = read_at.seconds_since(enqueued_at);
        if raw.abs() > A_WEEK {
            return None;
        }
        if raw < 0.0 {
            return Some(Self {
                from: read_at,
                to: read_at,
                seconds: 0.0,
                skew: Some(raw),
            });
        }
        Some(Self {
            from: enqueued_at,
            to: read_at,
            seconds: raw,
            skew: None,
        })
    }
}

fn open_task_span(carried: &Context, info: &TaskInfo, queue: Option<&'static str>) -> Span {
    let name = span::task(&info.engine_id);
    let kind = if queue.is_some() { "consumer" } else { "internal" };
    let span = info_span!(parent: None, "engine.task", otel.name = name, otel.kind = kind);
    // Fails only where no OpenTelemetry layer listens; then there is nothing to be a child of.
    let _ = span.set_parent(carried.clone());
    for (name, value) in [
        (attr::TASK_ID, info.task_id.as_str()),
        (attr::JOB_ID, info.job_id.as_str()),
        (attr::ENGINE_ID, info.engine_id.as_str()),
        (attr::INSTANCE, info.instance.as_str()),
    ] {
        span.set_attribute(name, value.to_owned());
    }
    if let Some(request_id) = &info.request_id {
        span.set_attribute(attr::REQUEST_ID, request_id.clone());
    }
    span.set_attribute(attr::STAGE, info.stage.to_string());
    span.set_attribute(attr::DELIVERY_COUNT, i64::from(info.attempt));
    if let Some(system) = queue {
        for (name, value) in [
            (attr::MESSAGING_DESTINATION_NAME, info.engine_id.as_str()),
            (attr::MESSAGING_MESSAGE_ID, info.task_id.as_str()),
            (attr::MESSAGING_CONVERSATION_ID, info.job_id.as_str()),
        ] {
            span.set_attribute(name, value.to_owned());
        }
        span.set_attribute(attr::MESSAGING_SYSTEM, system);
        span.set_attribute(attr::MESSAGING_OPERATION_TYPE, "process");
        span.set_attribute(attr::MESSAGING_OPERATION_NAME, "process");
    }
    span
}
