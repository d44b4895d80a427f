//! The inference threads of a worker: which are free, and what to do about one that does not come back.

use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dalston_telemetry::metrics::Device;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::slot::{Answer, Handle, ModelUse, Order, Scene, Used, What, Work};
use super::task::TaskFiles;
use crate::engine::ModelId;
use crate::error::{RunError, TaskError, TaskErrorKind};

/// The threads of a worker. Clones share them.
#[derive(Clone)]
pub(super) struct SlotPool {
    shared: Arc<Shared>,
}

struct Shared {
    spawn: Box<SpawnThread>,
    /// As many permits as there are idle slots.
    free: Arc<Semaphore>,
    idle: Mutex<Vec<Slot>>,
    /// Threads that were given up and have not returned yet.
    stuck: AtomicUsize,
    max_stuck: usize,
    failure: watch::Sender<Option<Failure>>,
    closed: CancellationToken,
}

/// Starts the inference thread of this number.
pub(super) type SpawnThread = dyn Fn(usize) -> io::Result<Handle> + Send + Sync;

/// Why the pool can't go on.
#[derive(Debug, Clone)]
enum Failure {
    Stuck(usize),
    Thread(Arc<io::Error>),
}

/// One inference thread that has nothing to do, seen from outside.
struct Slot {
    index: usize,
    thread: Handle,
    loaded: Vec<ModelId>,
    /// Models that were in use until now. The thread hears of it with its next order: to be woken for it alone would cost more
    /// than many a task.
    used: Vec<Used>,
}

impl Slot {
    fn new(index: usize, thread: Handle) -> Self {
        Self {
            index,
            thread,
            loaded: Vec::new(),
            used: Vec::new(),
        }
    }

    /// Begins the idle time of models that were in use.
    fn touch(&mut self, models: impl IntoIterator<Item = ModelId>) {
        let until = Instant::now();
        let used = models.into_iter().map(|model| Used { model, until });
        self.used.extend(used);
    }

    fn order(&mut self, what: What) {
        let used = mem::take(&mut self.used);
        // A thread that is gone drops what it is sent, which is seen where the answer is awaited.
        let _ = self.thread.orders.send(Order { used, what });
    }
}

impl SlotPool {
    pub(super) fn new(spawn: Box<SpawnThread>, max_stuck: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                spawn,
                free: Arc::new(Semaphore::new(0)),
                idle: Mutex::default(),
                stuck: AtomicUsize::new(0),
                max_stuck,
                failure: watch::Sender::new(None),
                closed: CancellationToken::new(),
            }),
        }
    }

    /// Starts a thread, lets it load these models, and makes it available.
    pub(super) async fn start(
        &self,
        index: usize,
        preload: Vec<ModelId>,
        scene: Scene,
    ) -> Result<(), RunError> {
        let thread = (self.shared.spawn)(index).map_err(RunError::Thread)?;
        let mut slot = Slot::new(index, thread);
        if !preload.is_empty() {
            let (done, ready) = oneshot::channel();
            slot.order(What::Preload {
                models: preload,
                scene,
                now: Instant::now(),
                done,
            });
            slot.loaded = ready.await.unwrap_or_default();
            slot.touch(slot.loaded.clone());
        }
        self.make_idle(slot);
        Ok(())
    }

    /// Waits for a free thread, first come first served; of several it prefers one that has the model, and of these the one that
    /// worked last, because it is most likely still awake.
    pub(super) async fn acquire(&self, model: &ModelId) -> Result<SlotLease, TaskError> {
        let permit = Arc::clone(&self.shared.free).acquire_owned().await;
        let permit = permit
            .map_err(|_| TaskError::retryable("worker_failed", "the worker has no inference thread left"))?;
        let mut idle = self.idle();
        let at = idle
            .iter()
            .rposition(|slot| slot.loaded.contains(model))
            .unwrap_or(0);
        if idle.is_empty() {
            return Err(TaskError::retryable(
                "worker_failed",
                "the worker has no inference thread left",
            ));
        }
        let slot = idle.remove(at);
        drop(idle);
        Ok(SlotLease {
            pool: self.clone(),
            slot: Some(slot),
            _permit: PermitOfSlot(Some(permit)),
        })
    }

    /// Lets the idle threads drop the models that nobody has used for long.
    pub(super) fn sweep(&self, now: Instant) {
        for slot in self.idle().iter_mut() {
            slot.order(What::Sweep { now });
        }
    }

    /// How many threads are stuck.
    pub(super) fn stuck(&self) -> usize {
        self.shared.stuck.load(Ordering::Acquire)
    }

    /// Waits until the pool can't go on.
    pub(super) async fn failed(&self) -> RunError {
        let mut failure = self.shared.failure.subscribe();
        // What `wait_for` gives is a lock guard: held across the await below, the runner could not be spawned.
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
        self.shared.free.close();
        let idle = mem::take(&mut *self.idle());
        for Slot {
            thread: Handle { orders, ended },
            ..
        } in idle
        {
            drop(orders);
            let _ = ended.await;
        }
    }

    fn make_idle(&self, slot: Slot) {
        self.idle().push(slot);
        self.shared.free.add_permits(1);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a fresh thread in the place of one that is lost.
    fn replace(&self, index: usize) {
        match (self.shared.spawn)(index) {
            Ok(thread) => self.make_idle(Slot::new(index, thread)),
            Err(error) => self.fail(Failure::Thread(Arc::new(error))),
        }
    }

    fn fail(&self, failure: Failure) {
        self.shared.failure.send_replace(Some(failure));
    }

    /// Gives a thread up that did not come back in time.
    fn abandon(&self, index: usize) {
        let stuck = self.shared.stuck.fetch_add(1, Ordering::AcqRel) + 1;
        tracing::error!(slot = index, stuck, "inference_thread_abandoned");
        if stuck > self.shared.max_stuck {
            self.fail(Failure::Stuck(stuck));
        } else {
            self.replace(index);
        }
    }
}

impl fmt::Debug for SlotPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotPool")
            .field("idle", &self.idle().len())
            .field("stuck", &self.stuck())
            .finish()
    }
}

/// A permit stands for an idle slot; a slot that goes back brings a new one, so this one is used up.
struct PermitOfSlot(Option<OwnedSemaphorePermit>);

impl Drop for PermitOfSlot {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.forget();
        }
    }
}

/// The use of one inference thread for one task.
pub(super) struct SlotLease {
    pool: SlotPool,
    slot: Option<Slot>,
    _permit: PermitOfSlot,
}

impl SlotLease {
    /// Sends the task to the thread.
    pub(super) fn process(mut self, work: impl FnOnce(oneshot::Sender<Answer>) -> Work) -> Running {
        let (sender, answer) = oneshot::channel();
        let work = work(sender);
        let model = work.cx.info().model.clone();
        if let Some(slot) = &mut self.slot {
            slot.order(What::Process(Box::new(work)));
        }
        Running {
            lease: Some(self),
            model,
            answer,
        }
    }

    fn give_back(mut self, used: ModelId, loaded: Vec<ModelId>) {
        if let Some(mut slot) = self.slot.take() {
            slot.loaded = loaded;
            slot.touch([used]);
            self.pool.make_idle(slot);
        }
    }

    fn replace(mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.replace(slot.index);
        }
    }
}

impl Drop for SlotLease {
    /// A lease that was never used goes back as it came.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.make_idle(slot);
        }
    }
}

/// A task on an inference thread.
pub(super) struct Running {
    lease: Option<SlotLease>,
    model: ModelId,
    answer: oneshot::Receiver<Answer>,
}

impl Running {
    /// Waits for the thread to be done; it is free again then.
    pub(super) async fn answer(&mut self) -> Answer {
        match (&mut self.answer).await {
            Ok(answer) => {
                if let Some(lease) = self.lease.take() {
                    lease.give_back(self.model.clone(), answer.loaded.clone());
                }
                answer
            }
            Err(_) => {
                if let Some(lease) = self.lease.take() {
                    lease.replace();
                }
                let error = TaskError::new(TaskErrorKind::Panic, "panic", "the inference thread has died");
                Answer {
                    result: Err(error),
                    model: ModelUse::None,
                    device: Device::Unknown,
                    process: None,
                    loaded: Vec::new(),
                }
            }
        }
    }

    /// Does not wait for the thread any more. It gets until `patience` ends to come back, then another one takes its place.
    ///
    /// Whatever it answers is thrown away. `files` are kept until then, as it may be using them.
    pub(super) fn leave(mut self, patience: Instant, files: TaskFiles) {
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        let (pool, closed) = (lease.pool.clone(), lease.pool.shared.closed.clone());
        let Some(mut slot) = lease.slot.take() else { return };
        let (mut answer, model) = (self.answer, self.model);
        let wait = async move {
            tokio::select! {
                answer = &mut answer => {
                    drop(files);
                    match answer {
                        Ok(answer) => {
                            slot.touch([model]);
                            slot.loaded = answer.loaded;
                            pool.make_idle(slot);
                        }
                        Err(_) => pool.replace(slot.index),
                    }
                    return;
                }
                () = sleep_until(patience) => {}
                () = closed.cancelled() => return,
            }
            drop(files);
            pool.abandon(slot.index);
            // With its sender gone the thread ends by itself, should it ever return.
            drop(slot);
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
