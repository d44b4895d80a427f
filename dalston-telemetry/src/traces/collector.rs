use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Event, Link, SpanId, SpanKind, Status, TraceId};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use crate::traces::limits;

/// A bounded store of finished spans in memory.
///
/// It is a span processor without a thread, a queue or a socket: a span is in the store before the
/// code that ended it continues. Pass it to [`TelemetryBuilder::span_collector`] and keep a clone;
/// both have the same spans. The command line of an engine prints the [`Waterfall`] of a task from
/// it, and tests compare spans with it.
///
/// When the store is full, the oldest span is removed and [`dropped`](Self::dropped) counts it. The
/// bound is the number of spans; OpenTelemetry's span limits bound the size of a span.
///
/// ```
/// use dalston_telemetry::SpanCollector;
/// use dalston_telemetry::opentelemetry::trace::{Span, Tracer, TracerProvider};
/// use dalston_telemetry::opentelemetry_sdk::trace::SdkTracerProvider;
///
/// let collector = SpanCollector::new();
/// let provider = SdkTracerProvider::builder().with_span_processor(collector.clone()).build();
/// provider.tracer("example").start("engine.process").end();
///
/// assert_eq!(collector.spans()[0].name, "engine.process");
/// ```
///
/// [`TelemetryBuilder::span_collector`]: crate::TelemetryBuilder::span_collector
/// [`Waterfall`]: crate::Waterfall
#[derive(Clone)]
pub struct SpanCollector {
    store: Arc<Mutex<Store>>,
    capacity: usize,
}

impl SpanCollector {
    /// The number of spans that [`new`](Self::new) makes room for.
    pub const DEFAULT_CAPACITY: usize = 8_192;

    /// A store for [`DEFAULT_CAPACITY`](Self::DEFAULT_CAPACITY) spans.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }

    /// A store for `capacity` spans. With 0, it keeps nothing and counts every span as dropped.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            store: Arc::default(),
            capacity,
        }
    }

    /// Every span in the store, in the order in which they ended.
    #[must_use]
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.lock().spans.iter().cloned().collect()
    }

    /// The spans of one trace by start time, parents before children that start at the same time.
    ///
    /// A trace that is still running lacks the spans that have not ended.
    #[must_use]
    pub fn trace(&self, trace_id: TraceId) -> Vec<CollectedSpan> {
        let mut spans: Vec<_> = self
            .lock()
            .spans
            .iter()
            .filter(|span| span.trace_id == trace_id)
            .cloned()
            .collect();
        sort_by_start(&mut spans);
        spans
    }

    /// The traces in the store, in the order of their earliest start.
    #[must_use]
    pub fn trace_ids(&self) -> Vec<TraceId> {
        let mut spans = self.spans();
        sort_by_start(&mut spans);
        let mut ids = Vec::new();
        for span in spans {
            if !ids.contains(&span.trace_id) {
                ids.push(span.trace_id);
            }
        }
        ids
    }

    /// Takes the spans of one trace out of the store, in the order of [`trace`](Self::trace).
    ///
    /// A program that needs each trace once keeps the store small this way.
    #[must_use]
    pub fn take_trace(&self, trace_id: TraceId) -> Vec<CollectedSpan> {
        let mut store = self.lock();
        let (mut taken, kept): (Vec<_>, VecDeque<_>) = {
            let all = std::mem::take(&mut store.spans);
            let mut taken = Vec::new();
            let mut kept = VecDeque::with_capacity(all.len());
            for span in all {
                if span.trace_id == trace_id {
                    taken.push(span)
                } else {
                    kept.push_back(span)
                }
            }
            (taken, kept)
        };
        store.spans = kept;
        drop(store);
        sort_by_start(&mut taken);
        taken
    }

    /// How many spans were lost because the store was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Empties the store. The count of dropped spans stays.
    pub fn clear(&self) {
        self.lock().spans.clear();
    }

    pub(super) fn add(&self, span: CollectedSpan) {
        let mut store = self.lock();
        if store.spans.len() >= self.capacity {
            store.dropped += 1;
            if store.spans.pop_front().is_none() {
                return;
            }
        }
        store.spans.push_back(span);
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // No code under the lock can panic half-way.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SpanCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SpanCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.lock();
        f.debug_struct("SpanCollector")
            .field("capacity", &self.capacity)
            .field("len", &store.spans.len())
            .field("dropped", &store.dropped)
            .finish()
    }
}

impl SpanProcessor for SpanCollector {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        // Before the lock is taken: spans end on hot paths, on several threads at once.
        self.add(CollectedSpan::from(span));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// A finished span, as [`SpanCollector`] keeps it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CollectedSpan {
    /// The trace that the span belongs to.
    pub trace_id: TraceId,
    /// The span's own id.
    pub span_id: SpanId,
    /// The id of the span above it; `None` for the first span of a trace.
    pub parent_span_id: Option<SpanId>,
    /// Whether the parent is in another process, and so can't be in this store.
    pub parent_is_remote: bool,
    /// The span's name.
    pub name: Cow<'static, str>,
    /// The span's kind.
    pub kind: SpanKind,
    /// When it started, by the clock of the process that made it.
    pub start: SystemTime,
    /// When it ended. Before `start` if the clock was set back in between.
    pub end: SystemTime,
    /// Its attributes in the order in which they were first set, each key once, with its last
    /// value.
    pub attributes: Vec<KeyValue>,
    /// Its events, in the order in which they were added.
    pub events: Vec<Event>,
    /// Its links to other spans.
    pub links: Vec<Link>,
    /// Its status.
    pub status: Status,
}

impl CollectedSpan {
    /// The time from start to end; zero if the clock was set back in between.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.end.duration_since(self.start).unwrap_or_default()
    }

    /// The value of the attribute `key`.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        self.attributes
            .iter()
            .find(|attribute| attribute.key.as_str() == key)
            .map(|attribute| &attribute.value)
    }

    /// Whether the span ended with an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self.status, Status::Error { .. })
    }

    /// The message of the error that the span ended with, if there is one.
    ///
    /// That is the description of the status, else the message of the last `exception` event, else
    /// the text of the last event at `ERROR` level.
    #[must_use]
    pub fn error_message(&self) -> Option<Cow<'_, str>> {
        let Status::Error { description } = &self.status else {
            return None;
        };
        if !description.is_empty() {
            return Some(Cow::Borrowed(description));
        }
        let attribute = |event: &Event, key: &str| {
            let found = event
                .attributes
                .iter()
                .find(|attribute| attribute.key.as_str() == key)?;
            Some(found.value.as_str().into_owned())
        };
        let exception = self.events.iter().rev().find(|event| event.name == "exception");
        if let Some(message) = exception.and_then(|event| attribute(event, "exception.message")) {
            return Some(Cow::Owned(message));
        }
        // `tracing::error!` sets an error status without a description. Its text is the event's
        // name.
        let logged = self
            .events
            .iter()
            .rev()
            .find(|event| attribute(event, "level").as_deref() == Some("ERROR"));
        logged.map(|event| Cow::Borrowed(event.name.as_ref()))
    }
}

impl From<SpanData> for CollectedSpan {
    fn from(mut data: SpanData) -> Self {
        // For a provider of the program; ours has done it already.
        limits::make_unique(&mut data);
        Self {
            trace_id: data.span_context.trace_id(),
            span_id: data.span_context.span_id(),
            parent_span_id: (data.parent_span_id != SpanId::INVALID).then_some(data.parent_span_id),
            parent_is_remote: data.parent_span_is_remote,
            name: data.name,
            kind: data.span_kind,
            start: data.start_time,
            end: data.end_time,
            attributes: data.attributes,
            events: data.events.events,
            links: data.links.links,
            status: data.status,
        }
    }
}

#[derive(Default)]
struct Store {
    spans: VecDeque<CollectedSpan>,
    dropped: u64,
}

/// Sorts by start time. Of two spans that start together, the one that ends later is the parent.
fn sort_by_start(spans: &mut [CollectedSpan]) {
    spans.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, TraceContextExt, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

    use super::*;

    fn collecting(capacity: usize) -> (SpanCollector, SdkTracerProvider, SdkTracer) {
        let collector = SpanCollector::with_capacity(capacity);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(collector.clone())
            .build();
        let tracer = provider.tracer("test");
        (collector, provider, tracer)
    }

    fn names(spans: &[CollectedSpan]) -> Vec<&str> {
        spans.iter().map(|span| span.name.as_ref()).collect()
    }

    #[test]
    fn the_oldest_spans_make_room_and_are_counted() {
        let (collector, _provider, tracer) = collecting(2);
        for name in ["one", "two", "three", "four"] {
            tracer.start(name).end();
        }
        assert_eq!(names(&collector.spans()), ["three", "four"]);
        assert_eq!(collector.dropped(), 2);
    }

    #[test]
    fn a_store_without_room_keeps_nothing() {
        let (collector, _provider, tracer) = collecting(0);
        tracer.start("one").end();
        assert_eq!(collector.spans(), []);
        assert_eq!(collector.dropped(), 1);
    }

    #[test]
    fn a_trace_is_ordered_by_start_and_apart_from_the_others() {
        let (collector, _provider, tracer) = collecting(16);
        let now = SystemTime::now();
        let parent = tracer.span_builder("parent").with_start_time(now).start(&tracer);
        let cx = Context::new().with_span(parent);
        tracer.start("another trace").end();
        // Starts with its parent and ends first: the parent still comes first.
        let mut child = tracer
            .span_builder("child")
            .with_start_time(now)
            .start_with_context(&tracer, &cx);
        child.end_with_timestamp(now + Duration::from_millis(1));
        cx.span().end_with_timestamp(now + Duration::from_millis(2));

        let trace_id = cx.span().span_context().trace_id();
        assert_eq!(names(&collector.trace(trace_id)), ["parent", "child"]);
        assert_eq!(collector.trace_ids().len(), 2);
        assert_eq!(names(&collector.take_trace(trace_id)), ["parent", "child"]);
        assert_eq!(names(&collector.spans()), ["another trace"]);
    }

    #[test]
    fn attribute_set_twice_has_its_last_value() {
        let (collector, _provider, tracer) = collecting(16);
        let mut span = tracer.start("span");
        span.set_attribute(KeyValue::new("dalston.language", "auto"));
        span.set_attribute(KeyValue::new("dalston.task_id", "t-1"));
        span.set_attribute(KeyValue::new("dalston.language", "de"));
        span.end();
        let span = &collector.spans()[0];
        assert_eq!(
            span.attributes,
            [
                KeyValue::new("dalston.language", "de"),
                KeyValue::new("dalston.task_id", "t-1")
            ]
        );
        assert_eq!(span.attribute("dalston.language"), Some(&Value::from("de")));
    }

    #[test]
    fn error_message_comes_from_status_or_exception_event() {
        let (collector, _provider, tracer) = collecting(16);
        let mut span = tracer.start("described");
        span.set_status(Status::error("no such file"));
        span.end();
        let mut span = tracer.start("recorded");
        span.record_error(&std::io::Error::other("connection reset"));
        span.set_status(Status::error(""));
        span.end();
        tracer.start("fine").end();

        let messages: Vec<_> = collector
            .spans()
            .iter()
            .map(|span| span.error_message().map(Cow::into_owned))
            .collect();
        assert_eq!(
            messages,
            [
                Some("no such file".to_owned()),
                Some("connection reset".to_owned()),
                None
            ]
        );
    }

    #[test]
    fn spans_are_kept_after_the_provider_has_been_shut_down() {
        let (collector, provider, tracer) = collecting(16);
        tracer.start("span").end();
        provider.shutdown().unwrap();
        assert_eq!(collector.spans().len(), 1);
    }
}
