//! Configuring a [`Runner`]: [`RunnerBuilder`].

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::{EngineLabels, EngineMetrics};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::breaker::{Breaker, Probe};
use super::control_loop::Runner;
use super::pool::{SlotPool, SpawnThread};
use super::run_lock::RunLock;
use super::slot::{self, ModelLimits, ThreadConfig, ThreadMetrics};
use super::status::RunnerStatus;
use super::stop::Drain;
use super::worker::{Batches, Origin, Worker};
use super::{detector, direct};
use crate::batch::{Batching, MAX_TASKS};
use crate::broker::{Broker, Consumer};
use crate::config::settings::{DALSTON_SLOTS, MAX_SLOTS};
use crate::config::{EngineConfig, RunnerConfig};
use crate::context::ProgressHook;
use crate::engine::{Check, Engine, EngineInfo};
use crate::error::BuildError;
use crate::interruption::Interruption;
use crate::load::LoadContext;
use crate::model_id::ModelId;
use crate::models::ModelStorage;
use crate::start::StartContext;
use crate::store::Store;
use crate::task::{TaskInfo, TaskRequest};

/// The longest wait of an idle thread for a full batch.
const LONGEST_BATCH_WAIT: Duration = Duration::from_secs(60);
/// Per slot: results that are uploaded at the same time.
const UPLOADS_PER_SLOT: usize = 4;

impl Runner {
    /// Starts to configure a worker.
    pub fn builder<E: Engine>(engine: E) -> RunnerBuilder<E> {
        RunnerBuilder::new(engine)
    }
}

/// Configures a [`Runner`]. Made by [`Runner::builder`].
///
/// A broker and a store are required. Everything else has a default.
#[must_use = "a builder does nothing until it builds"]
pub struct RunnerBuilder<E> {
    engine: E,
    config: RunnerConfig,
    broker: Option<Arc<dyn Broker>>,
    store: Option<Store>,
    model_storage: Option<ModelStorage>,
    telemetry: TelemetryHandle,
    metrics: Option<Metrics>,
    on_progress: Option<ProgressHook>,
    probe: Option<Box<Probe>>,
}

impl<E: Engine> RunnerBuilder<E> {
    fn new(engine: E) -> Self {
        Self {
            engine,
            config: RunnerConfig::default(),
            broker: None,
            store: None,
            model_storage: None,
            telemetry: TelemetryHandle::disabled(),
            metrics: None,
            on_progress: None,
            probe: None,
        }
    }

    /// Sets where tasks come from.
    pub fn broker(mut self, broker: impl Broker) -> Self {
        self.broker = Some(Arc::new(broker));
        self
    }

    /// Sets where the files of tasks are.
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Sets where models come from that are not on this machine. Default: none is downloaded.
    pub fn model_storage(mut self, models: ModelStorage) -> Self {
        self.model_storage = Some(models);
        self
    }

    /// Sets the whole configuration, usually [`RunnerConfig::from_env`]. The methods below change
    /// single values afterwards.
    pub fn config(mut self, config: RunnerConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the telemetry that spans and metrics go to. Default:
    /// [disabled](TelemetryHandle::disabled).
    pub fn telemetry(mut self, telemetry: TelemetryHandle) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Sets the metrics of the worker. Default: those of the telemetry.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Sets the number of inference threads, from 1 to 1024. Default 1.
    pub fn slots(mut self, slots: usize) -> Self {
        self.config.slots = slots;
        self
    }

    /// Sets device, precision and model. Default: the engine chooses.
    pub fn engine_config(mut self, config: EngineConfig) -> Self {
        self.config.engine = config;
        self
    }

    /// Adds a model to load before the first task is taken.
    pub fn preload(mut self, model: impl Into<ModelId>) -> Self {
        self.config.preload.push(model.into());
        self
    }

    /// Sets how many models an inference thread keeps. Default 2.
    pub fn max_loaded_models(mut self, models: usize) -> Self {
        self.config.max_loaded_models = models;
        self
    }

    /// Sets how long a model stays loaded that no task uses. Default 1 h.
    pub fn model_ttl(mut self, ttl: Duration) -> Self {
        self.config.model_ttl = ttl;
        self
    }

    /// Sets how long a task may take if its queue entry has no deadline. Default 1 h.
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.config.task_timeout = timeout;
        self
    }

    /// Sets how long tasks may go on after the worker was told to stop. Default 25 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.config.drain_timeout = timeout;
        self
    }

    /// Sets how many inference threads may be stuck before the worker ends with an error. Default
    /// 2.
    pub fn max_stuck_threads(mut self, threads: usize) -> Self {
        self.config.max_stuck_threads = threads;
        self
    }

    /// Sets where the directories of tasks are made. Default `/tmp`.
    pub fn temp_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.config.temp_root = root.into();
        self
    }

    /// Sets a function that is called when an engine reports progress, with a fraction from 0 to 1.
    /// It runs on the inference thread and should not block.
    pub fn on_progress(mut self, hook: impl Fn(&TaskInfo, f32) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(hook));
        self
    }

    /// Sets the probes of the worker's dependencies. They get the name of the instance, and a
    /// [missing](crate::CheckStatus::Missing) part is a failure.
    ///
    /// The runner reads no task until they pass. It calls them again after 1 s, then at intervals
    /// that double up to 60 s, and it ends with [`RunError::ProbesFailed`](crate::RunError) after
    /// 10 minutes of failures.
    ///
    /// With probes, a task that fails for a cause of the worker (disk, storage, model, device) is
    /// [handed back](Broker::hand_back) instead of failing, at most twice per cause. After three
    /// such failures without a completed task between them, the runner stops reading until the
    /// probes pass. Default: no probes, and such a task fails.
    pub fn probe<F>(mut self, probe: impl Fn(&str) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<Check>> + Send + 'static,
    {
        self.probe = Some(Box::new(move |instance| Box::pin(probe(instance))));
        self
    }

    /// Builds the worker, and calls [`Engine::start`]. No thread is started yet.
    ///
    /// # Errors
    ///
    /// If the broker or the store is missing, a number is out of range, or the platform would not
    /// accept the description of the engine.
    pub fn build(self) -> Result<Runner, BuildError> {
        let Self {
            mut engine,
            mut config,
            broker,
            store,
            model_storage,
            telemetry,
            metrics,
            on_progress,
            probe,
        } = self;
        let info = engine.info();
        let engine_id = config.engine_id.clone().unwrap_or_else(|| info.id.clone());
        check_engine(&engine_id, &info)?;
        check_config(&config)?;
        detector::check(&config.engine)?;
        let broker = broker.ok_or(BuildError::Missing { what: "broker" })?;
        let store = store.ok_or(BuildError::Missing { what: "store" })?;
        let Some(stage) = info.stages.first().cloned() else {
            return Err(BuildError::Engine {
                id: engine_id,
                problem: "it has no stage".to_owned(),
            });
        };
        let default_model = config.engine.model.clone().or_else(|| info.default_model.clone());
        config.engine.model.clone_from(&default_model);
        if let Some(default) = &default_model {
            for model in config.preload.iter_mut().filter(|model| model.is_unnamed()) {
                model.clone_from(default);
            }
        }

        let registry = metrics.unwrap_or_else(|| telemetry.metrics().clone());
        let mut labels = EngineLabels::new(&*engine_id, stage.to_string());
        if let Some(instance_type) = config.instance_type.as_deref().or(telemetry.instance_type()) {
            labels = labels.instance_type(instance_type);
        }
        let metrics = EngineMetrics::register(&registry, &labels);
        // The counters of known models exist before their first task, so that `rate()` sees that
        // task.
        let usual = default_model.as_ref().map_or("", ModelId::as_str);
        for model in config.preload.iter().map(ModelId::as_str).chain([usual]) {
            let _ = metrics.model(model);
        }
        // After the families of the worker, so that those keep their names.
        engine.start(&StartContext::new(
            &*engine_id,
            config.engine.clone(),
            registry.clone(),
        ));
        let (status, drain) = (RunnerStatus::new(), Drain::default());
        let engine = Arc::new(engine);
        let batches = batches(&engine, &info, &config);
        #[cfg(feature = "realtime")]
        let voice_detector = detector::detectors(&engine, &config.engine)?;
        let spawn = spawn_thread(
            engine,
            &config,
            &registry,
            &metrics,
            status.clone(),
            model_storage.clone(),
            drain.begun.clone(),
        );
        let single = || Batching::up_to(1);
        let limits = batches
            .as_ref()
            .map_or_else(single, |batches| batches.limits.clone());
        let pool = SlotPool::new(spawn, config.max_stuck_threads, limits);
        let consumer = Consumer {
            instance: instance_name(&engine_id, &config),
            engine_id,
        };
        let breaker = Breaker::new(probe, consumer.instance.clone(), status.clone());
        let (submit, submissions) = direct::channel();
        Ok(Runner {
            submit,
            submissions,
            worker: Arc::new(Worker {
                consumer,
                stage,
                default_model,
                #[cfg(feature = "audio")]
                audio: info.audio,
                #[cfg(feature = "realtime")]
                voice_detector,
                uploads: Semaphore::new(config.slots * UPLOADS_PER_SLOT),
                run_lock: RunLock::default(),
                batches,
                config,
                origin: Arc::new(Origin::queue(broker, store)),
                telemetry,
                registry,
                metrics,
                on_progress,
                pool,
                breaker,
                drain,
                model_storage,
                interruption: Interruption::none(),
                status,
                sessions: TaskTracker::new(),
                removals: TaskTracker::new(),
            }),
        })
    }
}

impl<E> fmt::Debug for RunnerBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// How tasks share a call of the engine, if it takes batches.
fn batches<E: Engine>(engine: &Arc<E>, info: &EngineInfo, config: &RunnerConfig) -> Option<Batches> {
    let mut limits = info.batching.clone()?;
    limits.max_tasks = limits.max_tasks.clamp(1, MAX_TASKS);
    if let Some(cap) = config.max_batch {
        limits.max_tasks = limits.max_tasks.min(cap);
    }
    limits.wait = config.batch_wait.unwrap_or(limits.wait).min(LONGEST_BATCH_WAIT);
    if limits.max_tasks <= 1 {
        return None;
    }
    let engine = Arc::clone(engine);
    // Without a key the task runs alone, also if the engine panics.
    let key = move |task: &TaskRequest| slot::catch(|| Ok(engine.batch_key(task))).ok().flatten();
    Some(Batches {
        limits,
        key: Box::new(key),
    })
}

/// The function that starts inference threads.
fn spawn_thread<E: Engine>(
    engine: Arc<E>,
    config: &RunnerConfig,
    registry: &Metrics,
    metrics: &EngineMetrics,
    status: RunnerStatus,
    model_storage: Option<ModelStorage>,
    draining: CancellationToken,
) -> Box<SpawnThread> {
    let engine_config = Arc::new(config.engine.clone());
    let limits = ModelLimits {
        max_models: config.max_loaded_models,
        ttl: config.model_ttl,
    };
    let (registry, metrics) = (registry.clone(), metrics.clone());
    Box::new(move |queue, handle, preload| {
        let index = handle.index;
        let mut context = LoadContext::for_slot(Arc::clone(&engine_config), index, registry.clone());
        if let Ok(runtime) = Handle::try_current() {
            context = context.with_runtime(runtime);
        }
        if let Some(models) = &model_storage {
            context = context.with_storage(models.clone());
        }
        let config = ThreadConfig {
            engine: Arc::clone(&engine),
            load_context: context,
            draining: draining.clone(),
            limits,
            metrics: ThreadMetrics {
                slot: metrics.slot(index),
                engine: metrics.clone(),
            },
            status: status.thread(),
        };
        slot::spawn(config, queue, handle, preload)
    })
}

/// The id becomes part of keys, names of spans and labels.
fn check_engine(id: &str, info: &EngineInfo) -> Result<(), BuildError> {
    let wrong = |problem: &str| {
        Err(BuildError::Engine {
            id: id.to_owned(),
            problem: problem.to_owned(),
        })
    };
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if !(1..=64).contains(&id.len()) || !id.bytes().all(plain) {
        return wrong("its id must have 1 to 64 lower-case letters, digits, dots, dashes and underscores");
    }
    if info.stages.is_empty() {
        return wrong("it has no stage: give it one with EngineInfo::stage");
    }
    if info.version.is_empty() {
        return wrong("it has no version");
    }
    Ok(())
}

fn check_config(config: &RunnerConfig) -> Result<(), BuildError> {
    let at_least_one = |what, value: usize| match value {
        0 => Err(BuildError::Value {
            what,
            value: value.to_string(),
            accepted: "a whole number from 1".into(),
        }),
        _ => Ok(()),
    };
    if !(1..=MAX_SLOTS).contains(&config.slots) {
        return Err(BuildError::Value {
            what: "slots",
            value: config.slots.to_string(),
            accepted: DALSTON_SLOTS.accepted(),
        });
    }
    at_least_one("max_loaded_models", config.max_loaded_models)?;
    at_least_one("max_batch", config.max_batch.unwrap_or(1))?;
    at_least_one("max_deliveries", config.max_deliveries as usize)
}

/// The platform's form: the engine's id and up to 12 characters.
pub(crate) fn instance_name(engine_id: &str, config: &RunnerConfig) -> String {
    let suffix = config
        .instance_suffix
        .clone()
        .unwrap_or_else(|| Uuid::new_v4().simple().to_string());
    format!("{engine_id}-{}", suffix.chars().take(12).collect::<String>())
}
