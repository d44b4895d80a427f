//! Tasks that come straight to a running worker instead of through its queue: [`Direct`].

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::propagate;
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::instrument::WithSubscriber;
use uuid::Uuid;

use super::status::RunnerPhase;
#[cfg(feature = "worker")]
use super::sweep;
use super::task::{self, report_panic};
use super::worker::{Origin, Worker};
use crate::broker::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, Lookup, Outcome, Ownership, TaskMetadata,
};
use crate::protocol::{
    ArtifactReference, ArtifactSelector, ProtocolError, RequestBinding, TaskRequestData, TaskResponseData,
    Timestamp,
};
use crate::stage::{Stage, input_slot};
use crate::store::{Store, StoreError, key};
use crate::task_dir::TaskFiles;

/// The job of all direct tasks.
pub(crate) const JOB: &str = "http";
/// How many direct tasks may wait for a turn. Whoever submits should have a lower bound of their own.
const WAITING: usize = 1024;
/// Nobody else could own the task, so its lease never ends.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Hands tasks to a running [`Runner`](super::Runner) without a queue between: what answers requests over HTTP. Cheap to
/// clone.
///
/// Such a task takes the way of all others, with the same inference threads, models, spans, metrics, deadline and checks. Only
/// its input comes from a file of this machine, and its answer goes to whoever waits for it.
///
/// Tasks of the queue and direct ones don't starve each other: there are as many turns for the one kind as for the other,
/// and for the inference threads all wait in one line.
///
/// ```
/// use std::time::Duration;
///
/// use dalston_engine_sdk::{DirectTask, Engine, Runner};
/// # use dalston_engine_sdk::{broker::MemoryBroker, store::Store};
///
/// async fn transcribe_once(engine: impl Engine) -> Result<(), Box<dyn std::error::Error>> {
///     let runner = Runner::builder(engine).broker(MemoryBroker::new()).store(Store::memory()).build()?;
///     let direct = runner.direct();
///     let answered = async {
///         let task = DirectTask::for_file("talk.wav").config("language", "de");
///         println!("{:?}", direct.submit(task, Duration::from_secs(60)).await);
///     };
///     runner.run_until(answered).await?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Direct {
    worker: Arc<Worker>,
    submissions: mpsc::Sender<Submission>,
}

impl Direct {
    pub(super) fn new(worker: Arc<Worker>, submissions: mpsc::Sender<Submission>) -> Self {
        Self { worker, submissions }
    }

    /// Has a task done and returns the `data` of its answer. `patience` is how long it may wait for its turn.
    ///
    /// If the future is dropped the task is cancelled.
    ///
    /// # Errors
    ///
    /// If the worker is too busy, or stops before the task is done, or the task fails.
    pub async fn submit(&self, mut task: DirectTask, patience: Duration) -> Result<Value, DirectError> {
        // Kept here alone, so that they go with whoever waits, however long the submission stands in line after that.
        let files = task.files.take();
        let store = Store::memory().with_file(&*task.name, &*task.path);
        let stage = task.stage.clone().unwrap_or_else(|| self.worker.stage.clone());
        let request = request_of(&task, &stage);
        store
            .write(&key::task_request(JOB, &task.task_id), request.to_vec())
            .await?;

        let (answer, mut answered) = oneshot::channel();
        let (begin, begun) = oneshot::channel();
        let mut metadata = TaskMetadata::new(stage.to_string());
        metadata.model = task.model;
        metadata.request_id = task.request_id;
        metadata.trace_context = propagate::inject_json(&task.parent);
        let progress = Arc::new(Progress::default());
        let _cancel = CancelOnDrop(Arc::clone(&progress));
        // It must not be kept here: when the runner drops it, the answer will never come.
        let desk = Arc::new(Desk {
            metadata,
            progress: Arc::clone(&progress),
            begin: Mutex::new(Some(begin)),
            answer: Mutex::new(Some(answer)),
        });
        let claim = Claim::new(
            self.worker.consumer.clone(),
            &*task.task_id,
            &*task.task_id,
            JOB,
            1,
        );
        let mut delivery = Delivery::new(claim);
        delivery.enqueued_at = Some(Timestamp::now());
        let submission = Submission {
            delivery,
            desk,
            store: store.clone(),
            files: files.as_ref().map(Arc::downgrade),
        };
        self.submissions
            .try_send(submission)
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => DirectError::Busy,
                mpsc::error::TrySendError::Closed(_) => DirectError::Stopping,
            })?;

        let ending = tokio::select! {
            biased;
            ending = &mut answered => ending,
            _ = begun => answered.await,
            () = sleep(patience) => {
                if progress.turn(State::Waiting, State::GivenUp) {
                    return Err(DirectError::Busy);
                }
                answered.await
            }
        };
        match ending {
            Ok(Ending::Finished(Outcome::Completed { .. })) => {
                let locator = store.locator(&key::task_response(JOB, &task.task_id));
                // In memory already, so a limit would protect nothing.
                let document = store.read(&locator, usize::MAX).await?;
                Ok(TaskResponseData::from_slice(&document)?.data)
            }
            Ok(Ending::Finished(Outcome::Failed {
                error,
                code,
                retryable,
            })) => Err(DirectError::Failed {
                error,
                code,
                retryable,
            }),
            Ok(Ending::HandedBack) => Err(DirectError::Stopping),
            // The runner stops reading a little before it calls itself draining.
            Err(_) if self.submissions.is_closed() => Err(DirectError::Stopping),
            Ok(Ending::Finished(Outcome::Skipped | Outcome::Cancelled)) | Err(_) => {
                match self.worker.status.phase() {
                    RunnerPhase::Draining | RunnerPhase::Stopped => Err(DirectError::Stopping),
                    _ => Err(DirectError::Failed {
                        error: "the worker lost the task".to_owned(),
                        code: "lost",
                        retryable: true,
                    }),
                }
            }
        }
    }

    /// A directory for the input of a task, removed when nobody needs it any more.
    #[cfg(feature = "worker")]
    pub(crate) fn workspace(&self) -> TaskFiles {
        TaskFiles::new(sweep::HTTP, &self.worker.config.temp_root, &self.worker.removals)
    }

    /// The storage of the deployment.
    #[cfg(feature = "worker")]
    pub(crate) fn store(&self) -> &Store {
        &self.worker.origin.store
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("consumer", &self.worker.consumer)
            .finish_non_exhaustive()
    }
}

/// A file, and what to do with it.
#[derive(Debug)]
pub struct DirectTask {
    task_id: String,
    stage: Option<Stage>,
    path: PathBuf,
    name: String,
    config: Map<String, Value>,
    model: Option<String>,
    request_id: Option<String>,
    parent: Context,
    files: Option<Arc<TaskFiles>>,
}

impl DirectTask {
    /// A task whose input is this file, in the slot that [`input_slot`] names. Its id is random.
    #[must_use]
    pub fn for_file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            task_id: Uuid::new_v4().to_string(),
            stage: None,
            name: path.display().to_string(),
            path,
            config: Map::new(),
            model: None,
            request_id: None,
            parent: Context::new(),
            files: None,
        }
    }

    /// Sets what the file is called in errors. Default: its path.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the task's id, which should be new.
    #[must_use]
    pub fn task_id(mut self, id: impl Into<String>) -> Self {
        self.task_id = id.into();
        self
    }

    /// Sets the stage. Default: the first of the engine's.
    #[must_use]
    pub fn stage(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }

    /// Sets several keys of the configuration.
    #[must_use]
    pub fn configs(mut self, config: Map<String, Value>) -> Self {
        self.config.extend(config);
        self
    }

    /// Sets a key of the configuration.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Names the model. Default: the engine's usual one.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets the id of the request that caused the task.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Sets the context that the task's spans belong to. Without one they are a trace of their own.
    #[must_use]
    pub fn parent(mut self, context: Context) -> Self {
        self.parent = context;
        self
    }

    /// Keeps the directory of the file for as long as the task may use it.
    #[cfg(feature = "worker")]
    pub(crate) fn keeping(mut self, files: Arc<TaskFiles>) -> Self {
        self.files = Some(files);
        self
    }
}

/// Why a direct task has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectError {
    /// Too many tasks are before it. Trying again later helps.
    #[error("the worker is busy: try again later")]
    Busy,
    /// The worker stops. Another one can do it.
    #[error("the worker is shutting down: try another one")]
    Stopping,
    /// It failed.
    #[error("{error}")]
    Failed {
        /// One line for people.
        error: String,
        /// The short static code.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// Request or answer could not be kept.
    #[error("keeping the task's documents: {0}")]
    Store(#[from] StoreError),
    /// The answer is not what it should be.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A task on its way to the runner.
pub(super) struct Submission {
    delivery: Delivery,
    desk: Arc<Desk>,
    store: Store,
    files: Option<Weak<TaskFiles>>,
}

/// The way for tasks into a runner that is being put together.
pub(super) fn channel() -> (mpsc::Sender<Submission>, mpsc::Receiver<Submission>) {
    mpsc::channel(WAITING)
}

/// Begins the direct tasks, in the order in which they came.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    mut submissions: mpsc::Receiver<Submission>,
    turns: &Arc<Semaphore>,
    tasks: &mut JoinSet<()>,
) -> Infallible {
    loop {
        // In this order, so that what waits is in the channel, and ends with it when the runner stops.
        let Ok(turn) = Arc::clone(turns).acquire_owned().await else {
            return pending().await;
        };
        let Some(Submission {
            delivery,
            desk,
            store,
            files,
        }) = submissions.recv().await
        else {
            return pending().await;
        };
        if desk.progress.is(State::GivenUp) {
            continue;
        }
        let files = match files.map(|files| files.upgrade()) {
            // Given up just now.
            Some(None) => continue,
            files => files.flatten(),
        };
        while let Some(ended) = tasks.try_join_next() {
            report_panic(ended);
        }
        let hand = worker.status.task(&delivery.claim.task_id);
        let origin = Arc::new(Origin {
            broker: desk,
            store,
            queue: None,
            files,
        });
        let task = task::handle(Arc::clone(worker), origin, delivery, turn, hand);
        tasks.spawn(task.with_current_subscriber());
    }
}

fn request_of(task: &DirectTask, stage: &Stage) -> TaskRequestData {
    let mut request = TaskRequestData::new(&task.task_id, JOB);
    request.config.clone_from(&task.config);
    let slot = input_slot(stage);
    let artifact_id = format!("{JOB}:source:{slot}");
    let reference = ArtifactReference::new(&artifact_id, slot, &task.name).role("source");
    let selector = ArtifactSelector::new(JOB, slot);
    request.request_bindings.push(RequestBinding::new(slot, selector));
    request
        .resolved_artifact_ids
        .insert(slot.to_owned(), artifact_id.clone());
    request.artifact_index.insert(artifact_id, reference);
    request
}

/// What a queue is to other tasks: a broker that knows this one.
struct Desk {
    metadata: TaskMetadata,
    progress: Arc<Progress>,
    begin: Mutex<Option<oneshot::Sender<()>>>,
    answer: Mutex<Option<oneshot::Sender<Ending>>>,
}

#[derive(Debug, Default)]
struct Progress(AtomicU8);

#[derive(Debug, Clone, Copy)]
enum State {
    /// For a turn. Its number is that of the default.
    Waiting = 0,
    Begun,
    /// Nobody waits for the answer.
    GivenUp,
}

enum Ending {
    Finished(Outcome),
    HandedBack,
}

impl Progress {
    fn is(&self, state: State) -> bool {
        self.0.load(Ordering::Acquire) == state as u8
    }

    /// Returns whether it was in the state `from`.
    fn turn(&self, from: State, to: State) -> bool {
        self.0
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Desk {
    fn end(&self, ending: Ending) {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answer) = answer {
            // Whoever waited may have gone.
            let _ = answer.send(ending);
        }
    }
}

#[async_trait]
impl Broker for Desk {
    fn system(&self) -> &'static str {
        JOB
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    async fn receive(&self, _: &Consumer, _: Duration) -> Result<Option<Delivery>, BrokerError> {
        Ok(None)
    }

    async fn lookup(&self, _: &Claim) -> Result<Lookup, BrokerError> {
        if !self.progress.turn(State::Waiting, State::Begun) {
            return Ok(Lookup::Cancelled);
        }
        let begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(begin) = begin {
            let _ = begin.send(());
        }
        Ok(Lookup::Task(Box::new(self.metadata.clone())))
    }

    async fn started(&self, _: &Claim, _: &EventContext) -> Result<Ownership, BrokerError> {
        Ok(Ownership::Held)
    }

    async fn renew(&self, _: &Claim) -> Result<Ownership, BrokerError> {
        Ok(Ownership::Held)
    }

    async fn is_cancelled(&self, _: &Claim) -> Result<bool, BrokerError> {
        Ok(self.progress.is(State::GivenUp))
    }

    async fn finish(&self, _: &Claim, outcome: &Outcome, _: &EventContext) -> Result<Ownership, BrokerError> {
        self.end(Ending::Finished(outcome.clone()));
        Ok(Ownership::Held)
    }

    async fn release(&self, _: &Claim) -> Result<Ownership, BrokerError> {
        self.end(Ending::HandedBack);
        Ok(Ownership::Held)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// With nobody to take the answer, there is no use in going on.
struct CancelOnDrop(Arc<Progress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(State::GivenUp as u8, Ordering::Release);
    }
}
