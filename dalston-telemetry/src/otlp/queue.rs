//! The queue between the threads that end spans and the thread that exports them.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::Notify;

use super::stats::Stats;
use crate::metrics::DropReason;

/// The largest request. Collectors refuse gRPC messages of more than 4 MiB unless told otherwise.
pub(super) const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The spans that wait may take this much memory, however few they are.
const MAX_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// A bounded queue of finished spans.
///
/// Ending a span takes a lock for as long as it takes to push onto a vector. The exporter holds that lock only to
/// exchange two vectors, never while it encodes, sends or waits, so work is not slowed by a collector that is.
pub(super) struct Queue {
    incoming: Mutex<VecDeque<SpanData>>,
    /// Spans that count against `max_spans`: those in `incoming` and those in the exporter's backlog.
    spans: AtomicUsize,
    bytes: AtomicUsize,
    max_spans: usize,
    /// At this length the exporter is woken before its time.
    batch: usize,
    closed: AtomicBool,
    pub(super) wake: Notify,
}

impl Queue {
    pub(super) fn new(max_spans: usize, batch: usize) -> Self {
        Self {
            incoming: Mutex::default(),
            spans: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_spans,
            batch,
            closed: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Takes a span or counts it as dropped. Never waits for the exporter.
    pub(super) fn push(&self, span: SpanData, stats: &Stats) {
        if self.closed.load(Ordering::Acquire) {
            return stats.dropped(DropReason::Shutdown, 1);
        }
        let size = size(&span);
        if size > MAX_REQUEST_BYTES {
            return stats.dropped(DropReason::TooLarge, 1);
        }
        // Reserved first and given back if there was no room, so that many threads together can't exceed the bound.
        let waiting = self.spans.fetch_add(1, Ordering::AcqRel);
        let bytes = self.bytes.fetch_add(size, Ordering::AcqRel);
        if waiting >= self.max_spans || bytes + size > MAX_QUEUE_BYTES {
            self.release(1, size);
            return stats.dropped(DropReason::QueueFull, 1);
        }
        let mut incoming = self.incoming();
        // Asked again: the exporter may have looked into the queue for the last time since.
        if self.closed.load(Ordering::Acquire) {
            drop(incoming);
            self.release(1, size);
            return stats.dropped(DropReason::Shutdown, 1);
        }
        incoming.push_back(span);
        drop(incoming);
        if waiting + 1 == self.batch {
            self.wake.notify_one();
        }
    }

    /// How many spans wait.
    pub(super) fn len(&self) -> usize {
        self.spans.load(Ordering::Acquire)
    }

    /// Takes no more spans from now on: what is exchanged after this is all there will be.
    pub(super) fn close(&self) {
        let _incoming = self.incoming();
        self.closed.store(true, Ordering::Release);
    }

    /// Hands everything that has come in to an exporter whose backlog is empty.
    pub(super) fn exchange(&self, backlog: &mut VecDeque<SpanData>) {
        mem::swap(&mut *self.incoming(), backlog);
    }

    /// Makes room, after spans have left the backlog.
    pub(super) fn release(&self, spans: usize, bytes: usize) {
        self.spans.fetch_sub(spans, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn incoming(&self) -> MutexGuard<'_, VecDeque<SpanData>> {
        // Nothing under this lock can panic half-way.
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .field("max", &self.max_spans)
            .finish_non_exhaustive()
    }
}

/// About how much memory a span takes; never less than its encoded form.
pub(super) fn size(span: &SpanData) -> usize {
    let events = span
        .events
        .iter()
        .map(|event| mem::size_of_val(event) + event.name.len() + attributes(&event.attributes));
    let links = span
        .links
        .iter()
        .map(|link| mem::size_of_val(link) + attributes(&link.attributes));
    mem::size_of::<SpanData>()
        + span.name.len()
        + attributes(&span.attributes)
        + events.sum::<usize>()
        + links.sum::<usize>()
}

fn attributes(attributes: &[KeyValue]) -> usize {
    attributes
        .iter()
        .map(|attribute| mem::size_of::<KeyValue>() + attribute.key.as_str().len() + value(&attribute.value))
        .sum()
}

fn value(value: &Value) -> usize {
    match value {
        Value::String(text) => text.as_str().len(),
        Value::Array(Array::String(texts)) => texts
            .iter()
            .map(|text| mem::size_of_val(text) + text.as_str().len())
            .sum(),
        Value::Array(Array::Bool(values)) => values.len() * 4,
        Value::Array(Array::I64(values)) => values.len() * 16,
        Value::Array(Array::F64(values)) => values.len() * 16,
        _ => 0,
    }
}
