//! The loop that exports: one task, on a thread and a runtime of its own.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SpanData;
use tokio::time::{Instant, sleep_until};

use super::control::Control;
use super::queue::{self, MAX_REQUEST_BYTES, Queue};
use super::report::Reporter;
use super::retry::{Backoff, Failure, Retry};
use super::settings::BatchSettings;
use super::stats::Stats;
use super::transport::{Accepted, Transport};
use crate::metrics::DropReason;

/// Room in a request for what is not a span.
const REQUEST_OVERHEAD: usize = 16 * 1024;

/// A collector that wants to be left alone for longer than this is asked again all the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// So often a dead collector is tried while the process waits to end.
const ATTEMPTS_WHILE_CLOSING: u32 = 3;

/// What the exporting thread shares with the others.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) stats: Stats,
    pub(super) control: Control,
}

impl Shared {
    /// Counts what is in the queue as lost, when nobody is there to send it.
    pub(super) fn drop_waiting(&self) {
        let mut waiting = VecDeque::new();
        self.queue.exchange(&mut waiting);
        self.drop_all(&waiting);
    }

    fn drop_all(&self, spans: &VecDeque<SpanData>) {
        let bytes = spans.iter().map(queue::size).sum();
        self.queue.release(spans.len(), bytes);
        self.stats.dropped(DropReason::Shutdown, spans.len() as u64);
    }
}

pub(super) struct Worker<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) batching: BatchSettings,
    /// For one request.
    pub(super) timeout: Duration,
    pub(super) transport: Option<Arc<T>>,
    /// Whether spans are also printed.
    pub(super) console: bool,
    pub(super) reporter: Reporter,
    state: State,
}

#[derive(Default)]
struct State {
    backlog: VecDeque<SpanData>,
    /// The collector does not want to hear from us before.
    not_before: Option<Instant>,
    failures_while_closing: u32,
}

enum Stopped {
    /// The time for this batch, or for this request, is up.
    Time,
    /// The time for ending the process is up.
    Closing,
}

impl<T: Transport> Worker<T> {
    pub(super) fn new(
        shared: Arc<Shared>,
        batching: BatchSettings,
        timeout: Duration,
        transport: Option<T>,
        console: bool,
        reporter: Reporter,
    ) -> Self {
        Self {
            shared,
            batching,
            timeout,
            transport: transport.map(Arc::new),
            console,
            reporter,
            state: State::default(),
        }
    }

    /// Runs until [`Control::close`] is called, and then for no longer than that allows.
    pub(super) async fn run(mut self) {
        let mut tick = Instant::now() + self.batching.schedule_delay;
        loop {
            self.work_to_do(tick).await;
            let ticket = self.shared.control.ticket();
            let closing = self.shared.control.closing().is_some();
            if closing {
                self.shared.queue.close();
            }
            self.shared.queue.exchange(&mut self.state.backlog);
            while let Some((batch, bytes)) = self.next_batch() {
                self.shared.stats.in_flight(batch.len());
                self.shared.queue.release(batch.len(), bytes);
                self.deliver(batch).await;
                self.shared.stats.in_flight(0);
                self.report();
            }
            self.report();
            if closing {
                // What came in while the queue was being closed.
                self.shared.drop_waiting();
                return self.shared.control.end();
            }
            self.shared.control.done(ticket);
            tick = Instant::now() + self.batching.schedule_delay;
        }
    }

    /// Waits until it is time, a batch is full, or somebody asks.
    async fn work_to_do(&self, tick: Instant) {
        let Shared { queue, control, .. } = &*self.shared;
        loop {
            let asked = control.ticket() > control.done_so_far() || control.closing().is_some();
            if asked || queue.len() >= self.batching.max_batch_size {
                return;
            }
            tokio::select! {
                () = queue.wake.notified() => {}
                () = sleep_until(tick) => return,
            }
        }
    }

    /// Takes spans from the backlog: as many as a batch may have, as many as fit in a request.
    fn next_batch(&mut self) -> Option<(Vec<SpanData>, usize)> {
        let backlog = &mut self.state.backlog;
        let mut bytes = 0;
        let mut count = 0;
        for span in backlog.iter().take(self.batching.max_batch_size) {
            let size = queue::size(span);
            if count > 0 && bytes + size > MAX_REQUEST_BYTES - REQUEST_OVERHEAD {
                break;
            }
            bytes += size;
            count += 1;
        }
        (count > 0).then(|| (backlog.drain(..count).collect(), bytes))
    }

    async fn deliver(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        if self
            .shared
            .control
            .closing()
            .is_some_and(|end| end <= Instant::now())
        {
            return self.shared.stats.dropped(DropReason::Shutdown, spans);
        }
        let until = Instant::now() + self.batching.export_timeout;
        let batch = if self.console {
            self.print(batch, until).await
        } else {
            batch
        };
        let Some(transport) = self.transport.clone() else {
            return self.shared.stats.exported(spans);
        };
        let request = transport.encode(batch);
        match self.send(&transport, &request, until).await {
            Ok(accepted) => self.accepted(spans, accepted),
            Err(reason) => self.shared.stats.dropped(reason, spans),
        }
    }

    /// Sends a request until it is taken, is hopeless, or time is up.
    async fn send(
        &mut self,
        transport: &T,
        request: &T::Request,
        until: Instant,
    ) -> Result<Accepted, DropReason> {
        let mut backoff = Backoff::new();
        if let Some(pause) = self.state.not_before.take() {
            // An earlier batch ran into this; whatever happens next, it is the collector's newest word.
            self.rest(pause, until, false).await.map_err(|stopped| {
                self.state.not_before = Some(pause);
                stopped.reason()
            })?;
        }
        loop {
            if self.is_closing() && self.state.failures_while_closing >= ATTEMPTS_WHILE_CLOSING {
                return Err(DropReason::ExportFailed);
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
                    return Err(DropReason::Shutdown);
                }
            };
            self.failed(&failure.detail);
            let (delay, impatient) = match failure.retry {
                Retry::Never => return Err(DropReason::ExportFailed),
                Retry::Backoff => (backoff.delay(), true),
                Retry::After(delay) => (delay.min(LONGEST_PAUSE).max(backoff.delay()), false),
            };
            if self.is_closing() {
                self.state.failures_while_closing += 1;
                if self.state.failures_while_closing >= ATTEMPTS_WHILE_CLOSING {
                    // Not after one more pause.
                    return Err(DropReason::ExportFailed);
                }
            }
            let again = Instant::now() + delay;
            if self.limit(until) <= again {
                // It makes no sense to wait for a moment that this batch will not see; the next one might.
                self.state.not_before = (!impatient).then_some(again);
                return Err(DropReason::ExportFailed);
            }
            self.rest(again, until, impatient)
                .await
                .map_err(|stopped| stopped.reason())?;
        }
    }

    fn accepted(&mut self, spans: u64, accepted: Accepted) {
        let rejected = accepted.rejected.min(spans);
        self.shared.stats.exported(spans - rejected);
        if rejected > 0 {
            self.shared.stats.dropped(DropReason::Rejected, rejected);
            let detail = format!(
                "the collector rejected {rejected} of {spans} spans: {}",
                accepted.message
            );
            self.failed(&detail);
        } else if !accepted.message.is_empty() {
            self.reporter.warning(&accepted.message);
        } else {
            self.reporter.success();
        }
    }

    /// Prints on a thread that may block: the reader of our output may have stopped reading.
    async fn print(&mut self, batch: Vec<SpanData>, until: Instant) -> Vec<SpanData> {
        let batch = Arc::new(batch);
        let printed = tokio::task::spawn_blocking({
            let batch = Arc::clone(&batch);
            move || super::console::print(&batch)
        });
        if !matches!(self.bounded(until, printed).await, Ok(Ok(Ok(())))) {
            self.failed("spans could not be written to standard output");
        }
        Arc::try_unwrap(batch).unwrap_or_else(|shared| shared.to_vec())
    }

    fn failed(&mut self, detail: &str) {
        let detail = self.reporter.clean(detail);
        self.shared.stats.failed(&detail);
        self.reporter.failure(detail);
        self.report();
    }

    fn report(&mut self) {
        let stats = self.shared.stats.read(self.shared.queue.len());
        self.reporter.report(&stats, Instant::now());
    }

    /// Waits until a moment; an impatient wait ends when the process wants to.
    async fn rest(&self, moment: Instant, until: Instant, impatient: bool) -> Result<(), Stopped> {
        loop {
            let closing = self.shared.control.closing();
            if closing.is_some_and(|end| end < moment) {
                return Err(Stopped::Closing);
            }
            tokio::select! {
                () = sleep_until(moment.min(until)) => {
                    return if moment <= until { Ok(()) } else { Err(Stopped::Time) };
                }
                () = self.shared.control.until_closing(), if closing.is_none() => {
                    if impatient {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Runs something for as long as there is time, which may get shorter while it runs.
    async fn bounded<F: Future>(&self, until: Instant, work: F) -> Result<F::Output, Stopped> {
        let mut work = pin!(work);
        loop {
            let closing = self.shared.control.closing();
            tokio::select! {
                biased;
                output = &mut work => return Ok(output),
                () = sleep_until(self.limit(until)) => {
                    return Err(match closing {
                        Some(end) if end <= until => Stopped::Closing,
                        _ => Stopped::Time,
                    });
                }
                () = self.shared.control.until_closing(), if closing.is_none() => {}
            }
        }
    }

    fn limit(&self, until: Instant) -> Instant {
        self.shared.control.closing().map_or(until, |end| end.min(until))
    }

    fn is_closing(&self) -> bool {
        self.shared.control.closing().is_some()
    }
}

/// After a panic: what the exporter held is lost, and has to be counted as that.
impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.shared.stats.drop_in_flight(DropReason::Shutdown);
        self.shared.drop_all(&self.state.backlog);
    }
}

/// For people: as precise as a time limit can be set.
fn in_milliseconds(time: Duration) -> Duration {
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000))
}

impl Stopped {
    fn reason(&self) -> DropReason {
        match self {
            Self::Time => DropReason::ExportFailed,
            Self::Closing => DropReason::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests;
