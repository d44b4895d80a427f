//! Metrics on their way to a collector, at intervals.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use opentelemetry::Context;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::control::Control;
use super::delivery::{Delivery, Exporter, Lost};
use super::report::Reporter;
use super::settings::PushSettings;
use super::transport::Transport;
use crate::error::ShutdownError;
use crate::metrics::{Signal, TelemetryMetrics};

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod points;

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(super) use points::Points;

/// Gives the metrics as they are now.
pub(super) trait Source<R>: Send + 'static {
    type Receipt: Send + 'static;

    /// Requests that are small enough for a collector, each with what tells us later that it was taken.
    fn requests(&mut self) -> Vec<(R, Self::Receipt)>;

    /// A request was taken.
    fn taken(&mut self, receipt: Self::Receipt);
}

/// What the pushing thread shares with the others.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) control: Control,
    pub(super) wake: Notify,
    metrics: TelemetryMetrics,
    /// Why the latest values did not arrive; `None` if they did.
    undelivered: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(metrics: TelemetryMetrics) -> Self {
        Self {
            control: Control::new(),
            wake: Notify::new(),
            metrics,
            undelivered: Mutex::default(),
        }
    }

    /// What is to be said after a flush.
    pub(super) fn outcome(&self, in_time: bool) -> Result<(), ShutdownError> {
        let undelivered = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*undelivered, in_time) {
            (Some(reason), _) => Err(ShutdownError::Metrics {
                last_failure: reason.clone(),
            }),
            (None, false) => Err(ShutdownError::Metrics {
                last_failure: "time was up before they were sent".into(),
            }),
            (None, true) => Ok(()),
        }
    }

    pub(super) fn set_undelivered(&self, reason: Option<String>) {
        *self.undelivered.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl Exporter for Shared {
    fn control(&self) -> &Control {
        &self.control
    }

    fn failed(&self, detail: &str) {
        self.metrics.export_failed(Signal::Metrics);
        self.set_undelivered(Some(detail.to_owned()));
    }

    fn report(&self, reporter: &mut Reporter) {
        reporter.report_failure(Instant::now());
    }
}

/// The loop that pushes: one task, on a thread and a runtime of its own.
pub(super) struct Pusher<T, S> {
    shared: Arc<Shared>,
    settings: PushSettings,
    transport: T,
    /// Locked while it is read, which callbacks of the program may make last.
    source: Arc<Mutex<S>>,
    delivery: Delivery<Shared>,
}

impl<T: Transport<Request: 'static>, S: Source<T::Request>> Pusher<T, S> {
    /// `timeout` is for one request.
    pub(super) fn new(
        shared: Arc<Shared>,
        settings: PushSettings,
        timeout: Duration,
        transport: T,
        source: S,
        reporter: Reporter,
    ) -> Self {
        Self {
            delivery: Delivery::new(Arc::clone(&shared), timeout, reporter),
            shared,
            settings,
            transport,
            source: Arc::new(Mutex::new(source)),
        }
    }

    /// Runs until [`Control::close`] is called, pushes once more, and takes no longer for that than it allows.
    pub(super) async fn run(mut self) {
        let mut tick = Instant::now() + self.settings.interval;
        loop {
            self.time_to_push(tick).await;
            let ticket = self.shared.control.ticket();
            let closing = self.shared.control.closing().is_some();
            self.push().await;
            if closing {
                return self.shared.control.end();
            }
            self.shared.control.done(ticket);
            tick = (tick + self.settings.interval).max(Instant::now());
        }
    }

    async fn time_to_push(&self, tick: Instant) {
        let Shared { control, wake, .. } = &*self.shared;
        while control.ticket() <= control.done_so_far() && control.closing().is_none() {
            tokio::select! {
                () = wake.notified() => {}
                () = sleep_until(tick) => return,
            }
        }
    }

    async fn push(&mut self) {
        let until = Instant::now() + self.settings.export_timeout;
        let mut all_taken = true;
        let mut warning = None;
        let Some(requests) = self.read(until).await else {
            return self.delivery.report();
        };
        for (request, receipt) in requests {
            // What was not delivered is not kept: the next values say it all, or say it together with theirs.
            let accepted = match self.delivery.send(&self.transport, &request, until).await {
                Ok(accepted) => accepted,
                Err(Lost::Refused) => {
                    all_taken = false;
                    continue;
                }
                Err(Lost::Failed | Lost::Closing) => return self.delivery.report(),
            };
            self.source
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .taken(receipt);
            if accepted.rejected > 0 {
                all_taken = false;
                let detail = format!(
                    "the collector rejected {} points: {}",
                    accepted.rejected, accepted.message
                );
                self.delivery.failed(&detail);
            } else if warning.is_none() && !accepted.message.is_empty() {
                warning = Some(accepted);
            }
        }
        if all_taken {
            // Not before the last one: that some arrived takes nothing back of what is said about the others.
            self.shared.set_undelivered(None);
            self.delivery.succeeded(&warning.unwrap_or_default());
        }
        self.delivery.report();
    }

    /// Reads the metrics on a thread that may block: instruments that are observed call the program, and one that does not
    /// return must not keep the process from ending.
    async fn read(&mut self, until: Instant) -> Option<Vec<(T::Request, S::Receipt)>> {
        const STUCK: &str = "metrics can't be read: an instrument's callback has not returned";
        if matches!(self.source.try_lock(), Err(TryLockError::WouldBlock)) {
            // One thread that waits is enough.
            self.delivery.failed(STUCK);
            return None;
        }
        let source = Arc::clone(&self.source);
        let reading = tokio::task::spawn_blocking(move || {
            // What callbacks do in order to be pushed is not to be exported.
            let _suppressed = Context::enter_telemetry_suppressed_scope();
            source.lock().unwrap_or_else(PoisonError::into_inner).requests()
        });
        match self.delivery.bounded(until, reading).await {
            Ok(Ok(requests)) => Some(requests),
            Ok(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
            Err(_) => {
                self.delivery.failed(STUCK);
                None
            }
        }
    }
}
