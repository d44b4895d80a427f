//! An engine that keeps standard output for itself.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use dalston_telemetry::Telemetry;
use tokio::process::Command;

use super::*;

/// In the child: the directory of the files `held` and `release`.
const SIGNS: &str = "TEST_SIGNS";
const LEASE: Duration = Duration::from_secs(1);

/// Holds the lock of standard output until `release` exists, as a progress bar does while it is
/// shown.
struct HoldsOutput(PathBuf);

impl Engine for HoldsOutput {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        Echo::default().info()
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), _: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        let _lock = io::stdout().lock();
        std::fs::write(self.0.join("held"), "")?;
        while !self.0.join("release").exists() {
            cx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(json!({}))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_lock_of_standard_output_stops_no_renewal() {
    let deployment = Deployment::start().await;
    let signs = tempfile::tempdir().unwrap();
    let (redis, port) = (deployment.redis.url(), free_port());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--ignored", "--exact", "worker::output::worker_with_log_lines"])
        .env("TEST_REDIS", &redis)
        .env("TEST_S3", deployment.s3.url())
        .env("TEST_PORT", port.to_string())
        .env(SIGNS, signs.path())
        .env_remove("RUST_LOG")
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let _child = child.spawn().unwrap();

    deployment.enqueue("first", request("first", json!({}))).await;
    let held = async || signs.path().join("held").exists().then_some(());
    until("engine with the lock", held).await;
    deployment.enqueue("second", request("second", json!({}))).await;
    // The control thread logs that it received the task.
    let two = async || (deployment.pending().await == 2).then_some(());
    until("second task", two).await;
    for _ in 0..2 {
        let mut last = 0;
        let renewed = async || {
            let before = std::mem::replace(&mut last, idle(&deployment).await);
            (last < before).then_some(())
        };
        until("renewal", renewed).await;
    }
    assert_eq!(get(port, "/v1/capabilities").await.unwrap().status, 200);

    std::fs::write(signs.path().join("release"), "").unwrap();
    for task in ["first", "second"] {
        deployment.until_event("task.completed", task).await;
    }
    assert_eq!(deployment.events().await.len(), 4, "each task ran once");
}

/// The time since the lease of the oldest task was renewed.
async fn idle(deployment: &Deployment) -> u64 {
    let rows: Vec<(String, String, u64, u64)> = deployment
        .redis
        .send(&["XPENDING", STREAM, "engines", "-", "+", "1"])
        .await;
    rows[0].2
}

#[tokio::test]
#[ignore = "not a test: the child process of another test"]
async fn worker_with_log_lines() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let more = [("DALSTON_METRICS_PORT", variable("TEST_PORT"))];
    let more = more.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (config, mut deployment) = configs(&variable("TEST_REDIS"), &variable("TEST_S3"), "holder", &more);
    deployment.lease = LEASE;
    let telemetry = Telemetry::builder("engine-test").install().unwrap();
    let engine = HoldsOutput(variable(SIGNS).into());
    let handle = telemetry.handle();
    worker::run(engine, config, deployment, handle, std::future::pending())
        .await
        .unwrap();
}
