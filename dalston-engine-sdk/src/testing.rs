//! Test an engine as it runs in a deployment: [`EngineHarness`] (feature `testing`).
//!
//! The real runner processes the task, on a queue and a storage in memory; what comes back is the answer, the spans, the
//! metrics that moved and the lines that were logged. Nothing global is touched, so tests run side by side.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::{MetricChange, MetricsSnapshot};
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use dalston_telemetry::services::engine::spans;
use dalston_telemetry::testing::{SpanTree, TestTelemetry};
use dalston_telemetry::{CollectedSpan, Waterfall};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::config::EngineConfig;
use crate::config::RunnerConfig;
use crate::engine::Engine;
use crate::error::{RunError, chain};
use crate::local::{LocalOutcome, LocalPlatform, LocalTask};
use crate::models::ModelStorage;
use crate::protocol::TaskResponseData;
use crate::runner::Runner;
use crate::stage::Transcript;

/// An engine and a task for it.
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
    task: LocalTask,
    files: Files,
}

impl<E: Engine> EngineHarness<E> {
    /// An engine with the settings of an empty environment, and a task without inputs.
    pub fn new(engine: E) -> Self {
        Self {
            engine,
            config: RunnerConfig::default(),
            model_storage: None,
            task: LocalTask::new(),
            files: Files::default(),
        }
    }

    /// Sets device, precision and model, as whoever starts the worker would.
    pub fn engine_config(mut self, config: EngineConfig) -> Self {
        self.config.engine = config;
        self
    }

    /// Changes the settings of the runner: number of inference threads, time-outs, what is preloaded.
    pub fn runner(mut self, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets where models come from that are not on this machine. Default: nowhere.
    pub fn model_storage(mut self, models: ModelStorage) -> Self {
        self.model_storage = Some(models);
        self
    }

    /// Gives the task a file, in the slot that engines of this stage read (see [`stage::input_slot`](crate::stage::input_slot)).
    pub fn input_file(self, path: impl Into<PathBuf>) -> Self {
        let slot = crate::stage::input_slot(&self.stage());
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

    /// Changes everything else about the task: model, stage, what earlier stages answered.
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

    /// Starts a worker for several tasks: the first is cold, later ones find their model loaded.
    ///
    /// # Panics
    ///
    /// If the runner can't be built, and outside of a runtime.
    #[track_caller]
    pub fn start(self) -> Worker {
        let telemetry = TestTelemetry::new();
        let platform = LocalPlatform::for_engine(&self.engine.info());
        let mut runner = Runner::builder(self.engine)
            .config(self.config)
            .broker(platform.broker().clone())
            .store(platform.store().clone())
            .telemetry(telemetry.handle());
        if let Some(models) = self.model_storage {
            runner = runner.model_storage(models);
        }
        let runner = match runner.build() {
            Ok(runner) => runner,
            Err(error) => panic!("the runner can't be built: {error}"),
        };
        let (stop, mut stopped) = watch::channel(false);
        let until = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let (end, ended) = watch::channel(None);
        let working = async move {
            let result = runner.run_until(until).await;
            end.send_replace(Some(match &result {
                Ok(()) => "it was told to stop".to_owned(),
                Err(error) => chain(error),
            }));
            result
        };
        let running = tokio::spawn(telemetry.attach(working));
        Worker {
            platform,
            telemetry,
            stop,
            running,
            ended,
            default_task: self.task,
            _files: self.files,
        }
    }

    fn stage(&self) -> crate::stage::Stage {
        self.engine
            .info()
            .stages
            .into_iter()
            .next()
            .unwrap_or(crate::stage::Stage::Transcribe)
    }
}

/// A worker that is running in a test. Made by [`EngineHarness::start`].
#[derive(Debug)]
pub struct Worker {
    platform: LocalPlatform,
    telemetry: TestTelemetry,
    stop: watch::Sender<bool>,
    running: JoinHandle<Result<(), RunError>>,
    /// Why the runner ended, once it has.
    ended: watch::Receiver<Option<String>>,
    default_task: LocalTask,
    /// Kept for as long as tasks may read them.
    _files: Files,
}

impl Worker {
    /// The task that the harness was given, to be run again or changed.
    #[must_use]
    pub fn task(&self) -> LocalTask {
        self.default_task.clone()
    }

    /// Runs a task and waits for its outcome.
    ///
    /// # Panics
    ///
    /// If the task can't be queued or the runner stops before it is done.
    pub async fn run(&self, task: LocalTask) -> TaskReport {
        let trace_id = TraceId::from(Uuid::new_v4().as_u128());
        let before = self.telemetry.metrics().snapshot();
        let task_id = match self.platform.submit(task.parent(producer(trace_id))).await {
            Ok(task_id) => task_id,
            Err(error) => panic!("the task can't be queued: {error}"),
        };
        tokio::select! {
            // An outcome counts even if the runner has ended since.
            biased;
            _ = self.platform.broker().wait_for_outcome(&task_id) => {}
            why = self.ended() => panic!("the runner stopped before the task was done: {why}"),
        }
        let outcome = match self.platform.outcome(&task_id).await {
            Ok(outcome) => outcome,
            Err(error) => panic!("the task's answer can't be read: {error}"),
        };
        self.last_span(trace_id).await;
        let after = self.telemetry.metrics().snapshot();
        TaskReport {
            task_id,
            outcome,
            spans: self.telemetry.collector().trace(trace_id),
            before,
            after,
        }
    }

    /// Waits until the runner has ended, and says why it did.
    async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "it panicked".to_owned(),
        }
    }

    /// Waits until the span around the task has ended, which is a moment after its outcome is known.
    async fn last_span(&self, trace_id: TraceId) {
        let name = spans::span::task(self.platform.engine_id());
        let began = Instant::now();
        let ended = || {
            self.telemetry
                .collector()
                .trace(trace_id)
                .iter()
                .any(|span| span.name == name)
        };
        // On the clock of the machine, because a test may have stopped tokio's.
        while !ended() && began.elapsed() < Duration::from_secs(5) {
            tokio::task::yield_now().await;
        }
    }

    /// Queue and storage, to look at events or to queue tasks in other ways.
    #[must_use]
    pub fn platform(&self) -> &LocalPlatform {
        &self.platform
    }

    /// The telemetry of the worker.
    #[must_use]
    pub fn telemetry(&self) -> &TestTelemetry {
        &self.telemetry
    }

    /// Lets the worker drain and end.
    ///
    /// # Panics
    ///
    /// If it ends with an error.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("the worker failed: {error}"),
            Err(error) => panic!("the worker failed: {error}"),
        }
    }
}

/// What is known about a task that has ended.
///
/// It prints as its outcome and its waterfall, so that `{report}` in the message of an assertion tells the story.
#[derive(Debug, Clone)]
pub struct TaskReport {
    task_id: String,
    outcome: LocalOutcome,
    spans: Vec<CollectedSpan>,
    before: MetricsSnapshot,
    after: MetricsSnapshot,
}

impl TaskReport {
    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.task_id
    }

    /// How it ended.
    #[must_use]
    pub fn outcome(&self) -> &LocalOutcome {
        &self.outcome
    }

    /// The `response.json` of the task.
    ///
    /// # Panics
    ///
    /// If the task failed.
    #[must_use]
    #[track_caller]
    pub fn response(&self) -> &TaskResponseData {
        match &self.outcome {
            LocalOutcome::Completed(response) => response,
            LocalOutcome::Failed { .. } => panic!("the task failed: {self}"),
        }
    }

    /// The answer of the engine.
    ///
    /// # Panics
    ///
    /// If the task failed.
    #[must_use]
    #[track_caller]
    pub fn output(&self) -> &Value {
        &self.response().data
    }

    /// The answer of a transcribe engine.
    ///
    /// # Panics
    ///
    /// If the task failed or the answer is not a transcript.
    #[must_use]
    #[track_caller]
    pub fn transcript(&self) -> Transcript {
        match serde_json::from_value(self.output().clone()) {
            Ok(transcript) => transcript,
            Err(error) => panic!("the answer is not a transcript: {error}: {}", self.output()),
        }
    }

    /// Why the task failed, as people read it.
    ///
    /// # Panics
    ///
    /// If it did not fail.
    #[must_use]
    #[track_caller]
    pub fn error(&self) -> &str {
        match &self.outcome {
            LocalOutcome::Failed { error, .. } => error,
            LocalOutcome::Completed(_) => panic!("the task did not fail: {self}"),
        }
    }

    /// Why the task failed, as a short static code.
    ///
    /// # Panics
    ///
    /// If it did not fail.
    #[must_use]
    #[track_caller]
    pub fn error_code(&self) -> &'static str {
        match &self.outcome {
            LocalOutcome::Failed { code, .. } => code,
            LocalOutcome::Completed(_) => panic!("the task did not fail: {self}"),
        }
    }

    /// The spans of the task, by start time.
    #[must_use]
    pub fn spans(&self) -> &[CollectedSpan] {
        &self.spans
    }

    /// The only span of that name.
    ///
    /// # Panics
    ///
    /// If there is none or more than one.
    #[must_use]
    #[track_caller]
    pub fn span(&self, name: &str) -> &CollectedSpan {
        let mut named = self.spans.iter().filter(|span| span.name == name);
        match (named.next(), named.next()) {
            (Some(span), None) => span,
            _ => panic!("there is not exactly one span {name:?}: {self}"),
        }
    }

    /// The spans of the task as a tree, to be compared with a literal.
    #[must_use]
    pub fn tree(&self) -> SpanTree {
        SpanTree::of(&self.spans)
    }

    /// By how much a metric moved while the task ran, summed over its labels. 0 if it did not.
    ///
    /// Of a histogram, ask for `…_count` or `…_sum`. Tasks that ran at the same time are included.
    #[must_use]
    pub fn moved(&self, name: &str) -> f64 {
        self.after.sum(name, &[]) - self.before.sum(name, &[])
    }

    /// Every series that moved while the task ran.
    #[must_use]
    pub fn metrics(&self) -> Vec<MetricChange> {
        self.after.diff(&self.before)
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            LocalOutcome::Completed(response) => writeln!(f, "completed with {}", response.data)?,
            LocalOutcome::Failed {
                error,
                code,
                retryable,
            } => {
                let again = if *retryable { "retryable" } else { "permanent" };
                writeln!(f, "failed ({code}, {again}): {error}")?;
            }
        }
        f.write_str(&Waterfall::new().fold_after(0).render(&self.spans))
    }
}

/// The context under which a producer would have queued the task: a span of another process.
fn producer(trace_id: TraceId) -> Context {
    let span_id = SpanId::from(1);
    let remote = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE);
    Context::new().with_remote_span_context(remote)
}

/// Files that live as long as the harness.
#[derive(Debug, Default)]
struct Files {
    dir: OnceLock<TempDir>,
}

impl Files {
    #[track_caller]
    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let made = self
            .dir
            .get_or_init(|| match TempDir::with_prefix("dalston-test-") {
                Ok(dir) => dir,
                Err(error) => panic!("no temporary directory for the test: {error}"),
            });
        let path = made.path().join(name);
        if let Err(error) = std::fs::write(&path, content) {
            panic!("{}: {error}", path.display());
        }
        path
    }
}

/// A WAV file with 32-bit floating point samples, which keeps them as they are.
fn wav(sample_rate: u32, samples: &[f32]) -> Vec<u8> {
    let data = u32::try_from(samples.len() * 4).unwrap_or(u32::MAX);
    let mut file = Vec::with_capacity(44 + samples.len() * 4);
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&data.saturating_add(36).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt ");
    file.extend_from_slice(&16_u32.to_le_bytes());
    // Format 3 is IEEE floating point; then one channel.
    file.extend_from_slice(&3_u16.to_le_bytes());
    file.extend_from_slice(&1_u16.to_le_bytes());
    file.extend_from_slice(&sample_rate.to_le_bytes());
    file.extend_from_slice(&sample_rate.saturating_mul(4).to_le_bytes());
    file.extend_from_slice(&4_u16.to_le_bytes());
    file.extend_from_slice(&32_u16.to_le_bytes());
    file.extend_from_slice(b"data");
    file.extend_from_slice(&data.to_le_bytes());
    samples
        .iter()
        .for_each(|sample| file.extend_from_slice(&sample.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::context::TaskContext;
    use crate::engine::EngineInfo;
    use crate::error::TaskError;
    use crate::load::LoadContext;
    use crate::model_id::ModelId;
    use crate::task::TaskRequest;

    /// Answers with the size of its input and the model's name, and fails if it is told to.
    struct Sizer;

    impl Engine for Sizer {
        type Model = String;
        type Output = Value;

        fn info(&self) -> EngineInfo {
            EngineInfo::new("sizer", "1.0.0").stage("measure".parse().unwrap())
        }

        fn load(&self, model: &ModelId, _cx: &LoadContext) -> Result<String, TaskError> {
            Ok(model.to_string())
        }

        fn process(
            &self,
            model: &mut String,
            task: &TaskRequest,
            _cx: &TaskContext,
        ) -> Result<Value, TaskError> {
            if let Some(reason) = task.config().get("fail") {
                return Err(TaskError::permanent("told_to", reason.to_string()));
            }
            let input = task.inputs().first().map(|input| input.path().to_owned());
            let size = input
                .map(std::fs::metadata)
                .transpose()?
                .map_or(0, |file| file.len());
            Ok(json!({ "size": size, "model": model }))
        }
    }

    #[tokio::test]
    async fn the_second_task_of_a_worker_finds_its_model_loaded() {
        let worker = EngineHarness::new(Sizer)
            .input_text("four")
            .task(|task| task.model("a"))
            .start();
        let cold = worker.run(worker.task()).await;
        let warm = worker.run(worker.task()).await;
        assert_eq!(warm.output(), &json!({ "size": 4, "model": "a" }));
        assert_eq!(
            (cold.output(), warm.task_id() == cold.task_id()),
            (warm.output(), false)
        );
        let names = |report: &TaskReport| report.tree().names().contains(&"engine.model_load");
        assert_eq!((names(&cold), names(&warm)), (true, false));
        assert_eq!(cold.moved("dalston_engine_model_load_seconds_count"), 1.0);
        assert_eq!(warm.moved("dalston_engine_model_load_seconds_count"), 0.0);
        worker.stop().await;
    }

    #[tokio::test]
    #[should_panic(expected = "the runner stopped before the task was done: it was told to stop")]
    async fn a_task_whose_runner_has_stopped_is_not_waited_for() {
        let worker = EngineHarness::new(Sizer).start();
        worker.stop.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(20), worker.run(worker.task())).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the runner stopped before the task was done: it panicked")]
    async fn a_task_whose_runner_is_gone_is_not_waited_for() {
        let worker = EngineHarness::new(Sizer).start();
        worker.running.abort();
        let _ = tokio::time::timeout(Duration::from_secs(20), worker.run(worker.task())).await;
    }

    #[test]
    fn a_report_tells_the_story_of_a_task_that_failed() {
        let report = EngineHarness::new(Sizer).config("fail", 7).run_blocking();
        assert_eq!((report.error_code(), report.error()), ("told_to", "7"));
        let story = report.to_string();
        assert!(
            story.starts_with("failed (told_to, permanent): 7\ntrace "),
            "{story}"
        );
        assert!(story.contains("engine.sizer.process"), "{story}");
    }

    #[test]
    #[should_panic(expected = "the task failed: failed (told_to, permanent): \"no\"")]
    fn the_output_of_a_task_that_failed_is_not_given() {
        let _ = EngineHarness::new(Sizer)
            .config("fail", "no")
            .run_blocking()
            .output();
    }

    #[test]
    fn samples_become_a_wav_file_that_is_as_long_as_its_header_says() {
        let file = wav(16_000, &[0.0, 0.5, -1.0]);
        assert_eq!(file.len(), 44 + 12);
        assert_eq!(file.get(4..8), Some(&48_u32.to_le_bytes()[..]));
        assert_eq!(file.get(40..44), Some(&12_u32.to_le_bytes()[..]));
        assert_eq!(file.get(52..), Some(&(-1.0_f32).to_le_bytes()[..]));
    }
}
