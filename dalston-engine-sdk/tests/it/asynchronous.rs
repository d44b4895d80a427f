//! Engines with asynchronous back ends and with helper threads.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dalston_engine_sdk::{CancelReason, DirectTask, EngineConfig, LoadContext, TaskError, TaskErrorKind};
use dalston_telemetry::context::LogContext;
use dalston_telemetry::tracing::{info, info_span};
use rayon::prelude::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use crate::rig::{Closures, HeldTime, Rig, answer, answer_in, job_of, pass};

/// Asks a server for a byte, after a moment.
async fn ask(server: SocketAddr) -> std::io::Result<u8> {
    sleep(Duration::from_millis(1)).await;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(b"?").await?;
    stream.read_u8().await
}

/// A server that answers each question with 7, on the runtime of the caller.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read_u8().await.is_ok() {
                let _ = stream.write_u8(7).await;
            }
        }
    });
    address
}

/// What an engine noted in its tasks.
fn notes<T: Send + 'static>() -> (impl Fn(T) + Clone + Send + Sync, Arc<Mutex<Vec<T>>>) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&notes);
    let note = move |value| kept.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    (note, notes)
}

fn task_id() -> String {
    LogContext::current()
        .get("task_id")
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_future_continues_span_and_log_fields_of_its_task() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, cx| {
        let scope = cx.scope();
        // Made outside of a future.
        cx.block_on(sleep(Duration::from_millis(1)))?;
        cx.block_on(async {
            sleep(Duration::from_millis(1)).await;
            info_span!("engine.ask").in_scope(|| info!("asked"));
            let spawned = tokio::spawn(scope.attach(async {
                tokio::task::yield_now().await;
                info_span!("engine.ask_in_background").in_scope(|| info!("asked_in_background"));
                task_id()
            }));
            Ok(json!([task_id(), spawned.await?]))
        })?
    });
    let (outcome, run) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    run.unwrap();
    assert_eq!(outcome, Ok(json!(["t1", "t1"])));
    rig.tree().assert_eq(
        "
        engine.queue_wait
        engine.test-asr.process
          engine.download_input
          engine.model_acquire
            engine.model_load
          engine.process
            engine.ask
            engine.ask_in_background
          engine.upload_output
        ",
    );
    let lines = rig.telemetry.logs();
    let asked: Vec<_> = lines
        .iter()
        .filter(|line| line.event().starts_with("asked"))
        .collect();
    assert_eq!(asked.len(), 2, "{lines:?}");
    assert!(
        asked
            .iter()
            .all(|line| line.field("task_id") == Some(&"t1".into())),
        "{asked:?}"
    );
}

/// As `run` does it: one thread serves the worker and the sockets of its engine.
#[test]
fn slots_await_together_on_a_runtime_with_one_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let work = async {
        let rig = Rig::new();
        let server = server().await;
        let engine = Closures::new(move |_, cx| Ok(json!(cx.block_on(ask(server))??)))
            .load(move |_, cx| Ok(cx.block_on(async { ask(server).await.map(drop) })??));
        let runner = rig.runner(engine).slots(2).build().unwrap();
        let direct = runner.direct();
        let file = rig.temp.path().join("talk.txt");
        std::fs::write(&file, "talk").unwrap();
        let names: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
        for name in &names {
            rig.submit(name).await;
        }
        let act = async {
            for name in &names {
                assert_eq!(rig.outcome(name).await, Ok(json!(7)));
            }
            let task = DirectTask::for_file(&file);
            direct.submit(task, Duration::from_secs(60)).await.unwrap()
        };
        let (answer, ended) = rig.run_runner(runner, act).await;
        ended.unwrap();
        assert_eq!(answer_in(answer), json!(7));
    };
    // On the only thread of the runtime, not on this one.
    runtime.block_on(async { tokio::spawn(work).await.unwrap() });
}

#[tokio::test]
async fn a_future_ends_at_the_deadline_of_its_task() {
    let _held = HeldTime::new();
    let rig = Rig::new();
    rig.submit("t1").await;
    let (note, notes) = notes();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        tell.send(()).unwrap();
        let error = cx.block_on(pending::<Infallible>()).unwrap_err();
        note((error.kind(), error.code()));
        tell.send(()).unwrap();
        Err(error)
    });
    let act = async {
        told.recv().await.unwrap();
        pass(Duration::from_secs(31)).await;
        assert_eq!(rig.outcome("t1").await.unwrap_err().0, "deadline_exceeded");
        told.recv().await.unwrap();
    };
    let builder = rig.runner(engine).task_timeout(Duration::from_secs(30));
    rig.run(builder, act).await.1.unwrap();
    let expected = (TaskErrorKind::DeadlineExceeded, "deadline_exceeded");
    assert_eq!(*notes.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn a_cancelled_task_drops_its_future_and_says_why() {
    struct Request(UnboundedSender<String>);
    impl Drop for Request {
        fn drop(&mut self) {
            // The destructor of a client may start a timer or a task.
            tokio::spawn(async {});
            let _ = self.0.send(format!("dropped in {}", task_id()));
        }
    }
    let rig = Rig::new();
    rig.submit("t1").await;
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        let request = Request(tell.clone());
        let begin = tell.clone();
        let result = cx.block_on(async move {
            let _request = request;
            begin.send("begun".to_owned()).unwrap();
            pending::<Infallible>().await
        });
        let error = result.unwrap_err();
        tell.send(error.code().to_owned()).unwrap();
        // Nothing of a later future is run.
        let late = cx.block_on(async { tell.send("polled".to_owned()).unwrap() });
        tell.send(late.unwrap_err().code().to_owned()).unwrap();
        Err(error)
    });
    let act = async {
        assert_eq!(told.recv().await.unwrap(), "begun");
        rig.broker.cancel_job(&job_of("t1"));
        for expected in ["dropped in t1", "cancelled", "cancelled"] {
            assert_eq!(told.recv().await.unwrap(), expected);
        }
        rig.outcome("t1").await
    };
    let (outcome, run) = rig.run(rig.runner(engine), act).await;
    run.unwrap();
    assert_eq!(outcome.unwrap_err().0, "no_response");
}

#[tokio::test]
async fn the_end_of_a_task_can_be_awaited_with_its_reason() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let (note, notes) = notes();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        let cx = cx.clone();
        let watcher = std::thread::spawn({
            let cx = cx.clone();
            // Any executor will do: no runtime is needed.
            move || futures_util::FutureExt::now_or_never(cx.cancelled())
        });
        assert_eq!(watcher.join().unwrap(), None);
        tell.send(()).unwrap();
        let (waiting, reason) = std::sync::mpsc::channel();
        let watched = cx.clone();
        cx.block_on(async move {
            tokio::spawn(async move {
                let _ = waiting.send(watched.cancelled().await);
            });
        })?;
        note((reason.recv()?, cx.cancel_reason()));
        cx.check_cancelled()?;
        answer()
    });
    let act = async {
        told.recv().await.unwrap();
        rig.broker.cancel_job(&job_of("t1"));
        rig.outcome("t1").await
    };
    let (outcome, run) = rig.run(rig.runner(engine), act).await;
    run.unwrap();
    assert_eq!(outcome.unwrap_err().0, "no_response");
    let requested = CancelReason::Requested;
    assert_eq!(*notes.lock().unwrap(), [(requested, Some(requested))]);
}

#[tokio::test]
async fn a_nested_block_on_is_an_error_and_no_panic() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, cx| {
        let inner = cx.clone();
        let outcomes = cx.block_on(async {
            let nested = inner.block_on(async {}).map_err(|error| error.to_string());
            let spawned = tokio::spawn(async move { inner.block_on(async {}).map_err(|error| error.code()) });
            Ok::<_, TaskError>(json!([nested.unwrap_err(), spawned.await?.unwrap_err()]))
        })?;
        // A future that panics leaves no trace on its thread, and a runtime of the engine does not
        // matter.
        let panicking = std::panic::AssertUnwindSafe(|| cx.block_on(async { panic!("no") }));
        let _: Result<Result<(), _>, _> = std::panic::catch_unwind(panicking);
        let own = tokio::runtime::Builder::new_current_thread().build()?;
        own.block_on(async { cx.block_on(async { sleep(Duration::from_millis(1)).await }) })?;
        outcomes
    });
    let (outcome, run) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    run.unwrap();
    let text =
        "block_on was called inside a Tokio runtime, perhaps inside another block_on: use .await there";
    assert_eq!(outcome, Ok(json!([text, "nested_block_on"])));
}

#[test]
fn a_load_context_without_worker_has_no_runtime() {
    let cx = LoadContext::new(EngineConfig::default());
    let error = cx.block_on(async {}).unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (TaskErrorKind::Permanent, "no_runtime")
    );
}

#[tokio::test]
async fn a_drain_ends_the_future_of_a_load() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(|_, _| answer()).load(move |_, cx| {
        tell.send(()).unwrap();
        match cx.block_on(pending::<Infallible>())? {}
    });
    let builder = rig.runner(engine).drain_timeout(Duration::from_secs(3600));
    let (_, run) = rig.run(builder, async { told.recv().await.unwrap() }).await;
    run.unwrap();
    // Handed back, not failed.
    assert_eq!(rig.events(), ["t1 started"]);
    assert_eq!((rig.broker.waiting(), rig.broker.held()), (1, 0));
}

#[tokio::test]
async fn helper_threads_continue_span_and_log_fields() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, cx| {
        let half = |number: i64| info_span!("engine.half", number).in_scope(task_id);
        let halves = info_span!("engine.encode").in_scope(|| {
            let scope = &cx.scope();
            std::thread::scope(|threads| {
                let helpers = [1, 2].map(|number| threads.spawn(move || scope.run(|| half(number))));
                helpers.map(|helper| helper.join().unwrap())
            })
        });
        let scope = cx.scope();
        let piece = |number: i64| info_span!("engine.piece", number).in_scope(task_id);
        let pieces: Vec<String> = [3, 4].par_iter().map(|n| scope.run(|| piece(*n))).collect();
        Ok(json!([halves, pieces]))
    });
    let (outcome, run) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    run.unwrap();
    assert_eq!(outcome, Ok(json!([["t1", "t1"], ["t1", "t1"]])));
    let spans = rig.telemetry.spans();
    let parents = |name: &str| {
        let children = spans.iter().filter(|span| span.name == name);
        let parents = children.map(|child| {
            let parent = spans
                .iter()
                .find(|span| Some(span.span_id) == child.parent_span_id);
            parent.map_or("none", |parent| &*parent.name)
        });
        parents.collect::<Vec<_>>()
    };
    assert_eq!(parents("engine.half"), ["engine.encode"; 2]);
    assert_eq!(parents("engine.piece"), ["engine.process"; 2]);
}
