//! The loop that exports: one task, on a thread and a runtime of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::control::Control;
use super::delivery::{Delivery, Exporter, Lost};
use super::queue::{Queue, Spans};
use super::report::Reporter;
use super::settings::BatchSettings;
use super::stats::Stats;
use super::transport::{Accepted, SpanTransport};
use crate::metrics::DropReason;

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
        let mut waiting = Spans::default();
        self.queue.exchange(&mut waiting);
        self.drop_all(&waiting);
    }

    fn drop_all(&self, spans: &Spans) {
        let (spans, bytes) = spans.left();
        self.queue.release(spans, bytes);
        self.stats.dropped(DropReason::Shutdown, spans as u64);
    }
}

impl Exporter for Shared {
    fn control(&self) -> &Control {
        &self.control
    }

    fn failed(&self, detail: &str) {
        self.stats.failed(detail);
    }

    fn report(&self, reporter: &mut Reporter) {
        reporter.report(&self.stats.read(self.queue.len()), Instant::now());
    }
}

pub(super) struct Worker<T> {
    shared: Arc<Shared>,
    batching: BatchSettings,
    transport: Option<Arc<T>>,
    /// Whether spans are also printed.
    console: bool,
    delivery: Delivery<Shared>,
    backlog: Spans,
}

/// A batch on its way.
struct Outgoing<R> {
    spans: u64,
    /// For the console.
    lines: Option<Vec<u8>>,
    request: Option<R>,
}

impl<T: SpanTransport> Worker<T> {
    /// `timeout` is for one request.
    pub(super) fn new(
        shared: Arc<Shared>,
        batching: BatchSettings,
        timeout: Duration,
        transport: Option<T>,
        console: bool,
        reporter: Reporter,
    ) -> Self {
        Self {
            delivery: Delivery::new(Arc::clone(&shared), timeout, reporter),
            shared,
            batching,
            transport: transport.map(Arc::new),
            console,
            backlog: Spans::default(),
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
            self.shared.queue.exchange(&mut self.backlog);
            while let Some(batch) = self.next_batch() {
                self.deliver(batch).await;
                self.shared.stats.in_flight(0);
                self.delivery.report();
            }
            self.delivery.report();
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
    fn next_batch(&mut self) -> Option<Outgoing<T::Request>> {
        let batch = self.backlog.take(self.batching.max_batch_size)?;
        self.shared.stats.in_flight(batch.len());
        self.shared.queue.release(batch.len(), batch.bytes());
        Some(Outgoing {
            spans: batch.len() as u64,
            lines: self.console.then(|| batch.lines()),
            request: self.transport.as_ref().map(|transport| transport.encode(&batch)),
        })
    }

    async fn deliver(&mut self, batch: Outgoing<T::Request>) {
        let Outgoing {
            spans,
            lines,
            request,
        } = batch;
        if self
            .shared
            .control
            .closing()
            .is_some_and(|end| end <= Instant::now())
        {
            return self.shared.stats.dropped(DropReason::Shutdown, spans);
        }
        let until = Instant::now() + self.batching.export_timeout;
        if let Some(lines) = lines {
            self.print(lines, until).await;
        }
        let (Some(transport), Some(request)) = (self.transport.clone(), request) else {
            return self.shared.stats.exported(spans);
        };
        match self.delivery.send(&*transport, &request, until).await {
            Ok(accepted) => self.accepted(spans, accepted),
            Err(Lost::Failed | Lost::Refused) => self.shared.stats.dropped(DropReason::ExportFailed, spans),
            Err(Lost::Closing) => self.shared.stats.dropped(DropReason::Shutdown, spans),
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
            self.delivery.failed(&detail);
        } else {
            self.delivery.succeeded(&accepted);
        }
    }

    /// Prints on a thread that may block: the reader of our output may have stopped reading.
    async fn print(&mut self, lines: Vec<u8>, until: Instant) {
        let printed = tokio::task::spawn_blocking(move || super::console::print(&lines));
        if !matches!(self.delivery.bounded(until, printed).await, Ok(Ok(Ok(())))) {
            self.delivery
                .failed("spans could not be written to standard output");
        }
    }
}

/// After a panic: what the exporter held is lost, and has to be counted as that.
impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.shared.stats.drop_in_flight(DropReason::Shutdown);
        self.shared.drop_all(&self.backlog);
    }
}

#[cfg(test)]
mod tests;
