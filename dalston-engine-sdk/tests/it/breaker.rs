//! The circuit breaker of a runner with probes, on a paused clock.

use std::future::{pending, ready};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalston_engine_sdk::broker::MemoryBroker;
use dalston_engine_sdk::{Check, TaskError};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::{Closures, Rig, answer};

fn rig() -> Rig {
    Rig::with_broker(MemoryBroker::with(Duration::from_secs(60), 1_000))
}

/// An engine that has only the model `tiny`, and that only while `works`.
fn engine(works: &Arc<AtomicBool>) -> Closures {
    let works = Arc::clone(works);
    Closures::new(|_, _| answer()).load(move |model, _| {
        if model.as_str() == "tiny" && works.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(TaskError::permanent("model_not_found", "it is not here"))
    })
}

#[tokio::test(start_paused = true)]
async fn failing_probes_end_the_runner_after_10_minutes() {
    let rig = rig();
    rig.submit("t").await;
    let begun_at = Instant::now();
    let probed_at = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&probed_at);
    let builder = rig.runner(Closures::new(|_, _| answer())).probe(move |_| {
        times.lock().unwrap().push(begun_at.elapsed().as_secs());
        ready(vec![
            Check::ok("redis", "answers"),
            Check::missing("storage", "it is gone").advice("bring it back"),
        ])
    });
    let runner = builder.build().unwrap();
    let status = runner.status();

    let error = runner.run_until(pending()).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "the worker could take no tasks for 10 minutes: storage: it is gone; bring it back"
    );
    assert_eq!(
        *probed_at.lock().unwrap(),
        [
            0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543, 600
        ]
    );
    assert_eq!(
        status.problem().as_deref(),
        Some("storage: it is gone; bring it back")
    );
    assert_eq!((rig.broker.waiting(), rig.events().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn broken_default_model_stops_reads_and_fails_no_task() {
    let rig = rig();
    let tasks = ["t0", "t1", "t2", "t3", "t4"];
    for task in tasks {
        rig.submit(task).await;
    }
    let works = Arc::new(AtomicBool::new(false));
    let builder = rig
        .runner(engine(&works))
        .probe(|_| ready(vec![Check::ok("storage", "works")]));
    let runner = builder.build().unwrap();
    let status = runner.status();
    let act = async {
        let problem = loop {
            if let Some(problem) = status.problem() {
                break problem;
            }
            sleep(Duration::from_millis(10)).await;
        };
        assert!(
            problem.starts_with("loading model \"tiny\": it is not here"),
            "{problem}"
        );
        works.store(true, Ordering::SeqCst);
        for task in tasks {
            assert_eq!(rig.outcome(task).await, Ok(json!({"text": "hello"})), "{task}");
        }
        assert_eq!(status.problem(), None);
    };
    let ((), ended) = rig.run_runner(runner, act).await;
    ended.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failed_preload_stops_reads_before_the_first_task() {
    let rig = rig();
    let works = Arc::new(AtomicBool::new(false));
    let builder = rig
        .runner(engine(&works))
        .preload("tiny")
        .probe(|_| ready(vec![Check::ok("storage", "works")]));
    let runner = builder.build().unwrap();
    let status = runner.status();
    let act = async {
        while status.problem().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        works.store(true, Ordering::SeqCst);
        rig.submit("t").await;
        assert_eq!(rig.outcome("t").await, Ok(json!({"text": "hello"})));
        assert_eq!(rig.events(), ["t started", "t completed"]);
    };
    let ((), ended) = rig.run_runner(runner, act).await;
    ended.unwrap();
}

#[tokio::test(start_paused = true)]
async fn model_that_stays_broken_ends_the_runner() {
    let rig = rig();
    // Each trial takes another task: those that were handed back are kept for a lease.
    for number in 0..100 {
        rig.submit(&format!("t{number}")).await;
    }
    let builder = rig
        .runner(engine(&Arc::default()))
        .probe(|_| ready(vec![Check::ok("storage", "works")]));
    let begun_at = Instant::now();
    let error = builder.build().unwrap().run_until(pending()).await.unwrap_err();
    assert!(error.to_string().contains("loading model \"tiny\""), "{error}");
    assert!(begun_at.elapsed() >= Duration::from_secs(600));
    let failed = rig
        .events()
        .iter()
        .filter(|event| event.contains("failed"))
        .count();
    assert!(failed < 30, "{failed} of 100 tasks failed beside no other worker");
}

#[tokio::test(start_paused = true)]
async fn model_that_one_task_names_fails_only_that_task() {
    let rig = rig();
    let naming = async |task: &str, model: &str| {
        rig.submit_with(task, |_, metadata, task| {
            metadata.model = Some(model.to_owned());
            task
        })
        .await;
    };
    let builder = rig
        .runner(engine(&Arc::new(AtomicBool::new(true))))
        .probe(|_| ready(vec![Check::ok("storage", "works")]));
    let act = async {
        for (task, model) in [("a", "absent"), ("b", "tiny"), ("c", "missing")] {
            naming(task, model).await;
            let failed = rig.outcome(task).await.is_err();
            assert_eq!(failed, model != "tiny", "{task}");
        }
    };
    let ((), ended) = rig.run(builder, act).await;
    ended.unwrap();
    let expected = [
        "a started",
        "a failed model_not_found",
        "b started",
        "b completed",
    ];
    let last = ["c started", "c failed model_not_found"];
    assert_eq!(rig.events(), [&expected[..], &last].concat());
}
