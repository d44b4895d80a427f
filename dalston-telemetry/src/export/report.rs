//! What the exporter says about itself in the log.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tracing::dispatcher::{self, WeakDispatch};
use tracing::subscriber::NoSubscriber;

use super::stats::ExportStats;
use crate::metrics::DropReason;
use crate::redact;

/// The log target of what the exporter says about itself. It is never exported.
pub(crate) const REPORTS: &str = "dalston_telemetry::export";

/// The time between two log lines about failures.
const INTERVAL: Duration = Duration::from_secs(60);

/// The longest text of a collector's that we repeat.
const MAX_DETAIL: usize = 300;

/// Where the log lines go: the subscriber whose spans are exported. The exporting thread has none of its own, and
/// there may be no global one.
pub(crate) type ReportTo = Arc<OnceLock<WeakDispatch>>;

/// Notes the subscriber of this thread, the first time that there is one: who ends spans has one.
pub(super) fn learn(to: &ReportTo) {
    if to.get().is_none() {
        dispatcher::get_default(|current| {
            if !current.is::<NoSubscriber>() {
                // Another thread was first.
                let _ = to.set(current.downgrade());
            }
        });
    }
}

/// Why most of the spans were lost that were lost between two readings.
pub(super) fn why(before: &ExportStats, now: &ExportStats) -> &'static str {
    let reasons = [
        (
            DropReason::Shutdown,
            "spans ended after telemetry did, or there was no time left to send them",
        ),
        (DropReason::Rejected, "the collector rejected spans"),
        (
            DropReason::ExportFailed,
            "the collector could not be reached or refused the spans",
        ),
        (
            DropReason::TooLarge,
            "a span was larger than a collector takes in one request",
        ),
        (DropReason::QueueFull, "more spans ended than the queue holds"),
    ];
    let lost = |(reason, _): &(DropReason, _)| now.dropped(*reason) - before.dropped(*reason);
    reasons.into_iter().max_by_key(lost).map_or("", |(_, why)| why)
}

/// Logs failures, at most once a minute, and the recovery after a logged failure.
pub(super) struct Reporter {
    /// What is exported.
    what: &'static str,
    endpoint: String,
    /// Values of headers, in case that a collector repeats them in an error.
    secrets: Vec<String>,
    to: ReportTo,
    last: Option<Instant>,
    news: Option<String>,
    reported: ExportStats,
    failing: bool,
}

impl Reporter {
    pub(super) fn new(endpoint: String, headers: &HeaderMap, to: ReportTo) -> Self {
        let secrets = headers.values().filter_map(|value| value.to_str().ok());
        // The scheme of `Bearer abc` is no secret, what follows is, also alone.
        let secrets = secrets.flat_map(|value| [Some(value), value.split_once(' ').map(|(_, token)| token)]);
        let secrets = secrets
            .flatten()
            .filter(|value| value.len() > 3)
            .map(str::to_owned)
            .collect();
        Self {
            what: "spans",
            endpoint,
            secrets,
            to,
            last: None,
            news: None,
            reported: ExportStats::default(),
            failing: false,
        }
    }

    pub(super) fn for_metrics(self) -> Self {
        Self {
            what: "metrics",
            ..self
        }
    }

    /// A text as it may be logged: on one line, not too long, without secrets.
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
        self.news = Some(detail);
    }

    /// The collector took everything and has something to say.
    pub(super) fn warning(&mut self, message: &str) {
        self.news = Some(format!("the collector warns: {}", self.clean(message)));
    }

    pub(super) fn success(&mut self) {
        if std::mem::take(&mut self.failing) {
            let (what, endpoint) = (self.what, &self.endpoint);
            self.log(|| tracing::info!(target: REPORTS, endpoint, "{what} are exported again"));
        }
        self.news = None;
    }

    /// Logs what is new, unless it is too early.
    pub(super) fn report(&mut self, stats: &ExportStats, now: Instant) {
        let dropped = stats.dropped_total();
        let dropped_before = self.reported.dropped_total();
        let nothing_new = self.news.is_none() && dropped == dropped_before;
        if nothing_new || self.last.is_some_and(|last| now < last + INTERVAL) {
            return;
        }
        let reason = self.news.take();
        let reason = reason.as_deref().unwrap_or_else(|| why(&self.reported, stats));
        let (endpoint, lost, waiting) = (&self.endpoint, dropped - dropped_before, stats.waiting());
        self.log(|| {
            tracing::warn!(
                target: REPORTS,
                endpoint,
                reason,
                spans_dropped = lost,
                spans_dropped_total = dropped,
                spans_waiting = waiting,
                "spans are not exported as they should be"
            );
        });
        self.last = Some(now);
        self.reported = *stats;
        self.failing = true;
    }

    /// The same for an exporter that loses nothing for good.
    pub(super) fn report_failure(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now < last + INTERVAL) {
            return;
        }
        let Some(reason) = self.news.take() else { return };
        let (what, endpoint) = (self.what, &self.endpoint);
        self.log(|| {
            tracing::warn!(target: REPORTS, endpoint, reason, "{what} are not exported as they should be");
        });
        self.last = Some(now);
        self.failing = true;
    }

    fn log(&self, event: impl FnOnce()) {
        match self.to.get().and_then(WeakDispatch::upgrade) {
            Some(dispatch) => dispatcher::with_default(&dispatch, event),
            None => event(),
        }
    }
}
