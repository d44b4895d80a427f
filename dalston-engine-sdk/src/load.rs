//! The context of a model load: [`LoadContext`].

use std::future::Future;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::Device;
use tokio::runtime::Handle;

use crate::block_on::block_on;
use crate::config::{DeviceChoice, EngineConfig};
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::models::{LoadStop, LocalModel, ModelStorage};

/// The configuration of the worker and the files of models, for
/// [`Engine::load`](crate::Engine::load).
#[derive(Debug, Clone)]
pub struct LoadContext {
    config: Arc<EngineConfig>,
    slot: usize,
    metrics: Metrics,
    device: Arc<OnceLock<Device>>,
    storage: Option<ModelStorage>,
    /// The runtime of the worker.
    runtime: Option<Handle>,
    stop: LoadStop,
    /// Keeps the models of the storage that were asked for on the disk.
    held: Arc<Mutex<Vec<Arc<LocalModel>>>>,
}

impl LoadContext {
    /// A context for the first inference thread, for tests and `doctor`. Its metrics are its own.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        Self::for_slot(Arc::new(config), 0, Metrics::new())
    }

    pub(crate) fn for_slot(config: Arc<EngineConfig>, slot: usize, metrics: Metrics) -> Self {
        Self {
            config,
            slot,
            metrics,
            device: Arc::default(),
            storage: None,
            runtime: None,
            stop: LoadStop::default(),
            held: Arc::default(),
        }
    }

    /// Adds the runtime of the worker.
    pub(crate) fn with_runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Adds a storage of models, which is read on the runtime.
    pub(crate) fn with_storage(mut self, models: ModelStorage) -> Self {
        self.storage = Some(models);
        self
    }

    /// A context for one load, which `stop` ends early.
    pub(crate) fn for_load(&self, stop: LoadStop) -> Self {
        Self {
            stop,
            held: Arc::default(),
            ..self.clone()
        }
    }

    /// The handles that keep the files of the model on the disk.
    pub(crate) fn take_held(&self) -> Vec<Arc<LocalModel>> {
        std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Device, precision and the rest of the configuration.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The number of the inference thread, from 0. An engine with several GPUs may spread its
    /// threads over them.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// The metrics of this process, the same as in
    /// [`TaskContext::metrics`](crate::TaskContext::metrics).
    ///
    /// An engine registers its own in [`Engine::start`](crate::Engine::start): a model is loaded
    /// several times, and a name can be registered once.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Sets the device that the model computes on, for the label of the realtime factor. The first
    /// call counts.
    pub fn set_device(&self, device: Device) {
        let _ = self.device.set(device);
    }

    /// Runs a future to its end, as [`TaskContext::block_on`](crate::TaskContext::block_on) does:
    /// for example to connect to a server.
    ///
    /// The future is dropped when the task that needs the model should stop, or the worker drains.
    ///
    /// # Errors
    ///
    /// As [`TaskContext::block_on`](crate::TaskContext::block_on). Also the permanent `no_runtime`
    /// if the context was made by [`new`](Self::new).
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
        let Some(runtime) = &self.runtime else {
            let text = "block_on needs the runtime of a worker: this context was made by LoadContext::new";
            return Err(TaskError::permanent("no_runtime", text));
        };
        block_on(runtime, self.stop.wait(), future)
    }

    pub(crate) fn device(&self) -> Device {
        self.device.get().copied().unwrap_or(match self.config.device {
            DeviceChoice::Auto => Device::Unknown,
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda(_) => Device::Cuda,
        })
    }

    /// Finds the directory of a model: the id itself if it is a directory, else a directory of that
    /// name under the model root (`DALSTON_MODEL_DIR`).
    ///
    /// A worker of a live deployment then looks in the cache (`DALSTON_MODEL_CACHE_DIR`) and
    /// downloads the model to it from the storage of the deployment, or from the source in
    /// `DALSTON_MODEL_SOURCE`. The download ends early, with an error, when the task is cancelled,
    /// its deadline passes, or the worker drains. The files stay on the disk for as long as the
    /// model is loaded. Local runs use only local directories.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `model_not_found` that names the searched places. From a
    /// storage also the permanent `invalid_model` and the retryable `model_incomplete`,
    /// `model_download_failed`, `disk_full` and `model_cache_unusable`. The permanent
    /// `invalid_model` if a file of the directory is a pointer of Git LFS.
    pub fn model_dir(&self, model: &ModelId) -> Result<PathBuf, TaskError> {
        let directory = self.find(model)?;
        match lfs_pointer(&directory) {
            None => Ok(directory),
            Some(file) => {
                let text = format!(
                    "{} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository",
                    file.display()
                );
                Err(TaskError::permanent("invalid_model", text))
            }
        }
    }

    fn find(&self, model: &ModelId) -> Result<PathBuf, TaskError> {
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
        if itself.is_file() {
            let text = format!("model {:?} is a file: expected a directory", model.as_str());
            return Err(TaskError::permanent("invalid_model", text));
        }
        // A name from a task must not lead out of the model root.
        let is_plain = itself
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let root = self.config.model_root.as_deref();
        if let Some(root) = root
            && is_plain
            && root.join(itself).is_dir()
        {
            return Ok(root.join(itself));
        }
        if let (Some(storage), Some(runtime)) = (&self.storage, &self.runtime) {
            let held = storage.obtain(model, &self.stop, runtime)?;
            let path = held.path().to_owned();
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(held);
            return Ok(path);
        }
        let model = model.as_str();
        let text = match root {
            None => format!("model {model:?}: there is no such directory, and DALSTON_MODEL_DIR is not set"),
            Some(root) => {
                let root = root.display();
                format!("model {model:?}: neither that directory nor one of that name in {root} exists")
            }
        };
        Err(TaskError::permanent("model_not_found", text))
    }
}

/// A file of this directory that a clone without Git LFS has left as a pointer.
fn lfs_pointer(directory: &Path) -> Option<PathBuf> {
    /// The first line of a pointer, by the specification of Git LFS.
    const BEGIN: &[u8] = b"version https://git-lfs.github.com/spec/";
    /// By the same specification, pointers are smaller.
    const LONGEST: u64 = 1024;
    /// Directories of models have fewer files.
    const MOST_FILES: usize = 1_000;
    let files = std::fs::read_dir(directory).ok()?.take(MOST_FILES);
    let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    files.sort();
    files.into_iter().find(|path| {
        let is_small = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() < LONGEST);
        is_small && std::fs::read(path).is_ok_and(|content| content.starts_with(BEGIN))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_of_git_lfs_pointers_is_named_for_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let model = ModelId::new(directory.path().to_str().unwrap());
        let cx = LoadContext::new(EngineConfig::default());
        std::fs::write(directory.path().join("config.json"), "{}").unwrap();
        assert!(cx.model_dir(&model).is_ok());
        let weights = directory.path().join("model.safetensors");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 967092419\n";
        std::fs::write(&weights, pointer).unwrap();
        let error = cx.model_dir(&model).unwrap_err();
        assert_eq!(error.code(), "invalid_model");
        let expected = format!(
            "{} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository",
            weights.display()
        );
        assert_eq!(error.to_string(), expected);

        let file = ModelId::new(directory.path().join("config.json").to_str().unwrap());
        let error = cx.model_dir(&file).unwrap_err().to_string();
        assert!(error.ends_with("is a file: expected a directory"), "{error}");
    }
}
