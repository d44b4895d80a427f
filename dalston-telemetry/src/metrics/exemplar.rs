//! Exemplars: the span of a measured value.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceId};

/// The span in which a value was measured. It leads from a metric to a trace.
///
/// Only sampled spans are exemplars, because the others have no trace in the backend. An exemplar
/// is taken and recorded without allocation and without a lock.
///
/// ```
/// use dalston_telemetry::metrics::{DenseFamily, Exemplar, Histogram};
///
/// let latency = DenseFamily::<(), Histogram>::new(|| Histogram::with_exemplars(&[0.1, 1.0]));
/// latency.with(()).observe_in(0.25, Exemplar::current());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    trace_id: TraceId,
    span_id: SpanId,
}

impl Exemplar {
    /// The current span of this thread, if it is sampled.
    #[must_use]
    pub fn current() -> Option<Self> {
        Context::map_current(|cx| {
            if cx.has_active_span() {
                Self::of(cx.span().span_context())
            } else {
                None
            }
        })
    }

    /// This span, if it is sampled.
    #[must_use]
    pub fn of(span: &SpanContext) -> Option<Self> {
        (span.is_valid() && span.is_sampled()).then(|| Self {
            trace_id: span.trace_id(),
            span_id: span.span_id(),
        })
    }
}

/// An exemplar with its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) value: f64,
    /// Microseconds since 1970.
    pub(crate) at: u64,
}

/// The newest exemplar.
///
/// A writer never waits: if another one is writing, it gives up, because the other exemplar is as
/// new. A reader tries again if a writer has interfered.
#[derive(Debug, Default)]
pub(super) struct LatestExemplar {
    /// Odd during a write; 0 before the first one.
    version: AtomicU64,
    trace_high: AtomicU64,
    trace_low: AtomicU64,
    span: AtomicU64,
    value: AtomicU64,
    at: AtomicU64,
}

impl LatestExemplar {
    pub(super) fn set(&self, exemplar: Exemplar, value: f64) {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        let version = self.version.load(Ordering::Relaxed);
        let taken = !version.is_multiple_of(2)
            || self
                .version
                .compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_err();
        if taken {
            return;
        }
        // A reader of one of the new values below also sees an odd version.
        fence(Ordering::Release);
        let trace = u128::from_be_bytes(exemplar.trace_id.to_bytes());
        self.trace_high.store((trace >> 64) as u64, Ordering::Relaxed);
        self.trace_low.store(trace as u64, Ordering::Relaxed);
        let span = u64::from_be_bytes(exemplar.span_id.to_bytes());
        self.span.store(span, Ordering::Relaxed);
        self.value.store(value.to_bits(), Ordering::Relaxed);
        self.at.store(at, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    pub(super) fn get(&self) -> Option<Measured> {
        /// Writes are rare, and a scrape can do without the exemplar.
        const ATTEMPTS: usize = 8;
        for _ in 0..ATTEMPTS {
            let version = self.version.load(Ordering::Acquire);
            if version == 0 {
                return None;
            }
            let trace = u128::from(self.trace_high.load(Ordering::Relaxed)) << 64
                | u128::from(self.trace_low.load(Ordering::Relaxed));
            let read = Measured {
                trace_id: TraceId::from_bytes(trace.to_be_bytes()),
                span_id: SpanId::from_bytes(self.span.load(Ordering::Relaxed).to_be_bytes()),
                value: f64::from_bits(self.value.load(Ordering::Relaxed)),
                at: self.at.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
                return Some(read);
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use opentelemetry::trace::{TraceFlags, TraceState};

    use super::*;

    fn span(number: u64, flags: TraceFlags) -> SpanContext {
        let trace = u128::from(number) << 64 | u128::from(number);
        SpanContext::new(
            TraceId::from_bytes(trace.to_be_bytes()),
            SpanId::from_bytes(number.to_be_bytes()),
            flags,
            false,
            TraceState::default(),
        )
    }

    #[test]
    fn only_sampled_spans_are_exemplars() {
        assert!(Exemplar::of(&span(1, TraceFlags::SAMPLED)).is_some());
        assert_eq!(Exemplar::of(&span(1, TraceFlags::default())), None);
        assert_eq!(Exemplar::of(&SpanContext::NONE), None);
        assert_eq!(Exemplar::current(), None);
        let context = Context::new().with_remote_span_context(span(7, TraceFlags::SAMPLED));
        let _entered = context.attach();
        assert_eq!(Exemplar::current(), Exemplar::of(&span(7, TraceFlags::SAMPLED)));
    }

    #[test]
    fn readers_never_see_a_mix_of_two_exemplars() {
        let latest = LatestExemplar::default();
        assert_eq!(latest.get(), None);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 1..=2 {
                let (latest, done) = (&latest, &done);
                scope.spawn(move || {
                    for number in (writer..20_000).step_by(2) {
                        let exemplar = Exemplar::of(&span(number, TraceFlags::SAMPLED)).unwrap();
                        latest.set(exemplar, number as f64);
                    }
                    done.store(true, Ordering::Relaxed);
                });
            }
            while !done.load(Ordering::Relaxed) {
                if let Some(read) = latest.get() {
                    let number = u64::from_be_bytes(read.span_id.to_bytes());
                    assert_eq!(read.trace_id, span(number, TraceFlags::SAMPLED).trace_id());
                    assert_eq!(read.value, number as f64);
                }
            }
        });
        assert!(latest.get().is_some());
    }
}
