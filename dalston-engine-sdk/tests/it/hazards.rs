//! Failures of one task that do not affect the next one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, EventContext, QueuedTask, TaskMetadata};
use dalston_engine_sdk::protocol::Timestamp;
use dalston_engine_sdk::{CancelReason, RunError, TaskError};
use dalston_telemetry::metrics::Metrics;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::leases::{AwkwardBroker, other_worker};
use crate::rig::{Closures, HeldTime, Rig, answer, gate, job_of, pass};

/// Signals the start of a task in the engine to the test.
pub(crate) fn begun() -> (UnboundedSender<String>, UnboundedReceiver<String>) {
    unbounded_channel()
}

/// Submits tasks of these names one after the other and returns their outcomes.
async fn outcomes(rig: &Rig, names: &[&str]) -> Vec<Result<(), (String, String)>> {
    let mut outcomes = Vec::new();
    for name in names {
        rig.submit(name).await;
        outcomes.push(rig.outcome(name).await.map(|_| ()));
    }
    outcomes
}

pub(crate) fn failed(code: &str, error: &str) -> Result<(), (String, String)> {
    Err((code.to_owned(), error.to_owned()))
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::panic_any(Self);
    }
}

#[tokio::test]
async fn errors_fail_one_task_and_panics_reload_the_model() {
    let rig = Rig::new();
    let engine = Closures::with_model(|model, _, cx| match cx.info().task_id.as_str() {
        "error" => Err(TaskError::permanent("no_speech", "there is nothing to hear")),
        "io" => Err(std::io::Error::other("disk on fire"))?,
        "panic" => panic!("index {} is odd", 7),
        "oom" => Err(std::io::Error::other(
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ))?,
        "oom-panic" => panic!("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "bomb" => std::panic::panic_any(Bomb),
        _ => Ok(json!({"used": model.get()})),
    });
    let loads = engine.loads();
    let builder = rig.runner(engine);
    let oom = "CUDA out of memory. Tried to allocate 2.00 GiB";
    let oom_panic = format!("the engine panicked: {oom}");
    let act = async {
        for (name, expected, loads_after) in [
            ("ok-1", Ok(()), 1),
            ("error", failed("no_speech", "there is nothing to hear"), 1),
            ("ok-2", Ok(()), 1),
            ("io", failed("error", "disk on fire"), 1),
            ("panic", failed("panic", "the engine panicked: index 7 is odd"), 1),
            ("ok-3", Ok(()), 2),
            ("oom", failed("out_of_memory", oom), 2),
            ("ok-4", Ok(()), 3),
            ("oom-panic", failed("out_of_memory", &oom_panic), 3),
            (
                "bomb",
                failed("panic", "the engine panicked: its message is not text"),
                4,
            ),
            ("ok-5", Ok(()), 5),
        ] {
            assert_eq!(outcomes(&rig, &[name]).await, [expected], "{name}");
            assert_eq!(loads.load(Ordering::SeqCst), loads_after, "loads after {name}");
        }
    };
    rig.run(builder, act).await.1.unwrap();
    // Used by ok-1, error, ok-2 and io before the panic, and fresh after it.
    assert_eq!(rig.response("ok-2").await, json!({"used": 3}));
    assert_eq!(rig.response("ok-3").await, json!({"used": 1}));
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn a_failure_is_recorded_on_the_spans() {
    let rig = Rig::new();
    let engine = Closures::new(|_, _| panic!("boom"));
    rig.run(rig.runner(engine), outcomes(&rig, &["t1"]))
        .await
        .1
        .unwrap();
    rig.tree().assert_eq(
        r#"
        engine.queue_wait
        engine.test-asr.process {error.type=panic} ! "the engine panicked: boom"
          engine.download_input
          engine.model_acquire
            engine.model_load
          engine.process {error.type=panic} ! "the engine panicked: boom"
        "#,
    );
    for name in ["engine.process", "engine.test-asr.process"] {
        let span = rig.telemetry.span(name);
        let exception = span
            .events
            .iter()
            .find(|event| event.name == "exception")
            .expect(name);
        let text = |key: &str| {
            let found = exception
                .attributes
                .iter()
                .find(|attribute| attribute.key.as_str() == key);
            found.map(|attribute| attribute.value.to_string())
        };
        assert_eq!(text("exception.type").as_deref(), Some("panic"));
        assert_eq!(
            text("exception.message").as_deref(),
            Some("the engine panicked: boom")
        );
    }
}

#[tokio::test]
async fn a_failed_model_load_fails_its_tasks_and_is_retried_later() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let broken = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&broken);
    let engine = Closures::new(|_, _| answer()).load(move |_, _| match state.load(Ordering::SeqCst) {
        0 => Ok(()),
        1 => Err(TaskError::permanent(
            "model_corrupt",
            "model.safetensors: bad header",
        )),
        _ => panic!("assertion failed in native code"),
    });
    let loads = engine.loads();
    let act = async {
        let corrupt = "loading model \"tiny\": model.safetensors: bad header";
        assert_eq!(outcomes(&rig, &["t1"]).await, [failed("model_corrupt", corrupt)]);
        // The same error at once, without another load.
        let again = format!("{corrupt} (tried a moment ago, next try in 1.0 s)");
        assert_eq!(outcomes(&rig, &["t2"]).await, [failed("model_corrupt", &again)]);
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        pass(Duration::from_secs(1)).await;
        broken.store(2, Ordering::SeqCst);
        let panicked = "loading model \"tiny\": the engine panicked: assertion failed in native code";
        assert_eq!(outcomes(&rig, &["t3"]).await, [failed("panic", panicked)]);
        pass(Duration::from_secs(2)).await;
        broken.store(0, Ordering::SeqCst);
        assert_eq!(outcomes(&rig, &["t4"]).await, [Ok(())]);
        assert_eq!(loads.load(Ordering::SeqCst), 3);
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn exhausted_memory_drops_all_models_of_the_thread() {
    let rig = Rig::new();
    let full = || TaskError::out_of_memory("no room");
    let loads_of_b = AtomicUsize::new(0);
    let engine = Closures::new(move |_, cx| match cx.info().task_id.as_str() {
        "oom" => Err(full()),
        _ => answer(),
    })
    .load(move |model, _| match model.as_str() {
        "b" if loads_of_b.fetch_add(1, Ordering::SeqCst) == 0 => Err(full()),
        _ => Ok(()),
    });
    let loads = engine.loads();
    let act = async {
        for (name, model, expected, loads_after) in [
            ("t1", "a", Ok(()), 1),
            (
                "t2",
                "b",
                failed("out_of_memory", "loading model \"b\": no room"),
                2,
            ),
            // At once, and without the other model.
            ("t3", "b", Ok(()), 3),
            ("t4", "a", Ok(()), 4),
            ("t5", "b", Ok(()), 4),
            ("oom", "b", failed("out_of_memory", "no room"), 4),
            ("t6", "a", Ok(()), 5),
        ] {
            rig.submit_with(name, |_, metadata, task| {
                metadata.model = Some(model.to_owned());
                task
            })
            .await;
            assert_eq!(rig.outcome(name).await.map(|_| ()), expected, "{name}");
            assert_eq!(loads.load(Ordering::SeqCst), loads_after, "loads after {name}");
        }
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn a_stuck_call_fails_on_time_and_its_thread_is_replaced() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (stuck, free) = gate();
    let (tell, mut told) = begun();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&threads);
    let engine = Closures::new(move |_, cx| {
        note.lock().unwrap().push(std::thread::current().id());
        tell.send(cx.info().task_id.clone()).unwrap();
        if cx.info().task_id == "stuck" {
            stuck.wait();
        }
        answer()
    });
    let loads = engine.loads();
    let builder = rig.runner(engine).task_timeout(Duration::from_secs(60));
    let act = async {
        rig.submit("stuck").await;
        told.recv().await.unwrap();
        rig.submit("next").await;
        pass(Duration::from_millis(59_900)).await;
        assert_eq!(
            rig.events()
                .iter()
                .filter(|event| event.contains("failed"))
                .count(),
            0
        );
        pass(Duration::from_millis(200)).await;
        let error = "the task was not done before its deadline";
        assert_eq!(
            rig.outcome("stuck").await.map(|_| ()),
            failed("deadline_exceeded", error)
        );
        assert_eq!(
            rig.broker.held(),
            1,
            "the stuck task is acknowledged, and the next one waits"
        );
        // Its span is exported although the call may never return.
        let span = rig.telemetry.span("engine.test-asr.process");
        assert_eq!(
            span.attribute("error.type").unwrap().to_string(),
            "deadline_exceeded"
        );
        // The thread gets a little longer to return by itself.
        pass(Duration::from_secs(11)).await;
        assert_eq!(told.recv().await.unwrap(), "next");
        assert_eq!(rig.outcome("next").await, Ok(json!({"text": "hello"})));
        // The late answer of the stuck call is thrown away.
        free.open();
        assert_eq!(outcomes(&rig, &["last"]).await, [Ok(())]);
    };
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(
        rig.events(),
        [
            "stuck started",
            "stuck failed deadline_exceeded",
            "next started",
            "next completed",
            "last started",
            "last completed"
        ]
    );
    let threads = threads.lock().unwrap();
    assert_ne!(threads[0], threads[1]);
    assert_eq!(threads[1], threads[2]);
    assert_eq!(
        loads.load(Ordering::SeqCst),
        2,
        "the new thread has its own model"
    );
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn a_slightly_late_engine_keeps_its_thread_and_its_model() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (slow, go_on) = gate();
    let (tell, mut told) = begun();
    let seen = Arc::new(Mutex::new(None));
    let note = Arc::clone(&seen);
    let engine = Closures::new(move |_, cx| {
        if cx.info().task_id == "slow" {
            tell.send(String::new()).unwrap();
            slow.wait();
            *note.lock().unwrap() = cx.cancel_reason();
            cx.check_cancelled()?;
        }
        answer()
    });
    let loads = engine.loads();
    let act = async {
        rig.submit("slow").await;
        told.recv().await.unwrap();
        pass(Duration::from_secs(61)).await;
        rig.outcome("slow").await.unwrap_err();
        go_on.open();
        assert_eq!(outcomes(&rig, &["next"]).await, [Ok(())]);
    };
    let builder = rig.runner(engine).task_timeout(Duration::from_secs(60));
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(CancelReason::DeadlineExceeded));
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_deadline_is_that_of_the_queue_entry() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (stuck, free) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        stuck.wait();
        answer()
    });
    let act = async {
        rig.submit_with("t1", |_, _, task| {
            task.timeout_at(Timestamp::now() + Duration::from_secs(100))
        })
        .await;
        told.recv().await.unwrap();
        // The time of the queue entry goes on by itself.
        pass(Duration::from_secs(60)).await;
        assert_eq!(rig.events(), ["t1 started"]);
        pass(Duration::from_secs(41)).await;
        assert_eq!(rig.outcome("t1").await.unwrap_err().0, "deadline_exceeded");
        free.open();
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn an_overdue_task_fails_without_being_processed() {
    let rig = Rig::new();
    let engine = Closures::new(|_, _| panic!("processed"));
    let act = async {
        let past: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        rig.submit_with("t1", |_, _, task| task.timeout_at(past)).await;
        rig.outcome("t1").await.unwrap_err()
    };
    let ((code, error), _) = rig.run(rig.runner(engine), act).await;
    assert_eq!(code, "deadline_exceeded");
    assert!(
        error.starts_with("the task was read ") && error.ends_with(" s after its deadline"),
        "{error}"
    );
}

#[tokio::test]
async fn a_worker_that_loses_too_many_threads_ends_with_an_error() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (stuck, free) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        stuck.wait();
        answer()
    });
    let builder = rig
        .runner(engine)
        .task_timeout(Duration::from_secs(60))
        .max_stuck_threads(1)
        .drain_timeout(Duration::from_secs(1));
    let runner = builder.build().unwrap();
    let run = tokio::spawn(rig.telemetry.attach(runner.run_until(std::future::pending())));
    for name in ["t1", "t2"] {
        rig.submit(name).await;
        told.recv().await.unwrap();
        pass(Duration::from_secs(61)).await;
        rig.outcome(name).await.unwrap_err();
        pass(Duration::from_secs(11)).await;
    }
    let error = loop {
        if run.is_finished() {
            break run.await.unwrap().unwrap_err();
        }
        pass(Duration::from_millis(500)).await;
    };
    assert!(matches!(error, RunError::Stuck { abandoned: 2, .. }), "{error:?}");
    drop(free);
}

#[tokio::test]
async fn a_cancelled_job_stops_the_engine_within_a_second() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, cx| {
        tell.send(String::new()).unwrap();
        while cx.info().task_id == "t1" {
            cx.check_cancelled()?;
            std::thread::yield_now();
        }
        answer()
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        rig.broker.cancel_job(&job_of("t1"));
        pass(Duration::from_millis(999)).await;
        assert_eq!(
            rig.outcome("t1").await.map(|_| ()),
            failed("no_response", "completed without a response")
        );
        assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
        assert_eq!(outcomes(&rig, &["t2"]).await, [Ok(())]);
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn cancelled_before_the_answer_to_its_start_is_ended() {
    let _time = HeldTime::new();
    let rig = Rig::new();
    let broker = AwkwardBroker {
        answering: Duration::from_secs(3600),
        ..AwkwardBroker::new(&rig)
    };
    let engine = Closures::new(|_, _| panic!("processed"));
    let act = async {
        rig.submit("t1").await;
        while rig.events().is_empty() {
            pass(Duration::from_millis(100)).await;
        }
        rig.broker.cancel_job(&job_of("t1"));
        pass(Duration::from_secs(5)).await;
        assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
    };
    rig.run(rig.runner(engine).broker(broker), act).await.1.unwrap();
}

#[tokio::test]
async fn a_failure_during_cancellation_counts_as_cancelled() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    let broker = rig.broker.clone();
    let engine = Closures::new(move |_, _| {
        broker.cancel_job(&job_of("t1"));
        Err(TaskError::retryable("flaky", "it could work next time"))
    });
    rig.submit("t1").await;
    let builder = rig.runner(engine).metrics(metrics.clone());
    let outcome = rig.run(builder, rig.outcome("t1")).await.0;
    assert_eq!(
        outcome.map(|_| ()),
        failed("no_response", "completed without a response")
    );
    let counted = |name| metrics.snapshot().sum(name, &[]);
    assert_eq!(
        (
            counted("dalston_engine_tasks_processed_total"),
            counted("dalston_engine_tasks_skipped_cancelled_total")
        ),
        (0.0, 1.0)
    );
}

#[tokio::test]
async fn a_redelivered_task_of_a_cancelled_job_is_ended() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let delivery = rig.broker.receive(&other_worker(), Duration::ZERO).await;
    let delivery = delivery.unwrap().unwrap();
    let nothing = EventContext::default();
    let _ = rig.broker.started(&delivery.claim, &nothing).await.unwrap();
    let _ = rig.broker.release(&delivery.claim).await.unwrap();
    rig.broker.cancel_job(&job_of("t1"));

    let runner = rig.runner(Closures::new(|_, _| answer()));
    let outcome = rig.run(runner, rig.outcome("t1")).await.0;
    assert_eq!(
        outcome.map(|_| ()),
        failed("no_response", "completed without a response")
    );
    assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_check_wins_over_a_deadline_that_passes_meanwhile() {
    for (name, stage, expected) in [
        ("../up", "transcribe", "invalid_id"),
        ("t1", "Trans cribe!", "invalid_stage"),
    ] {
        let rig = Rig::new();
        let mut metadata = TaskMetadata::new("transcribe");
        metadata.stage = stage.to_owned();
        let past: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let task = QueuedTask::new("test-asr", name, "job").timeout_at(past);
        rig.broker.enqueue(task.metadata(metadata)).unwrap();
        let broker = AwkwardBroker {
            announcing: Duration::from_secs(1),
            ..AwkwardBroker::new(&rig)
        };
        let builder = rig
            .runner(Closures::new(|_, _| panic!("processed")))
            .broker(broker);
        let (outcome, _) = rig.run(builder, rig.outcome(name)).await;
        assert_eq!(outcome.unwrap_err().0, expected);
    }
}

#[tokio::test]
async fn panic_outside_the_engine_fails_its_task_at_once() {
    let rig = Rig::new();
    let broker = AwkwardBroker {
        panics: true,
        ..AwkwardBroker::new(&rig)
    };
    let engine = Closures::new(|_, cx| {
        while cx.check_cancelled().is_ok() {
            std::thread::yield_now();
        }
        answer()
    });
    rig.submit("t1").await;
    let (outcome, run) = rig
        .run(rig.runner(engine).broker(broker), rig.outcome("t1"))
        .await;
    run.unwrap();
    assert_eq!(
        outcome.map(|_| ()),
        failed("panic", "the handling of the task panicked: no such host")
    );
    assert_eq!(rig.events(), ["t1 started", "t1 failed panic"]);
}

#[tokio::test]
async fn an_engine_stops_when_its_worker_is_dropped() {
    let rig = Rig::new();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, cx| {
        tell.send("begun".to_owned()).unwrap();
        while cx.check_cancelled().is_ok() {
            std::thread::yield_now();
        }
        tell.send("stopped".to_owned()).unwrap();
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let run = tokio::spawn(runner.run_until(std::future::pending()));
    rig.submit("t1").await;
    assert_eq!(told.recv().await.unwrap(), "begun");
    run.abort();
    assert_eq!(told.recv().await.unwrap(), "stopped");
}
