//! The state that the tasks of a worker share: [`Worker`], and where a task comes from: [`Origin`].

use std::sync::Arc;

use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::EngineMetrics;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::breaker::Breaker;
#[cfg(feature = "realtime")]
use super::detector::NewDetector;
use super::pool::SlotPool;
use super::run_lock::RunLock;
use super::status::RunnerStatus;
use super::stop::Drain;
#[cfg(feature = "audio")]
use crate::audio::AudioFormat;
use crate::batch::Batching;
use crate::broker::{Broker, Consumer};
use crate::config::RunnerConfig;
use crate::context::ProgressHook;
use crate::interruption::Interruption;
use crate::model_id::ModelId;
use crate::models::ModelStorage;
use crate::stage::Stage;
use crate::store::Store;
use crate::task::TaskRequest;
use crate::task_dir::TaskFiles;

/// The state that the tasks of a worker share.
pub(super) struct Worker {
    pub(super) consumer: Consumer,
    pub(super) stage: Stage,
    pub(super) default_model: Option<ModelId>,
    #[cfg(feature = "audio")]
    pub(super) audio: Option<AudioFormat>,
    /// Makes the detector of a session.
    #[cfg(feature = "realtime")]
    pub(super) voice_detector: Box<NewDetector>,
    pub(super) config: RunnerConfig,
    /// The queue of the deployment.
    pub(super) origin: Arc<Origin>,
    pub(super) telemetry: TelemetryHandle,
    pub(super) registry: Metrics,
    pub(super) metrics: EngineMetrics,
    pub(super) on_progress: Option<ProgressHook>,
    pub(super) pool: SlotPool,
    pub(super) breaker: Breaker,
    pub(super) uploads: Semaphore,
    pub(super) run_lock: RunLock,
    /// `None` if each task runs alone.
    pub(super) batches: Option<Batches>,
    pub(super) drain: Drain,
    pub(super) interruption: Interruption,
    pub(super) model_storage: Option<ModelStorage>,
    pub(super) status: RunnerStatus,
    /// Tracks realtime sessions. The worker has not drained before they have ended.
    pub(super) sessions: TaskTracker,
    /// Tracks the removal of what tasks left: directories, and files under keys of attempts.
    pub(super) removals: TaskTracker,
}

/// How tasks share a call of the engine.
pub(super) struct Batches {
    pub(super) limits: Batching,
    /// [`Engine::batch_key`](crate::Engine::batch_key).
    pub(super) key: Box<BatchKey>,
}

pub(super) type BatchKey = dyn Fn(&TaskRequest) -> Option<String> + Send + Sync;

/// Where tasks come from and where their outcome goes.
pub(super) struct Origin {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) store: Store,
    /// The kind of queue. `None` for a direct task.
    pub(super) queue: Option<&'static str>,
    /// The directory that holds the input of a direct task.
    pub(super) files: Option<Arc<TaskFiles>>,
}

impl Origin {
    pub(super) fn queue(broker: Arc<dyn Broker>, store: Store) -> Self {
        Self {
            queue: Some(broker.system()),
            broker,
            store,
            files: None,
        }
    }
}
