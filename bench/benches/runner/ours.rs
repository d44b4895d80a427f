//! The runner of this SDK with an engine that does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use dalston_engine_sdk::store::{S3Config, Store, key};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Runner, Stage, TaskContext, TaskError, TaskRequest,
};
use dalston_telemetry::{Env, Telemetry, TelemetryHandle};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::figures::Stopwatch;
use crate::platform::{Address, ENGINE, Platform, job_id, original, task_id, write_requests};
use crate::wait_until;
use bench::machine;

/// An engine that calls a function for every task and returns an empty result.
pub(crate) struct NoOp<F>(pub(crate) F);

impl<F: Fn(&TaskContext) + Send + Sync + 'static> Engine for NoOp<F> {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new(ENGINE, "1").stage(Stage::Transcribe)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), _: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        (self.0)(cx);
        Ok(json!({"text": "", "segments": [], "language": "und", "engine_id": ENGINE}))
    }
}

/// A runtime like that of the command `run`.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("runner")
        .enable_all()
        .build()
        .unwrap()
}

/// Telemetry that exports to this collector, or none for `off`.
pub(crate) fn telemetry(collector: &str) -> Option<Telemetry> {
    let env = Env::from_pairs([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ]);
    let builder = Telemetry::builder(ENGINE).env(env).enabled(true).without_logs();
    (collector != "off").then(|| builder.install().unwrap())
}

pub(crate) fn handle(telemetry: Option<&Telemetry>) -> TelemetryHandle {
    telemetry.map_or_else(TelemetryHandle::disabled, Telemetry::handle)
}

pub(crate) fn throughput(redis: &str, tasks: usize, slots: usize, collector: &str) -> Value {
    let telemetry = telemetry(collector);
    let store = Store::memory();
    runtime().block_on(write_requests(&store, 0..tasks, None));
    measure(redis, tasks, slots, &store, telemetry.as_ref())
}

pub(crate) fn with_s3(redis: &str, tasks: usize, slots: usize, s3: &str, collector: &str) -> Value {
    let telemetry = telemetry(collector);
    let store = bucket(s3);
    runtime().block_on(write_requests(&store, 0..tasks, Some(&artifact())));
    measure(redis, tasks, slots, &store, telemetry.as_ref())
}

/// Sends the requests of a task to S3 and does nothing else.
pub(crate) fn storage_alone(redis: &str, tasks: usize, concurrency: usize, s3: &str) -> Value {
    let store = bucket(s3);
    let runtime = runtime();
    runtime.block_on(write_requests(&store, 0..tasks, Some(&artifact())));
    let stopwatch = Stopwatch::start(Address::parse(redis).pid);
    let work = async move {
        let all = futures_util::stream::iter(0..tasks).map(|number| {
            let (job, task) = (job_id(number), task_id(number));
            let store = &store;
            async move {
                for key in [key::task_request(&job, &task), original(&job)] {
                    store.read(&store.locator(&key), usize::MAX).await.unwrap();
                }
                store.write(&key::task_response(&job, &task), "{}").await.unwrap();
            }
        });
        all.buffer_unordered(concurrency).for_each(|()| async {}).await;
    };
    // On a worker thread of the runtime, as the runner.
    runtime.block_on(async { tokio::spawn(work).await.unwrap() });
    stopwatch.stop(tasks)
}

fn bucket(endpoint: &str) -> Store {
    let mut settings = S3Config::default();
    settings.endpoint = Some(endpoint.to_owned());
    settings.credentials = [
        ("AWS_ACCESS_KEY_ID", "test-id"),
        ("AWS_SECRET_ACCESS_KEY", "test-secret"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    Store::s3(settings).unwrap()
}

fn artifact() -> String {
    "RIFF".repeat(1_000)
}

/// Measures a runner with tasks that are queued before it starts.
fn measure(redis: &str, tasks: usize, slots: usize, store: &Store, telemetry: Option<&Telemetry>) -> Value {
    let redis = Address::parse(redis);
    let mut platform = Platform::connect(redis.url, telemetry.is_some());
    platform.describe(0..tasks);
    platform.queue(0..tasks);
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let engine = NoOp(move |_: &TaskContext| {
        count.fetch_add(1, Ordering::Relaxed);
    });

    let stopwatch = Stopwatch::start(redis.pid);
    let runtime = runtime();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = start(&runtime, engine, redis.url, store, slots, telemetry, stopped);
    wait_until(|| done.load(Ordering::Relaxed) >= tasks && platform.pending() == 0);
    let mut figures = stopwatch.stop(tasks);
    stop.send(()).unwrap();
    runtime.block_on(running).unwrap();
    assert_eq!(done.load(Ordering::Relaxed), tasks, "each task ran once");
    assert_eq!(
        platform.events(),
        2 * tasks,
        "each task was started and completed"
    );
    if let Some(telemetry) = telemetry {
        figures["dropped_spans"] = telemetry.handle().export_stats().dropped_total().into();
    }
    figures
}

/// Samples the memory of a runner over many tasks. The ids repeat, so that the data of the platform
/// does not grow.
pub(crate) fn memory(redis: &str, tasks: usize) -> Value {
    const IDS: usize = 10_000;
    let redis = Address::parse(redis);
    let store = Store::memory();
    let runtime = runtime();
    runtime.block_on(write_requests(&store, 0..IDS, None));
    let mut platform = Platform::connect(redis.url, false);
    platform.describe(0..IDS);
    platform.make_group();
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let engine = NoOp(move |_: &TaskContext| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = start(&runtime, engine, redis.url, &store, 64, None, stopped);
    let mut samples = Vec::new();
    for round in 0..tasks / IDS {
        platform.queue(0..IDS);
        // One round of tasks is always queued, so that the worker is never idle.
        wait_until(|| done.load(Ordering::Relaxed) >= round * IDS);
        if (round + 1) % (tasks / IDS / 10).max(1) == 0 {
            samples.push(machine::resident_mib(std::process::id()));
        }
    }
    stop.send(()).unwrap();
    runtime.block_on(running).unwrap();
    json!({"samples": samples})
}

pub(crate) fn start<F: Fn(&TaskContext) + Send + Sync + 'static>(
    runtime: &Runtime,
    engine: NoOp<F>,
    url: &str,
    store: &Store,
    slots: usize,
    telemetry: Option<&Telemetry>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> tokio::task::JoinHandle<()> {
    let _inside = runtime.enter();
    let runner = Runner::builder(engine)
        .broker(RedisBroker::new(RedisServer::new(url).unwrap()))
        .store(store.clone())
        .telemetry(handle(telemetry))
        .slots(slots)
        .drain_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    runtime.spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        runner.run_until(shutdown).await.unwrap();
    })
}
