//! One request after another to a collector that may be away: attempts, pauses, and the end of the process.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::control::Control;
use super::report::Reporter;
use super::retry::{Backoff, Failure, Retry};
use super::transport::{Accepted, Transport};

/// A collector that wants to be left alone for longer than this is asked again all the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// So often a dead collector is tried while the process waits to end.
pub(super) const ATTEMPTS_WHILE_CLOSING: u32 = 3;

/// What an exporter shares with the rest of the program.
pub(super) trait Exporter {
    fn control(&self) -> &Control;

    /// A request has failed; `detail` may be shown.
    fn failed(&self, detail: &str);

    /// Logs what is new, if it is time.
    fn report(&self, reporter: &mut Reporter);
}

/// Sends the requests of one exporter.
pub(super) struct Delivery<E> {
    exporter: Arc<E>,
    /// For one request.
    timeout: Duration,
    reporter: Reporter,
    /// The collector does not want to hear from us before.
    not_before: Option<Instant>,
    failures_while_closing: u32,
}

/// Why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The collector could not be reached in time.
    Failed,
    /// The collector refused it for good, which says nothing about other requests.
    Refused,
    /// The time for ending the process is up.
    Closing,
}

/// Why something was broken off.
pub(super) enum Stopped {
    /// The time for it is up.
    Time,
    /// The time for ending the process is up.
    Closing,
}

impl<E: Exporter> Delivery<E> {
    pub(super) fn new(exporter: Arc<E>, timeout: Duration, reporter: Reporter) -> Self {
        Self {
            exporter,
            timeout,
            reporter,
            not_before: None,
            failures_while_closing: 0,
        }
    }

    /// Sends a request until it is taken, is hopeless, or time is up.
    pub(super) async fn send<T: Transport>(
        &mut self,
        transport: &T,
        request: &T::Request,
        until: Instant,
    ) -> Result<Accepted, Lost> {
        let mut backoff = Backoff::new();
        if let Some(pause) = self.not_before.take() {
            // An earlier request ran into this; whatever happens next, it is the collector's newest word.
            self.rest(pause, until, false).await.map_err(|stopped| {
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
                    self.failed("no answer before the process ended");
                    return Err(Lost::Closing);
                }
            };
            self.failed(&failure.detail);
            let (delay, impatient) = match failure.retry {
                Retry::Never => return Err(Lost::Refused),
                Retry::Backoff => (backoff.delay(), true),
                Retry::After(delay) => (delay.min(LONGEST_PAUSE).max(backoff.delay()), false),
            };
            if self.is_closing() {
                self.failures_while_closing += 1;
                if self.failures_while_closing >= ATTEMPTS_WHILE_CLOSING {
                    // Not after one more pause.
                    return Err(Lost::Failed);
                }
            }
            let again = Instant::now() + delay;
            if self.limit(until) <= again {
                // It makes no sense to wait for a moment that this request will not see; the next one might.
                self.not_before = (!impatient).then_some(again);
                return Err(Lost::Failed);
            }
            self.rest(again, until, impatient)
                .await
                .map_err(|stopped| stopped.lost())?;
        }
    }

    /// Notes a failure, and logs it if it is time.
    pub(super) fn failed(&mut self, detail: &str) {
        let detail = self.reporter.clean(detail);
        self.exporter.failed(&detail);
        self.reporter.failure(detail);
        self.report();
    }

    /// The collector took everything, and may have something to say.
    pub(super) fn succeeded(&mut self, accepted: &Accepted) {
        if accepted.message.is_empty() {
            self.reporter.success();
        } else {
            self.reporter.warning(&accepted.message);
        }
    }

    pub(super) fn report(&mut self) {
        self.exporter.report(&mut self.reporter);
    }

    /// Runs something for as long as there is time, which may get shorter while it runs.
    pub(super) async fn bounded<F: Future>(&self, until: Instant, work: F) -> Result<F::Output, Stopped> {
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

    /// Waits until a moment; an impatient wait ends when the process wants to.
    async fn rest(&self, moment: Instant, until: Instant, impatient: bool) -> Result<(), Stopped> {
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
                    if impatient {
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

/// For people: as precise as a time limit can be set.
fn in_milliseconds(time: Duration) -> Duration {
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000))
}
