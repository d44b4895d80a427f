//! The queue between the threads that end spans and the thread that exports them.

use std::cell::Cell;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry::InstrumentationScope;
use tokio::sync::Notify;

use super::stats::Stats;
use super::{console, encode};
use crate::metrics::DropReason;
use crate::traces::ended::EndedSpan;

/// The largest request. Collectors refuse gRPC messages of more than 4 MiB unless told otherwise.
pub(super) const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// Room in a request for what is not a span.
const REQUEST_OVERHEAD: usize = 16 * 1024;

/// The spans of a request, and so one span, may have this many bytes together.
const MAX_SPAN_BYTES: usize = MAX_REQUEST_BYTES - REQUEST_OVERHEAD;

/// The spans that wait may take this much memory, however few they are.
const MAX_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// A buffer of a thread that ends spans is kept for its next span up to this size.
const KEPT_BY_THREAD: usize = 16 * 1024;

/// A buffer of the queue is kept when it is empty up to this size.
const KEPT_BY_QUEUE: usize = 4 * 1024 * 1024;

/// A bounded queue of finished spans.
///
/// A span is encoded by the thread that ends it, whose caches hold it and which frees it at once; handed over whole, it would be
/// read, copied and freed by another one, which costs more altogether and makes the allocator of the first slower.
/// Then ending it takes a lock for as long as it takes to copy some hundred bytes. The exporter holds that lock only to
/// exchange two buffers, never while it sends or waits, so work is not slowed by a collector that is.
pub(super) struct Queue {
    state: Mutex<State>,
    /// As in `state`, to look at without a lock.
    spans: AtomicUsize,
    closed: AtomicBool,
    forms: Forms,
    max_spans: usize,
    /// At this length the exporter is woken before its time.
    batch: usize,
    pub(super) wake: Notify,
}

/// What becomes of a span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forms {
    pub(super) otlp: bool,
    /// A line for people.
    pub(super) console: bool,
}

#[derive(Default)]
struct State {
    incoming: Spans,
    /// What counts against the limits: what is in `incoming` and in the exporter's backlog.
    spans: usize,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(max_spans: usize, batch: usize, forms: Forms) -> Self {
        Self {
            state: Mutex::default(),
            spans: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            forms,
            max_spans,
            batch,
            wake: Notify::new(),
        }
    }

    /// Takes a span or counts it as dropped. Never waits for the exporter.
    pub(super) fn push(&self, span: &EndedSpan<'_>, stats: &Stats) {
        thread_local! {
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        if self.is_closed() {
            return stats.dropped(DropReason::Shutdown, 1);
        }
        // Before the work is done. Whether there is room is decided under the lock.
        if self.len() >= self.max_spans {
            return stats.dropped(DropReason::QueueFull, 1);
        }
        // A thread that ends has no buffer any more.
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        buffer.clear();
        if let Err(reason) = self.push_encoded(span, &mut buffer) {
            stats.dropped(reason, 1);
        }
        if buffer.capacity() <= KEPT_BY_THREAD {
            let _ = BUFFER.try_with(|kept| kept.set(buffer));
        }
    }

    fn push_encoded(&self, span: &EndedSpan<'_>, buffer: &mut Vec<u8>) -> Result<(), DropReason> {
        if self.forms.otlp && !encode::span(span, MAX_SPAN_BYTES, buffer) {
            return Err(DropReason::TooLarge);
        }
        let otlp = buffer.len();
        if self.forms.console {
            console::write_line(span, buffer);
        }
        let mut state = self.state();
        // Asked again: the exporter may have looked into the queue for the last time since.
        if self.is_closed() {
            return Err(DropReason::Shutdown);
        }
        if state.spans >= self.max_spans || state.bytes + buffer.len() > MAX_QUEUE_BYTES {
            return Err(DropReason::QueueFull);
        }
        state.incoming.push(span.instrumentation_scope, buffer, otlp);
        state.bytes += buffer.len();
        state.spans += 1;
        let waiting = state.spans;
        self.spans.store(waiting, Ordering::Release);
        drop(state);
        if waiting == self.batch {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// How many spans wait.
    pub(super) fn len(&self) -> usize {
        self.spans.load(Ordering::Acquire)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes no more spans from now on: what is exchanged after this is all there will be.
    pub(super) fn close(&self) {
        let _state = self.state();
        self.closed.store(true, Ordering::Release);
    }

    /// Hands everything that has come in to an exporter that is done with what it had.
    pub(super) fn exchange(&self, backlog: &mut Spans) {
        backlog.clear();
        mem::swap(&mut self.state().incoming, backlog);
    }

    /// Makes room, after spans have left the backlog.
    pub(super) fn release(&self, spans: usize, bytes: usize) {
        let mut state = self.state();
        state.spans -= spans;
        state.bytes -= bytes;
        self.spans.store(state.spans, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Encoded spans, in the order in which they ended.
#[derive(Debug, Default)]
pub(super) struct Spans {
    /// Each as a field of a `ScopeSpans`, and then as a line.
    bytes: Vec<u8>,
    ends: Vec<End>,
    scopes: Vec<InstrumentationScope>,
    /// How many have been taken out.
    taken: usize,
}

#[derive(Debug, Clone, Copy)]
struct End {
    otlp: usize,
    line: usize,
    scope: usize,
}

impl Spans {
    fn push(&mut self, scope: &InstrumentationScope, encoded: &[u8], otlp: usize) {
        // Nearly always that of the span before.
        let last = self.ends.last().map(|end| end.scope);
        let known = last.filter(|last| is_same(&self.scopes[*last], scope));
        let known = known.or_else(|| self.scopes.iter().position(|known| known == scope));
        let scope = known.unwrap_or_else(|| {
            self.scopes.push(scope.clone());
            self.scopes.len() - 1
        });
        let start = self.bytes.len();
        self.bytes.extend_from_slice(encoded);
        self.ends.push(End {
            otlp: start + otlp,
            line: self.bytes.len(),
            scope,
        });
    }

    /// Takes spans out: no more than `max`, and as many as fit in a request.
    pub(super) fn take(&mut self, max: usize) -> Option<Batch<'_>> {
        let first = self.taken;
        let start = self.start(first);
        let mut otlp = 0;
        for (end, span) in self.ends[first..].iter().take(max).zip(first..) {
            let size = end.otlp - self.start(span);
            if span > first && otlp + size > MAX_SPAN_BYTES {
                break;
            }
            otlp += size;
            self.taken = span + 1;
        }
        (self.taken > first).then(|| Batch {
            bytes: self.start(self.taken) - start,
            range: first..self.taken,
            spans: self,
        })
    }

    /// How many have not been taken out, and their bytes.
    pub(super) fn left(&self) -> (usize, usize) {
        (
            self.ends.len() - self.taken,
            self.bytes.len() - self.start(self.taken),
        )
    }

    fn start(&self, span: usize) -> usize {
        span.checked_sub(1).map_or(0, |before| self.ends[before].line)
    }

    fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BY_QUEUE {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.ends.clear();
        self.scopes.clear();
        self.taken = 0;
    }
}

/// Whether both are copies of one scope, as those of spans of one tracer are: that is seen without reading them.
fn is_same(one: &InstrumentationScope, other: &InstrumentationScope) -> bool {
    let are_same = |one: Option<&str>, other: Option<&str>| match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        (None, None) => true,
        _ => false,
    };
    are_same(Some(one.name()), Some(other.name()))
        && are_same(one.version(), other.version())
        && are_same(one.schema_url(), other.schema_url())
        && one.attributes().next().is_none()
        && other.attributes().next().is_none()
}

/// Spans that go together.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    spans: &'a Spans,
    range: Range<usize>,
    bytes: usize,
}

impl Batch<'_> {
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// What they count against the limit of the queue.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The scopes that have spans here.
    #[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
    pub(super) fn scopes(&self) -> impl Iterator<Item = (usize, &InstrumentationScope)> {
        let ends = &self.spans.ends[self.range.clone()];
        let all = self.spans.scopes.iter().enumerate();
        all.filter(|(index, _)| ends.iter().any(|end| end.scope == *index))
    }

    /// The spans of a scope, each as a field of a `ScopeSpans`.
    #[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
    pub(super) fn of_scope(&self, scope: usize) -> impl Iterator<Item = &[u8]> {
        self.range.clone().filter_map(move |span| {
            let end = self.spans.ends[span];
            (end.scope == scope).then(|| &self.spans.bytes[self.spans.start(span)..end.otlp])
        })
    }

    /// A line for each.
    pub(super) fn lines(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for end in &self.spans.ends[self.range.clone()] {
            lines.extend_from_slice(&self.spans.bytes[end.otlp..end.line]);
        }
        lines
    }
}
