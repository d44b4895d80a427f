//! The queue between the threads that log and the thread that writes their lines.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Level;

/// The lines that may wait, however short they are.
pub(super) const MAX_LINES: usize = 8192;
/// The memory of the lines that wait, however few they are.
pub(super) const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Allocated at the start, so that a line allocates nothing. More is freed after a burst.
const KEPT_BYTES: usize = 1024 * 1024;
/// The lines that the thread copies under the lock at once.
const BATCH_BYTES: usize = 64 * 1024;

/// Lines that wait to be written. Adding a line never waits for the output.
pub(super) struct LineQueue {
    state: Mutex<State>,
    arrived: Condvar,
    written: Condvar,
}

struct State {
    /// The bytes of `lines`, one after the other.
    bytes: VecDeque<u8>,
    lines: VecDeque<Line>,
    /// What the thread is writing counts against the limits until it is written.
    taken_lines: usize,
    taken_bytes: usize,
    /// How many lines were added so far, and how many were written or failed to be written.
    added: u64,
    done: u64,
    /// Whether the thread waits for a line.
    idle: bool,
    closed: bool,
}

#[derive(Clone, Copy)]
struct Line {
    length: usize,
    level: Level,
}

impl LineQueue {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                bytes: VecDeque::with_capacity(KEPT_BYTES),
                lines: VecDeque::with_capacity(MAX_LINES),
                taken_lines: 0,
                taken_bytes: 0,
                added: 0,
                done: 0,
                idle: false,
                closed: false,
            }),
            arrived: Condvar::new(),
            written: Condvar::new(),
        }
    }

    /// Adds a line, and returns whether there was room for it.
    pub(super) fn push(&self, line: &[u8], level: Level) -> bool {
        let mut state = self.state();
        if state.lines.len() + state.taken_lines >= MAX_LINES
            || state.bytes.len() + state.taken_bytes + line.len() > MAX_BYTES
        {
            return false;
        }
        state.bytes.extend(line);
        state.lines.push_back(Line {
            length: line.len(),
            level,
        });
        state.added += 1;
        // A wake-up is a system call: only the first line after a pause pays for it.
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
        true
    }

    /// Replaces a batch, which is written, by the next lines, and waits for some. Returns `false`
    /// after the last lines of a closed queue.
    pub(super) fn take(&self, batch: &mut Batch) -> bool {
        let mut state = self.state();
        state.done += state.taken_lines as u64;
        state.taken_lines = 0;
        state.taken_bytes = 0;
        self.written.notify_all();
        while state.lines.is_empty() {
            if state.closed {
                return false;
            }
            state.bytes.shrink_to(KEPT_BYTES);
            state.idle = true;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        state.fill(batch);
        true
    }

    /// Waits until all present lines are written, for at most `timeout`, and returns how many are
    /// not.
    pub(super) fn flush(&self, timeout: Duration) -> usize {
        let state = self.state();
        let added = state.added;
        let (state, _) = self
            .written
            .wait_timeout_while(state, timeout, |state| state.done < added)
            .unwrap_or_else(PoisonError::into_inner);
        usize::try_from(added.saturating_sub(state.done)).unwrap_or(usize::MAX)
    }

    /// Ends the thread once it has written the present lines.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves the oldest lines into an empty or used batch: one line at least.
    fn fill(&mut self, batch: &mut Batch) {
        batch.lines.clear();
        batch.bytes.clear();
        batch.bytes.shrink_to(BATCH_BYTES);
        let mut length = 0;
        while let Some(line) = self.lines.front().copied()
            && (batch.lines.is_empty() || length + line.length <= BATCH_BYTES)
        {
            length += line.length;
            batch.lines.push(line);
            self.lines.pop_front();
        }
        let (front, back) = self.bytes.as_slices();
        let split = length.min(front.len());
        batch.bytes.extend_from_slice(&front[..split]);
        batch.bytes.extend_from_slice(&back[..length - split]);
        self.bytes.drain(..length);
        self.taken_lines = batch.lines.len();
        self.taken_bytes = length;
    }
}

/// Lines that the thread has taken from the queue.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Line>,
}

impl Batch {
    /// The lines in order.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&[u8], Level)> {
        let mut rest = self.bytes.as_slice();
        self.lines.iter().map(move |line| {
            let (text, after) = rest.split_at(line.length);
            rest = after;
            (text, line.level)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &LineQueue, batch: &mut Batch) -> Vec<String> {
        assert!(queue.take(batch));
        let text = |(line, _): (&[u8], Level)| String::from_utf8_lossy(line).into_owned();
        batch.lines().map(text).collect()
    }

    #[test]
    fn lines_are_bounded_with_those_in_writing() {
        let queue = LineQueue::new();
        let mut batch = Batch::default();
        let fill = || (0..).take_while(|_| queue.push(b"line\n", Level::INFO)).count();
        assert_eq!(fill(), MAX_LINES);
        assert_eq!(taken(&queue, &mut batch).len(), MAX_LINES);
        assert_eq!(fill(), 0, "these lines are not written yet");
        queue.close();
        assert!(!queue.take(&mut batch));
        assert_eq!(fill(), MAX_LINES);
    }

    #[test]
    fn bytes_are_bounded_with_those_in_writing() {
        let queue = LineQueue::new();
        let mut batch = Batch::default();
        let line = vec![b'x'; MAX_BYTES / 4];
        for _ in 0..4 {
            assert!(queue.push(&line, Level::INFO));
        }
        assert!(!queue.push(b"x", Level::INFO));
        assert_eq!(taken(&queue, &mut batch).len(), 1, "a batch is small");
        assert!(!queue.push(b"x", Level::INFO));
        assert_eq!(taken(&queue, &mut batch).len(), 1);
        assert!(queue.push(&line, Level::INFO));
        assert!(!queue.push(b"x", Level::INFO));
        assert!(!LineQueue::new().push(&vec![b'x'; MAX_BYTES + 1], Level::INFO));
    }

    #[test]
    fn lines_of_many_batches_keep_their_order() {
        let queue = LineQueue::new();
        let mut batch = Batch::default();
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for round in 0..40 {
            for number in 0..200 {
                let line = format!("{round} {number} {}\n", "x".repeat(number * 7));
                assert!(queue.push(line.as_bytes(), Level::INFO));
                expected.push(line);
            }
            // Less than was added, so that the lines lie across the end of the ring.
            found.extend(taken(&queue, &mut batch));
        }
        queue.close();
        while queue.take(&mut batch) {
            let text = |(line, _): (&[u8], Level)| String::from_utf8_lossy(line).into_owned();
            found.extend(batch.lines().map(text));
        }
        assert!(found == expected);
    }

    #[test]
    fn flush_waits_for_the_lines_in_writing() {
        let queue = LineQueue::new();
        let mut batch = Batch::default();
        assert_eq!(queue.flush(Duration::ZERO), 0);
        assert!(queue.push(b"one\n", Level::INFO));
        assert_eq!(queue.flush(Duration::ZERO), 1);
        assert_eq!(taken(&queue, &mut batch), ["one\n"]);
        assert_eq!(queue.flush(Duration::from_millis(1)), 1);
        queue.close();
        assert!(!queue.take(&mut batch));
        assert_eq!(queue.flush(Duration::ZERO), 0);
    }
}
