//! The newest traces, in memory.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dalston_telemetry::opentelemetry::TraceId;
use dalston_telemetry::{CollectedSpan, ParseError};

use super::size;

/// A bounded store of traces. Cheap to clone; all clones have the same traces.
///
/// When it is full, the trace goes that has received no span for the longest time. One trace may
/// fill half of the store: then its earliest spans go, so that the others stay. Spans at the top of
/// a trace end last, and so they are kept.
#[derive(Clone)]
pub(crate) struct TraceStore(Arc<Mutex<Store>>);

impl TraceStore {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Store {
            max_bytes,
            bytes: 0,
            traces: HashMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
            dropped: 0,
        })))
    }

    /// The spans of a trace by start time, parents before children that start at the same time.
    pub(crate) fn spans(&self, trace_id: TraceId) -> Vec<CollectedSpan> {
        let mut spans: Vec<CollectedSpan> = match self.lock().traces.get(&trace_id) {
            Some(trace) => trace
                .spans
                .iter()
                .map(|span| CollectedSpan::clone(span))
                .collect(),
            None => Vec::new(),
        };
        // A sender repeats a request whose answer got lost.
        let mut seen = HashSet::new();
        spans.retain(|span| seen.insert(span.span_id));
        spans.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
        spans
    }

    /// How many spans were received and are gone.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Adds the spans of an OTLP request in protobuf.
    pub(super) fn receive(&self, request: &[u8]) -> Result<(), ParseError> {
        let spans = CollectedSpan::from_otlp(request)?;
        let mut store = self.lock();
        spans.into_iter().for_each(|span| store.add(span));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // No code under the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TraceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.lock();
        f.debug_struct("TraceStore")
            .field("max_bytes", &store.max_bytes)
            .field("bytes", &store.bytes)
            .field("traces", &store.traces.len())
            .field("dropped", &store.dropped)
            .finish()
    }
}

struct Store {
    max_bytes: usize,
    bytes: usize,
    traces: HashMap<TraceId, Trace>,
    /// From the trace that has not grown for the longest time to the one that grew last.
    by_age: BTreeMap<u64, TraceId>,
    next_age: u64,
    dropped: u64,
}

#[derive(Default)]
struct Trace {
    /// In the order of their arrival. A queue of spans without boxes would have room for up to
    /// twice as many.
    spans: VecDeque<Box<CollectedSpan>>,
    bytes: usize,
    age: u64,
}

impl Store {
    fn add(&mut self, span: CollectedSpan) {
        if span.trace_id == TraceId::INVALID {
            self.dropped += 1;
            return;
        }
        let trace_id = span.trace_id;
        let trace = self.traces.entry(trace_id).or_insert_with(|| {
            self.bytes += size::TRACE;
            Trace {
                bytes: size::TRACE,
                ..Trace::default()
            }
        });
        self.bytes -= trace.bytes;
        trace.bytes += size::of(&span);
        trace.spans.push_back(Box::new(span));
        while trace.bytes > self.max_bytes / 2 {
            let Some(first) = trace.spans.pop_front() else {
                break;
            };
            trace.bytes -= size::of(&first);
            self.dropped += 1;
        }
        self.bytes += trace.bytes;
        self.by_age.remove(&trace.age);
        self.next_age += 1;
        trace.age = self.next_age;
        self.by_age.insert(trace.age, trace_id);
        while self.bytes > self.max_bytes {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                break;
            };
            if let Some(trace) = self.traces.remove(&oldest) {
                self.bytes -= trace.bytes;
                self.dropped += trace.spans.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{encode, span};
    use super::*;

    /// Receives a span with this many bytes of text.
    fn receive(store: &TraceStore, trace: u128, id: u64, bytes: usize) {
        store.receive(&encode([span(trace, id, bytes)])).unwrap();
    }

    fn ids(store: &TraceStore, trace: u128) -> Vec<u64> {
        let spans = store.spans(TraceId::from(trace));
        let ids = spans
            .iter()
            .map(|span| u64::from_be_bytes(span.span_id.to_bytes()));
        ids.collect()
    }

    #[test]
    fn trace_that_did_not_grow_goes_first() {
        let store = TraceStore::new(100_000);
        receive(&store, 1, 11, 30_000);
        receive(&store, 2, 21, 30_000);
        receive(&store, 1, 12, 10_000);
        receive(&store, 3, 31, 40_000);
        assert_eq!(ids(&store, 1), [11, 12]);
        assert!(ids(&store, 2).is_empty());
        assert_eq!(ids(&store, 3), [31]);
        assert_eq!(store.dropped(), 1);
    }

    #[test]
    fn huge_trace_loses_its_first_spans_and_others_stay() {
        let store = TraceStore::new(100_000);
        receive(&store, 1, 11, 10_000);
        for id in 0..10 {
            receive(&store, 2, id, 20_000);
        }
        assert_eq!(ids(&store, 2), [8, 9]);
        assert_eq!(ids(&store, 1), [11]);
        assert_eq!(store.dropped(), 8);
        receive(&store, 2, 10, 1_000_000);
        assert_eq!(ids(&store, 1), [11]);
    }

    #[test]
    fn repeated_request_gives_each_span_once() {
        let store = TraceStore::new(100_000);
        receive(&store, 1, 11, 0);
        receive(&store, 1, 11, 0);
        assert_eq!(ids(&store, 1), [11]);
    }

    #[test]
    fn estimated_size_is_that_of_the_allocations() {
        let store = TraceStore::new(100_000_000);
        let used = allocation_counter::measure(|| {
            for trace in 1..=100 {
                let spans = (0..30).map(|id| span(trace, id, 200));
                store.receive(&encode(spans)).unwrap();
            }
        });
        let used = f64::from(i32::try_from(used.bytes_current).unwrap());
        let estimated = store.lock().bytes as f64;
        // Without what the allocator adds to each block.
        assert!((1.0..1.5).contains(&(estimated / used)), "{estimated} for {used}");
    }
}
