//! What an engine gets to load a model with: [`LoadContext`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dalston_telemetry::services::engine::Device;
use tokio::runtime::Handle;

use crate::config::{DeviceChoice, EngineConfig};
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::models::{LoadStop, LocalModel, ModelStorage};

/// What [`Engine::load`](crate::Engine::load) gets: the options of this worker and the way from a model's name to its files.
#[derive(Debug, Clone)]
pub struct LoadContext {
    config: Arc<EngineConfig>,
    slot: usize,
    device: Arc<OnceLock<Device>>,
    storage: Option<Storage>,
    stop: LoadStop,
    /// The models of the storage that were asked for. They stay on the disk for as long as this does.
    held: Arc<Mutex<Vec<Arc<LocalModel>>>>,
}

#[derive(Debug, Clone)]
struct Storage {
    models: ModelStorage,
    runtime: Handle,
}

impl LoadContext {
    /// A context for the first inference thread, as tests and `doctor` need it.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        Self::for_slot(Arc::new(config), 0)
    }

    pub(crate) fn for_slot(config: Arc<EngineConfig>, slot: usize) -> Self {
        Self {
            config,
            slot,
            device: Arc::default(),
            storage: None,
            stop: LoadStop::default(),
            held: Arc::default(),
        }
    }

    /// The same with a storage to look for models in, by way of this runtime.
    pub(crate) fn with_storage(mut self, models: ModelStorage, runtime: Handle) -> Self {
        self.storage = Some(Storage { models, runtime });
        self
    }

    /// The same for one load, which `stop` ends early.
    pub(crate) fn for_load(&self, stop: LoadStop) -> Self {
        Self {
            stop,
            held: Arc::default(),
            ..self.clone()
        }
    }

    /// What keeps the model's files from being removed.
    pub(crate) fn take_held(&self) -> Vec<Arc<LocalModel>> {
        std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Device, precision and the other choices of whoever started the worker.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The number of the inference thread, from 0. An engine with several GPUs may spread its threads over them.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Says what the model computes on, for the label of the realtime factor. The first call counts.
    pub fn set_device(&self, device: Device) {
        let _ = self.device.set(device);
    }

    pub(crate) fn device(&self) -> Device {
        self.device.get().copied().unwrap_or(match self.config.device {
            DeviceChoice::Auto => Device::Unknown,
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda(_) => Device::Cuda,
        })
    }

    /// Finds the directory of a model: the id itself if it is a directory, else a directory of that name under the
    /// model root of the options (`DALSTON_MODEL_DIR`).
    ///
    /// In a worker of a live deployment that is not the end of it: the model is looked for in the cache
    /// (`DALSTON_MODEL_CACHE_DIR`) and then downloaded there from the storage of the deployment, or from wherever
    /// `DALSTON_MODEL_SOURCE` says. That may take a while and ends early, with an error, when the task is cancelled,
    /// its deadline is over, or the worker drains. The files stay where they are for as long as the model is loaded.
    /// Local runs look at this machine only.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `model_not_found` that says where it looked; from a storage also `invalid_model`,
    /// and the retryable `model_incomplete`, `model_download_failed`, `disk_full` and `model_cache_unusable`.
    pub fn model_dir(&self, model: &ModelId) -> Result<PathBuf, TaskError> {
        let itself = Path::new(model.as_str());
        if !model.is_unnamed() && itself.is_dir() {
            return Ok(itself.to_owned());
        }
        if model.is_unnamed() {
            return Err(TaskError::permanent(
                "model_not_found",
                "no model is named: give one with --model, DALSTON_DEFAULT_MODEL or the task's loaded_model_id",
            ));
        }
        let Some(root) = &self.config.model_root else {
            if let Some(storage) = &self.storage {
                return self.obtain(model, storage);
            }
            return Err(TaskError::permanent(
                "model_not_found",
                format!(
                    "model {model:?}: there is no such directory, and DALSTON_MODEL_DIR is not set",
                    model = model.as_str()
                ),
            ));
        };
        // A name from a task must not lead out of the model root.
        let plain = itself
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        let below = root.join(itself);
        if plain && below.is_dir() {
            return Ok(below);
        }
        if let Some(storage) = &self.storage {
            return self.obtain(model, storage);
        }
        Err(TaskError::permanent(
            "model_not_found",
            format!(
                "model {model:?}: neither that directory nor one of that name in {root} exists",
                model = model.as_str(),
                root = root.display()
            ),
        ))
    }
}

impl LoadContext {
    fn obtain(&self, model: &ModelId, storage: &Storage) -> Result<PathBuf, TaskError> {
        let held = storage.models.obtain(model, &self.stop, &storage.runtime)?;
        let path = held.path().to_owned();
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(held);
        Ok(path)
    }
}
