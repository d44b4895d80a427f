//! What became of the spans.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::metrics::{DropReason, Label, Signal, TelemetryMetrics};

const REASONS: usize = DropReason::VALUES.len();

/// What became of the spans of this process, from [`TelemetryHandle::export_stats`].
///
/// The same figures are in the metrics, as `dalston_telemetry_spans_dropped_total` and
/// `dalston_telemetry_export_failures_total`.
///
/// [`TelemetryHandle::export_stats`]: crate::TelemetryHandle::export_stats
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportStats {
    exported: u64,
    dropped: [u64; REASONS],
    failures: u64,
    waiting: usize,
}

impl ExportStats {
    /// Spans that the collector has taken.
    #[must_use]
    pub fn exported(&self) -> u64 {
        self.exported
    }

    /// Spans lost for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason.index()]
    }

    /// Spans lost for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Requests that failed; one batch can fail several times before it is delivered.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Spans that wait to be sent, those on their way included.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// The counters of one exporter. What they count is also counted in the metrics, which several exporters may share.
#[derive(Debug)]
pub(crate) struct Stats {
    exported: AtomicU64,
    dropped: [AtomicU64; REASONS],
    failures: AtomicU64,
    /// Spans in the batch that is being sent.
    in_flight: AtomicUsize,
    last_failure: Mutex<Option<String>>,
    metrics: TelemetryMetrics,
}

impl Stats {
    pub(super) fn new(metrics: TelemetryMetrics) -> Self {
        Self {
            exported: AtomicU64::new(0),
            dropped: Default::default(),
            failures: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            last_failure: Mutex::default(),
            metrics,
        }
    }

    pub(super) fn exported(&self, spans: u64) {
        self.exported.fetch_add(spans, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: DropReason, spans: u64) {
        self.dropped[reason.index()].fetch_add(spans, Ordering::Relaxed);
        self.metrics.spans_dropped(reason, spans);
    }

    /// A request has failed; `detail` may be shown.
    pub(super) fn failed(&self, detail: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.metrics.export_failed(Signal::Traces);
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(detail.to_owned());
    }

    pub(super) fn in_flight(&self, spans: usize) {
        self.in_flight.store(spans, Ordering::Release);
    }

    /// Counts the batch that was being sent as lost, if there was one.
    pub(super) fn drop_in_flight(&self, reason: DropReason) {
        let spans = self.in_flight.swap(0, Ordering::AcqRel);
        self.dropped(reason, spans as u64);
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The figures now, with `queued` spans in the queue.
    pub(crate) fn read(&self, queued: usize) -> ExportStats {
        ExportStats {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: std::array::from_fn(|reason| self.dropped[reason].load(Ordering::Relaxed)),
            failures: self.failures.load(Ordering::Relaxed),
            waiting: queued + self.in_flight.load(Ordering::Acquire),
        }
    }
}
