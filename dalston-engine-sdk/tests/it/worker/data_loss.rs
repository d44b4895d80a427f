//! A Redis that loses data while a task runs.

use std::time::Duration;

use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;

use super::{Deployment, STREAM, Worker, configs, request};
use crate::support::until;

/// A worker with short leases that runs the task `T`.
async fn busy_worker(deployment: &Deployment, telemetry: &TestTelemetry) -> Worker {
    let (config, mut settings) = configs(&deployment.redis.url(), &deployment.s3.url(), "a", &[]);
    settings.lease = Duration::from_millis(600);
    let worker = deployment.worker_traced(config, settings, Some(telemetry));
    deployment
        .enqueue("T", request("T", json!({"takes_ms": 60_000})))
        .await;
    worker.until_busy().await;
    worker
}

/// Expects the result of `T` and then of another task, each of them once.
async fn completes_each_task_once(deployment: &Deployment, mut worker: Worker) {
    worker.release();
    deployment.until_event("task.completed", "T").await;
    deployment.enqueue("next", request("next", json!({}))).await;
    deployment.until_event("task.completed", "next").await;
    worker.finish().await;

    assert!(deployment.response("T").is_some());
    let ends = deployment.events().await.into_iter();
    let ends = ends.filter(|(kind, _)| kind != "task.started");
    let ends: Vec<_> = ends.map(|(_, payload)| payload["task_id"].clone()).collect();
    assert_eq!(ends, [json!("T"), json!("next")]);
}

fn logged(telemetry: &TestTelemetry, event: &str) -> bool {
    telemetry.logs().iter().any(|line| line.event() == event)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_task_survives_the_loss_of_all_data() {
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    let worker = busy_worker(&deployment, &telemetry).await;

    let () = deployment.redis.send(&["FLUSHALL"]).await;
    let renewed = async || logged(&telemetry, "task_not_recorded_by_redis").then_some(());
    until("renewal without data", renewed).await;

    completes_each_task_once(&deployment, worker).await;
    assert!(!logged(&telemetry, "task_lost_to_another_worker"));
    assert!(logged(&telemetry, "consumer_group_lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_task_survives_the_loss_of_its_group() {
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    let worker = busy_worker(&deployment, &telemetry).await;

    let () = deployment
        .redis
        .send(&["XGROUP", "DESTROY", STREAM, "engines"])
        .await;
    let taken_back = async || {
        let query = ["XPENDING", STREAM, "engines", "-", "+", "10"];
        let rows: Vec<(String, String, u64, u64)> = deployment.redis.try_send(&query).await.ok()?;
        rows.iter()
            .any(|(_, consumer, ..)| *consumer == worker.instance)
            .then_some(())
    };
    until("entry of the worker in a new group", taken_back).await;

    completes_each_task_once(&deployment, worker).await;
    assert!(!logged(&telemetry, "task_lost_to_another_worker"));
    assert_eq!(deployment.pending().await, 0);
}
