//! Running an engine in a test: [`EngineHarness`].

use std::path::PathBuf;
use std::time::Duration;

use dalston_telemetry::testing::TestTelemetry;
use serde_json::Value;

use super::files::{Files, wav};
use super::report::TaskReport;
use super::worker::Worker;
#[cfg(feature = "realtime")]
use crate::config::RealtimeConfig;
use crate::config::{EngineConfig, RunnerConfig};
use crate::engine::Engine;
use crate::local::{LocalPlatform, LocalTask};
use crate::models::ModelStorage;
#[cfg(feature = "realtime")]
use crate::realtime::RealtimeServer;
use crate::runner::Runner;
use crate::stage::{Stage, input_slot};

/// How long tasks that can't share a batch wait for each other.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Runs one engine in a test, with a task for it.
///
/// ```
/// use dalston_engine_sdk::testing::EngineHarness;
/// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest};
/// # use serde_json::{Value, json};
/// # struct WordCounter;
/// # impl Engine for WordCounter {
/// #     type Model = ();
/// #     type Output = Value;
/// #     fn info(&self) -> EngineInfo {
/// #         EngineInfo::new("word-counter", "1.0.0").stage(Stage::other("count").expect("a plain name"))
/// #     }
/// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
/// #         let text = std::fs::read_to_string(task.require_input("input")?.path())?;
/// #         Ok(json!({ "words": text.split_whitespace().count() }))
/// #     }
/// # }
///
/// let report = EngineHarness::new(WordCounter).input_text("one two three").run_blocking();
///
/// assert_eq!(report.output(), &json!({ "words": 3 }));
/// report.tree().assert_eq(
///     "
///     engine.queue_wait
///     engine.word-counter.process {dalston.stage=count}
///       engine.download_input
///       engine.process
///       engine.upload_output
///     ",
/// );
/// assert_eq!(report.moved("dalston_engine_tasks_processed_total"), 1.0);
/// ```
#[derive(Debug)]
#[must_use = "a harness does nothing until it is run"]
pub struct EngineHarness<E> {
    engine: E,
    config: RunnerConfig,
    model_storage: Option<ModelStorage>,
    #[cfg(feature = "realtime")]
    realtime: RealtimeConfig,
    task: LocalTask,
    files: Files,
}

impl<E: Engine> EngineHarness<E> {
    /// An engine with the configuration of an empty environment, and a task without inputs.
    pub fn new(engine: E) -> Self {
        Self {
            engine,
            config: RunnerConfig::default(),
            model_storage: None,
            #[cfg(feature = "realtime")]
            realtime: RealtimeConfig::default(),
            task: LocalTask::new(),
            files: Files::default(),
        }
    }

    /// Sets device, precision and model.
    pub fn engine_config(mut self, config: EngineConfig) -> Self {
        self.config.engine = config;
        self
    }

    /// Changes the configuration of the runner: number of inference threads, time-outs, preloaded
    /// models.
    pub fn runner(mut self, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the configuration of realtime sessions.
    #[cfg(feature = "realtime")]
    pub fn realtime(mut self, change: impl FnOnce(&mut RealtimeConfig)) -> Self {
        change(&mut self.realtime);
        self
    }

    /// Sets where models come from that are not on this machine. Default: none is downloaded.
    pub fn model_storage(mut self, models: ModelStorage) -> Self {
        self.model_storage = Some(models);
        self
    }

    /// Gives the task a file, in the slot of its stage (see [`input_slot`]).
    pub fn input_file(self, path: impl Into<PathBuf>) -> Self {
        let slot = input_slot(&self.stage());
        self.input(slot, path)
    }

    /// Gives the task a file with this text.
    ///
    /// # Panics
    ///
    /// If no temporary file can be written.
    #[track_caller]
    pub fn input_text(self, text: impl AsRef<str>) -> Self {
        let path = self.files.write("input.txt", text.as_ref().as_bytes());
        self.input_file(path)
    }

    /// Gives the task a mono recording of these samples, between -1 and 1.
    ///
    /// # Panics
    ///
    /// If no temporary file can be written.
    #[track_caller]
    pub fn audio(self, sample_rate: u32, samples: &[f32]) -> Self {
        let path = self.files.write("audio.wav", &wav(sample_rate, samples));
        self.input("audio", path)
    }

    /// Gives the task a file in a slot of this name.
    pub fn input(mut self, slot: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.task = self.task.input(slot, path);
        self
    }

    /// Sets a key of the task's configuration.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.task = self.task.config(key, value);
        self
    }

    /// Changes anything else about the task: model, stage, answers of earlier stages.
    pub fn task(mut self, change: impl FnOnce(LocalTask) -> LocalTask) -> Self {
        self.task = change(self.task);
        self
    }

    /// Runs the task once, on a worker that has just started.
    ///
    /// # Panics
    ///
    /// If the runner can't be built or stops by itself.
    pub async fn run(self) -> TaskReport {
        let task = self.task.clone();
        let worker = self.start();
        let report = worker.run(task).await;
        worker.stop().await;
        report
    }

    /// [`run`](Self::run) for a test without a runtime.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run), and inside a runtime.
    #[track_caller]
    pub fn run_blocking(self) -> TaskReport {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.run()),
            Err(error) => panic!("no runtime for the test: {error}"),
        }
    }

    /// Runs tasks in one batch, on a worker that has just started. The limits of the engine apart
    /// from its number of tasks and its wait are kept.
    ///
    /// ```
    /// use dalston_engine_sdk::testing::EngineHarness;
    /// # use dalston_engine_sdk::{Batching, Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest};
    /// # use serde_json::{Value, json};
    /// # struct WordCounter;
    /// # impl Engine for WordCounter {
    /// #     type Model = ();
    /// #     type Output = Value;
    /// #     fn info(&self) -> EngineInfo {
    /// #         let stage = Stage::other("count").expect("a plain name");
    /// #         EngineInfo::new("word-counter", "1.0.0").stage(stage).batching(Batching::up_to(8))
    /// #     }
    /// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
    /// #     fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
    /// #         Ok(json!({ "words": task.config()["text"].as_str().unwrap_or_default().split(' ').count() }))
    /// #     }
    /// #     fn batch_key(&self, _: &TaskRequest) -> Option<String> { Some(String::new()) }
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    ///
    /// let harness = EngineHarness::new(WordCounter);
    /// let tasks = ["one", "two words"].map(|text| harness.default_task().config("text", text));
    /// let reports = harness.run_batch(tasks).await;
    ///
    /// assert_eq!(reports[1].output(), &json!({ "words": 2 }));
    /// assert_eq!(reports[1].span("engine.process").attribute("dalston.batch.size"), Some(&2.into()));
    /// # });
    /// ```
    ///
    /// # Panics
    ///
    /// If the engine takes no batches, and as [`run`](Self::run).
    pub async fn run_batch(mut self, tasks: impl IntoIterator<Item = LocalTask>) -> Vec<TaskReport> {
        let tasks: Vec<LocalTask> = tasks.into_iter().collect();
        let limits = self.engine.info().batching;
        let most = limits.map_or(1, |limits| limits.max_tasks);
        assert!(
            tasks.len() <= most,
            "{} tasks are no batch of this engine: it takes {most} at once",
            tasks.len()
        );
        self.config.max_batch = Some(tasks.len());
        self.config.batch_wait = Some(LONGEST_WAIT);
        let worker = self.start();
        let mut running = Vec::new();
        for task in tasks {
            running.push(worker.submit(task).await);
        }
        let mut reports = Vec::new();
        for task in running {
            reports.push(task.report().await);
        }
        worker.stop().await;
        reports
    }

    /// The task of the harness, to be changed for [`run_batch`](Self::run_batch).
    #[must_use]
    pub fn default_task(&self) -> LocalTask {
        self.task.clone()
    }

    /// Starts a worker for several tasks. The first one loads its model, later ones find it loaded.
    ///
    /// # Panics
    ///
    /// If the runner can't be built, and outside of a runtime.
    #[track_caller]
    pub fn start(self) -> Worker {
        let telemetry = TestTelemetry::new();
        let info = self.engine.info();
        let platform = LocalPlatform::for_engine(&info);
        let mut runner = Runner::builder(self.engine)
            .config(self.config)
            .broker(platform.broker().clone())
            .store(platform.store().clone())
            .telemetry(telemetry.handle());
        if let Some(models) = self.model_storage {
            runner = runner.model_storage(models);
        }
        match runner.build() {
            Ok(runner) => {
                #[cfg(feature = "realtime")]
                let sessions = RealtimeServer::new(&runner, &info, self.realtime, telemetry.handle(), None);
                let worker = Worker::start(runner, platform, telemetry, self.task, self.files);
                #[cfg(feature = "realtime")]
                let worker = worker.with_sessions(sessions);
                worker
            }
            Err(error) => panic!("the runner can't be built: {error}"),
        }
    }

    fn stage(&self) -> Stage {
        self.engine
            .info()
            .stages
            .into_iter()
            .next()
            .unwrap_or(Stage::Transcribe)
    }
}
