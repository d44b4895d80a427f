//! Log lines on their way out of the process.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::Level;

use super::queue::{Batch, LineQueue};
use super::writer::{Destination, LogBuffer, LogWriter};
use crate::error::{InitError, ShutdownError};
use crate::metrics::TelemetryMetrics;

/// The output of the log lines of a subscriber. Clones are the same output.
///
/// A thread writes the lines, because every destination but a buffer can block: a pipe that is not
/// read, a full disk, a slow terminal.
#[derive(Clone)]
pub(crate) struct LogOutput {
    to: To,
    metrics: TelemetryMetrics,
}

#[derive(Clone)]
enum To {
    Buffer(LogBuffer),
    Thread(Arc<Producer>),
}

thread_local! {
    /// Whether this is the thread of an output. A writer that logs, or panics with the hook that
    /// logs it, would never be done.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// Ends the thread when the last clone of the output is dropped.
struct Producer(Arc<LineQueue>);

impl LogOutput {
    /// Starts the thread, unless the destination is a buffer.
    pub(crate) fn start(writer: &LogWriter, metrics: TelemetryMetrics) -> Result<Self, InitError> {
        let to = match writer.destination() {
            Destination::Buffer(buffer) => To::Buffer(buffer),
            Destination::Stream(mut stream) => {
                let queue = Arc::new(LineQueue::new());
                let (lines, counts) = (Arc::clone(&queue), metrics.clone());
                thread::Builder::new()
                    .name("dalston-logs".into())
                    .spawn(move || write_lines(&lines, &mut *stream, &counts))
                    .map_err(|source| InitError::Thread { name: "log", source })?;
                To::Thread(Arc::new(Producer(queue)))
            }
        };
        Ok(Self { to, metrics })
    }

    /// Writes a line or leaves it to the thread, and counts it. Never blocks.
    pub(super) fn write_line(&self, line: &[u8], level: Level) {
        match &self.to {
            To::Buffer(buffer) => {
                buffer.push(line);
                self.metrics.log_message(level.into());
            }
            To::Thread(producer) => {
                if WRITES.get() || !producer.0.push(line, level) {
                    self.metrics.log_line_dropped();
                }
            }
        }
    }

    /// Waits until all present lines are written, for at most `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let pending = match &self.to {
            To::Thread(producer) if !WRITES.get() => producer.0.flush(timeout),
            To::Thread(_) | To::Buffer(_) => 0,
        };
        match pending {
            0 => Ok(()),
            pending => Err(ShutdownError::LogLines { pending }),
        }
    }

    /// [`flush`](Self::flush) without blocking the thread. Needs no timer of the caller's runtime.
    pub(crate) async fn flushed(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let present = self.flush(Duration::ZERO);
        if present.is_ok() {
            return present;
        }
        let (done, flushed) = oneshot::channel();
        let output = self.clone();
        let waiter = thread::Builder::new().name("dalston-flush".into());
        let waiting = waiter.spawn(move || done.send(output.flush(timeout)));
        match waiting {
            Ok(_) => flushed.await.unwrap_or(present),
            Err(_) => present,
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.to {
            To::Buffer(_) => "LogOutput(buffer)",
            To::Thread(_) => "LogOutput(thread)",
        })
    }
}

/// The thread: writes lines until the queue is closed.
fn write_lines(queue: &LineQueue, stream: &mut dyn Write, metrics: &TelemetryMetrics) {
    WRITES.set(true);
    let mut batch = Batch::default();
    while queue.take(&mut batch) {
        for (line, level) in batch.lines() {
            match guarded(|| write_line(stream, line)) {
                Ok(()) => metrics.log_message(level.into()),
                Err(_) => metrics.log_line_dropped(),
            }
        }
        // A program's own writer may have a buffer. A failure shows in the next line.
        let _ = guarded(|| stream.flush());
    }
}

/// Writes a line in one call if the stream takes it.
fn write_line(stream: &mut dyn Write, mut line: &[u8]) -> io::Result<()> {
    /// The pause before the next attempt at a pipe that is in non-blocking mode and full.
    const PAUSE: Duration = Duration::from_millis(10);
    while !line.is_empty() {
        match stream.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written.min(line.len())..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A program's own writer may panic. The thread lives on, because nothing replaces it.
fn guarded(write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let written = panic::catch_unwind(AssertUnwindSafe(write));
    written.unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
}
