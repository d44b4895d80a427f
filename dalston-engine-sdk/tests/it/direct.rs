//! Direct tasks: they reach a running worker without its queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dalston_engine_sdk::{Direct, DirectError, DirectTask, RunnerPhase, TaskError};
use dalston_telemetry::propagate;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use crate::rig::{Closures, Rig, answer, answer_in, gate};

const CALLER: &str = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
const LONG: Duration = Duration::from_secs(60);

/// A task whose input is `text`.
fn saying(rig: &Rig, text: &str) -> DirectTask {
    let path = rig.temp.path().join(format!("{text}.txt"));
    std::fs::write(&path, text).unwrap();
    DirectTask::for_file(path).task_id(text)
}

async fn submit(direct: &Direct, task: DirectTask) -> Result<serde_json::Value, DirectError> {
    direct.submit(task, LONG).await
}

#[tokio::test]
async fn a_direct_task_has_the_usual_steps_and_returns_its_answer() {
    let rig = Rig::new();
    let engine = Closures::new(|task, cx| {
        let input = task.require_input("audio")?;
        let info = cx.info();
        Ok(json!({
            "text": std::fs::read_to_string(input.path())?,
            "name": input.artifact().storage_locator,
            "language": task.config()["language"],
            "ids": [info.task_id, info.job_id, info.model.as_str(), info.request_id],
        }))
    });
    let runner = rig.runner(engine).build().unwrap();
    let direct = runner.direct();
    let task = saying(&rig, "hello")
        .named("talk.wav")
        .config("language", "de")
        .model("small")
        .request_id("req-7")
        .parent(propagate::extract_json(CALLER));
    let (data, ended) = rig.run_runner(runner, submit(&direct, task)).await;
    ended.unwrap();
    let ids = json!(["hello", "http", "small", "req-7"]);
    assert_eq!(
        answer_in(data.unwrap()),
        json!({"text": "hello", "name": "talk.wav", "language": "de", "ids": ids})
    );

    let spans = rig.telemetry.spans();
    let process = rig.telemetry.span("engine.test-asr.process");
    assert_eq!(process.parent_span_id.unwrap().to_string(), "b7ad6b7169203331");
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id.to_string() == "0af7651916cd43dd8448eb211c80319c")
    );
    rig.tree().assert_eq(
        "
        engine.queue_wait {dalston.task_id=hello}
        engine.test-asr.process {dalston.task_id=hello, dalston.job_id=http, dalston.stage=transcribe, dalston.model=small, dalston.request_id=req-7, dalston.delivery_count=1}
          engine.download_input
          engine.model_acquire
            engine.model_load {dalston.model=small}
          engine.process
          engine.upload_output
        ",
    );
    assert!(
        process
            .attributes
            .iter()
            .all(|attribute| !attribute.key.as_str().starts_with("messaging.")),
        "there was no queue"
    );
    let moved: Vec<String> = rig.telemetry.moved().iter().map(ToString::to_string).collect();
    let processed = |line: &&String| line.starts_with("dalston_engine_tasks_processed_total");
    assert_eq!(moved.iter().filter(processed).count(), 1, "{moved:#?}");
    assert_eq!(rig.broker.events(), [], "there are no events");
    assert_eq!(
        rig.temp_dirs(),
        1,
        "only the input is left, which belongs to the test"
    );
}

#[tokio::test]
async fn a_failure_comes_back_with_its_code_and_the_name_of_the_input() {
    let rig = Rig::new();
    let runner = rig
        .runner(Closures::new(|_, _| {
            Err(TaskError::permanent(
                "unknown_language",
                "language \"tlh\": expected en",
            ))
        }))
        .build()
        .unwrap();
    let direct = runner.direct();
    let act = async {
        let missing = DirectTask::for_file("/nonexistent/talk.wav");
        let missing = submit(&direct, missing).await.unwrap_err();
        (submit(&direct, saying(&rig, "hello")).await.unwrap_err(), missing)
    };
    let ((refused, missing), ended) = rig.run_runner(runner, act).await;
    ended.unwrap();
    let DirectError::Failed {
        error,
        code: "unknown_language",
        retryable: false,
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(error, "language \"tlh\": expected en");
    assert!(
        matches!(
            missing,
            DirectError::Failed {
                code: "not_found",
                ..
            }
        ),
        "{missing:?}"
    );
}

#[tokio::test]
async fn queued_and_direct_tasks_alternate() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        seen.lock().unwrap().push(cx.info().job_id == "http");
        tell.send(()).unwrap();
        hold.wait();
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let direct = runner.direct();
    for n in 0..12 {
        rig.submit(&format!("q{n}")).await;
    }
    let act = async {
        told.recv().await.unwrap();
        let tasks = (0..12).map(|n| submit(&direct, saying(&rig, &format!("d{n}"))));
        let open = async {
            // Both kinds wait before the thread is free for the first time.
            let status = async || rig.broker.held();
            while status().await < 2 {
                tokio::task::yield_now().await;
            }
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            for _ in 1..24 {
                go_on.open();
                told.recv().await.unwrap();
                // A task that has ended has passed its permit to the next one of its kind.
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
            }
            go_on.open();
        };
        let (answers, ()) = tokio::join!(join_all(tasks), open);
        assert!(answers.iter().all(Result::is_ok));
        rig.outcome("q11").await.unwrap();
    };
    rig.run_runner(runner, act).await.1.unwrap();
    let order = order.lock().unwrap().clone();
    // Both kinds have the same number of permits: of any six tasks in a row, two or more are of
    // each kind.
    for window in order[..20].windows(6) {
        let direct = window.iter().filter(|direct| **direct).count();
        assert!((2..=4).contains(&direct), "{order:?}");
    }
}

#[tokio::test]
async fn a_direct_task_without_a_permit_in_time_is_never_begun() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let engine = Closures::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        hold.wait();
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let direct = runner.direct();
    let act = async {
        // One task runs, one waits for the thread, and the third one gets no permit.
        let first = submit(&direct, saying(&rig, "a"));
        let second = submit(&direct, saying(&rig, "b"));
        let third = async {
            let refused = direct.submit(saying(&rig, "c"), Duration::from_millis(50)).await;
            go_on.open();
            go_on.open();
            refused
        };
        tokio::join!(first, second, third)
    };
    let ((first, second, third), ended) = rig.run_runner(runner, act).await;
    ended.unwrap();
    assert!(first.is_ok() && second.is_ok());
    assert!(matches!(third, Err(DirectError::Busy)), "{third:?}");
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_task_whose_caller_has_gone_is_cancelled() {
    let rig = Rig::new();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        tell.send("begun").unwrap();
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            if let Err(error) = cx.check_cancelled() {
                tell.send("cancelled").unwrap();
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let direct = runner.direct();
    let act = async {
        let waiting = submit(&direct, saying(&rig, "a"));
        tokio::select! {
            done = waiting => panic!("{done:?}"),
            begun = told.recv() => assert_eq!(begun, Some("begun")),
        }
        let cancelled = tokio::time::timeout(Duration::from_secs(30), told.recv());
        assert_eq!(cancelled.await, Ok(Some("cancelled")));
    };
    rig.run_runner(runner, act).await.1.unwrap();
}

#[tokio::test]
async fn a_drain_finishes_running_direct_tasks_and_refuses_others() {
    let rig = Rig::new();
    let (hold, go_on) = gate();
    let (tell, mut told) = unbounded_channel();
    let engine = Closures::new(move |_, _| {
        tell.send(()).unwrap();
        hold.wait();
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let (direct, status) = (runner.direct(), runner.status());
    let names = ["a", "b", "c", "d"];
    let tasks = join_all(names.map(|name| submit(&direct, saying(&rig, name))));
    let opened = async {
        while status.phase() != RunnerPhase::Draining {
            tokio::task::yield_now().await;
        }
        go_on.open();
    };
    let (answers, (_, ended), ()) = tokio::join!(
        tasks,
        rig.run_runner(runner, async { told.recv().await.unwrap() }),
        opened
    );
    ended.unwrap();
    let (done, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (1, 3));
    for refused in refused {
        assert!(matches!(refused, Err(DirectError::Stopping)), "{refused:?}");
    }
    let late = submit(&direct, saying(&rig, "e")).await;
    assert!(matches!(late, Err(DirectError::Stopping)), "{late:?}");
}

#[tokio::test]
async fn a_task_the_runner_leaves_behind_can_go_to_another_worker() {
    let rig = Rig::new();
    let runner = rig.runner(Closures::new(|_, _| answer())).build().unwrap();
    let direct = runner.direct();
    // The runner is dropped, and its status shows no end.
    let (left, ()) = tokio::join!(submit(&direct, saying(&rig, "a")), async {
        tokio::task::yield_now().await;
        drop(runner);
    });
    assert!(matches!(left, Err(DirectError::Stopping)), "{left:?}");
}
