//! The exporters of a process as its guard sees them: flush and shutdown within one bound.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::Control;
use super::report::Reporter;
use crate::error::ShutdownError;
use crate::export::exporter_config::NO_LIMIT;

/// The time for an exporter to notice that its deadline has passed.
const GRACE: Duration = Duration::from_millis(200);

/// What the exporter of one signal shares with the rest of the program.
pub(crate) trait Exporter: fmt::Debug + Send + Sync + 'static {
    fn control(&self) -> &Control;

    /// Counts a request that failed. `detail` holds no secrets.
    fn request_failed(&self, detail: &str);

    /// Logs failures, if it is time for that.
    fn report(&self, reporter: &mut Reporter);

    /// The result of a flush or of shutdown, which did or did not end in time.
    fn outcome(&self, in_time: bool) -> Result<(), ShutdownError>;
}

/// The exporters of a process. Clones are the same exporters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exporters {
    all: Arc<[Arc<dyn Exporter>]>,
}

impl Exporters {
    pub(crate) fn new(all: Vec<Arc<dyn Exporter>>) -> Self {
        Self { all: all.into() }
    }

    /// Sends everything that waits, and blocks until that is done, for at most `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let started = Instant::now();
        // All at once: a collector that hangs must not take the time of another.
        let flushes: Vec<_> = self
            .all
            .iter()
            .map(|exporter| (exporter, exporter.control().ask()))
            .collect();
        let outcomes = flushes.into_iter().map(|(exporter, flush)| {
            let left = timeout.saturating_sub(started.elapsed());
            let in_time = exporter.control().wait(flush, left);
            exporter.outcome(in_time)
        });
        outcomes.fold(Ok(()), Result::and)
    }

    /// Begins the shutdown of all exporters, which end within `timeout`.
    pub(crate) fn close(&self, timeout: Duration) {
        // The clock of the system: the caller's runtime may have its own, in tests.
        let deadline = Instant::now() + timeout.min(NO_LIMIT);
        for exporter in self.all.iter() {
            exporter.control().close(deadline.into());
        }
    }

    /// Waits for the end that [`close`](Self::close) began, without blocking the thread.
    pub(crate) async fn ended(&self) -> Result<(), ShutdownError> {
        let mut result = Ok(());
        for exporter in self.all.iter() {
            exporter.control().until_end().await;
            result = result.and(exporter.outcome(true));
        }
        result
    }

    /// [`ended`](Self::ended) for code without a runtime.
    pub(crate) fn ended_blocking(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let started = Instant::now();
        let timeout = timeout.min(NO_LIMIT) + GRACE;
        let outcomes = self.all.iter().map(|exporter| {
            let left = timeout.saturating_sub(started.elapsed());
            let in_time = exporter.control().wait_for_end(left);
            exporter.outcome(in_time)
        });
        outcomes.fold(Ok(()), Result::and)
    }
}
