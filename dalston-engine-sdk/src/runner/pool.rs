//! The inference threads of a worker, and what to do about one that does not come back.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use dalston_telemetry::services::engine::Device;
use futures_util::future::join_all;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::line::{Bell, Line, Seat, Ticket};
use super::slot::{Answer, ModelUse, Preload, Scene, Work};
use crate::error::{RunError, TaskError, TaskErrorKind};
use crate::model_id::ModelId;
use crate::task_dir::TaskFiles;

/// The threads of a worker. Clones share them.
#[derive(Clone)]
pub(super) struct SlotPool {
    shared: Arc<Shared>,
}

struct Shared {
    spawn: Box<SpawnThread>,
    line: Arc<Line>,
    /// Those that come back, as far as we know.
    threads: Mutex<Vec<Thread>>,
    /// Threads that were given up and have not returned yet.
    stuck: AtomicUsize,
    max_stuck: usize,
    failure: watch::Sender<Option<Failure>>,
    closed: CancellationToken,
}

/// Starts an inference thread that does what the line gives it. What it returns fails when the thread has ended.
pub(super) type SpawnThread =
    dyn Fn(Arc<Line>, Arc<Seat>, Option<Preload>) -> io::Result<oneshot::Receiver<Infallible>> + Send + Sync;

/// Why the pool can't go on.
#[derive(Debug, Clone)]
enum Failure {
    Stuck(usize),
    Thread(Arc<io::Error>),
}

/// One inference thread, seen from outside.
struct Thread {
    seat: Arc<Seat>,
    ended: oneshot::Receiver<Infallible>,
    /// It goes on with a task that is over.
    late: bool,
}

impl SlotPool {
    pub(super) fn new(spawn: Box<SpawnThread>, max_stuck: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                spawn,
                line: Arc::default(),
                threads: Mutex::default(),
                stuck: AtomicUsize::new(0),
                max_stuck,
                failure: watch::Sender::new(None),
                closed: CancellationToken::new(),
            }),
        }
    }

    /// Starts a thread and lets it load these models; then it takes tasks.
    pub(super) async fn start(
        &self,
        index: usize,
        preload: Vec<ModelId>,
        scene: Scene,
    ) -> Result<(), RunError> {
        if preload.is_empty() {
            self.spawn(index, None).map_err(RunError::Thread)?;
            return Ok(());
        }
        let (done, ready) = oneshot::channel();
        let preload = Preload {
            models: preload,
            scene,
            done,
        };
        let seat = self.spawn(index, Some(preload)).map_err(RunError::Thread)?;
        if ready.await.is_err() {
            // It has died over that.
            self.replace(&seat);
        }
        Ok(())
    }

    /// Has a thread process a task as soon as one is free, first come first served.
    pub(super) fn process(&self, work: impl FnOnce(oneshot::Sender<Answer>) -> Work) -> Running {
        let (sender, answer) = oneshot::channel();
        let (ticket, bell) = self.shared.line.join(work(sender));
        Running {
            place: Place {
                pool: self.clone(),
                ticket,
            },
            answer,
            bell,
        }
    }

    /// Lets the idle threads drop the models that nobody has used for long.
    pub(super) fn sweep(&self, now: Instant) {
        self.shared.line.sweep(now);
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
        self.shared.line.close();
        let mut threads = mem::take(&mut *self.threads());
        threads.retain(|thread| !thread.late);
        join_all(threads.into_iter().map(|thread| thread.ended)).await;
    }

    fn spawn(&self, index: usize, preload: Option<Preload>) -> io::Result<Arc<Seat>> {
        let seat = Seat::new(index);
        let line = &self.shared.line;
        if preload.is_none() {
            line.expect(&seat);
        }
        let started = (self.shared.spawn)(Arc::clone(line), Arc::clone(&seat), preload);
        let ended = started.inspect_err(|_| line.expect_no_more(&seat))?;
        self.threads().push(Thread {
            seat: Arc::clone(&seat),
            ended,
            late: false,
        });
        Ok(seat)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a fresh thread in the place of one that is lost.
    fn replace(&self, seat: &Arc<Seat>) {
        self.threads().retain(|thread| !Arc::ptr_eq(&thread.seat, seat));
        if let Err(error) = self.spawn(seat.index, None) {
            self.fail(Failure::Thread(Arc::new(error)));
        }
    }

    fn fail(&self, failure: Failure) {
        self.shared.failure.send_replace(Some(failure));
    }

    /// Gives a thread up that did not come back in time.
    fn abandon(&self, seat: &Arc<Seat>) {
        let stuck = self.shared.stuck.fetch_add(1, Ordering::AcqRel) + 1;
        tracing::error!(slot = seat.index, stuck, "inference_thread_abandoned");
        if stuck > self.shared.max_stuck {
            self.threads().retain(|thread| !Arc::ptr_eq(&thread.seat, seat));
            self.fail(Failure::Stuck(stuck));
        } else {
            self.replace(seat);
        }
    }

    /// Whether a thread is late.
    fn mark_late(&self, seat: &Arc<Seat>, late: bool) {
        let mut threads = self.threads();
        if let Some(thread) = threads.iter_mut().find(|thread| Arc::ptr_eq(&thread.seat, seat)) {
            thread.late = late;
        }
    }
}

impl fmt::Debug for SlotPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotPool")
            .field("line", &self.shared.line)
            .field("stuck", &self.stuck())
            .finish()
    }
}

/// Threads know the line only, so they end when nobody has the pool any more.
impl Drop for Shared {
    fn drop(&mut self) {
        self.line.close();
    }
}

/// A task in the line, or on an inference thread.
pub(super) struct Running {
    place: Place,
    answer: oneshot::Receiver<Answer>,
    /// Of the thread that is to come for it.
    bell: Option<Bell>,
}

/// Where a task is that nobody may be waiting for any more.
struct Place {
    pool: SlotPool,
    ticket: Arc<Ticket>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.ticket.seat().is_none() {
            self.pool.shared.line.withdraw(&self.ticket);
        }
    }
}

impl Running {
    /// Waits for a thread to have done the task.
    pub(super) async fn answer(&mut self) -> Answer {
        if self.bell.is_some() {
            // The tasks that are about to join the line do so first: a thread that is woken for each of them only to sleep again
            // costs more than what many an engine does.
            step_back().await;
            self.bell = None;
        }
        match (&mut self.answer).await {
            Ok(answer) => answer,
            Err(_) => {
                let Place { pool, ticket } = &self.place;
                let error = match ticket.seat() {
                    Some(seat) => {
                        pool.replace(seat);
                        TaskError::new(TaskErrorKind::Panic, "panic", "the inference thread has died")
                    }
                    None => TaskError::retryable("worker_failed", "the worker has no inference thread left"),
                };
                Answer {
                    result: Err(error),
                    model: ModelUse::None,
                    device: Device::Unknown,
                    process: None,
                }
            }
        }
    }

    /// Takes the task out of the line. Returns whether that was possible: no thread has begun it then, and none will.
    pub(super) fn withdraw(&self) -> bool {
        let Place { pool, ticket } = &self.place;
        pool.shared.line.withdraw(ticket)
    }

    /// Does not wait for the thread any more. It gets until `patience` ends to come back, then another one takes its place.
    ///
    /// Whatever it answers is thrown away. `files` are kept until then, as it may be using them.
    pub(super) fn leave(self, patience: Instant, files: TaskFiles) {
        let Self {
            place,
            mut answer,
            bell,
        } = self;
        drop(bell);
        let (Some(seat), pool) = (place.ticket.seat().cloned(), place.pool.clone()) else {
            return;
        };
        pool.mark_late(&seat, true);
        let closed = pool.shared.closed.clone();
        let wait = async move {
            tokio::select! {
                answer = &mut answer => {
                    drop(files);
                    match answer {
                        Ok(_) => pool.mark_late(&seat, false),
                        Err(_) => pool.replace(&seat),
                    }
                    return;
                }
                () = sleep_until(patience) => {}
                () = closed.cancelled() => return,
            }
            drop(files);
            let mut told = Err(TryRecvError::Empty);
            // With this the thread ends by itself, should it ever return.
            let given_up = pool.shared.line.give_up(&seat, || {
                told = answer.try_recv();
                !matches!(told, Err(TryRecvError::Empty))
            });
            if !given_up {
                match told {
                    Ok(_) => pool.mark_late(&seat, false),
                    Err(_) => pool.replace(&seat),
                }
                return;
            }
            pool.abandon(&seat);
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

/// Lets what is ready to run go first. Unlike `yield_now` of tokio, not what is to be heard from outside, too.
async fn step_back() {
    let mut has_stepped = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_stepped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
