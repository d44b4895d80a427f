use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The destination of log lines. Cheap to clone.
///
/// A thread of its own writes the lines. So a pipe that is not read, a full disk, and a program
/// that holds `stdout().lock()` never block the code that logs. Up to 8,192 lines or 8 MiB wait for
/// the thread, whichever comes first. Further lines are lost and counted in
/// `dalston_log_lines_dropped_total`, as are lines that can't be written. The lines of a thread
/// keep their order. Each line is written in one call, so that lines of processes that share a pipe
/// don't mix.
///
/// [`Telemetry::shutdown`](crate::Telemetry::shutdown), dropping
/// [`Telemetry`](crate::Telemetry), [`flush`](crate::Telemetry::flush) and the panic hook wait
/// until the present lines are written, within their time limits. A process that ends in another
/// way, by `std::process::exit` or `abort`, may lose the last lines: call `flush` before.
#[derive(Clone)]
pub struct LogWriter {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Stdout,
    Stderr,
    Custom(Arc<Mutex<dyn Write + Send>>),
    Buffer(LogBuffer),
}

/// How lines reach the target of a [`LogWriter`].
pub(super) enum Destination {
    /// At once: the target can't block.
    Buffer(LogBuffer),
    /// By a thread.
    Stream(Box<dyn Write + Send>),
}

impl LogWriter {
    /// Standard output, the default: services of the platform log there.
    ///
    /// The lines bypass the lock and the buffer of [`std::io::stdout`]: they don't wait for
    /// `stdout().lock()`, and a later redirection of descriptor 1 does not affect them.
    #[must_use]
    pub const fn stdout() -> Self {
        Self {
            target: Target::Stdout,
        }
    }

    /// Standard error: for programs whose output is their result. It bypasses the lock, as
    /// [`stdout`](Self::stdout) does.
    #[must_use]
    pub const fn stderr() -> Self {
        Self {
            target: Target::Stderr,
        }
    }

    /// A writer of your own, which is called on the thread of the lines. It may block. Lines that
    /// it logs itself are lost. It is flushed whenever no further line waits.
    ///
    /// For tests, [`buffer`](Self::buffer) has the lines at once.
    #[must_use]
    pub fn new(writer: impl Write + Send + 'static) -> Self {
        Self {
            target: Target::Custom(Arc::new(Mutex::new(writer))),
        }
    }

    /// A writer into memory, for tests, and the buffer to read the lines from. No thread is
    /// started: a line is in the buffer when the call that logs it returns.
    ///
    /// ```
    /// use dalston_telemetry::LogWriter;
    ///
    /// let (writer, lines) = LogWriter::buffer();
    /// # let _ = writer;
    /// assert_eq!(lines.text(), "");
    /// ```
    #[must_use]
    pub fn buffer() -> (Self, LogBuffer) {
        let buffer = LogBuffer::default();
        let target = Target::Buffer(buffer.clone());
        (Self { target }, buffer)
    }

    pub(crate) fn is_stderr(&self) -> bool {
        matches!(self.target, Target::Stderr)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        match &self.target {
            Target::Stdout => io::stdout().is_terminal(),
            Target::Stderr => io::stderr().is_terminal(),
            Target::Custom(_) | Target::Buffer(_) => false,
        }
    }

    /// The target as a stream, without the queue of log lines.
    pub(crate) fn stream(&self) -> Box<dyn Write + Send> {
        match self.destination() {
            Destination::Buffer(buffer) => Box::new(buffer),
            Destination::Stream(stream) => stream,
        }
    }

    pub(super) fn destination(&self) -> Destination {
        Destination::Stream(match &self.target {
            Target::Stdout => without_lock(io::stdout()),
            Target::Stderr => without_lock(io::stderr()),
            Target::Custom(writer) => Box::new(Shared(Arc::clone(writer))),
            Target::Buffer(buffer) => return Destination::Buffer(buffer.clone()),
        })
    }
}

/// The same stream without the lock of the process, which an engine may hold for as long as its
/// progress bar is shown.
fn without_lock(stream: impl Write + AsFd + Send + 'static) -> Box<dyn Write + Send> {
    match stream.as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        Err(_) => Box::new(stream),
    }
}

/// A writer of the program. Clones of a [`LogWriter`] share it.
struct Shared(Arc<Mutex<dyn Write + Send>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

impl Default for LogWriter {
    fn default() -> Self {
        Self::stdout()
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.target {
            Target::Stdout => "LogWriter(stdout)",
            Target::Stderr => "LogWriter(stderr)",
            Target::Custom(_) => "LogWriter(custom)",
            Target::Buffer(_) => "LogWriter(buffer)",
        })
    }
}

/// The lines that were written to a [`LogWriter::buffer`]. Cheap to clone; clones share the buffer.
#[derive(Clone, Default)]
pub struct LogBuffer {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl LogBuffer {
    /// The text that was written so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.bytes)).into_owned()
    }

    /// The lines that were written so far, without line breaks.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    pub(super) fn push(&self, bytes: &[u8]) {
        lock(&self.bytes).extend_from_slice(bytes);
    }
}

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for LogBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogBuffer").finish_non_exhaustive()
    }
}

fn lock<W: ?Sized>(writer: &Mutex<W>) -> MutexGuard<'_, W> {
    // A writer that has panicked gets the next line nevertheless.
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}
