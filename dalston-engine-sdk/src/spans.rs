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

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context as PollContext, Poll};

use dalston_telemetry::opentelemetry::trace::{Status, TraceContextExt};
use dalston_telemetry::opentelemetry::{Context, KeyValue, Value};
use dalston_telemetry::services::engine::spans::{attr, event, span};
use dalston_telemetry::{TelemetryHandle, TimedSpan, propagate};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::error::TaskError;
use crate::interruption::Interruption;
use crate::protocol::Timestamp;
use crate::task::TaskInfo;

/// The spans of one task, and the context that they stand in.
#[derive(Debug)]
pub(crate) struct TaskSpans {
    telemetry: TelemetryHandle,
    /// What the producer sent along.
    carried: Context,
    task: OpenSpan,
    /// That of the task's span: what is said on a span through its context needs no look into the subscriber.
    context: Context,
    opener: SpanOpener,
}

impl TaskSpans {
    /// Opens `engine.{engine_id}.process`. `queue` is the kind of queue that the task came from, if it came from one.
    pub(crate) fn open(
        telemetry: &TelemetryHandle,
        interruption: &Interruption,
        carried: Context,
        info: &TaskInfo,
        queue: Option<&'static str>,
    ) -> Self {
        let (task, context) = if telemetry.traces_enabled() {
            open_task_span(&carried, info, queue)
        } else {
            (Span::none(), Context::new())
        };
        let opener = SpanOpener {
            interruption: Some(interruption.clone()),
        };
        Self {
            telemetry: telemetry.clone(),
            carried,
            task: opener.opened(task),
            context,
            opener,
        }
    }

    /// The span around all of the task.
    pub(crate) fn task(&self) -> &Span {
        &self.task
    }

    /// What opens the spans of the task.
    pub(crate) fn opener(&self) -> &SpanOpener {
        &self.opener
    }

    /// Ends the span around the task, and with that exports it.
    ///
    /// It would end by itself when its last handle is gone, but an engine that does not return keeps one.
    pub(crate) fn end(&self) {
        self.task.note_interruption();
        self.context.span().end();
    }

    /// The JSON that carries the context on, in events. Without a span of our own the producer's context passes through.
    pub(crate) fn carrier(&self) -> Option<String> {
        if !self.context.span().span_context().is_valid() {
            return propagate::inject_json(&self.carried);
        }
        propagate::inject_json(&self.context)
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
        self.say(attr::QUEUE_WAIT_SECONDS, wait.seconds);
        if let Some(raw) = wait.skew {
            span.attributes.push(KeyValue::new(attr::CLOCK_SKEW_SECONDS, raw));
            self.say(attr::CLOCK_SKEW_SECONDS, raw);
        }
        self.telemetry.record_span(span);
    }

    /// `engine.download_input`, below the current span.
    pub(crate) fn download_input(&self) -> OpenSpan {
        self.opener.opened(info_span!(span::DOWNLOAD_INPUT))
    }

    /// `engine.upload_output`, below the current span.
    pub(crate) fn upload_output(&self) -> OpenSpan {
        self.opener.opened(info_span!(span::UPLOAD_OUTPUT))
    }

    pub(crate) fn audio_seconds(&self, seconds: f64) {
        self.say(attr::AUDIO_DURATION_SECONDS, seconds);
    }

    pub(crate) fn language(&self, language: String) {
        self.say(attr::LANGUAGE, language);
    }

    pub(crate) fn model(&self, model: &str) {
        if !self.task.is_disabled() {
            self.say(attr::MODEL, model.to_owned());
        }
    }

    pub(crate) fn realtime_factor(&self, factor: f64) {
        self.say(attr::REALTIME_FACTOR, factor);
    }

    fn say(&self, name: &'static str, value: impl Into<Value>) {
        self.context.span().set_attribute(KeyValue::new(name, value));
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
pub(crate) fn model_load(model: &str, opener: &SpanOpener) -> OpenSpan {
    let span = opener.opened(info_span!(span::MODEL_LOAD));
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
pub(crate) fn process(opener: &SpanOpener) -> OpenSpan {
    opener.opened(info_span!(span::PROCESS))
}

/// What opens the spans of a task. Shared with the inference thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanOpener {
    /// What may happen to the machine, for spans that are to say it.
    interruption: Option<Interruption>,
}

impl SpanOpener {
    /// No span.
    pub(crate) fn none(&self) -> OpenSpan {
        self.opened(Span::none())
    }

    fn opened(&self, span: Span) -> OpenSpan {
        let interruption = match span.is_disabled() {
            true => None,
            false => self.interruption.clone(),
        };
        OpenSpan { span, interruption }
    }
}

/// A span of a task. When it ends it says what has happened to the machine by then.
#[derive(Debug)]
pub(crate) struct OpenSpan {
    span: Span,
    interruption: Option<Interruption>,
}

impl OpenSpan {
    fn note_interruption(&self) {
        if let Some(action) = self.interruption.as_ref().and_then(Interruption::action) {
            self.span
                .set_attribute(attr::SPOT_INTERRUPTION, action.to_string());
        }
    }
}

impl Deref for OpenSpan {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.span
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        self.note_interruption();
    }
}

/// Runs `work` inside of a span: whenever it is polled, and when it is dropped before its end.
///
/// As [`Instrument`](tracing::Instrument) does, which enters the span once more for what is already done.
pub(crate) async fn within<F: Future>(span: &Span, work: F) -> F::Output {
    let work = pin!(Some(work));
    let mut inside = Inside { span, work };
    poll_fn(|cx| inside.poll(cx)).await
}

struct Inside<'a, F> {
    span: &'a Span,
    /// `None` when it is done.
    work: Pin<&'a mut Option<F>>,
}

impl<F: Future> Inside<'_, F> {
    fn poll(&mut self, cx: &mut PollContext<'_>) -> Poll<F::Output> {
        let _entered = self.span.enter();
        let Some(work) = self.work.as_mut().as_pin_mut() else {
            // Nobody polls what is done.
            return Poll::Pending;
        };
        let polled = work.poll(cx);
        if polled.is_ready() {
            self.work.set(None);
        }
        polled
    }
}

impl<F> Drop for Inside<'_, F> {
    fn drop(&mut self) {
        if self.work.is_some() {
            let _entered = self.span.enter();
            self.work.set(None);
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

/// Gives the span and its context.
fn open_task_span(carried: &Context, info: &TaskInfo, queue: Option<&'static str>) -> (Span, Context) {
    let name = span::task(&info.engine_id);
    let kind = if queue.is_some() { "consumer" } else { "internal" };
    let span = info_span!(parent: None, "engine.task", otel.name = name, otel.kind = kind);
    // Fails only where no OpenTelemetry layer listens; then there is nothing to be a child of.
    let _ = span.set_parent(carried.clone());
    let context = span.context();
    // All at once, because each look for a span costs more than what is said on it.
    let text = |name: &'static str, value: &str| KeyValue::new(name, value.to_owned());
    let mut attributes = vec![
        text(attr::TASK_ID, &info.task_id),
        text(attr::JOB_ID, &info.job_id),
        text(attr::ENGINE_ID, &info.engine_id),
        text(attr::INSTANCE, &info.instance),
        KeyValue::new(attr::STAGE, info.stage.to_string()),
        KeyValue::new(attr::DELIVERY_COUNT, i64::from(info.attempt)),
    ];
    if let Some(request_id) = &info.request_id {
        attributes.push(text(attr::REQUEST_ID, request_id));
    }
    if let Some(system) = queue {
        attributes.extend([
            text(attr::MESSAGING_DESTINATION_NAME, &info.engine_id),
            text(attr::MESSAGING_MESSAGE_ID, &info.task_id),
            text(attr::MESSAGING_CONVERSATION_ID, &info.job_id),
            KeyValue::new(attr::MESSAGING_SYSTEM, system),
            KeyValue::new(attr::MESSAGING_OPERATION_TYPE, "process"),
            KeyValue::new(attr::MESSAGING_OPERATION_NAME, "process"),
        ]);
    }
    context.span().set_attributes(attributes);
    (span, context)
}
