//! The spans of a task.
//!
//! ```text
//! (the producer's span)
//! ├─ engine.queue_wait
//! └─ engine.{engine_id}.process
//!    ├─ engine.download_input
//!    ├─ engine.slot_wait         only if no inference thread was free
//!    ├─ engine.model_acquire     only if the engine has models
//!    │  └─ engine.model_load     only if the inference thread has not loaded the model yet
//!    │     └─ engine.model_download only if the model is not on this machine yet
//!    ├─ engine.process           with the engine's own spans below it
//!    └─ engine.upload_output
//! ```
//!
//! A request over HTTP has three more around them:
//!
//! ```text
//! (the caller's span)
//! └─ POST {route}                 by the layer for HTTP servers
//!    └─ engine.{engine_id}.http_process
//!       ├─ engine.receive_input  the upload, or the download of a URL
//!       ├─ engine.queue_wait     until a permit was free
//!       └─ engine.{engine_id}.process
//!          └─ …
//! ```

use std::ops::Deref;
use std::time::{Duration, SystemTime};

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

/// The spans of one task.
#[derive(Debug)]
pub(crate) struct TaskSpans {
    telemetry: TelemetryHandle,
    /// The context that the producer sent with the task.
    parent_context: Context,
    task: OpenSpan,
    /// The context of the span around the task.
    context: Context,
    opener: SpanOpener,
}

impl TaskSpans {
    /// Opens `engine.{engine_id}.process`. `queue` is the kind of queue that the task came from, if
    /// it came from one.
    pub(crate) fn open(
        telemetry: &TelemetryHandle,
        interruption: &Interruption,
        parent_context: Context,
        info: &TaskInfo,
        queue: Option<&'static str>,
    ) -> Self {
        let (task, context) = if telemetry.traces_enabled() {
            open_task_span(&parent_context, info, queue)
        } else {
            (Span::none(), Context::new())
        };
        let opener = SpanOpener {
            interruption: Some(interruption.clone()),
        };
        Self {
            telemetry: telemetry.clone(),
            parent_context,
            task: opener.open(task),
            context,
            opener,
        }
    }

    /// The span around the task.
    pub(crate) fn task(&self) -> &Span {
        &self.task
    }

    /// Opens the spans of the task.
    pub(crate) fn opener(&self) -> &SpanOpener {
        &self.opener
    }

    /// Ends the span around the task, which exports it.
    ///
    /// It would end by itself with its last handle, but an engine that does not return keeps one.
    pub(crate) fn end(&self) {
        self.task.record_interruption();
        self.context.span().end();
    }

    /// The trace context for events, as JSON: that of the task's span, or that of the producer if
    /// there is no such span.
    pub(crate) fn carrier(&self) -> Option<String> {
        if !self.context.span().span_context().is_valid() {
            return propagate::inject_json(&self.parent_context);
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
            &self.parent_context,
            wait.from.to_system_time(),
            wait.to.to_system_time(),
        );
        span.attributes
            .push(KeyValue::new(attr::ENGINE_ID, info.engine_id.clone()));
        span.attributes
            .push(KeyValue::new(attr::TASK_ID, info.task_id.clone()));
        span.attributes
            .push(KeyValue::new(attr::QUEUE_WAIT_SECONDS, wait.seconds));
        self.set(attr::QUEUE_WAIT_SECONDS, wait.seconds);
        if let Some(raw) = wait.skew {
            span.attributes.push(KeyValue::new(attr::CLOCK_SKEW_SECONDS, raw));
            self.set(attr::CLOCK_SKEW_SECONDS, raw);
        }
        self.telemetry.record_span(span);
    }

    /// `engine.download_input`, below the current span.
    pub(crate) fn download_input(&self) -> OpenSpan {
        self.opener.open(info_span!(span::DOWNLOAD_INPUT))
    }

    /// Records `engine.slot_wait`, which ends now, below the task's span.
    pub(crate) fn slot_wait(&self, wait: Duration) {
        /// A shorter wait is that of a task whose thread was free.
        const SHORTEST: Duration = Duration::from_millis(1);
        if wait < SHORTEST || !self.telemetry.traces_enabled() {
            return;
        }
        let now = SystemTime::now();
        let from = now.checked_sub(wait).unwrap_or(now);
        self.telemetry
            .record_span(TimedSpan::new(span::SLOT_WAIT, &self.context, from, now));
    }

    /// `engine.upload_output`, below the current span.
    pub(crate) fn upload_output(&self) -> OpenSpan {
        self.opener.open(info_span!(span::UPLOAD_OUTPUT))
    }

    pub(crate) fn audio_seconds(&self, seconds: f64) {
        self.set(attr::AUDIO_DURATION_SECONDS, seconds);
    }

    pub(crate) fn language(&self, language: String) {
        self.set(attr::LANGUAGE, language);
    }

    pub(crate) fn model(&self, model: &str) {
        if !self.task.is_disabled() {
            self.set(attr::MODEL, model.to_owned());
        }
    }

    pub(crate) fn realtime_factor(&self, factor: f64) {
        self.set(attr::REALTIME_FACTOR, factor);
    }

    fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.context.span().set_attribute(KeyValue::new(name, value));
    }
}

/// `engine.{engine_id}.http_process`, as a child of the caller's context.
#[cfg(feature = "worker")]
pub(crate) fn http_request(
    telemetry: &TelemetryHandle,
    parent_context: &Context,
    engine_id: &str,
    attributes: [(&'static str, String); 5],
) -> Span {
    if !telemetry.traces_enabled() {
        return Span::none();
    }
    let name = span::http_request(engine_id);
    let span = info_span!(parent: None, "engine.http", otel.name = name);
    // Fails only without an OpenTelemetry layer, and then there are no spans.
    let _ = span.set_parent(parent_context.clone());
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

/// The client span of a command to Redis, below the current span.
#[cfg(feature = "redis")]
pub(crate) fn redis_command(name: String, address: &str) -> Span {
    let span = info_span!("redis", otel.name = name, otel.kind = "client");
    span.set_attribute(attr::DB_SYSTEM_NAME, "redis");
    span.set_attribute(attr::DB_OPERATION_NAME, name);
    span.set_attribute(attr::SERVER_ADDRESS, address.to_owned());
    span
}

/// Records the error of a command on its span.
#[cfg(feature = "redis")]
pub(crate) fn redis_answered<T>(span: &Span, answer: &redis::RedisResult<T>) {
    if let Err(error) = answer
        && !span.is_disabled()
    {
        span.set_attribute(attr::ERROR_TYPE, error.code().unwrap_or("connection").to_owned());
        span.set_status(Status::error(error.to_string()));
    }
}

/// `engine.model_acquire`, below the current span.
pub(crate) fn model_acquire(model: &str, opener: &SpanOpener) -> OpenSpan {
    let span = opener.open(info_span!(span::MODEL_ACQUIRE));
    span.set_attribute(attr::MODEL_ID, model.to_owned());
    span
}

pub(crate) fn in_memory(acquire: &Span, in_memory: bool) {
    acquire.set_attribute(attr::IN_MEMORY, in_memory);
}

/// Records the facts of a finished inference on `engine.process`, under the names of the engines
/// in Python.
pub(crate) fn processed(
    process: &Span,
    took: Duration,
    audio_seconds: Option<f64>,
    transcript: Option<(usize, usize)>,
) {
    if let Some(seconds) = audio_seconds {
        process.set_attribute(attr::AUDIO_DURATION_S, seconds);
        if seconds > 0.0 {
            process.set_attribute(attr::RTF, took.as_secs_f64() / seconds);
        }
    }
    if let Some((segments, words)) = transcript {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        process.set_attribute(attr::SEGMENT_COUNT, number(segments));
        process.set_attribute(attr::WORD_COUNT, number(words));
    }
}

/// `engine.model_load`, below the current span.
pub(crate) fn model_load(model: &str, opener: &SpanOpener) -> OpenSpan {
    let span = opener.open(info_span!(span::MODEL_LOAD));
    span.set_attribute(attr::MODEL, model.to_owned());
    span
}

/// `engine.model_download`, below the current span.
pub(crate) fn model_download(model: &str) -> Span {
    let span = info_span!(span::MODEL_DOWNLOAD);
    span.set_attribute(attr::MODEL, model.to_owned());
    span
}

/// Records the size of a download, and its source unless another process made it.
pub(crate) fn downloaded(span: &Span, bytes: u64, source: Option<&'static str>) {
    span.set_attribute(attr::DOWNLOAD_BYTES, i64::try_from(bytes).unwrap_or(i64::MAX));
    if let Some(source) = source {
        span.set_attribute(attr::MODEL_SOURCE, source);
    }
}

/// Records the peak of the GPU memory in use on the span around a task.
pub(crate) fn gpu_memory_peak(task: &Span, bytes: u64) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    task.set_attribute(attr::GPU_MEMORY_PEAK_BYTES, bytes);
}

/// `engine.process`, below the current span.
pub(crate) fn process(opener: &SpanOpener) -> OpenSpan {
    opener.open(info_span!(span::PROCESS))
}

/// `engine.batch`, in a trace of its own, for so many tasks.
pub(crate) fn batch(tasks: usize, waited: Duration, opener: &SpanOpener) -> OpenSpan {
    let span = info_span!(parent: None, span::BATCH);
    span.set_attribute(attr::BATCH_SIZE, i64::try_from(tasks).unwrap_or(i64::MAX));
    span.set_attribute(attr::BATCH_WAIT_SECONDS, waited.as_secs_f64());
    opener.open(span)
}

/// Links `engine.process` of a task and the batch with each other.
pub(crate) fn in_batch(process: &Span, batch: &Span, index: usize, tasks: usize, waited: Duration) {
    if process.is_disabled() {
        return;
    }
    process.add_link(batch.context().span().span_context().clone());
    batch.add_link(process.context().span().span_context().clone());
    let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
    process.set_attribute(attr::BATCH_INDEX, number(index));
    process.set_attribute(attr::BATCH_SIZE, number(tasks));
    process.set_attribute(attr::BATCH_WAIT_SECONDS, waited.as_secs_f64());
}

/// Opens the spans of a task. Shared with the inference thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanOpener {
    /// The interruption of the machine that spans report.
    interruption: Option<Interruption>,
}

impl SpanOpener {
    /// No span.
    pub(crate) fn none(&self) -> OpenSpan {
        self.open(Span::none())
    }

    fn open(&self, span: Span) -> OpenSpan {
        let interruption = match span.is_disabled() {
            true => None,
            false => self.interruption.clone(),
        };
        OpenSpan { span, interruption }
    }
}

/// A span of a task. When it ends it records an interruption of the machine.
#[derive(Debug)]
pub(crate) struct OpenSpan {
    span: Span,
    interruption: Option<Interruption>,
}

impl OpenSpan {
    fn record_interruption(&self) {
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
        self.record_interruption();
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

/// A week in seconds. After a longer wait one of the times is wrong, and the span would hide all
/// others of the trace.
const LONGEST_WAIT: f64 = 7.0 * 86_400.0;

/// How long a task waited in the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QueueWait {
    from: Timestamp,
    to: Timestamp,
    pub(crate) seconds: f64,
    /// How much longer the wait is by the clocks of two machines, if they differ.
    skew: Option<f64>,
}

impl QueueWait {
    /// A wait until `read_at` by the clock of the broker.
    pub(crate) fn measured(
        waited: Duration,
        enqueued_at: Option<Timestamp>,
        read_at: Timestamp,
    ) -> Option<Self> {
        /// The platform writes `enqueued_at` some time before the message.
        const LARGEST_DELAY: f64 = 1.0;
        let seconds = waited.as_secs_f64();
        let from = read_at.to_system_time().checked_sub(waited)?;
        let skew = enqueued_at.map(|enqueued_at| read_at.seconds_since(enqueued_at) - seconds);
        (seconds <= LONGEST_WAIT).then(|| Self {
            from: Timestamp::from(from),
            to: read_at,
            seconds,
            skew: skew.filter(|skew| skew.abs() > LARGEST_DELAY),
        })
    }

    /// A wait by the clocks of two machines.
    pub(crate) fn between(enqueued_at: Timestamp, read_at: Timestamp) -> Option<Self> {
        let raw = read_at.seconds_since(enqueued_at);
        if raw.abs() > LONGEST_WAIT {
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

/// Opens the span around a task. Returns it with its context.
fn open_task_span(parent_context: &Context, info: &TaskInfo, queue: Option<&'static str>) -> (Span, Context) {
    let name = span::task(&info.engine_id);
    let kind = if queue.is_some() { "consumer" } else { "internal" };
    let span = info_span!(parent: None, "engine.task", otel.name = name, otel.kind = kind);
    // Fails only without an OpenTelemetry layer, and then there are no spans.
    let _ = span.set_parent(parent_context.clone());
    let context = span.context();
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
