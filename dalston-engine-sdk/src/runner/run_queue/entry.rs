//! A task in the run queue, from its arrival to its begin: [`QueueEntry`], [`AssignedThread`] and
//! [`BegunTask`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::{Assignment, Group, RunQueue, ThreadHandle};
use crate::runner::run_lock::BatchGuard;

/// A task in the queue. Dropping it withdraws the task.
#[must_use = "a task that is dropped leaves the queue"]
pub(in crate::runner) struct QueueEntry<W> {
    pub(super) queue: Arc<RunQueue<W>>,
    pub(super) task: u64,
    /// When it waits no longer for a full batch.
    pub(super) ripe_at: Instant,
    /// `None` once the thread is known.
    pub(super) thread: Option<oneshot::Receiver<Assignment>>,
}

impl<W> QueueEntry<W> {
    /// Waits for a thread. `None` if the queue was closed.
    pub(in crate::runner) async fn thread(&mut self) -> Option<AssignedThread<W>> {
        let thread = self.thread.as_mut()?;
        let ripe = async {
            sleep_until(self.ripe_at).await;
            self.queue.state().assign();
        };
        let assignment = match self.ripe_at > Instant::now() {
            false => thread.await,
            true => tokio::select! {
                biased;
                assignment = &mut *thread => assignment,
                () = ripe => thread.await,
            },
        };
        self.thread = None;
        let Assignment {
            handle,
            waited,
            group,
        } = assignment.ok()?;
        Some(AssignedThread {
            queue: Arc::clone(&self.queue),
            task: self.task,
            handle,
            waited,
            group,
        })
    }
}

impl<W> Drop for QueueEntry<W> {
    fn drop(&mut self) {
        let Some(mut thread) = self.thread.take() else {
            return;
        };
        self.queue
            .state()
            .waiting
            .retain(|waiting| waiting.task != self.task);
        if let Ok(assignment) = thread.try_recv() {
            self.queue.release(&assignment.handle, self.task);
        }
    }
}

/// A thread that waits for the admission of a task. Dropping it gives the thread to the next task.
#[must_use = "the thread waits for its task"]
pub(in crate::runner) struct AssignedThread<W> {
    pub(super) queue: Arc<RunQueue<W>>,
    pub(super) task: u64,
    pub(super) handle: Arc<ThreadHandle>,
    pub(super) waited: Duration,
    pub(super) group: Arc<Group>,
}

impl<W> AssignedThread<W> {
    /// How long the task waited for the thread.
    pub(in crate::runner) fn waited(&self) -> Duration {
        self.waited
    }

    /// The right to run, which the tasks of a batch share.
    pub(in crate::runner) fn guard(&self) -> &BatchGuard {
        &self.group.guard
    }

    /// Lets the thread begin, as soon as the other tasks of the batch are admitted or dropped.
    pub(in crate::runner) fn begin(self, work: W) -> BegunTask {
        self.queue.begin(&self.handle, self.task, work);
        BegunTask {
            task: self.task,
            group: self.group.number,
            thread: Arc::clone(&self.handle),
        }
    }
}

impl<W> Drop for AssignedThread<W> {
    fn drop(&mut self) {
        // Does nothing after `begin`.
        self.queue.release(&self.handle, self.task);
    }
}

/// A task that a thread has begun.
pub(in crate::runner) struct BegunTask {
    pub(super) task: u64,
    pub(super) group: u64,
    pub(in crate::runner) thread: Arc<ThreadHandle>,
}
