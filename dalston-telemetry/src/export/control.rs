//! How other threads ask the exporter for something, and learn that it is done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Requests to the exporter.
///
/// A flush is a number: whoever wants one takes the next, and is served when the exporter has reached it. So however
/// many ask while a collector hangs, nothing piles up.
#[derive(Debug)]
pub(super) struct Control {
    progress: Mutex<Progress>,
    progressed: Condvar,
    /// When the exporter has to be at its end.
    closing: watch::Sender<Option<Instant>>,
    ended: watch::Sender<bool>,
    /// Lost spans that somebody has been told of.
    reported: AtomicU64,
}

#[derive(Debug, Default)]
struct Progress {
    asked: u64,
    done: u64,
    ended: bool,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            progress: Mutex::default(),
            progressed: Condvar::new(),
            closing: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            reported: AtomicU64::new(0),
        }
    }

    /// Asks for a flush; what it gives is for [`wait`](Self::wait).
    pub(super) fn ask(&self, wake: &Notify) -> u64 {
        let mut progress = self.progress();
        progress.asked += 1;
        wake.notify_one();
        progress.asked
    }

    /// Waits for a flush; false when time was up first.
    pub(super) fn wait(&self, ticket: u64, timeout: Duration) -> bool {
        let (progress, _) = self
            .progressed
            .wait_timeout_while(self.progress(), timeout, |progress| {
                progress.done < ticket && !progress.ended
            })
            .unwrap_or_else(PoisonError::into_inner);
        progress.done >= ticket || progress.ended
    }

    /// Asks the exporter to end. The first one who asks says when.
    pub(super) fn close(&self, wake: &Notify, deadline: Instant) {
        self.closing.send_if_modified(|closing| {
            let first = closing.is_none();
            closing.get_or_insert(deadline);
            first
        });
        wake.notify_one();
    }

    /// Waits for the end; false when time was up first.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> bool {
        let (progress, _) = self
            .progressed
            .wait_timeout_while(self.progress(), timeout, |progress| !progress.ended)
            .unwrap_or_else(PoisonError::into_inner);
        progress.ended
    }

    /// Waits for the end without blocking the thread. Needs no runtime: the exporter keeps the time.
    pub(super) async fn until_end(&self) {
        // The sender is in `self`, so there is no other way for this to end.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Lost spans of which nobody has been told, given all that were lost.
    pub(super) fn newly_lost(&self, total: u64) -> u64 {
        total.saturating_sub(self.reported.swap(total, Ordering::AcqRel))
    }

    // The exporter's side.

    pub(super) fn ticket(&self) -> u64 {
        self.progress().asked
    }

    pub(super) fn done_so_far(&self) -> u64 {
        self.progress().done
    }

    pub(super) fn done(&self, ticket: u64) {
        self.progress().done = ticket;
        self.progressed.notify_all();
    }

    pub(super) fn closing(&self) -> Option<Instant> {
        *self.closing.borrow()
    }

    pub(super) async fn until_closing(&self) {
        let _ = self.closing.subscribe().wait_for(Option::is_some).await;
    }

    pub(super) fn end(&self) {
        self.progress().ended = true;
        self.progressed.notify_all();
        self.ended.send_replace(true);
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
