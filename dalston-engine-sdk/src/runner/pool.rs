//! The inference threads of a worker, and what to do about one that does not come back.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_telemetry::services::engine::Device;
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::forming::Candidate;
use super::run_queue::{AssignedThread, BegunTask, GivenUp, QueueEntry, RunQueue, ThreadHandle};
use super::slot::{Answer, ModelUse, Preload, TelemetryScope, Work};
use crate::batch::Batching;
use crate::error::{RunError, TaskError, TaskErrorKind};
use crate::model_id::ModelId;
use crate::task_dir::TaskFiles;

/// How often a thread is looked at that has an overdue task and other ones.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);

/// The threads of a worker. Clones share them.
#[derive(Clone)]
pub(super) struct SlotPool {
    shared: Arc<Shared>,
}

struct Shared {
    spawn: Box<SpawnThread>,
    queue: Arc<RunQueue<Work>>,
    /// The threads that were not given up.
    threads: Mutex<Vec<Thread>>,
    /// Threads that were given up and have not returned yet.
    stuck: AtomicUsize,
    max_stuck: usize,
    failure: watch::Sender<Option<Failure>>,
    closed: CancellationToken,
}

/// Starts an inference thread that serves the run queue. The returned channel fails when the thread
/// has ended.
pub(super) type SpawnThread = dyn Fn(Arc<RunQueue<Work>>, Arc<ThreadHandle>, Preload) -> io::Result<oneshot::Receiver<Infallible>>
    + Send
    + Sync;

/// Why the pool can't go on.
#[derive(Debug, Clone)]
enum Failure {
    Stuck(usize),
    Thread(Arc<io::Error>),
}

/// One inference thread, seen from outside.
struct Thread {
    handle: Arc<ThreadHandle>,
    ended: oneshot::Receiver<Infallible>,
    /// It goes on with a task that is over.
    overdue: bool,
}

impl SlotPool {
    pub(super) fn new(spawn: Box<SpawnThread>, max_stuck: usize, batching: Batching) -> Self {
        Self {
            shared: Arc::new(Shared {
                spawn,
                queue: Arc::new(RunQueue::new(batching)),
                threads: Mutex::default(),
                stuck: AtomicUsize::new(0),
                max_stuck,
                failure: watch::Sender::new(None),
                closed: CancellationToken::new(),
            }),
        }
    }

    /// Starts a thread and lets it load these models; then it takes tasks. Returns the error of the
    /// first model that could not be loaded.
    pub(super) async fn start(
        &self,
        index: usize,
        preload: Vec<ModelId>,
        scope: TelemetryScope,
    ) -> Result<Option<TaskError>, RunError> {
        let (done, ready) = oneshot::channel();
        let preload = Preload {
            models: preload,
            scope,
            done,
        };
        let handle = self.spawn(index, preload).map_err(RunError::Thread)?;
        let failure = ready.await;
        if failure.is_err() {
            // The thread died while it loaded a model.
            self.replace(&handle);
        }
        Ok(failure.unwrap_or_default())
    }

    /// Adds a task to the run queue.
    pub(super) fn enqueue(&self, candidate: Candidate) -> QueueEntry<Work> {
        self.shared.queue.enqueue(candidate)
    }

    /// Has a thread process an admitted task.
    pub(super) fn begin(
        &self,
        thread: AssignedThread<Work>,
        work: impl FnOnce(oneshot::Sender<Answer>) -> Work,
    ) -> Running {
        let (sender, answer) = oneshot::channel();
        Running {
            pool: self.clone(),
            task: thread.begin(work(sender)),
            answer,
        }
    }

    /// Lets the idle threads drop the models that were not used for their time to live.
    pub(super) fn sweep(&self, now: Instant) {
        self.shared.queue.sweep(now);
    }

    /// How many threads are stuck.
    pub(super) fn stuck(&self) -> usize {
        self.shared.stuck.load(Ordering::Acquire)
    }

    /// Waits until the pool can't go on.
    pub(super) async fn failed(&self) -> RunError {
        let mut failure = self.shared.failure.subscribe();
        // What `wait_for` gives is a lock guard: held across the await below, the runner could not
        // be spawned.
        let failure = failure
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|failure| failure.clone());
        match failure {
            Some(Failure::Stuck(abandoned)) => RunError::Stuck { abandoned },
            Some(Failure::Thread(error)) => RunError::Thread(io::Error::new(error.kind(), error)),
            // The sender lives in the pool.
            None => std::future::pending().await,
        }
    }

    /// Stops waiting for threads that are stuck, and ends the others.
    pub(super) async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.queue.close();
        let mut threads = mem::take(&mut *self.threads());
        threads.retain(|thread| !thread.overdue);
        join_all(threads.into_iter().map(|thread| thread.ended)).await;
    }

    fn spawn(&self, index: usize, preload: Preload) -> io::Result<Arc<ThreadHandle>> {
        let handle = ThreadHandle::new(index);
        let queue = &self.shared.queue;
        queue.add(&handle);
        let started = (self.shared.spawn)(Arc::clone(queue), Arc::clone(&handle), preload);
        let ended = started.inspect_err(|_| queue.remove(&handle))?;
        self.threads().push(Thread {
            handle: Arc::clone(&handle),
            ended,
            overdue: false,
        });
        Ok(handle)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a fresh thread in the place of one that is lost. Does nothing if another task of its
    /// batch has done so.
    fn replace(&self, handle: &Arc<ThreadHandle>) {
        if !self.forget(handle) {
            return;
        }
        self.shared.queue.remove(handle);
        if let Err(error) = self.spawn(handle.index, Preload::none()) {
            self.fail(Failure::Thread(Arc::new(error)));
        }
    }

    /// Returns whether the thread was known.
    fn forget(&self, handle: &Arc<ThreadHandle>) -> bool {
        let mut threads = self.threads();
        let before = threads.len();
        threads.retain(|thread| !Arc::ptr_eq(&thread.handle, handle));
        threads.len() < before
    }

    fn fail(&self, failure: Failure) {
        self.shared.failure.send_replace(Some(failure));
    }

    /// Counts a thread that was given up, and replaces it unless there are too many of them.
    fn abandon(&self, handle: &Arc<ThreadHandle>) {
        let stuck = self.shared.stuck.fetch_add(1, Ordering::AcqRel) + 1;
        tracing::error!(slot = handle.index, stuck, "inference_thread_abandoned");
        if stuck > self.shared.max_stuck {
            self.forget(handle);
            self.fail(Failure::Stuck(stuck));
        } else {
            self.replace(handle);
        }
    }

    fn set_overdue(&self, handle: &Arc<ThreadHandle>, overdue: bool) {
        let mut threads = self.threads();
        if let Some(thread) = threads
            .iter_mut()
            .find(|thread| Arc::ptr_eq(&thread.handle, handle))
        {
            thread.overdue = overdue;
        }
    }
}

impl fmt::Debug for SlotPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotPool")
            .field("queue", &self.shared.queue)
            .field("stuck", &self.stuck())
            .finish()
    }
}

/// Threads hold the queue only, so they end when the pool is dropped.
impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A task that an inference thread has begun.
pub(super) struct Running {
    pool: SlotPool,
    task: BegunTask,
    answer: oneshot::Receiver<Answer>,
}

impl Running {
    /// Waits for the end of the task on its thread.
    pub(super) async fn answer(&mut self) -> Answer {
        match (&mut self.answer).await {
            Ok(answer) => {
                self.pool.shared.queue.over(&self.task);
                answer
            }
            Err(_) => {
                self.pool.replace(&self.task.thread);
                let error = TaskError::new(TaskErrorKind::Panic, "panic", "the inference thread has died");
                Answer {
                    result: Err(error),
                    model: ModelUse::None,
                    device: Device::Unknown,
                    process: None,
                    share: Duration::ZERO,
                }
            }
        }
    }

    /// Stops waiting for the thread. If it has not come back at `limit`, another thread takes its
    /// place.
    ///
    /// Its answer is thrown away. `files` are kept until then, because the thread may be using
    /// them.
    pub(super) fn leave(self, limit: Instant, files: TaskFiles) {
        let Self {
            pool,
            task,
            mut answer,
        } = self;
        let thread = Arc::clone(&task.thread);
        pool.set_overdue(&thread, true);
        let closed = pool.shared.closed.clone();
        let wait = async move {
            let mut limit = limit;
            loop {
                tokio::select! {
                    answer = &mut answer => {
                        drop(files);
                        match answer {
                            Ok(_) => pool.set_overdue(&thread, false),
                            Err(_) => pool.replace(&thread),
                        }
                        return;
                    }
                    () = sleep_until(limit) => {}
                    () = closed.cancelled() => return,
                }
                match pool.shared.queue.give_up(&task) {
                    GivenUp::Returned => return pool.set_overdue(&thread, false),
                    GivenUp::Removed => break,
                    GivenUp::HasOthers => limit = Instant::now() + OTHERS_INTERVAL,
                }
            }
            drop(files);
            pool.abandon(&thread);
            tokio::select! {
                _ = answer => {
                    pool.shared.stuck.fetch_sub(1, Ordering::AcqRel);
                    tracing::warn!("inference_thread_returned_late");
                }
                () = closed.cancelled() => {}
            }
        };
        tokio::spawn(wait.with_current_subscriber());
    }
}
