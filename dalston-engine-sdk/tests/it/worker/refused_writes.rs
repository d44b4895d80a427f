//! A Redis that refuses writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;

use super::{Deployment, configs, request};
use crate::support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_writes_are_not_logged_once_a_second() {
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    let (config, settings) = configs(&deployment.redis.url(), &deployment.s3.url(), "a", &[]);
    let mut worker = deployment.worker_traced(config, settings, Some(&telemetry));
    deployment.until_registered(&worker).await;
    let () = deployment
        .redis
        .send(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await;
    let warnings = || {
        let mut counts = BTreeMap::<String, usize>::new();
        for line in telemetry.logs() {
            if line.level() == "warning" {
                *counts.entry(line.event().to_owned()).or_default() += 1;
            }
        }
        counts
    };
    until("a refused write", async || {
        warnings().contains_key("broker_read_failed").then_some(())
    })
    .await;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let counts = warnings();
    let most = began.elapsed().as_secs() as usize / 2;
    assert!(counts.values().all(|count| *count <= most), "{counts:?}");
    let lines = telemetry.logs();
    let read = lines
        .iter()
        .find(|line| line.event() == "broker_read_failed")
        .unwrap();
    let error = read.field("error").unwrap().as_str().unwrap();
    assert!(
        error.contains("NOREPLICAS") && error.contains("127.0.0.1"),
        "{error}"
    );

    let () = deployment
        .redis
        .send(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;
    deployment.enqueue("T", request("T", json!({}))).await;
    deployment.until_event("task.completed", "T").await;
    worker.finish().await;
}
