//! The log events of an exporter.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tracing::dispatcher::{self, WeakDispatch};
use tracing::subscriber::NoSubscriber;

use super::stats::ExportStats;
use crate::redact;

/// The log target of exporters. It is never exported.
pub(crate) const REPORTS: &str = "dalston_telemetry::export";

/// The time between two log events about failures.
const INTERVAL: Duration = Duration::from_secs(60);

/// The longest text of a collector that is logged.
const MAX_DETAIL: usize = 300;

/// The subscriber that log events go to: the one whose spans are exported. The export thread has
/// none of its own, and the process may have no global one.
pub(crate) type ReportTo = Arc<OnceLock<WeakDispatch>>;

/// Remembers the subscriber of this thread, which ends a span. The first one counts.
pub(super) fn learn(to: &ReportTo) {
    if to.get().is_none() {
        dispatcher::get_default(|current| {
            if !current.is::<NoSubscriber>() {
                // Fails when another thread was first.
                let _ = to.set(current.downgrade());
            }
        });
    }
}

/// Logs failures at most once a minute, and the recovery after a failure that was logged.
pub(crate) struct Reporter {
    /// What is exported: "spans".
    items: &'static str,
    endpoint: String,
    /// Values of headers, which a collector may repeat in an error.
    secrets: Vec<String>,
    to: ReportTo,
    last: Option<Instant>,
    failure: Option<String>,
    reported: ExportStats,
    failing: bool,
}

impl Reporter {
    pub(crate) fn new(items: &'static str, endpoint: String, headers: &HeaderMap, to: ReportTo) -> Self {
        let values = headers.values().filter_map(|value| value.to_str().ok());
        // Of `Bearer abc`, the second word alone is a secret too.
        let secrets = values.flat_map(|value| [Some(value), value.split_once(' ').map(|(_, token)| token)]);
        let secrets = secrets.flatten().filter(|value| value.len() > 3);
        Self {
            items,
            endpoint,
            secrets: secrets.map(str::to_owned).collect(),
            to,
            last: None,
            failure: None,
            reported: ExportStats::default(),
            failing: false,
        }
    }

    /// A text as it may be logged: on one line, short and without secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = redact::text(text).into_owned();
        for secret in &self.secrets {
            text = text.replace(secret, redact::MASK);
        }
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_DETAIL)
            .collect()
    }

    pub(super) fn failure(&mut self, detail: String) {
        self.failure = Some(detail);
    }

    /// The collector took everything and sent a warning.
    pub(super) fn warning(&mut self, message: &str) {
        self.failure = Some(format!("the collector warns: {}", self.clean(message)));
    }

    pub(super) fn success(&mut self) {
        if std::mem::take(&mut self.failing) {
            let (items, endpoint) = (self.items, &self.endpoint);
            self.log(|| tracing::info!(target: REPORTS, items, endpoint, "telemetry_export_recovered"));
        }
        self.failure = None;
    }

    /// Logs a failure or a loss, unless it is too early.
    pub(super) fn report(&mut self, stats: &ExportStats, now: Instant) {
        let dropped_total = stats.dropped_total();
        let dropped = dropped_total - self.reported.dropped_total();
        if (self.failure.is_none() && dropped == 0) || self.is_too_early(now) {
            return;
        }
        let reason = self.failure.take();
        let reason = reason
            .as_deref()
            .unwrap_or_else(|| stats.main_loss_since(&self.reported));
        let (items, endpoint, waiting) = (self.items, &self.endpoint, stats.waiting());
        self.log(|| {
            tracing::warn!(
                target: REPORTS,
                items,
                endpoint,
                reason,
                dropped,
                dropped_total,
                waiting,
                "telemetry_export_failed"
            );
        });
        self.last = Some(now);
        self.reported = *stats;
        self.failing = true;
    }

    /// Logs a failure of an exporter that loses nothing for good.
    pub(crate) fn report_failure(&mut self, now: Instant) {
        if self.is_too_early(now) {
            return;
        }
        let Some(reason) = self.failure.take() else { return };
        let (items, endpoint) = (self.items, &self.endpoint);
        self.log(|| tracing::warn!(target: REPORTS, items, endpoint, reason, "telemetry_export_failed"));
        self.last = Some(now);
        self.failing = true;
    }

    fn is_too_early(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + INTERVAL)
    }

    fn log(&self, event: impl FnOnce()) {
        match self.to.get().and_then(WeakDispatch::upgrade) {
            Some(dispatch) => dispatcher::with_default(&dispatch, event),
            None => event(),
        }
    }
}
