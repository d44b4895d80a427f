//! What the tasks of a worker share, and where they come from.

use std::sync::{Arc, Mutex, PoisonError};

use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::metrics::{EngineMetrics, Metrics, ModelMetrics};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::lease::Drain;
use super::pool::SlotPool;
use super::status::RunnerStatus;
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

/// What the tasks of a worker share.
pub(super) struct Worker {
    pub(super) consumer: Consumer,
    pub(super) stage: Stage,
    pub(super) default_model: Option<ModelId>,
    #[cfg(feature = "audio")]
    pub(super) audio: Option<AudioFormat>,
    pub(super) config: RunnerConfig,
    /// The deployment.
    pub(super) origin: Arc<Origin>,
    pub(super) telemetry: TelemetryHandle,
    pub(super) registry: Metrics,
    pub(super) metrics: EngineMetrics,
    /// Those of the model that worked last: to find them by its name costs as much as much else of a task.
    pub(super) last_model: Mutex<Option<(ModelId, Arc<ModelMetrics>)>>,
    pub(super) on_progress: Option<ProgressHook>,
    pub(super) pool: SlotPool,
    pub(super) uploads: Semaphore,
    pub(super) drain: Drain,
    pub(super) interruption: Interruption,
    pub(super) model_storage: Option<ModelStorage>,
    pub(super) status: RunnerStatus,
    /// Directories of tasks that are being removed.
    pub(super) removals: TaskTracker,
}

/// Where tasks come from and where their outcome goes.
pub(super) struct Origin {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) store: Store,
    /// The kind of queue, if it is one.
    pub(super) queue: Option<&'static str>,
    /// Where the input of a single task lies, for as long as that may be needed.
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

impl Worker {
    pub(super) fn model_metrics(&self, model: &ModelId) -> Arc<ModelMetrics> {
        let mut last = self.last_model.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((id, metrics)) if id == model => Arc::clone(metrics),
            _ => {
                let metrics = Arc::new(self.metrics.model(model.as_str()));
                *last = Some((model.clone(), Arc::clone(&metrics)));
                metrics
            }
        }
    }
}
