//! A platform inside the process: [`LocalPlatform`] queues files as tasks for the real runner and
//! collects the answers.
//!
//! It replaces gateway, orchestrator, Redis and S3 behind `transcribe FILE` and in the tests of
//! engines. The runner works as in a deployment: it reads `request.json`, downloads the input,
//! writes `response.json` and reports events.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::propagate;
use serde_json::{Map, Value};
use thiserror::Error;
use url::Url;
use uuid::Uuid;

use crate::broker::{EventKind, MemoryBroker, QueueFull, QueuedTask, TaskMetadata};
use crate::engine::EngineInfo;
use crate::error::TaskError;
use crate::protocol::{
    ArtifactReference, ArtifactSelector, ProtocolError, RequestBinding, TaskRequestData, TaskResponseData,
    Timestamp,
};
use crate::stage::{Stage, StageName, input_slot};
use crate::store::{Store, StoreError, key};

/// No peer could take a task over, and a process that was stopped for a while (Ctrl-Z, a sleeping
/// laptop) must not start it again.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// How many tasks may be queued at the same time.
const CAPACITY: usize = 10_000;

/// Queue and storage of one engine in this process. Clones share them.
///
/// ```
/// use dalston_engine_sdk::local::{LocalPlatform, LocalTask};
/// use dalston_engine_sdk::{EngineInfo, Stage};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let platform = LocalPlatform::for_engine(&EngineInfo::new("my-asr", "1.0.0").stage(Stage::Transcribe));
/// let task_id = platform.submit(LocalTask::for_file("talk.wav").config("language", "de")).await?;
/// // A runner with `platform.broker()` and `platform.store()` processes it. Then
/// // `platform.outcome(&task_id).await` returns its answer.
/// # let _ = task_id;
/// # Ok::<(), dalston_engine_sdk::local::SubmitError>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct LocalPlatform {
    broker: MemoryBroker,
    store: Store,
    engine_id: String,
    stage: Stage,
}

impl LocalPlatform {
    /// A platform that gives every task to this engine, for its first stage.
    #[must_use]
    pub fn for_engine(info: &EngineInfo) -> Self {
        Self {
            broker: MemoryBroker::with(LEASE, CAPACITY),
            store: Store::memory().with_local_files(),
            engine_id: info.id.clone(),
            stage: info.stages.first().cloned().unwrap_or(Stage::Transcribe),
        }
    }

    /// The id of the engine.
    #[must_use]
    pub fn engine_id(&self) -> &str {
        &self.engine_id
    }

    /// The queue, for [`RunnerBuilder::broker`](crate::RunnerBuilder::broker).
    #[must_use]
    pub fn broker(&self) -> &MemoryBroker {
        &self.broker
    }

    /// The storage, for [`RunnerBuilder::store`](crate::RunnerBuilder::store).
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Queues a task and returns its id.
    ///
    /// # Errors
    ///
    /// If the queue is full, or the path of a file can't become a URL.
    pub async fn submit(&self, task: LocalTask) -> Result<String, SubmitError> {
        self.submit_job(task).await.map(|(task_id, _)| task_id)
    }

    /// As [`submit`](Self::submit), with the id of the job, too.
    pub(crate) async fn submit_job(&self, task: LocalTask) -> Result<(String, String), SubmitError> {
        let (task_id, job_id) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut request = TaskRequestData::new(&task_id, &job_id);
        request.config = task.config;
        request.previous_responses = task.previous_responses;
        for (slot, path) in task.files {
            let slot = slot.unwrap_or_else(|| input_slot(&self.stage).to_owned());
            let artifact_id = format!("{job_id}:source:{slot}");
            let reference = ArtifactReference::new(&artifact_id, &slot, locator(&path)?).role("source");
            let selector = ArtifactSelector::new("gateway", &slot);
            request
                .request_bindings
                .push(RequestBinding::new(&slot, selector));
            request.resolved_artifact_ids.insert(slot, artifact_id.clone());
            request.artifact_index.insert(artifact_id, reference);
        }
        self.store
            .write(&key::task_request(&job_id, &task_id), request.to_vec())
            .await?;

        let stage = task
            .stage
            .map_or_else(|| self.stage.to_string(), |stage| stage.to_string());
        let mut metadata = TaskMetadata::new(stage);
        metadata.model = task.model;
        metadata.request_id = task.request_id;
        metadata.trace_context = propagate::inject_json(&task.parent);
        let mut queued = QueuedTask::new(&self.engine_id, &task_id, &job_id).metadata(metadata);
        if let Some(timeout) = task.timeout {
            queued = queued.timeout_at(Timestamp::now() + timeout);
        }
        self.broker.enqueue(queued)?;
        Ok((task_id, job_id))
    }

    /// Waits until a task has failed or is completed.
    ///
    /// # Errors
    ///
    /// If the response of a completed task can't be read back.
    pub async fn outcome(&self, task_id: &str) -> Result<LocalOutcome, OutcomeError> {
        let event = self.broker.wait_for_outcome(task_id).await;
        match event.kind {
            EventKind::Failed {
                error,
                code,
                retryable,
            } => Ok(LocalOutcome::Failed {
                error,
                code,
                retryable,
            }),
            _ => {
                let locator = self.store.locator(&key::task_response(&event.job_id, task_id));
                // The document is in memory already: a limit would protect nothing.
                match self.store.read(&locator, usize::MAX).await {
                    Ok(document) => {
                        let response = TaskResponseData::from_slice(&document)?;
                        Ok(LocalOutcome::Completed(Box::new(response)))
                    }
                    // A task of a cancelled job is completed without a response.
                    Err(StoreError::NotFound { .. }) => {
                        let error = TaskError::cancelled();
                        Ok(LocalOutcome::Failed {
                            error: error.to_string(),
                            code: error.code(),
                            retryable: false,
                        })
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// A task: files, and what to do with them.
#[derive(Debug, Clone, Default)]
pub struct LocalTask {
    stage: Option<StageName>,
    files: Vec<(Option<String>, PathBuf)>,
    config: Map<String, Value>,
    previous_responses: Map<String, Value>,
    model: Option<String>,
    request_id: Option<String>,
    timeout: Option<Duration>,
    parent: Context,
}

impl LocalTask {
    /// A task without an input.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A task whose only input is this file, in the slot of [`input_slot`].
    #[must_use]
    pub fn for_file(path: impl Into<PathBuf>) -> Self {
        Self {
            files: vec![(None, path.into())],
            ..Self::default()
        }
    }

    /// Adds an input.
    #[must_use]
    pub fn input(mut self, slot: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.files.push((Some(slot.into()), path.into()));
        self
    }

    /// Sets a key of the configuration.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Sets several keys of the configuration.
    #[must_use]
    pub fn configs(mut self, config: Map<String, Value>) -> Self {
        self.config.extend(config);
        self
    }

    /// Sets the answer of an earlier stage.
    #[must_use]
    pub fn previous(mut self, stage: impl Into<String>, response: Value) -> Self {
        self.previous_responses.insert(stage.into(), response);
        self
    }

    /// Sets the stage, for an engine with several, or for one channel of a recording. Default: the
    /// first stage.
    #[must_use]
    pub fn stage(mut self, stage: StageName) -> Self {
        self.stage = Some(stage);
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

    /// Sets how long after it was queued the task fails. Default: the limit of the engine.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the parent context of the task's spans. Default: they start a trace.
    #[must_use]
    pub fn parent(mut self, context: Context) -> Self {
        self.parent = context;
        self
    }
}

/// The outcome of a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LocalOutcome {
    /// It has an answer.
    Completed(Box<TaskResponseData>),
    /// It failed.
    Failed {
        /// The text of the error.
        error: String,
        /// The short static code of the error.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
}

/// The error of [`LocalPlatform::submit`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The path of an input can't become a URL.
    #[error("the input file {}: {source}: expected a path of this file system", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The queue is full.
    #[error(transparent)]
    Queue(#[from] QueueFull),
    /// The request could not be stored.
    #[error("writing request.json: {0}")]
    Store(#[from] StoreError),
}

/// The error of [`LocalPlatform::outcome`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The response could not be read.
    #[error("reading response.json: {0}")]
    Store(#[from] StoreError),
    /// The response is malformed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

fn locator(path: &Path) -> Result<String, SubmitError> {
    let fail = |source| SubmitError::Path {
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(fail)?;
    let url = Url::from_file_path(absolute).map_err(|()| fail(std::io::ErrorKind::InvalidFilename.into()))?;
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Broker, Consumer, Lookup, Ownership};

    #[tokio::test]
    async fn a_file_becomes_a_task_that_an_engine_can_read() {
        let info = EngineInfo::new("my-asr", "1.0.0").stage(Stage::Transcribe);
        let platform = LocalPlatform::for_engine(&info);
        let task = LocalTask::for_file("/tmp/a talk – #1.wav")
            .config("language", "de")
            .model("tiny");
        let task_id = platform.submit(task).await.unwrap();

        let consumer = Consumer {
            engine_id: "my-asr".to_owned(),
            instance: "i".to_owned(),
        };
        let delivery = platform
            .broker()
            .receive(&consumer, Duration::ZERO)
            .await
            .unwrap()
            .unwrap();
        let Lookup::Task(metadata) = platform.broker().lookup(&delivery.claim).await.unwrap() else {
            panic!("the task is not known")
        };
        assert_eq!(
            (metadata.stage.as_str(), metadata.model.as_deref()),
            ("transcribe", Some("tiny"))
        );
        let locator = platform
            .store()
            .locator(&key::task_request(&delivery.claim.job_id, &task_id));
        let document = platform.store().read(&locator, 1 << 20).await.unwrap();
        let request = TaskRequestData::from_slice(&document).unwrap();
        assert_eq!(request.config["language"], "de");
        let artifact = &request.artifact_index[&request.resolved_artifact_ids["audio"]];
        assert_eq!(
            artifact.storage_locator,
            "file:///tmp/a%20talk%20%E2%80%93%20%231.wav"
        );
    }

    #[tokio::test]
    async fn a_task_survives_hours_of_a_stopped_process() {
        tokio::time::pause();
        let platform = LocalPlatform::for_engine(&EngineInfo::new("my-asr", "1.0.0"));
        platform.submit(LocalTask::new()).await.unwrap();
        let consumer = Consumer {
            engine_id: "my-asr".to_owned(),
            instance: "i".to_owned(),
        };
        let receive = async || {
            platform
                .broker()
                .receive(&consumer, Duration::ZERO)
                .await
                .unwrap()
        };
        let delivery = receive().await.unwrap();
        // Nothing renews the lease meanwhile.
        tokio::time::advance(Duration::from_secs(12 * 3600)).await;
        assert!(receive().await.is_none(), "the task was delivered again");
        let renewed = platform.broker().renew(&delivery.claim).await.unwrap();
        assert_eq!(renewed, Ownership::Held);
    }
}
