//! A worker whose clock differs from that of Redis and of the producer of its tasks.

use std::future::pending;
use std::process::Stdio;
use std::time::SystemTime;

use dalston_engine_sdk::protocol::Timestamp;
use tokio::process::{Child, Command};

use super::*;

const WORKER: &str = "DALSTON_TEST_WORKER_WITH_WRONG_CLOCK";

#[tokio::test]
#[ignore = "not a test: the child process of another test"]
async fn worker_with_wrong_clock() {
    let addresses = std::env::var(WORKER).unwrap();
    let [redis, s3, port] = addresses.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let more = [("DALSTON_METRICS_PORT", port), ("DALSTON_SLOTS", "2")];
    let (config, deployment) = configs(redis, s3, "w", &more);
    let telemetry = TelemetryHandle::disabled();
    worker::run(Echo::default(), config, deployment, telemetry, pending())
        .await
        .unwrap();
}

/// Starts a worker whose clock is so many seconds ahead, and returns its port.
fn start_worker(deployment: &Deployment, ahead: i64) -> (Child, u16) {
    let port = free_port();
    let addresses = format!("{} {} {port}", deployment.redis.url(), deployment.s3.url());
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "worker::clocks::worker_with_wrong_clock"])
        .env(WORKER, addresses)
        .envs(testbed::clock_ahead(ahead))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (process, port)
}

async fn until_compared(port: u16) -> Value {
    let health = async || {
        let health = get(port, "/health").await?.json();
        health.get("clock_ahead_seconds").is_some().then_some(health)
    };
    until("comparison of the clocks", health).await
}

#[tokio::test]
async fn health_reports_a_clock_that_differs_from_redis() {
    let deployment = Deployment::start().await;
    let address = format!("127.0.0.1:{}", deployment.redis.port());
    for (ahead, side) in [(-62, "behind"), (62, "ahead of"), (0, "")] {
        let (_worker, port) = start_worker(&deployment, ahead);
        let health = until_compared(port).await;
        assert_eq!(health["status"], "healthy");
        let seconds = health["clock_ahead_seconds"].as_f64().unwrap();
        // Half of the time that the answer of Redis took is unknown.
        assert!((seconds - ahead as f64).abs() < 4.0, "{health}");
        match health.get("warning") {
            None => assert_eq!(ahead, 0, "{health}"),
            Some(text) => {
                let expected = format!(" s {side} that of Redis at {address}");
                assert!(text.as_str().unwrap().contains(&expected), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn deadlines_and_waits_are_free_of_the_workers_clock() {
    // With the clock behind, tasks would have ten minutes longer. With the clock ahead, they would
    // be over before they begin.
    for ahead in [-600, 600] {
        let deployment = Deployment::start().await;
        for (task, takes_ms, timeout) in [("done", 0, 30), ("late", 60_000, 2)] {
            let document = request(task, json!({ "takes_ms": takes_ms }));
            deployment.prepare(task, document).await;
            let now = SystemTime::now();
            let at = |time: SystemTime| Timestamp::from(time).to_string();
            let (enqueued_at, timeout_at) = (at(now), at(now + Duration::from_secs(timeout)));
            let message = ["XADD", STREAM, "*", "task_id", task, "job_id", JOB];
            let times = ["enqueued_at", &enqueued_at, "timeout_at", &timeout_at];
            let () = deployment.redis.send(&[&message[..], &times[..]].concat()).await;
        }
        let (_worker, port) = start_worker(&deployment, ahead);
        deployment.until_event("task.completed", "done").await;
        let failed = deployment.until_event("task.failed", "late").await;
        assert!(failed["error"].as_str().unwrap().contains("deadline"), "{failed}");
        let metrics = get(port, "/metrics").await.unwrap().body;
        let waited = metrics
            .lines()
            .find_map(|line| line.strip_prefix("dalston_engine_queue_wait_seconds_sum"))
            .and_then(|rest| rest.split(' ').next_back()?.parse::<f64>().ok());
        assert!(waited.is_some_and(|seconds| seconds < 60.0), "{metrics}");
    }
}
