//! Tasks that reach a running worker without its queue: [`Direct`].

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
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, HandBack, Lookup, Outcome, Ownership,
    TaskMetadata,
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
/// How many direct tasks may wait for a permit. Callers should have a lower bound of their own.
const MAX_WAITING: usize = 1024;
/// The lease of a direct task. No other worker could own the task, so it need not end.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Hands tasks to a running [`Runner`](super::Runner) without its queue: the HTTP server uses it.
/// Cheap to clone.
///
/// A direct task goes through the same steps as all others, with the same inference threads,
/// models, spans, metrics, deadline and checks. Its input is a local file, and its answer is
/// returned to the caller.
///
/// Tasks of the queue and direct tasks don't starve each other: both kinds have the same number of
/// permits, and all tasks wait for the inference threads in one run queue.
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

    /// Processes a task and returns the `data` of its answer. The task begins within `patience` or
    /// is refused.
    ///
    /// Dropping the future cancels the task.
    ///
    /// # Errors
    ///
    /// If the worker is too busy or stops before the end of the task, or the task fails.
    pub async fn submit(&self, mut task: DirectTask, patience: Duration) -> Result<Value, DirectError> {
        // Only this future owns the files: they go when the caller gives up, even if the submission
        // still waits.
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
        // This future keeps no clone of the broker: when the runner drops the last one, no answer
        // will come.
        let broker = Arc::new(DirectBroker {
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
            broker,
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
                if progress.transition(State::Waiting, State::GivenUp) {
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

    /// A directory for the input of a task. It is removed with the last task that uses it.
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

/// A local file, and what to do with it.
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

    /// Sets the name of the file in errors. Default: its path.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the id of the task. It must be unique. Default: random.
    #[must_use]
    pub fn task_id(mut self, id: impl Into<String>) -> Self {
        self.task_id = id.into();
        self
    }

    /// Sets the stage. Default: the first stage of the engine.
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

    /// Sets the model. Default: that of the engine.
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

    /// Sets the parent context of the task's spans. Default: they start a trace.
    #[must_use]
    pub fn parent(mut self, context: Context) -> Self {
        self.parent = context;
        self
    }

    /// Keeps the directory of the file for as long as the task may use it.
    #[cfg(feature = "worker")]
    pub(crate) fn with_files(mut self, files: Arc<TaskFiles>) -> Self {
        self.files = Some(files);
        self
    }
}

/// The reasons for which a direct task has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectError {
    /// Too many tasks wait already.
    #[error("the worker is busy: try again later")]
    Busy,
    /// The worker stops.
    #[error("the worker is shutting down: try another one")]
    Stopping,
    /// The task failed.
    #[error("{error}")]
    Failed {
        /// The text of the error.
        error: String,
        /// The short static code of the error.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// The request or the answer could not be stored in memory.
    #[error("storing the documents of a direct task in memory: {0}")]
    Store(#[from] StoreError),
    /// The answer is malformed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A task on its way to the runner.
pub(super) struct Submission {
    delivery: Delivery,
    broker: Arc<DirectBroker>,
    store: Store,
    files: Option<Weak<TaskFiles>>,
}

/// The channel for the direct tasks of a new runner.
pub(super) fn channel() -> (mpsc::Sender<Submission>, mpsc::Receiver<Submission>) {
    mpsc::channel(MAX_WAITING)
}

/// Begins the direct tasks in their order.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    mut submissions: mpsc::Receiver<Submission>,
    permits: &Arc<Semaphore>,
    tasks: &mut JoinSet<()>,
) -> Infallible {
    loop {
        // The permit comes first: tasks that wait stay in the channel and end with it when the
        // runner stops.
        let Ok(permit) = Arc::clone(permits).acquire_owned().await else {
            return pending().await;
        };
        let Some(Submission {
            delivery,
            broker,
            store,
            files,
        }) = submissions.recv().await
        else {
            return pending().await;
        };
        if broker.progress.is(State::GivenUp) {
            continue;
        }
        let files = match files.map(|files| files.upgrade()) {
            // The caller has given up since.
            Some(None) => continue,
            files => files.flatten(),
        };
        while let Some(ended) = tasks.try_join_next() {
            report_panic(ended);
        }
        let status = worker.status.task(&delivery.claim.task_id);
        let origin = Arc::new(Origin {
            broker,
            store,
            queue: None,
            files,
        });
        let task = task::handle(Arc::clone(worker), origin, delivery, permit, status);
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

/// The broker of one direct task.
struct DirectBroker {
    metadata: TaskMetadata,
    progress: Arc<Progress>,
    begin: Mutex<Option<oneshot::Sender<()>>>,
    answer: Mutex<Option<oneshot::Sender<Ending>>>,
}

#[derive(Debug, Default)]
struct Progress(AtomicU8);

#[derive(Debug, Clone, Copy)]
enum State {
    /// Waits for a permit. The default.
    Waiting = 0,
    Begun,
    /// The caller does not wait any more.
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

    /// Returns whether the task was in the state `from`.
    fn transition(&self, from: State, to: State) -> bool {
        self.0
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl DirectBroker {
    fn end(&self, ending: Ending) {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answer) = answer {
            // The caller may have gone.
            let _ = answer.send(ending);
        }
    }
}

#[async_trait]
impl Broker for DirectBroker {
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
        if !self.progress.transition(State::Waiting, State::Begun) {
            return Ok(Lookup::Cancelled { is_running: false });
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

    /// Its caller waits for this worker.
    async fn hand_back(&self, _: &Claim, _: &str, _: u32) -> Result<HandBack, BrokerError> {
        Ok(HandBack::Refused)
    }
}

impl fmt::Debug for DirectBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectBroker").finish_non_exhaustive()
    }
}

/// Cancels the task when its caller is dropped.
struct CancelOnDrop(Arc<Progress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(State::GivenUp as u8, Ordering::Release);
    }
}
