//! Overlapping tasks and their bounds, the models of inference threads, and the drain.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dalston_engine_sdk::broker::MemoryBroker;
use dalston_engine_sdk::protocol::TaskRequestData;
use dalston_engine_sdk::store::Store;
use dalston_engine_sdk::{CancelReason, ModelId};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;

use crate::rig::{Closures, HeldTime, Rig, answer, gate, pass, transcript};

/// Runs everything that needs no time and no open gate.
async fn settle() {
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn exactly_one_task_is_prefetched_per_slot() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        tell.send(cx.info().task_id.clone()).unwrap();
        hold.wait();
        answer()
    });
    let names = ["t1", "t2", "t3", "t4"];
    for name in names {
        rig.submit(name).await;
    }
    let downloads = || {
        rig.telemetry
            .spans()
            .iter()
            .filter(|span| span.name == "engine.download_input")
            .count()
    };
    let act = async {
        for (done, name) in names.into_iter().enumerate() {
            assert_eq!(told.recv().await.unwrap(), name);
            let here = (done + 2).min(names.len());
            while downloads() < here {
                tokio::task::yield_now().await;
            }
            settle().await;
            assert_eq!(
                downloads(),
                here,
                "the input of the next task is here while {name} is processed"
            );
            assert_eq!(
                rig.broker.waiting(),
                names.len() - here,
                "and no further task is taken"
            );
            go_on.open();
        }
        rig.outcome("t4").await.unwrap();
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn a_slow_store_delays_the_engine_after_four_uploads() {
    let rig = Rig::new();
    let blocked = BlockedPuts {
        inner: InMemory::new(),
        open: Semaphore::new(0),
        waiting: AtomicUsize::new(0),
    };
    let blocked = Arc::new(blocked);
    let store = Store::new(Arc::clone(&blocked) as Arc<dyn ObjectStore>, "dalston-artifacts");
    let rig = Rig { store, ..rig };
    let processed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&processed);
    let engine = Closures::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        answer()
    });
    blocked.open.add_permits(20);
    for number in 0..20 {
        rig.submit(&format!("t{number}")).await;
    }
    let act = async {
        // Four results are uploaded. Two more wait: each of their tasks holds one of the two
        // permits.
        let are_done =
            || processed.load(Ordering::SeqCst) >= 6 && blocked.waiting.load(Ordering::SeqCst) >= 4;
        while !are_done() {
            tokio::task::yield_now().await;
        }
        settle().await;
        assert_eq!(blocked.waiting.load(Ordering::SeqCst), 4);
        assert_eq!(processed.load(Ordering::SeqCst), 6);
        assert_eq!(rig.broker.waiting(), 14);
        blocked.open.add_permits(100);
        for number in 0..20 {
            rig.outcome(&format!("t{number}")).await.unwrap();
        }
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn every_slot_has_a_thread_and_a_model_of_its_own() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, _| {
        tell.send(std::thread::current().id()).unwrap();
        hold.wait();
        answer()
    });
    let loads = engine.loads();
    for name in ["t1", "t2", "t3"] {
        rig.submit(name).await;
    }
    let act = async {
        let mut threads = HashSet::new();
        for _ in 0..3 {
            threads.insert(told.recv().await.unwrap());
        }
        assert_eq!(
            threads.len(),
            3,
            "three tasks at the same time, each on a thread of its own"
        );
        for _ in 0..3 {
            go_on.open();
        }
        for name in ["t1", "t2", "t3"] {
            rig.outcome(name).await.unwrap();
        }
    };
    rig.run(rig.runner(engine).slots(3), act).await.1.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 3);
}

/// Runs tasks for these models one after the other and returns the loaded models in order.
async fn loads_of(
    rig: &Rig,
    builder: impl FnOnce(Closures) -> dalston_engine_sdk::RunnerBuilder<Closures>,
    models: &[&str],
) -> Vec<String> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&log);
    let engine = Closures::new(|_, _| answer()).load(move |id: &ModelId, _| {
        note.lock().unwrap().push(id.to_string());
        Ok(())
    });
    let act = async {
        for (number, model) in models.iter().enumerate() {
            let name = format!("t{number}");
            rig.submit_with(&name, |request, _, task| {
                request.config.insert("loaded_model_id".to_owned(), json!(model));
                task
            })
            .await;
            rig.outcome(&name).await.unwrap();
        }
    };
    rig.run(builder(engine), act).await.1.unwrap();
    log.lock().unwrap().clone()
}

#[tokio::test]
async fn the_least_recently_used_model_is_dropped_first() {
    let rig = Rig::new();
    let loads = loads_of(
        &rig,
        |engine| rig.runner(engine),
        &["a", "b", "a", "b", "c", "b", "a"],
    )
    .await;
    assert_eq!(loads, ["a", "b", "c", "a"]);
}

#[tokio::test]
async fn with_room_for_one_model_every_change_is_a_load() {
    let rig = Rig::new();
    let loads = loads_of(
        &rig,
        |engine| rig.runner(engine).max_loaded_models(1),
        &["a", "a", "b", "a"],
    )
    .await;
    assert_eq!(loads, ["a", "b", "a"]);
}

#[tokio::test]
async fn a_task_goes_to_the_thread_that_has_its_model() {
    const MODELS: [&str; 12] = ["a", "b", "b", "a", "a", "b", "b", "b", "a", "b", "a", "a"];
    // A thread that is not free yet leaves its task to the other one, which happens if the machine
    // is busy, but not each time.
    for _ in 0..20 {
        let rig = Rig::new();
        let builder = |engine| rig.runner(engine).slots(2).max_loaded_models(1);
        if loads_of(&rig, builder, &MODELS).await == ["a", "b"] {
            return;
        }
    }
    panic!("threads load models that others have");
}

#[tokio::test]
async fn the_model_of_the_metadata_wins_over_the_config() {
    let rig = Rig::new();
    let engine = Closures::new(|_, cx| Ok(json!({"model": cx.info().model.as_str()})));
    rig.submit_with("t1", |request, metadata, task| {
        request
            .config
            .insert("loaded_model_id".to_owned(), json!("of-config"));
        metadata.model = Some("of-metadata".to_owned());
        task
    })
    .await;
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    assert_eq!(outcome, Ok(json!({"model": "of-metadata"})));
}

#[tokio::test]
async fn an_idle_model_is_dropped_on_its_own_thread() {
    /// Sends the thread on which it was dropped.
    struct Watched(tokio::sync::mpsc::UnboundedSender<ThreadId>);
    impl Drop for Watched {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }
    use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, Stage, TaskContext, TaskError, TaskRequest};
    struct Loader(tokio::sync::mpsc::UnboundedSender<ThreadId>);
    impl Engine for Loader {
        type Model = (Watched, ThreadId);
        type Output = serde_json::Value;
        fn info(&self) -> EngineInfo {
            EngineInfo::new("test-asr", "1").stage(Stage::Transcribe)
        }
        fn load(&self, _: &ModelId, _: &LoadContext) -> Result<Self::Model, TaskError> {
            Ok((Watched(self.0.clone()), std::thread::current().id()))
        }
        fn process(
            &self,
            model: &mut Self::Model,
            _: &TaskRequest,
            _: &TaskContext,
        ) -> Result<Self::Output, TaskError> {
            self.0.send(model.1)?;
            answer().map(transcript)
        }
    }
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (dropped, mut drops) = unbounded_channel();
    let builder = rig.runner(Loader(dropped)).model_ttl(Duration::from_secs(100));
    let act = async {
        rig.submit("t1").await;
        rig.outcome("t1").await.unwrap();
        let home = drops.recv().await.unwrap();
        for _ in 0..9 {
            pass(Duration::from_secs(10)).await;
        }
        assert!(drops.try_recv().is_err(), "dropped too early");
        for _ in 0..5 {
            pass(Duration::from_secs(10)).await;
        }
        assert_eq!(drops.recv().await.unwrap(), home);
    };
    rig.run(builder, act).await.1.unwrap();
}

#[tokio::test]
async fn the_idle_time_of_a_model_begins_when_its_task_ends() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (long, go_on) = gate();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        if cx.info().task_id == "long" {
            tell.send(()).unwrap();
            long.wait();
        }
        answer()
    });
    let loads = engine.loads();
    let act = async {
        rig.submit("long").await;
        told.recv().await.unwrap();
        for _ in 0..20 {
            pass(Duration::from_secs(10)).await;
        }
        go_on.open();
        rig.outcome("long").await.unwrap();
        for _ in 0..9 {
            pass(Duration::from_secs(10)).await;
        }
        rig.submit("next").await;
        rig.outcome("next").await.unwrap();
    };
    let builder = rig.runner(engine).model_ttl(Duration::from_secs(100));
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_preloaded_model_is_there_before_the_first_task_is_taken() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let engine = Closures::new(|_, _| answer()).load(move |_, _| {
        hold.wait();
        Ok(())
    });
    let loads = engine.loads();
    rig.submit("t1").await;
    let act = async {
        while loads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        settle().await;
        assert_eq!(
            rig.broker.waiting(),
            1,
            "a worker that is not ready leaves the task to its peers"
        );
        go_on.open();
        rig.outcome("t1").await.unwrap();
    };
    rig.run(rig.runner(engine).preload(ModelId::default()), act)
        .await
        .1
        .unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let load = rig.telemetry.span("engine.model_load");
    assert_ne!(load.trace_id, rig.telemetry.span("engine.process").trace_id);
}

#[tokio::test]
async fn a_drain_hands_back_waiting_tasks_and_finishes_running_ones() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        tell.send(cx.info().task_id.clone()).unwrap();
        hold.wait();
        answer()
    });
    for name in ["running", "waiting", "queued"] {
        rig.submit(name).await;
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let runner = rig.runner(engine).build().unwrap();
    let run = rig.telemetry.attach(runner.run_until(async {
        let _ = stopped.await;
    }));
    let act = async {
        assert_eq!(told.recv().await.unwrap(), "running");
        while rig.broker.held() < 2 {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        while rig.broker.held() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.broker.waiting(), 2, "while the running task still runs");
        go_on.open();
        rig.outcome("running").await.unwrap();
    };
    let (run, ()) = tokio::join!(run, act);
    run.unwrap();
    assert_eq!((rig.broker.held(), rig.broker.waiting()), (0, 2));
    assert!(told.try_recv().is_err(), "nothing else was begun");
    let events = rig.events();
    assert_eq!(
        events
            .iter()
            .filter(|event| !event.ends_with("started"))
            .collect::<Vec<_>>(),
        ["running completed"]
    );
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn a_task_that_exceeds_the_drain_timeout_is_handed_back() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (tell, mut told) = unbounded_channel();
    let reason = Arc::new(Mutex::new(None));
    let note = Arc::clone(&reason);
    let engine = Closures::new(move |_, cx| {
        tell.send(()).unwrap();
        loop {
            if let Err(error) = cx.check_cancelled() {
                *note.lock().unwrap() = cx.cancel_reason();
                return Err(error);
            }
            std::thread::yield_now();
        }
    });
    rig.submit("t1").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let runner = rig
        .runner(engine)
        .drain_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let run = rig.telemetry.attach(runner.run_until(async {
        let _ = stopped.await;
    }));
    let act = async {
        told.recv().await.unwrap();
        stop.send(()).unwrap();
        settle().await;
        pass(Duration::from_secs(19)).await;
        assert_eq!(*reason.lock().unwrap(), None);
        pass(Duration::from_secs(2)).await;
    };
    let (run, ()) = tokio::join!(run, act);
    run.unwrap();
    assert_eq!(*reason.lock().unwrap(), Some(CancelReason::Shutdown));
    assert_eq!(rig.events(), ["t1 started"]);
    assert_eq!((rig.broker.held(), rig.broker.waiting()), (0, 1));
}

#[tokio::test]
async fn a_task_that_ends_at_the_drain_timeout_keeps_its_result() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        tell.send(()).unwrap();
        while cx.check_cancelled().is_ok() {
            std::thread::yield_now();
        }
        answer()
    });
    rig.submit("t1").await;
    let builder = rig.runner(engine).drain_timeout(Duration::from_secs(20));
    let ((), run) = rig
        .run(builder, async {
            told.recv().await.unwrap();
            tokio::spawn(async {
                settle().await;
                pass(Duration::from_secs(21)).await;
            });
        })
        .await;
    run.unwrap();
    assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
    assert_eq!(rig.response("t1").await, json!({"text": "hello"}));
    assert_eq!((rig.broker.held(), rig.broker.waiting()), (0, 0));
}

#[tokio::test]
async fn a_task_with_an_unstored_result_is_handed_back() {
    let _time = HeldTime::new();
    let blocked = Arc::new(BlockedPuts {
        inner: InMemory::new(),
        open: Semaphore::new(1),
        waiting: AtomicUsize::new(0),
    });
    let store = Store::new(Arc::clone(&blocked) as Arc<dyn ObjectStore>, "dalston-artifacts");
    let rig = Rig { store, ..Rig::new() };
    rig.submit("t1").await;
    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .drain_timeout(Duration::from_secs(20));
    let ((), run) = rig
        .run(builder, async {
            while blocked.waiting.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            tokio::spawn(async {
                settle().await;
                pass(Duration::from_secs(21)).await;
                pass(Duration::from_secs(2)).await;
            });
        })
        .await;
    run.unwrap();
    assert_eq!(rig.events(), ["t1 started"]);
    assert_eq!((rig.broker.held(), rig.broker.waiting()), (0, 1));
}

#[tokio::test]
async fn a_worker_without_tasks_stops_at_once() {
    let rig = Rig::with_broker(MemoryBroker::new());
    let ((), run) = rig
        .run(rig.runner(Closures::new(|_, _| answer())), async {})
        .await;
    run.unwrap();
}

#[test]
fn an_invalid_runner_is_refused_with_a_reason() {
    let rig = Rig::new();
    let engine = || Closures::new(|_, _| answer());
    let refused =
        |builder: dalston_engine_sdk::RunnerBuilder<Closures>| builder.build().unwrap_err().to_string();
    assert_eq!(
        refused(rig.runner(engine()).slots(0)),
        "slots is 0: expected a whole number from 1 to 1024"
    );
    assert_eq!(
        refused(rig.runner(engine()).slots(usize::MAX)),
        format!("slots is {}: expected a whole number from 1 to 1024", usize::MAX)
    );
    let nowhere = dalston_engine_sdk::Runner::builder(engine());
    assert_eq!(
        refused(nowhere),
        "the runner has no broker: give it one with Runner::builder(..).broker(..)"
    );
    let mut config = dalston_engine_sdk::RunnerConfig::default();
    config.engine_id = Some("My Engine".to_owned());
    assert_eq!(
        refused(rig.runner(engine()).config(config)),
        "engine \"My Engine\": its id must have 1 to 64 lower-case letters, digits, dots, dashes and underscores"
    );
}

/// A store that delays every write until a permit is available.
#[derive(Debug)]
struct BlockedPuts {
    inner: InMemory,
    open: Semaphore,
    waiting: AtomicUsize,
}

impl std::fmt::Display for BlockedPuts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockedPuts")
    }
}

#[async_trait]
impl ObjectStore for BlockedPuts {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// How long this thread has run, without the time that others had its processor.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_large_document_does_not_stop_the_runtime() {
    let rig = Rig::new();
    let numbers = json!(vec![0.25; 1 << 20]);
    let mut text = Vec::new();
    rig.submit_with("t1", |request, _, task| {
        request.previous_responses.insert("prepare".to_owned(), numbers);
        text = request.to_vec();
        task
    })
    .await;
    let reading = on_processor();
    TaskRequestData::from_slice(&text).unwrap();
    let reading = on_processor() - reading;

    let engine = Closures::new(|task, _| Ok(task.previous("prepare").unwrap().clone()));
    let longest_pause = async {
        let mut longest = Duration::ZERO;
        let mut ended = std::pin::pin!(rig.broker.wait_for_outcome("t1"));
        loop {
            let began = on_processor();
            tokio::select! {
                _ = &mut ended => break longest,
                () = tokio::time::sleep(Duration::from_millis(1)) => longest = longest.max(on_processor() - began),
            }
        }
    };
    let (longest_pause, ended) = rig.run(rig.runner(engine), longest_pause).await;
    ended.unwrap();
    assert!(
        longest_pause < reading / 2,
        "{longest_pause:?} without the runtime, {reading:?} to read the request",
    );
}
