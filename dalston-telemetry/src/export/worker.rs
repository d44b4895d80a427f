//! The loop that exports: one task, on a thread and a runtime of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SpanData;
use tokio::time::{Instant, sleep_until};

use super::console;
use super::control::Control;
use super::delivery::{Delivery, Exporter, Lost};
use super::queue::{Queue, Queued};
use super::report::Reporter;
use super::settings::BatchSettings;
use super::stats::Stats;
use super::transport::{Accepted, SpanTransport};
use crate::metrics::DropReason;

/// What the exporting thread shares with the others.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue<SpanData>,
    pub(super) stats: Stats,
    pub(super) control: Control,
}

impl Shared {
    /// Closes the queue and counts the spans that nothing sends any more.
    pub(super) fn abandon(&self) {
        let spans = self.queue.abandon();
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

pub(super) struct Worker<T: SpanTransport> {
    shared: Arc<Shared>,
    batching: BatchSettings,
    transport: Option<Arc<T>>,
    /// Whether spans are also printed.
    console: bool,
    delivery: Delivery<Shared>,
    backlog: VecDeque<Queued<SpanData>>,
    /// A span that did not fit into the last batch.
    held_back: Option<Converted<T::Record>>,
}

/// A span in the forms in which it leaves the process.
struct Converted<R> {
    /// What it counts in the queue.
    queue_bytes: usize,
    /// For the console.
    line: Option<String>,
    record: Option<R>,
    /// The length of the record in a request.
    length: usize,
}

/// A batch on its way.
struct Outgoing<R> {
    spans: u64,
    /// For the console.
    lines: Option<String>,
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
            backlog: VecDeque::new(),
            held_back: None,
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
            self.shared.queue.take_all(&mut self.backlog);
            while let Some(batch) = self.next_batch() {
                self.deliver(batch).await;
                self.shared.stats.in_flight(0);
                self.delivery.report();
            }
            self.delivery.report();
            if closing {
                // Spans that were added while the queue was being closed.
                self.shared.abandon();
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

    /// Takes spans from the backlog: as many as a batch may have and as fit into a request.
    fn next_batch(&mut self) -> Option<Outgoing<T::Request>> {
        let room = self.transport.as_ref().map_or(0, |transport| transport.room());
        let (mut lines, mut records) = (String::new(), Vec::new());
        let (mut spans, mut queue_bytes, mut length) = (0, 0, 0);
        while spans < self.batching.max_batch_size {
            let Some(span) = self.next_span(room) else { break };
            if spans > 0 && length + span.length > room {
                self.held_back = Some(span);
                break;
            }
            spans += 1;
            queue_bytes += span.queue_bytes;
            length += span.length;
            lines.extend(span.line);
            records.extend(span.record);
        }
        if spans == 0 {
            return None;
        }
        self.shared.stats.in_flight(spans);
        self.shared.queue.release(spans, queue_bytes);
        Some(Outgoing {
            spans: spans as u64,
            lines: self.console.then_some(lines),
            request: self
                .transport
                .as_ref()
                .map(|transport| transport.request(records)),
        })
    }

    /// The next span that fits into a request.
    fn next_span(&mut self, room: usize) -> Option<Converted<T::Record>> {
        if let Some(span) = self.held_back.take() {
            return Some(span);
        }
        while let Some(Queued { item, bytes }) = self.backlog.pop_front() {
            let line = self.console.then(|| console::line(&item));
            let converted = self.transport.as_ref().map(|transport| transport.convert(item));
            let (record, length) = converted.map_or((None, 0), |(record, length)| (Some(record), length));
            if length <= room {
                return Some(Converted {
                    queue_bytes: bytes,
                    line,
                    record,
                    length,
                });
            }
            self.shared.queue.release(1, bytes);
            self.shared.stats.dropped(DropReason::TooLarge, 1);
        }
        None
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
    async fn print(&mut self, lines: String, until: Instant) {
        let printed = tokio::task::spawn_blocking(move || console::print(&lines));
        if !matches!(self.delivery.bounded(until, printed).await, Ok(Ok(Ok(())))) {
            self.delivery
                .failed("spans could not be written to standard output");
        }
    }
}

impl<T: SpanTransport> Drop for Worker<T> {
    /// After a panic, counts the spans that the exporter held.
    fn drop(&mut self) {
        self.shared.stats.drop_in_flight(DropReason::Shutdown);
        self.shared.abandon();
    }
}

#[cfg(test)]
mod tests;
