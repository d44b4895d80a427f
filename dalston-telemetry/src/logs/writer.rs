use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

/// The destination of log lines. Cheap to clone.
///
/// Each line is written in one call of `write_all`, so that lines of threads, and of processes that
/// share a pipe, don't mix. A line that can't be written is lost.
#[derive(Clone)]
pub struct LogWriter {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Stdout,
    Stderr,
    Custom(Arc<Mutex<dyn Write + Send>>),
}

impl LogWriter {
    /// Standard output, the default: services of the platform log there.
    #[must_use]
    pub const fn stdout() -> Self {
        Self {
            target: Target::Stdout,
        }
    }

    /// Standard error: for programs whose output is their result.
    #[must_use]
    pub const fn stderr() -> Self {
        Self {
            target: Target::Stderr,
        }
    }

    /// A writer of your own. It must not log.
    #[must_use]
    pub fn new(writer: impl Write + Send + 'static) -> Self {
        Self {
            target: Target::Custom(Arc::new(Mutex::new(writer))),
        }
    }

    /// A writer into memory, for tests, and the buffer to read the lines from.
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
        (Self::new(buffer.clone()), buffer)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        match &self.target {
            Target::Stdout => io::stdout().is_terminal(),
            Target::Stderr => io::stderr().is_terminal(),
            Target::Custom(_) => false,
        }
    }

    /// Returns whether the line was written.
    pub(crate) fn write_line(&self, line: &[u8]) -> bool {
        let written = match &self.target {
            // Standard output is line-buffered: a whole line leaves in one write.
            Target::Stdout => io::stdout().lock().write_all(line),
            Target::Stderr => io::stderr().lock().write_all(line),
            Target::Custom(writer) => match lock_to_write(writer) {
                Some(mut writer) => writer.write_all(line),
                None => return false,
            },
        };
        written.is_ok()
    }
}

/// Locks the writer. A panicking thread waits for 50 ms at most, because it may have panicked in
/// this writer and hold its lock.
fn lock_to_write<W: ?Sized>(writer: &Mutex<W>) -> Option<MutexGuard<'_, W>> {
    const ATTEMPTS: u32 = 50;
    if !thread::panicking() {
        return Some(writer.lock().unwrap_or_else(PoisonError::into_inner));
    }
    for _ in 0..ATTEMPTS {
        match writer.try_lock() {
            Ok(writer) => return Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
    None
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
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines that were written so far, without line breaks.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }
}

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
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
