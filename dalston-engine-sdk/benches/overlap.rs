//! The overlap of download, inference and upload, and the cost of the runner itself for a task.
//!
//! `cargo xtask bench overlap`. The times are sleeps, so that machine and build profile hardly
//! matter: a store that takes 200 ms in each direction, an engine that takes 200 ms, and one
//! inference thread. The peer is a serial loop with the same steps in the same run. The second part
//! measures tasks whose steps take no time.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use dalston_engine_sdk::broker::{MemoryBroker, QueuedTask, TaskMetadata};
use dalston_engine_sdk::protocol::{ArtifactReference, TaskRequestData};
use dalston_engine_sdk::store::{Store, key};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Runner, Stage, TaskContext, TaskError, TaskRequest,
};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use serde_json::{Value, json};
use testbed::report::{Report, is_quick, number};

const TASKS: usize = 50;
/// Percent of the time from the first start of inference to the last end.
const LIMIT_BUSY: f64 = 95.0;
const INFERENCE: Duration = Duration::from_millis(200);
/// A task reads two objects, `request.json` and its audio, and writes one object.
const PER_GET: Duration = Duration::from_millis(100);
const PER_PUT: Duration = Duration::from_millis(200);
const AUDIO: &str = "jobs/shared/audio.wav";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut report = Report::start(&["tokio"]);
    let tasks = if is_quick() { 10 } else { TASKS };
    let serial = 100.0 * runtime.block_on(serial_loop(tasks));
    let overlapped = 100.0 * runtime.block_on(through_runner(tasks));
    if !is_quick() {
        report.at_least("busy inference thread", LIMIT_BUSY, overlapped, "%");
    }
    report.table(
        &format!("{tasks} tasks; store 200 ms in each direction, inference 200 ms, one inference thread:"),
        ["", "Inference thread busy, %"],
        &[("a serial loop", serial), ("the runner", overlapped)]
            .map(|(name, busy)| [name.to_owned(), number(busy)]),
    );
    report.table(
        "Tasks whose steps take no time, from memory:",
        ["", "Tasks/s", "Microseconds for a task"],
        &[1, 2].map(|slots| {
            let rate = runtime.block_on(empty_tasks(slots));
            [format!("{slots} slots"), number(rate), number(1e6 / rate)]
        }),
    );
    report.finish();
}

/// The start and end of inference of each task.
type Intervals = Arc<Mutex<Vec<(Instant, Instant)>>>;

struct Sleeper {
    duration: Duration,
    intervals: Intervals,
}

impl Engine for Sleeper {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("sleeper", "1").stage(Stage::Transcribe)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), _: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
        infer(self.duration, &self.intervals);
        Ok(json!({"text": "", "segments": [], "language": "und", "engine_id": "sleeper"}))
    }
}

fn infer(duration: Duration, intervals: &Intervals) {
    let begun = Instant::now();
    if !duration.is_zero() {
        thread::sleep(duration);
    }
    intervals.lock().unwrap().push((begun, Instant::now()));
}

/// The busy part of the time from the first start to the last end.
fn busy_ratio(intervals: &Intervals) -> f64 {
    let intervals = intervals.lock().unwrap();
    let busy: Duration = intervals.iter().map(|(begun, ended)| *ended - *begun).sum();
    let first = intervals.iter().map(|(begun, _)| *begun).min().unwrap();
    let last = intervals.iter().map(|(_, ended)| *ended).max().unwrap();
    busy.as_secs_f64() / (last - first).as_secs_f64()
}

async fn through_runner(tasks: usize) -> f64 {
    let intervals = Intervals::default();
    let engine = Sleeper {
        duration: INFERENCE,
        intervals: Arc::clone(&intervals),
    };
    run(engine, slow_store(), tasks, 1).await;
    busy_ratio(&intervals)
}

async fn serial_loop(tasks: usize) -> f64 {
    let intervals = Intervals::default();
    let store = slow_store();
    for number in 0..tasks {
        let name = format!("t{number}");
        submit(&store.1, &name).await;
        let request = store
            .0
            .read(&store.0.locator(&key::task_request(&name, &name)), 1 << 20)
            .await
            .unwrap();
        let request = TaskRequestData::from_slice(&request).unwrap();
        let audio = &request.artifact_index["audio"].storage_locator;
        store.0.read(audio, 1 << 20).await.unwrap();
        let intervals = Arc::clone(&intervals);
        tokio::task::spawn_blocking(move || infer(INFERENCE, &intervals))
            .await
            .unwrap();
        store
            .0
            .write(&key::task_response(&name, &name), "{}")
            .await
            .unwrap();
    }
    busy_ratio(&intervals)
}

async fn empty_tasks(slots: usize) -> f64 {
    let count = 2_000;
    let store = Store::memory();
    let begun = Instant::now();
    let engine = Sleeper {
        duration: Duration::ZERO,
        intervals: Intervals::default(),
    };
    run(engine, (store.clone(), store), count, slots).await;
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Runs tasks through a real runner. The second store is the first one without its delays.
async fn run(engine: Sleeper, (store, fast): (Store, Store), count: usize, slots: usize) {
    let broker = MemoryBroker::new();
    for number in 0..count {
        let name = format!("t{number}");
        submit(&fast, &name).await;
        let task = QueuedTask::new("sleeper", &name, &name).metadata(TaskMetadata::new("transcribe"));
        broker.enqueue(task).unwrap();
    }
    let runner = Runner::builder(engine)
        .broker(broker.clone())
        .store(store)
        .slots(slots)
        .build()
        .unwrap();
    let all_done = async move {
        while broker.waiting() + broker.held() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    runner.run_until(all_done).await.unwrap();
}

async fn submit(store: &Store, name: &str) {
    let audio = store.write(AUDIO, "RIFF").await.unwrap();
    let mut request = TaskRequestData::new(name, name);
    let reference = ArtifactReference::new("audio", "audio", audio);
    request.artifact_index.insert("audio".to_owned(), reference);
    request
        .resolved_artifact_ids
        .insert("audio".to_owned(), "audio".to_owned());
    store
        .write(&key::task_request(name, name), request.to_vec())
        .await
        .unwrap();
}

fn slow_store() -> (Store, Store) {
    let objects = Arc::new(InMemory::new());
    let slow = Store::new(Arc::new(Slow(Arc::clone(&objects))), "bench");
    (slow, Store::new(objects, "bench"))
}

/// A store with the latency of a network.
#[derive(Debug)]
struct Slow(Arc<InMemory>);

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("slow store")
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        tokio::time::sleep(PER_PUT).await;
        self.0.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        tokio::time::sleep(PER_GET).await;
        self.0.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.0.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
