//! The queue between the threads that make items and the thread that exports them.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::metrics::DropReason;

/// The memory that waiting items may take, however few they are.
const MAX_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// A bounded queue of items that wait to be exported.
///
/// The exporter takes all items at once and holds the lock only for that, so a slow collector does
/// not slow the threads that add items.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// The same as `State::items`, for readers without the lock.
    items: AtomicUsize,
    closed: AtomicBool,
    max_items: usize,
}

/// An item with the memory that it is estimated to take.
#[derive(Debug)]
pub(super) struct Queued<T> {
    pub(super) item: T,
    pub(super) bytes: usize,
}

struct State<T> {
    incoming: VecDeque<Queued<T>>,
    /// What counts against the limits: the items in `incoming`, and those that the exporter has
    /// taken and not yet released.
    items: usize,
    bytes: usize,
}

impl<T> Queue<T> {
    pub(super) fn new(max_items: usize) -> Self {
        Self {
            state: Mutex::new(State {
                incoming: VecDeque::new(),
                items: 0,
                bytes: 0,
            }),
            items: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            max_items,
        }
    }

    /// Adds an item, whose size `estimate` tells, and returns how many items now wait. Never waits
    /// for the exporter.
    pub(super) fn push(&self, item: T, estimate: impl FnOnce(&T) -> usize) -> Result<usize, DropReason> {
        if self.is_closed() {
            return Err(DropReason::Shutdown);
        }
        // Saves the estimate and the lock; the limit is checked again below.
        if self.len() >= self.max_items {
            return Err(DropReason::QueueFull);
        }
        let bytes = estimate(&item);
        let mut state = self.state();
        // Again under the lock: the exporter may have taken the last items since.
        if self.is_closed() {
            return Err(DropReason::Shutdown);
        }
        if state.items >= self.max_items || state.bytes + bytes > MAX_QUEUE_BYTES {
            return Err(DropReason::QueueFull);
        }
        state.incoming.push_back(Queued { item, bytes });
        state.bytes += bytes;
        state.items += 1;
        let waiting = state.items;
        self.items.store(waiting, Ordering::Release);
        Ok(waiting)
    }

    /// How many items wait.
    pub(super) fn len(&self) -> usize {
        self.items.load(Ordering::Acquire)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Refuses items from now on.
    pub(super) fn close(&self) {
        // Under the lock, so that no item is added after this returns.
        let _state = self.state();
        self.closed.store(true, Ordering::Release);
    }

    /// Moves all items into `backlog`, which is empty. They count until they are released.
    pub(super) fn take_all(&self, backlog: &mut VecDeque<Queued<T>>) {
        debug_assert!(backlog.is_empty(), "these items would be lost");
        mem::swap(&mut self.state().incoming, backlog);
    }

    /// Makes room for as many items as the exporter no longer holds.
    pub(super) fn release(&self, items: usize, bytes: usize) {
        let mut state = self.state();
        state.items -= items;
        state.bytes -= bytes;
        self.items.store(state.items, Ordering::Release);
    }

    /// Closes the queue, gives up all items, those that the exporter holds included, and tells how
    /// many there were.
    pub(super) fn abandon(&self) -> usize {
        self.close();
        let mut state = self.state();
        let incoming = mem::take(&mut state.incoming);
        let items = mem::take(&mut state.items);
        state.bytes = 0;
        self.items.store(0, Ordering::Release);
        drop(state);
        drop(incoming);
        items
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // No code under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .field("max", &self.max_items)
            .finish_non_exhaustive()
    }
}
