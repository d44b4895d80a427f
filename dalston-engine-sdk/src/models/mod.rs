//! Models that are not on this machine: [`ModelStorage`] brings them from the storage of the deployment, or from the
//! Hugging Face hub, to a cache on the local disk.
//!
//! An engine sees nothing of it but [`LoadContext::model_dir`](crate::LoadContext::model_dir), which takes longer then.

mod bucket;
mod cache;
mod error;
mod evict;
#[cfg(feature = "worker")]
mod hub;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dalston_telemetry::context::{LogContext, WithLogContext};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::instrument::WithSubscriber;

pub(crate) use self::cache::Held;
use self::cache::{Cache, Claimed, Name};
use self::error::{Kind, ModelError};
pub use crate::config::{ModelSettings, ModelSource};
use crate::context::{CancelFlag, CancelReason};
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::spans;
use crate::store::Store;

/// How many files, or pieces of files, are under way at the same time.
const FILES_AT_ONCE: usize = 8;
/// A model has a few files. A listing of more is a mistake.
const MOST_FILES: usize = 10_000;
/// How soon an inference thread that waits for a model notices that its task is not wanted any more.
const WAIT_POLL: Duration = Duration::from_millis(50);
/// What a download leaves free on the disk.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// Brings models to this machine, and keeps the cache that they are in within its limits. Cheap to clone.
///
/// A [`Runner`](crate::Runner) that is given one looks there for the models that it does not find in a local directory;
/// `worker::run` gives it that of the deployment. A model is downloaded once, however many threads and processes of this
/// machine ask for it. Only a whole one ever stands in its place.
///
/// ```
/// use dalston_engine_sdk::models::{ModelSettings, ModelStorage};
/// use dalston_engine_sdk::store::Store;
/// use dalston_telemetry::Env;
///
/// let env = Env::from_pairs([("DALSTON_MODEL_CACHE_DIR", "/tmp/models")]);
/// let models = ModelStorage::new(ModelSettings::from_env(&env)?, Store::memory());
/// assert!(!models.is_downloading());
/// # Ok::<(), dalston_telemetry::EnvError>(())
/// ```
#[derive(Clone)]
pub struct ModelStorage {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ModelSettings,
    cache: Option<Cache>,
    store: Store,
    downloads: Mutex<HashMap<Name, Weak<Download>>>,
    under_way: AtomicUsize,
    /// A model has come, and the cache may be too large now.
    arrived: Notify,
}

impl ModelStorage {
    /// Models of the bucket that is behind `store`, and of the other sources that the settings name.
    ///
    /// Nothing is read or written yet.
    #[must_use]
    pub fn new(settings: ModelSettings, store: Store) -> Self {
        let cache = settings.cache_dir.clone().map(Cache::new);
        Self {
            shared: Arc::new(Shared {
                settings,
                cache,
                store,
                downloads: Mutex::default(),
                under_way: AtomicUsize::new(0),
                arrived: Notify::new(),
            }),
        }
    }

    /// Whether a model is on its way at the moment.
    #[must_use]
    pub fn is_downloading(&self) -> bool {
        self.shared.under_way.load(Ordering::Acquire) > 0
    }

    /// The directory of a model, brought here if need be. Blocks; to be called outside of `runtime`.
    pub(crate) fn obtain(
        &self,
        model: &ModelId,
        stop: &LoadStop,
        runtime: &Handle,
    ) -> Result<Arc<Held>, TaskError> {
        let shared = &self.shared;
        let name = Name::new(model).map_err(ModelError::into_task_error)?;
        let cache = shared.cache.as_ref().ok_or_else(|| {
            let text = format!(
                "model {:?}: there is no such directory, and no place to download it to: set DALSTON_MODEL_CACHE_DIR",
                model.as_str()
            );
            TaskError::permanent("model_not_found", text)
        })?;
        if let Some(held) = cache.hold(&name) {
            return Ok(Arc::new(held));
        }
        let span = spans::model_download(model.as_str());
        let found = span.in_scope(|| {
            let download = self.download(name, model, cache, runtime);
            let arrived = download.wait(stop)?;
            spans::downloaded(&span, arrived.bytes, arrived.from);
            Ok(arrived.held)
        });
        found.inspect_err(|error| spans::record_failure(&span, error))
    }

    /// Keeps the cache within its limits for as long as it is polled.
    pub(crate) async fn keep_tidy(&self) -> std::convert::Infallible {
        evict::keep_tidy(&self.shared).await
    }

    /// The download of this model that is under way, or a new one.
    fn download(&self, name: Name, model: &ModelId, cache: &Cache, runtime: &Handle) -> Arc<Download> {
        let mut downloads = lock(&self.shared.downloads);
        if let Some(download) = downloads.get(&name).and_then(Weak::upgrade)
            && lock(&download.outcome).is_none()
        {
            return download;
        }
        downloads.retain(|_, download| download.strong_count() > 0);
        let download = Arc::new(Download::default());
        downloads.insert(name.clone(), Arc::downgrade(&download));
        let work = {
            let (shared, model, cache) = (Arc::clone(&self.shared), model.clone(), cache.clone());
            async move { shared.bring(&name, &model, &cache).await }
        };
        let work = report(Arc::downgrade(&download), Arc::clone(&self.shared), work);
        let work = work
            .with_log_context(LogContext::current())
            .with_current_subscriber();
        let task = runtime.spawn(work);
        *lock(&download.task) = Some(task.abort_handle());
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
    async fn bring(&self, name: &Name, model: &ModelId, cache: &Cache) -> Result<Arrived, ModelError> {
        // Before anything is made or locked: most names that nobody has heard of end here.
        let mut problems = Vec::new();
        for source in &self.settings.sources {
            let begun = Instant::now();
            let done = match source {
                ModelSource::S3 => self.bring_from_bucket(name, model, cache).await,
                ModelSource::HuggingFace => self.bring_from_hub(name, model, cache).await,
            };
            match done {
                Ok(arrived) => {
                    if arrived.from.is_some() {
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
        Err(ModelError::all(model, problems))
    }

    async fn bring_from_bucket(
        &self,
        name: &Name,
        model: &ModelId,
        cache: &Cache,
    ) -> Result<Arrived, ModelError> {
        const SOURCE: &str = "s3";
        let found = bucket::find(&self.store, model).await?;
        match claim(name, model, cache, SOURCE, found.bytes()).await? {
            Claimed::Here(held) => Ok(Arrived::with_another(held)),
            Claimed::Missing(claim) => {
                found.download(&self.store, model, &claim.directory()).await?;
                Ok(Arrived::downloaded(claim.finish()?, found.bytes(), SOURCE))
            }
        }
    }

    #[cfg(feature = "worker")]
    async fn bring_from_hub(
        &self,
        name: &Name,
        model: &ModelId,
        cache: &Cache,
    ) -> Result<Arrived, ModelError> {
        const SOURCE: &str = "hf";
        let hub = hub::Hub::new(&self.settings)?;
        let found = hub.find(model).await?;
        match claim(name, model, cache, SOURCE, found.bytes()).await? {
            Claimed::Here(held) => Ok(Arrived::with_another(held)),
            Claimed::Missing(claim) => {
                hub.download(&found, model, &claim.directory()).await?;
                Ok(Arrived::downloaded(claim.finish()?, found.bytes(), SOURCE))
            }
        }
    }

    #[cfg(not(feature = "worker"))]
    async fn bring_from_hub(&self, _: &Name, model: &ModelId, _: &Cache) -> Result<Arrived, ModelError> {
        let text = format!(
            "model {:?}: models of the Hugging Face hub need the feature worker of dalston-engine-sdk",
            model.as_str()
        );
        Err(ModelError::new(Kind::NotFound, text))
    }
}

/// Gets the right to download a model, and sees that there is room for it.
async fn claim(
    name: &Name,
    model: &ModelId,
    cache: &Cache,
    source: &'static str,
    bytes: u64,
) -> Result<Claimed, ModelError> {
    let claimed = cache.claim(name).await?;
    if let Claimed::Missing(_) = claimed {
        if let Ok(free) = fs4::available_space(cache.root())
            && free < bytes.saturating_add(SPARE_BYTES)
        {
            return Err(ModelError::no_room(model, cache.root(), bytes, free));
        }
        info!(%model, source, bytes, "model_downloading");
    }
    Ok(claimed)
}

/// A model that has come.
#[derive(Debug, Clone)]
struct Arrived {
    held: Arc<Held>,
    /// How much was downloaded.
    bytes: u64,
    /// Where it was downloaded from, unless another process did that.
    from: Option<&'static str>,
}

impl Arrived {
    fn downloaded(held: Held, bytes: u64, from: &'static str) -> Self {
        Self {
            held: Arc::new(held),
            bytes,
            from: Some(from),
        }
    }

    fn with_another(held: Held) -> Self {
        Self {
            held: Arc::new(held),
            bytes: 0,
            from: None,
        }
    }
}

/// A download that threads wait for. It ends when nobody does any more.
#[derive(Debug, Default)]
struct Download {
    outcome: Mutex<Option<Result<Arrived, ModelError>>>,
    done: Condvar,
    task: Mutex<Option<AbortHandle>>,
}

impl Download {
    fn wait(&self, stop: &LoadStop) -> Result<Arrived, TaskError> {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone().map_err(ModelError::into_task_error);
            }
            stop.check()?;
            let waited = self.done.wait_timeout(outcome, WAIT_POLL);
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

/// Does the work and tells all that wait, also if it ends in any other way than it should.
async fn report(
    download: Weak<Download>,
    shared: Arc<Shared>,
    work: impl Future<Output = Result<Arrived, ModelError>>,
) {
    struct Report {
        download: Weak<Download>,
        shared: Arc<Shared>,
        outcome: Option<Result<Arrived, ModelError>>,
    }
    impl Drop for Report {
        fn drop(&mut self) {
            self.shared.under_way.fetch_sub(1, Ordering::AcqRel);
            if let Some(download) = self.download.upgrade() {
                let broken_off = || Err(ModelError::new(Kind::Source, "the download was broken off"));
                *lock(&download.outcome) = Some(self.outcome.take().unwrap_or_else(broken_off));
                download.done.notify_all();
            }
        }
    }
    shared.under_way.fetch_add(1, Ordering::AcqRel);
    let mut report = Report {
        download,
        shared,
        outcome: None,
    };
    report.outcome = Some(work.await);
}

/// What ends the loading of a model early.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadStop {
    task: CancelFlag,
    draining: CancellationToken,
}

impl LoadStop {
    pub(crate) fn new(task: CancelFlag, draining: CancellationToken) -> Self {
        Self { task, draining }
    }

    fn check(&self) -> Result<(), TaskError> {
        if self.draining.is_cancelled() {
            // The task has not begun as long as its model is not here: a peer may have it.
            self.task.set(CancelReason::Shutdown);
        }
        match self.task.reason() {
            None => Ok(()),
            Some(reason) => Err(reason.into_error()),
        }
    }
}

async fn sync(path: &Path) -> Result<(), ModelError> {
    // A machine that loses its power must not keep the mark and lose what it marks.
    let synced = async { tokio::fs::File::open(path).await?.sync_all().await };
    synced.await.map_err(|error| ModelError::disk(path, &error))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
