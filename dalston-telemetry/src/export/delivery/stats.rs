//! Counts of exported and lost items.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::metrics::{DropReason, Label, Signal, TelemetryMetrics};

const REASONS: usize = DropReason::VALUES.len();

/// How many spans of this process were exported and lost, from [`TelemetryHandle::export_stats`].
///
/// The metrics `dalston_telemetry_spans_dropped_total` and
/// `dalston_telemetry_export_failures_total` have the same figures.
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

    /// Requests that failed. One batch can fail several times before it is delivered.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Spans that wait to be sent, including those of the request that is on its way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The reason why most of the items were lost that were lost since `before`.
    pub(super) fn main_loss_since(&self, before: &Self) -> &'static str {
        let reasons = [
            (
                DropReason::Shutdown,
                "there was no time left to send them, or they came after shutdown",
            ),
            (DropReason::Rejected, "the collector rejected them"),
            (
                DropReason::ExportFailed,
                "the collector could not be reached or refused them",
            ),
            (
                DropReason::TooLarge,
                "they were larger than a collector takes in one request",
            ),
            (DropReason::QueueFull, "the queue was full"),
        ];
        let lost = |(reason, _): &(DropReason, _)| self.dropped(*reason) - before.dropped(*reason);
        let main = reasons.into_iter().max_by_key(lost);
        main.map_or("", |(_, why)| why)
    }
}

/// The counters of one exporter. The metrics, which several exporters may share, count the same.
#[derive(Debug)]
pub(super) struct Stats {
    exported: AtomicU64,
    dropped: [AtomicU64; REASONS],
    failures: AtomicU64,
    /// Items of the batch that is being sent.
    in_flight: AtomicUsize,
    last_failure: Mutex<Option<String>>,
    metrics: TelemetryMetrics,
    signal: Signal,
    count_dropped: CountDropped,
}

/// Counts lost items in the metrics.
pub(super) type CountDropped = fn(&TelemetryMetrics, DropReason, u64);

impl Stats {
    pub(super) fn new(metrics: TelemetryMetrics, signal: Signal, count_dropped: CountDropped) -> Self {
        Self {
            exported: AtomicU64::new(0),
            dropped: Default::default(),
            failures: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            last_failure: Mutex::default(),
            metrics,
            signal,
            count_dropped,
        }
    }

    pub(super) fn exported(&self, items: u64) {
        self.exported.fetch_add(items, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: DropReason, items: u64) {
        self.dropped[reason.index()].fetch_add(items, Ordering::Relaxed);
        (self.count_dropped)(&self.metrics, reason, items);
    }

    /// Counts a request that failed. `detail` holds no secrets.
    pub(super) fn failed(&self, detail: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.metrics.export_failed(self.signal);
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(detail.to_owned());
    }

    pub(super) fn in_flight(&self, items: usize) {
        self.in_flight.store(items, Ordering::Release);
    }

    /// Counts the batch that was being sent as lost, if there was one.
    pub(super) fn drop_in_flight(&self, reason: DropReason) {
        let items = self.in_flight.swap(0, Ordering::AcqRel);
        self.dropped(reason, items as u64);
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The counts now, with `queued` items in the queue.
    pub(super) fn read(&self, queued: usize) -> ExportStats {
        ExportStats {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: std::array::from_fn(|reason| self.dropped[reason].load(Ordering::Relaxed)),
            failures: self.failures.load(Ordering::Relaxed),
            waiting: queued + self.in_flight.load(Ordering::Acquire),
        }
    }
}
