//! A worker in a test: an engine made of closures, the broker and the store in memory, telemetry of
//! its own.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dalston_engine_sdk::broker::{EventKind, MemoryBroker, QueuedTask, RecordedEvent, TaskMetadata};
use dalston_engine_sdk::protocol::TaskRequestData;
use dalston_engine_sdk::store::{Store, key};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, RunError, Runner, RunnerBuilder, Stage, StartContext,
    TaskContext, TaskError, TaskRequest,
};
use dalston_telemetry::testing::{SpanTree, TestTelemetry};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A model that is not `Send`, and counts its uses.
pub(crate) type Model = Rc<Cell<usize>>;

type Start = Box<dyn FnMut(&StartContext) + Send + Sync>;
type Load = Box<dyn Fn(&ModelId, &LoadContext) -> Result<(), TaskError> + Send + Sync>;
type Process = Box<dyn Fn(&Model, &TaskRequest, &TaskContext) -> Result<Value, TaskError> + Send + Sync>;

/// An engine made of closures.
pub(crate) struct Closures {
    start: Start,
    load: Load,
    process: Process,
    loads: Arc<AtomicUsize>,
}

impl Closures {
    pub(crate) fn new(
        process: impl Fn(&TaskRequest, &TaskContext) -> Result<Value, TaskError> + Send + Sync + 'static,
    ) -> Self {
        Self::with_model(move |_, task, cx| process(task, cx))
    }

    pub(crate) fn with_model(
        process: impl Fn(&Model, &TaskRequest, &TaskContext) -> Result<Value, TaskError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            start: Box::new(|_| {}),
            load: Box::new(|_, _| Ok(())),
            process: Box::new(process),
            loads: Arc::default(),
        }
    }

    pub(crate) fn start(mut self, start: impl FnMut(&StartContext) + Send + Sync + 'static) -> Self {
        self.start = Box::new(start);
        self
    }

    pub(crate) fn load(
        mut self,
        load: impl Fn(&ModelId, &LoadContext) -> Result<(), TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.load = Box::new(load);
        self
    }

    /// The number of model loads.
    pub(crate) fn loads(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.loads)
    }
}

impl Engine for Closures {
    type Model = Model;
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("test-asr", "1.0.0")
            .stage(Stage::Transcribe)
            .default_model("tiny")
    }

    fn start(&mut self, cx: &StartContext) {
        (self.start)(cx);
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Model, TaskError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        (self.load)(model, cx)?;
        Ok(Rc::new(Cell::new(0)))
    }

    fn process(&self, model: &mut Model, task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        model.set(model.get() + 1);
        let answer = (self.process)(model, task, cx)?;
        Ok(match task.stage().stage() {
            Stage::Transcribe => transcript(answer),
            _ => answer,
        })
    }
}

/// Queue, store and telemetry of one test.
pub(crate) struct Rig {
    pub(crate) broker: MemoryBroker,
    pub(crate) store: Store,
    pub(crate) telemetry: TestTelemetry,
    pub(crate) temp: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        // Long leases, for tests that let hours pass in one step.
        Self::with_broker(MemoryBroker::with(Duration::from_secs(100_000), 1_000))
    }

    pub(crate) fn with_broker(broker: MemoryBroker) -> Self {
        let temp = tempfile::tempdir().unwrap();
        Self {
            broker,
            store: Store::memory(),
            telemetry: TestTelemetry::new(),
            temp,
        }
    }

    /// Stores a request and queues its task, with ids derived from `name`.
    pub(crate) async fn submit(&self, name: &str) {
        self.submit_with(name, |_, _, task| task).await;
    }

    pub(crate) async fn submit_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut TaskRequestData, &mut TaskMetadata, QueuedTask) -> QueuedTask,
    ) {
        let job = job_of(name);
        let mut request = TaskRequestData::new(name, &job);
        let mut metadata = TaskMetadata::new("transcribe");
        let task = change(
            &mut request,
            &mut metadata,
            QueuedTask::new("test-asr", name, &job),
        );
        let metadata = task.metadata.clone().unwrap_or(metadata);
        self.store
            .write(&key::task_request(&job, name), request.to_vec())
            .await
            .unwrap();
        self.broker.enqueue(task.metadata(metadata)).unwrap();
    }

    pub(crate) fn runner<E: Engine>(&self, engine: E) -> RunnerBuilder<E> {
        Runner::builder(engine)
            .broker(self.broker.clone())
            .store(self.store.clone())
            .telemetry(self.telemetry.handle())
            .temp_root(self.temp.path())
    }

    /// Runs a worker until `act` is done.
    pub(crate) async fn run<R>(
        &self,
        builder: RunnerBuilder<impl Engine>,
        act: impl Future<Output = R>,
    ) -> (R, Result<(), RunError>) {
        self.run_runner(builder.build().unwrap(), act).await
    }

    /// As [`run`](Self::run), for a built worker.
    pub(crate) async fn run_runner<R>(
        &self,
        runner: Runner,
        act: impl Future<Output = R>,
    ) -> (R, Result<(), RunError>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let run = self.telemetry.attach(runner.run_until(async {
            let _ = stopped.await;
        }));
        let act = async {
            let result = act.await;
            let _ = stop.send(());
            result
        };
        let (run, result) = tokio::join!(run, act);
        (result, run)
    }

    /// The outcome of a task: the data of its answer, or the code and the text of its error.
    pub(crate) async fn outcome(&self, name: &str) -> Result<Value, (String, String)> {
        match self.broker.wait_for_outcome(name).await.kind {
            EventKind::Completed { .. } => match self.stored_response(name).await {
                Some(data) => Ok(data),
                None => Err((
                    "no_response".to_owned(),
                    "completed without a response".to_owned(),
                )),
            },
            EventKind::Failed { error, code, .. } => Err((code.to_owned(), error)),
            other => panic!("not an outcome: {other:?}"),
        }
    }

    /// The `data` of a task's response.
    pub(crate) async fn response(&self, name: &str) -> Value {
        self.stored_response(name).await.expect("a response")
    }

    async fn stored_response(&self, name: &str) -> Option<Value> {
        let locator = self.store.locator(&key::task_response(&job_of(name), name));
        let bytes = self.store.read(&locator, 1 << 20).await.ok()?;
        Some(answer_in(
            serde_json::from_slice::<Value>(&bytes).unwrap()["data"].take(),
        ))
    }

    /// The spans that have ended, as a tree, see [`without_waits`].
    pub(crate) fn tree(&self) -> SpanTree {
        without_waits(&self.telemetry)
    }

    /// The events of the broker, as `task event`.
    pub(crate) fn events(&self) -> Vec<String> {
        self.broker.events().iter().map(describe).collect()
    }

    /// The number of directories of tasks.
    pub(crate) fn temp_dirs(&self) -> usize {
        std::fs::read_dir(self.temp.path()).unwrap().count()
    }
}

/// The spans that have ended, as a tree, without the waits for a thread: a slow machine has short
/// ones.
pub(crate) fn without_waits(telemetry: &TestTelemetry) -> SpanTree {
    let mut spans = telemetry.spans();
    spans.retain(|span| span.name != "engine.slot_wait");
    SpanTree::of(&spans)
}

pub(crate) fn job_of(task: &str) -> String {
    format!("job-of-{task}")
}

fn describe(event: &RecordedEvent) -> String {
    let what = match &event.kind {
        EventKind::Started => "started".to_owned(),
        EventKind::Completed { .. } => "completed".to_owned(),
        EventKind::Failed { code, .. } => format!("failed {code}"),
        other => format!("{other:?}"),
    };
    format!("{} {what}", event.task_id)
}

/// Where [`transcript`] puts an answer.
const ANSWER: &str = "/metadata/answer";

/// The smallest transcript, which the platform accepts. It carries the answer of a test in its
/// metadata, unless that is a transcript itself.
pub(crate) fn transcript(answer: Value) -> Value {
    if answer.get("segments").is_some() {
        return answer;
    }
    json!({
        "text": "",
        "segments": [],
        "language": "und",
        "engine_id": "test-asr",
        "metadata": {"answer": answer},
    })
}

/// The answer of a test inside of a [`transcript`].
pub(crate) fn answer_in(mut data: Value) -> Value {
    match data.pointer_mut(ANSWER) {
        Some(answer) => answer.take(),
        None => data,
    }
}

/// The answer of an engine.
pub(crate) fn answer() -> Result<Value, TaskError> {
    Ok(json!({"text": "hello"}))
}

/// Two ends of a gate: the engine waits at one, and the test opens the other.
pub(crate) fn gate() -> (Gate, Opener) {
    let (open, opened) = mpsc::channel();
    (Gate(Arc::new(std::sync::Mutex::new(opened))), Opener(open))
}

#[derive(Clone)]
pub(crate) struct Gate(Arc<std::sync::Mutex<mpsc::Receiver<()>>>);

impl Gate {
    /// Blocks the thread until the gate is opened once for this call, or is dropped.
    pub(crate) fn wait(&self) {
        let _ = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .recv();
    }
}

#[derive(Clone)]
pub(crate) struct Opener(mpsc::Sender<()>);

impl Opener {
    pub(crate) fn open(&self) {
        let _ = self.0.send(());
    }
}

/// Keeps tokio from advancing a paused clock while only an inference thread is busy.
pub(crate) struct HeldTime {
    _release: mpsc::Sender<()>,
}

impl HeldTime {
    /// Pauses the clock. Only [`pass`] moves it.
    pub(crate) fn new() -> Self {
        tokio::time::pause();
        let (release, released) = mpsc::channel::<()>();
        // tokio does not advance a paused clock while a thread of this pool is blocked.
        tokio::task::spawn_blocking(move || {
            let _ = released.recv();
        });
        Self { _release: release }
    }
}

/// Advances a held clock and runs everything that waited for it.
pub(crate) async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    // tokio polls timers every 61 ticks of the scheduler, and woken tasks may set further ones.
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
}
