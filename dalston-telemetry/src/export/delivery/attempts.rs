//! One request after another to a collector that may be away: attempts, pauses, and the shutdown.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use super::exporter::Exporter;
use super::report::Reporter;
use super::request::{Accepted, Failure, Retry, Transport};

/// The longest pause that a collector can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The attempts that a dead collector gets during shutdown.
pub(super) const ATTEMPTS_WHILE_CLOSING: u32 = 3;

/// Sends the requests of one exporter.
pub(crate) struct Delivery<E> {
    exporter: Arc<E>,
    /// For one request.
    timeout: Duration,
    reporter: Reporter,
    /// The collector asked for a pause until then.
    not_before: Option<Instant>,
    failures_while_closing: u32,
}

/// The reason why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The collector could not be reached in time.
    Failed,
    /// The collector refused this request for good, which says nothing about other requests.
    Refused,
    /// The time for the shutdown is up.
    Closing,
}

/// The reason why work was cut short.
pub(crate) enum Stopped {
    /// The time for the work is up.
    Time,
    /// The time for the shutdown is up.
    Closing,
}

impl<E: Exporter> Delivery<E> {
    pub(crate) fn new(exporter: Arc<E>, timeout: Duration, reporter: Reporter) -> Self {
        Self {
            exporter,
            timeout,
            reporter,
            not_before: None,
            failures_while_closing: 0,
        }
    }

    /// Sends a request until the collector takes it, refuses it, or time is up.
    pub(crate) async fn send<T: Transport>(
        &mut self,
        transport: &T,
        request: &T::Request,
        until: Instant,
    ) -> Result<Accepted, Lost> {
        let mut backoff = Backoff::new();
        if let Some(pause) = self.not_before.take() {
            // An earlier request was told to wait; the next answer of the collector replaces that.
            self.pause(pause, until, false).await.map_err(|stopped| {
                self.not_before = Some(pause);
                stopped.lost()
            })?;
        }
        loop {
            if self.is_closing() && self.failures_while_closing >= ATTEMPTS_WHILE_CLOSING {
                return Err(Lost::Failed);
            }
            let started = Instant::now();
            let attempt = until.min(started + self.timeout);
            let failure = match self.bounded(attempt, transport.send(request)).await {
                Ok(Ok(accepted)) => return Ok(accepted),
                Ok(Err(failure)) => failure,
                Err(Stopped::Time) => Failure {
                    retry: Retry::Backoff,
                    detail: format!("no answer within {:?}", in_milliseconds(started.elapsed())),
                },
                Err(Stopped::Closing) => {
                    self.failed("no answer before the shutdown timeout");
                    return Err(Lost::Closing);
                }
            };
            self.failed(&failure.detail);
            let (delay, interruptible) = match failure.retry {
                Retry::Never => return Err(Lost::Refused),
                Retry::Backoff => (backoff.delay(), true),
                Retry::After(delay) => (delay.min(LONGEST_PAUSE).max(backoff.delay()), false),
            };
            if self.is_closing() {
                self.failures_while_closing += 1;
                if self.failures_while_closing >= ATTEMPTS_WHILE_CLOSING {
                    return Err(Lost::Failed);
                }
            }
            let again = Instant::now() + delay;
            if self.limit(until) <= again {
                // This request would be given up during the pause. The next one may outlast it.
                self.not_before = (!interruptible).then_some(again);
                return Err(Lost::Failed);
            }
            self.pause(again, until, interruptible)
                .await
                .map_err(|stopped| stopped.lost())?;
        }
    }

    /// Notes a failure, and logs it if it is time.
    pub(crate) fn failed(&mut self, detail: &str) {
        let detail = self.reporter.clean(detail);
        self.exporter.request_failed(&detail);
        self.reporter.failure(detail);
        self.report();
    }

    /// Notes that the collector took everything, possibly with a warning.
    pub(crate) fn succeeded(&mut self, accepted: &Accepted) {
        if accepted.message.is_empty() {
            self.reporter.success();
        } else {
            self.reporter.warning(&accepted.message);
        }
    }

    pub(crate) fn report(&mut self) {
        self.exporter.report(&mut self.reporter);
    }

    /// Runs work until `until`, or until the shutdown deadline if that is set meanwhile.
    pub(crate) async fn bounded<F: Future>(&self, until: Instant, work: F) -> Result<F::Output, Stopped> {
        let mut work = pin!(work);
        loop {
            let closing = self.exporter.control().closing();
            tokio::select! {
                biased;
                output = &mut work => return Ok(output),
                () = sleep_until(self.limit(until)) => {
                    return Err(match closing {
                        Some(end) if end <= until => Stopped::Closing,
                        _ => Stopped::Time,
                    });
                }
                () = self.exporter.control().until_closing(), if closing.is_none() => {}
            }
        }
    }

    /// Waits until a moment. The shutdown ends a wait that is interruptible.
    async fn pause(&self, moment: Instant, until: Instant, interruptible: bool) -> Result<(), Stopped> {
        loop {
            let closing = self.exporter.control().closing();
            if closing.is_some_and(|end| end < moment) {
                return Err(Stopped::Closing);
            }
            tokio::select! {
                () = sleep_until(moment.min(until)) => {
                    return if moment <= until { Ok(()) } else { Err(Stopped::Time) };
                }
                () = self.exporter.control().until_closing(), if closing.is_none() => {
                    if interruptible {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn limit(&self, until: Instant) -> Instant {
        let closing = self.exporter.control().closing();
        closing.map_or(until, |end| end.min(until))
    }

    fn is_closing(&self) -> bool {
        self.exporter.control().closing().is_some()
    }
}

impl Stopped {
    fn lost(&self) -> Lost {
        match self {
            Self::Time => Lost::Failed,
            Self::Closing => Lost::Closing,
        }
    }
}

/// Cuts a time to the precision in which timeouts are set.
fn in_milliseconds(time: Duration) -> Duration {
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000))
}
