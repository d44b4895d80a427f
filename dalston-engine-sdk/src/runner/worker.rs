//! The state that the tasks of a worker share: [`Worker`], and where a task comes from: [`Origin`].

use std::sync::Arc;

use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::EngineMetrics;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::breaker::Breaker;
use super::pool::SlotPool;
use super::run_lock::RunLock;
use super::status::RunnerStatus;
use super::stop::Drain;
#[cfg(feature = "audio")]
use crate::audio::AudioFormat;
use crate::broker::{Broker, Consumer};
use crate::config::RunnerConfig;
use crate::context::ProgressHook;
use crate::interruption::Interruption;
use crate::model_id::ModelId;
use crate::models::ModelStorage;
use crate::stage::Stage;
use crate::store::Store;
use crate::task_dir::TaskFiles;

/// The state that the tasks of a worker share.
pub(super) struct Worker {
    pub(super) consumer: Consumer,
    pub(super) stage: Stage,
    pub(super) default_model: Option<ModelId>,
    #[cfg(feature = "audio")]
    pub(super) audio: Option<AudioFormat>,
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
    pub(super) drain: Drain,
    pub(super) interruption: Interruption,
    pub(super) model_storage: Option<ModelStorage>,
    pub(super) status: RunnerStatus,
    /// Tracks the removal of what tasks left: directories, and files under keys of attempts.
    pub(super) removals: TaskTracker,
}

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
