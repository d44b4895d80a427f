//! Several processes with the same `DALSTON_WORKER_ID`.

use std::time::Duration;

use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;

use super::{Deployment, STREAM, Worker, configs, request};
use crate::support::{get, until};

impl Deployment {
    fn worker_named(&self, name: &str, lease: Duration, telemetry: &TestTelemetry) -> Worker {
        let (config, mut deployment) = configs(&self.redis.url(), &self.s3.url(), name, &[]);
        deployment.lease = lease;
        self.worker_traced(config, deployment, Some(telemetry))
    }
}

/// The name under which a worker registered.
async fn name_of(worker: &Worker) -> String {
    let health = async || Some(get(worker.port, "/health").await?.json());
    until("health", health).await["instance"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn logged(telemetry: &TestTelemetry, event: &str) -> usize {
    telemetry
        .logs()
        .iter()
        .filter(|line| line.event() == event)
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_process_with_a_name_takes_a_random_one() {
    const TASKS: usize = 12;
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    // They start at the same time.
    let lease = Duration::from_secs(10);
    let workers = [(), ()].map(|()| deployment.worker_named("fixed", lease, &telemetry));
    let mut names = [name_of(&workers[0]).await, name_of(&workers[1]).await];
    names.sort_by_key(|name| name != "echo-fixed");
    assert_eq!(names[0], "echo-fixed");
    assert_ne!(names[1], "echo-fixed");
    let lines = telemetry.logs();
    let warning = lines.iter().find(|line| line.event() == "instance_name_in_use");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let named = warning.unwrap().field("host").unwrap().to_string();
    assert!(named.contains(host.trim()), "{named}");

    let tasks: Vec<String> = (0..TASKS).map(|number| format!("task-{number}")).collect();
    for task in &tasks {
        deployment
            .enqueue(task, request(task, json!({"takes_ms": 20})))
            .await;
    }
    for task in &tasks {
        deployment.until_event("task.completed", task).await;
    }
    assert_eq!(deployment.events().await.len(), 2 * TASKS, "each task once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn successor_takes_over_the_tasks_of_its_name_at_once() {
    let deployment = Deployment::start().await;
    deployment.enqueue("T", request("T", json!({}))).await;
    let group = ["XGROUP", "CREATE", STREAM, "engines", "0"];
    let () = deployment.redis.send(&group).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "engines",
        "echo-fixed",
        "STREAMS",
        STREAM,
        ">",
    ];
    let _: redis::Value = deployment.redis.send(&read).await;
    // The last heartbeat was 13 s ago. The lease of the task has just begun.
    let record = "dalston:engine:instance:echo-fixed";
    let fields = ["status", "processing", "last_heartbeat", "2026-11-20T18:17:06Z"];
    let () = deployment
        .redis
        .send(&[&["HSET", record], &fields[..]].concat())
        .await;
    let () = deployment.redis.send(&["EXPIRE", record, "47"]).await;

    let telemetry = TestTelemetry::new();
    let worker = deployment.worker_named("fixed", Duration::from_secs(60), &telemetry);
    deployment.until_event("task.completed", "T").await;
    assert_eq!(name_of(&worker).await, "echo-fixed");
    assert_eq!(logged(&telemetry, "instance_took_over_from_its_predecessor"), 1);
    let attempt = &deployment.response("T").unwrap().1["data"]["attempt"];
    assert_eq!(attempt, &json!(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_record_that_is_not_renewed_is_replaced() {
    let deployment = Deployment::start().await;
    let record = "dalston:engine:instance:echo-fixed";
    let fields = ["status", "idle", "last_heartbeat", "2026-11-20T18:17:06Z"];
    let () = deployment
        .redis
        .send(&[&["HSET", record], &fields[..]].concat())
        .await;
    let () = deployment.redis.send(&["EXPIRE", record, "5"]).await;
    let telemetry = TestTelemetry::new();
    let worker = deployment.worker_named("fixed", Duration::from_secs(5), &telemetry);
    assert_eq!(name_of(&worker).await, "echo-fixed");
    deployment.until_registered(&worker).await;
    let nonce: Option<String> = deployment.redis.send(&["HGET", record, "start_nonce"]).await;
    assert_eq!(nonce.unwrap().len(), 32);
    // What was idle before is not in the hands of this process.
    let since: Option<u64> = deployment.redis.send(&["HGET", record, "reserved_at_ms"]).await;
    assert!(since.is_some());
}
