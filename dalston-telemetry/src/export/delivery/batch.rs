//! The exporter of items that wait in a queue until they are sent together.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::attempts::{Delivery, Lost};
use super::control::Control;
use super::exporter::Exporter;
use super::queue::{Queue, Queued};
use super::report::{self, ReportTo, Reporter};
use super::request::{Accepted, Transport};
use super::stats::{ExportStats, Stats};
use super::thread::spawn;
use crate::error::{InitError, ShutdownError};
use crate::export::exporter_config::BatchConfig;
use crate::metrics::{DropReason, Signal, TelemetryMetrics};

/// An item that waits in a queue, such as a span.
pub(crate) trait Item: fmt::Debug + Send + Sync + 'static {
    /// In metrics.
    const SIGNAL: Signal;
    /// In log events and errors, in the plural.
    const NAME: &'static str;

    /// Counts items that were lost.
    fn count_dropped(metrics: &TelemetryMetrics, reason: DropReason, count: u64);

    /// The memory that the item takes, estimated.
    fn size(&self) -> usize;

    /// The item as the console exporter prints it, with a line feed.
    fn line(&self) -> String;
}

/// Sends items to a collector, many in one request.
pub(crate) trait BatchTransport<I>: Transport {
    /// An item in the form of the request.
    type Record: Send + Sync;

    /// The bytes that the records of one request may take together.
    fn room(&self) -> usize;

    /// Converts an item. Returns the record and the bytes that it takes in a request.
    fn convert(&self, item: I) -> (Self::Record, usize);

    fn request(&self, records: Vec<Self::Record>) -> Self::Request;
}

/// Where the console exporter writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    Stdout,
    Stderr,
}

impl Console {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
        }
    }

    fn write(self, lines: &str) -> io::Result<()> {
        let mut output: Box<dyn Write> = match self {
            Self::Stdout => Box::new(io::stdout().lock()),
            Self::Stderr => Box::new(io::stderr().lock()),
        };
        output.write_all(lines.as_bytes())?;
        output.flush()
    }
}

/// An exporter with a queue and a thread. Clones are the same exporter.
pub(crate) struct BatchExporter<I> {
    shared: Arc<Shared<I>>,
    report_to: ReportTo,
}

impl<I: Item> BatchExporter<I> {
    /// Starts the thread, which calls `connect` in its runtime. `timeout` is for one request.
    pub(crate) fn start<T: BatchTransport<I>>(
        config: BatchConfig,
        timeout: Duration,
        connect: Option<impl FnOnce() -> T + Send + 'static>,
        console: Option<Console>,
        metrics: TelemetryMetrics,
        reporter: Reporter,
        report_to: ReportTo,
    ) -> Result<Self, InitError> {
        let shared = Arc::new(Shared::new(&config, metrics));
        let in_thread = Arc::clone(&shared);
        spawn("dalston-otlp", EndOnDrop(Arc::clone(&shared)), async move {
            let transport = connect.map(|connect| connect());
            let worker = Worker::new(in_thread, config, timeout, transport, console, reporter);
            worker.run().await;
        })?;
        Ok(Self { shared, report_to })
    }

    /// Puts an item into the queue, or counts it as lost. Never waits for the collector.
    pub(crate) fn take(&self, item: I) {
        report::learn(&self.report_to);
        self.shared.push(item);
    }

    pub(crate) fn stats(&self) -> ExportStats {
        self.shared.read_stats()
    }

    /// The exporter, for the list of all exporters.
    pub(crate) fn exporter(&self) -> Arc<dyn Exporter> {
        Arc::clone(&self.shared) as _
    }
}

impl<I> Clone for BatchExporter<I> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            report_to: Arc::clone(&self.report_to),
        }
    }
}

impl<I> fmt::Debug for BatchExporter<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchExporter")
            .field("queue", &self.shared.queue)
            .finish_non_exhaustive()
    }
}

/// What the export thread shares with the others.
#[derive(Debug)]
struct Shared<I> {
    queue: Queue<I>,
    /// The exporter is woken early at this length of the queue.
    max_batch_size: usize,
    stats: Stats,
    control: Control,
}

impl<I: Item> Shared<I> {
    fn new(config: &BatchConfig, metrics: TelemetryMetrics) -> Self {
        Self {
            queue: Queue::new(config.max_queue_size),
            max_batch_size: config.max_batch_size,
            stats: Stats::new(metrics, I::SIGNAL, I::count_dropped),
            control: Control::new(),
        }
    }

    fn push(&self, item: I) {
        match self.queue.push(item, I::size) {
            Ok(waiting) if waiting == self.max_batch_size => self.control.wake(),
            Ok(_) => {}
            Err(reason) => self.stats.dropped(reason, 1),
        }
    }

    fn read_stats(&self) -> ExportStats {
        self.stats.read(self.queue.len())
    }

    /// Closes the queue and counts the items that nothing sends any more.
    fn abandon(&self) {
        let items = self.queue.abandon();
        self.stats.dropped(DropReason::Shutdown, items as u64);
    }
}

impl<I: Item> Exporter for Shared<I> {
    fn control(&self) -> &Control {
        &self.control
    }

    fn request_failed(&self, detail: &str) {
        self.stats.failed(detail);
    }

    fn report(&self, reporter: &mut Reporter) {
        reporter.report(&self.read_stats(), Instant::now());
    }

    fn outcome(&self, in_time: bool) -> Result<(), ShutdownError> {
        let stats = self.read_stats();
        let lost = self.control.newly_lost(stats.dropped_total());
        let items = I::NAME;
        if !in_time {
            let pending = stats.waiting();
            return Err(ShutdownError::Timeout { items, pending });
        }
        if lost > 0 {
            let last_failure = self.stats.last_failure();
            let why = || stats.main_loss_since(&ExportStats::default()).to_owned();
            return Err(ShutdownError::Lost {
                items,
                lost,
                last_failure: last_failure.unwrap_or_else(why),
            });
        }
        Ok(())
    }
}

/// Tells waiting threads that the export thread has ended, also after a panic.
struct EndOnDrop<I: Item>(Arc<Shared<I>>);

impl<I: Item> Drop for EndOnDrop<I> {
    fn drop(&mut self) {
        self.0.abandon();
        self.0.control.end();
    }
}

/// The loop of the export thread.
struct Worker<I: Item, T: BatchTransport<I>> {
    shared: Arc<Shared<I>>,
    config: BatchConfig,
    transport: Option<Arc<T>>,
    /// Where items are also printed.
    console: Option<Console>,
    delivery: Delivery<Shared<I>>,
    backlog: VecDeque<Queued<I>>,
    /// An item that did not fit into the last batch.
    held_back: Option<Converted<T::Record>>,
}

/// An item in the forms in which it leaves the process.
struct Converted<R> {
    /// What it counts in the queue.
    queue_bytes: usize,
    /// For the console.
    line: Option<String>,
    record: Option<R>,
    /// The bytes of the record in a request.
    length: usize,
}

/// Items that are sent together.
struct Batch<R> {
    items: u64,
    /// For the console.
    lines: Option<String>,
    request: Option<R>,
}

impl<I: Item, T: BatchTransport<I>> Worker<I, T> {
    fn new(
        shared: Arc<Shared<I>>,
        config: BatchConfig,
        timeout: Duration,
        transport: Option<T>,
        console: Option<Console>,
        reporter: Reporter,
    ) -> Self {
        Self {
            delivery: Delivery::new(Arc::clone(&shared), timeout, reporter),
            shared,
            config,
            transport: transport.map(Arc::new),
            console,
            backlog: VecDeque::new(),
            held_back: None,
        }
    }

    /// Runs until the shutdown, and then for no longer than that allows.
    async fn run(mut self) {
        let mut tick = Instant::now() + self.config.schedule_delay;
        loop {
            self.work_to_do(tick).await;
            let flush = self.shared.control.asked();
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
                return self.shared.control.end();
            }
            self.shared.control.done(flush);
            tick = Instant::now() + self.config.schedule_delay;
        }
    }

    /// Waits until the delay is over, a batch is full, or a flush or the shutdown is asked for.
    async fn work_to_do(&self, tick: Instant) {
        let Shared { queue, control, .. } = &*self.shared;
        while !control.is_urgent() && queue.len() < self.config.max_batch_size {
            tokio::select! {
                () = control.woken() => {}
                () = sleep_until(tick) => return,
            }
        }
    }

    /// Takes items from the backlog: as many as a batch may have and as fit into a request.
    fn next_batch(&mut self) -> Option<Batch<T::Request>> {
        let room = self.room();
        let waiting = (self.backlog.len() + 1).min(self.config.max_batch_size);
        let (mut lines, mut records) = (String::new(), Vec::with_capacity(waiting));
        let (mut items, mut queue_bytes, mut length) = (0, 0, 0);
        while items < self.config.max_batch_size {
            let Some(item) = self.next_item(room) else { break };
            if items > 0 && length + item.length > room {
                self.held_back = Some(item);
                break;
            }
            items += 1;
            queue_bytes += item.queue_bytes;
            length += item.length;
            lines.extend(item.line);
            records.extend(item.record);
        }
        if items == 0 {
            return None;
        }
        self.shared.stats.in_flight(items);
        self.shared.queue.release(items, queue_bytes);
        Some(Batch {
            items: items as u64,
            lines: self.console.map(|_| lines),
            request: self
                .transport
                .as_ref()
                .map(|transport| transport.request(records)),
        })
    }

    /// The next item that fits into a request. Counts the others.
    fn next_item(&mut self, room: usize) -> Option<Converted<T::Record>> {
        if let Some(item) = self.held_back.take() {
            return Some(item);
        }
        while let Some(Queued { item, bytes }) = self.backlog.pop_front() {
            let line = self.console.map(|_| item.line());
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

    fn room(&self) -> usize {
        self.transport.as_ref().map_or(0, |transport| transport.room())
    }

    async fn deliver(&mut self, batch: Batch<T::Request>) {
        let Batch {
            items,
            lines,
            request,
        } = batch;
        let deadline = self.shared.control.closing();
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return self.shared.stats.dropped(DropReason::Shutdown, items);
        }
        let until = Instant::now() + self.config.export_timeout;
        if let Some((console, lines)) = self.console.zip(lines) {
            self.print(console, lines, until).await;
        }
        let (Some(transport), Some(request)) = (self.transport.clone(), request) else {
            return self.shared.stats.exported(items);
        };
        match self.delivery.send(&*transport, &request, until).await {
            Ok(accepted) => self.accepted(items, accepted),
            Err(Lost::Failed | Lost::Refused) => self.shared.stats.dropped(DropReason::ExportFailed, items),
            Err(Lost::Closing) => self.shared.stats.dropped(DropReason::Shutdown, items),
        }
    }

    fn accepted(&mut self, items: u64, accepted: Accepted) {
        let rejected = accepted.rejected.min(items);
        self.shared.stats.exported(items - rejected);
        if rejected > 0 {
            self.shared.stats.dropped(DropReason::Rejected, rejected);
            let (name, message) = (I::NAME, accepted.message);
            self.delivery.failed(&format!(
                "the collector rejected {rejected} of {items} {name}: {message}"
            ));
        } else {
            self.delivery.succeeded(&accepted);
        }
    }

    /// Prints on a thread that may block: the reader of the output may have stopped reading.
    async fn print(&mut self, console: Console, lines: String, until: Instant) {
        let printed = tokio::task::spawn_blocking(move || console.write(&lines));
        if !matches!(self.delivery.bounded(until, printed).await, Ok(Ok(Ok(())))) {
            let (name, output) = (I::NAME, console.name());
            self.delivery
                .failed(&format!("{name} could not be written to {output}"));
        }
    }
}

impl<I: Item, T: BatchTransport<I>> Drop for Worker<I, T> {
    /// After a panic, counts the items that the exporter held.
    fn drop(&mut self) {
        self.shared.stats.drop_in_flight(DropReason::Shutdown);
        self.shared.abandon();
    }
}

#[cfg(test)]
mod tests;
