//! Requests of other threads to an exporter, and their completion.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Flush and shutdown of one exporter.
///
/// A flush is a number: each caller takes the next one and waits until the exporter has reached it.
/// So nothing piles up, however many callers ask while a collector hangs.
#[derive(Debug)]
pub(crate) struct Control {
    progress: Mutex<Progress>,
    progressed: Condvar,
    /// Wakes the exporter before its time.
    wake: Notify,
    /// The time at which the exporter must have ended.
    closing: watch::Sender<Option<Instant>>,
    ended: watch::Sender<bool>,
    /// Lost items that a caller has been told about.
    reported: AtomicU64,
}

#[derive(Debug, Default)]
struct Progress {
    asked: u64,
    done: u64,
    ended: bool,
}

/// For other threads.
impl Control {
    pub(crate) fn new() -> Self {
        Self {
            progress: Mutex::default(),
            progressed: Condvar::new(),
            wake: Notify::new(),
            closing: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            reported: AtomicU64::new(0),
        }
    }

    /// Wakes the exporter.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks for a flush, and returns its number for [`wait`](Self::wait).
    pub(super) fn ask(&self) -> u64 {
        let mut progress = self.progress();
        progress.asked += 1;
        self.wake();
        progress.asked
    }

    /// Waits for a flush, and tells whether it was done in time.
    pub(super) fn wait(&self, flush: u64, timeout: Duration) -> bool {
        let (progress, _) = self
            .progressed
            .wait_timeout_while(self.progress(), timeout, |progress| {
                progress.done < flush && !progress.ended
            })
            .unwrap_or_else(PoisonError::into_inner);
        progress.done >= flush || progress.ended
    }

    /// Asks the exporter to end. The first deadline counts.
    pub(super) fn close(&self, deadline: Instant) {
        self.closing.send_if_modified(|closing| {
            let first = closing.is_none();
            closing.get_or_insert(deadline);
            first
        });
        self.wake();
    }

    /// Waits for the end, and tells whether it came in time.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> bool {
        let (progress, _) = self
            .progressed
            .wait_timeout_while(self.progress(), timeout, |progress| !progress.ended)
            .unwrap_or_else(PoisonError::into_inner);
        progress.ended
    }

    /// Waits for the end without blocking the thread. Needs no timer of the caller's runtime: the
    /// exporter keeps the deadline.
    pub(super) async fn until_end(&self) {
        // The sender is in `self`, so this only ends when the exporter does.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// How many of the `total` lost items no caller has been told about.
    pub(super) fn newly_lost(&self, total: u64) -> u64 {
        total.saturating_sub(self.reported.swap(total, Ordering::AcqRel))
    }
}

/// For the exporter.
impl Control {
    /// The number of the latest flush that was asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.progress().asked
    }

    /// Whether a flush or the shutdown waits for the exporter.
    pub(crate) fn is_urgent(&self) -> bool {
        let progress = self.progress();
        progress.asked > progress.done || self.closing().is_some()
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn done(&self, flush: u64) {
        self.progress().done = flush;
        self.progressed.notify_all();
    }

    pub(crate) fn closing(&self) -> Option<Instant> {
        *self.closing.borrow()
    }

    pub(crate) async fn until_closing(&self) {
        let _ = self.closing.subscribe().wait_for(Option::is_some).await;
    }

    pub(crate) fn end(&self) {
        self.progress().ended = true;
        self.progressed.notify_all();
        self.ended.send_replace(true);
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
