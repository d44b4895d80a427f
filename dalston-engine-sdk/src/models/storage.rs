//! The downloads of a process: [`ModelStorage`].

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::info;

use super::bucket::{self, BucketModel};
use super::cache::{Cache, LocalModel, Name, Reserved};
use super::download::{Arrived, Download, LoadStop};
use super::error::{Kind, ModelError};
use super::evict::evict_periodically;
#[cfg(feature = "worker")]
use super::hub::{self, HubModel};
use crate::config::{ModelConfig, ModelSource};
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::spans;
use crate::store::Store;

/// The bytes that a download leaves free on the disk.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// Downloads models to this machine and keeps their cache within its limits. Cheap to clone.
///
/// A [`Runner`](crate::Runner) with a model storage asks it for the models that are not in a local
/// directory; `worker::run` uses the storage of the deployment. A model is downloaded once, however
/// many threads and processes of this machine ask for it, and only a complete model ever has its
/// place in the cache.
///
/// ```
/// use dalston_engine_sdk::models::{ModelConfig, ModelStorage};
/// use dalston_engine_sdk::store::Store;
/// use dalston_telemetry::Env;
///
/// let env = Env::from_pairs([("DALSTON_MODEL_CACHE_DIR", "/tmp/models")]);
/// let models = ModelStorage::new(ModelConfig::from_env(&env)?, Store::memory());
/// assert!(!models.is_downloading());
/// # Ok::<(), dalston_telemetry::EnvError>(())
/// ```
#[derive(Clone)]
pub struct ModelStorage {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ModelConfig,
    cache: Option<Cache>,
    store: Store,
    downloads: Mutex<HashMap<Name, Weak<Download>>>,
    /// A model has arrived, so the cache may be too large.
    arrived: Notify,
}

impl ModelStorage {
    /// The models in the bucket of `store`, and in the other sources of the settings.
    ///
    /// Nothing is read or written yet.
    #[must_use]
    pub fn new(settings: ModelConfig, store: Store) -> Self {
        let cache = settings.cache_dir.clone().map(Cache::new);
        Self {
            shared: Arc::new(Shared {
                settings,
                cache,
                store,
                downloads: Mutex::default(),
                arrived: Notify::new(),
            }),
        }
    }

    /// Whether a model is being downloaded.
    #[must_use]
    pub fn is_downloading(&self) -> bool {
        let downloads = self.shared.downloads();
        let mut downloads = downloads.values().filter_map(Weak::upgrade);
        downloads.any(|download| !download.is_done())
    }

    /// The local copy of a model, downloaded if necessary. Blocks; must not be called on a thread
    /// of `runtime`.
    pub(crate) fn obtain(
        &self,
        model: &ModelId,
        stop: &LoadStop,
        runtime: &Handle,
    ) -> Result<Arc<LocalModel>, TaskError> {
        let name = Name::new(model).map_err(|error| error.into_task_error(model))?;
        let cache = self.shared.cache.as_ref().ok_or_else(|| {
            let text = "there is no such directory, and no cache for downloads: set DALSTON_MODEL_CACHE_DIR";
            ModelError::new(Kind::NotFound, text).into_task_error(model)
        })?;
        if let Some(local) = cache.open(&name) {
            return Ok(Arc::new(local));
        }
        let span = spans::model_download(model.as_str());
        let arrived = span.in_scope(|| {
            let download = self.download(name, model, cache, runtime);
            let arrived = download.wait(model, stop)?;
            spans::downloaded(&span, arrived.bytes, arrived.source);
            Ok(arrived.model)
        });
        arrived.inspect_err(|error| spans::record_failure(&span, error))
    }

    /// Keeps the cache within its limits for as long as it is polled.
    pub(crate) async fn evict_periodically(&self) -> std::convert::Infallible {
        match &self.shared.cache {
            Some(cache) => evict_periodically(cache, &self.shared.settings, &self.shared.arrived).await,
            None => std::future::pending().await,
        }
    }

    /// The download of this model in progress, or a new one.
    fn download(&self, name: Name, model: &ModelId, cache: &Cache, runtime: &Handle) -> Arc<Download> {
        let mut downloads = self.shared.downloads();
        if let Some(download) = downloads.get(&name).and_then(Weak::upgrade)
            && !download.is_done()
        {
            return download;
        }
        downloads.retain(|_, download| download.strong_count() > 0);
        let work = {
            let (shared, name) = (Arc::clone(&self.shared), name.clone());
            let (model, cache) = (model.clone(), cache.clone());
            async move { shared.fetch(&name, &model, &cache).await }
        };
        let download = Arc::new(Download::start(runtime, work));
        downloads.insert(name, Arc::downgrade(&download));
        download
    }
}

impl fmt::Debug for ModelStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStorage")
            .field("settings", &self.shared.settings)
            .field("store", &self.shared.store)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn downloads(&self) -> MutexGuard<'_, HashMap<Name, Weak<Download>>> {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries the sources in their order.
    async fn fetch(&self, name: &Name, model: &ModelId, cache: &Cache) -> Result<Arrived, ModelError> {
        let mut problems = Vec::new();
        for source in &self.settings.sources {
            let begun = Instant::now();
            match self.fetch_from(*source, name, model, cache).await {
                Ok(arrived) => {
                    if arrived.source.is_some() {
                        let seconds = begun.elapsed().as_secs_f64();
                        info!(%model, bytes = arrived.bytes, seconds, "model_downloaded");
                        self.arrived.notify_one();
                    }
                    return Ok(arrived);
                }
                Err(problem) if problem.concerns_source() => problems.push(problem),
                Err(problem) => return Err(problem),
            }
        }
        Err(ModelError::all(&problems))
    }

    async fn fetch_from(
        &self,
        source: ModelSource,
        name: &Name,
        model: &ModelId,
        cache: &Cache,
    ) -> Result<Arrived, ModelError> {
        // Before the cache is locked: most unknown names end here.
        let remote = self.find(source, model).await?;
        let reservation = match cache.reserve(name).await? {
            Reserved::Missing(reservation) => reservation,
            Reserved::Present(local) => {
                return Ok(Arrived {
                    model: Arc::new(local),
                    bytes: 0,
                    source: None,
                });
            }
        };
        let (bytes, source) = (remote.bytes(), remote.source());
        if let Ok(free) = fs4::available_space(cache.root())
            && free < bytes.saturating_add(SPARE_BYTES)
        {
            let root = cache.root().display();
            let text = format!(
                "it has {bytes} bytes, and {root} has room for {free}: free some of it, or set \
                 DALSTON_MODEL_CACHE_DIR or DALSTON_MODEL_CACHE_MAX_GB"
            );
            return Err(ModelError::new(Kind::Full, text));
        }
        info!(%model, source, bytes, "model_downloading");
        remote.download(&reservation.directory()).await?;
        Ok(Arrived {
            model: Arc::new(reservation.finish()?),
            bytes,
            source: Some(source),
        })
    }

    async fn find(&self, source: ModelSource, model: &ModelId) -> Result<RemoteModel, ModelError> {
        match source {
            ModelSource::S3 => bucket::find(&self.store, model).await.map(RemoteModel::Bucket),
            #[cfg(feature = "worker")]
            ModelSource::HuggingFace => hub::find(&self.settings, model).await.map(RemoteModel::Hub),
            #[cfg(not(feature = "worker"))]
            ModelSource::HuggingFace => {
                let text = "models of the Hugging Face hub need the feature worker of dalston-engine-sdk";
                Err(ModelError::new(Kind::NotFound, text))
            }
        }
    }
}

/// A model in a source.
enum RemoteModel {
    Bucket(BucketModel),
    #[cfg(feature = "worker")]
    Hub(HubModel),
}

impl RemoteModel {
    fn source(&self) -> &'static str {
        match self {
            Self::Bucket(_) => "s3",
            #[cfg(feature = "worker")]
            Self::Hub(_) => "hf",
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Bucket(model) => model.bytes(),
            #[cfg(feature = "worker")]
            Self::Hub(model) => model.bytes(),
        }
    }

    async fn download(&self, to: &Path) -> Result<(), ModelError> {
        match self {
            Self::Bucket(model) => model.download(to).await,
            #[cfg(feature = "worker")]
            Self::Hub(model) => model.download(to).await,
        }
    }
}
