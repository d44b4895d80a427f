//! A worker with a broken dependency takes no tasks, hands back those that it has, and
//! goes on when they work again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Fault, TestS3, Trouble};

use super::{Deployment, JOB, Worker, configs, request};
use crate::support::{get, until};

/// Short, so that a worker soon gets back what it handed back.
const LEASE: Duration = Duration::from_secs(1);

impl Deployment {
    fn worker_with_short_lease(&self, name: &str, more: &[(&str, &str)]) -> Worker {
        let (config, mut deployment) = configs(&self.redis.url(), &self.s3.url(), name, more);
        deployment.lease = LEASE;
        self.worker_as(config, deployment)
    }

    /// Queues a task that needs the temporary directory.
    async fn enqueue_with_text(&self, task: &str) {
        self.s3.put("uploads/text", "hello");
        let artifact =
            json!({"artifact_id": "P:text", "kind": "text", "storage_locator": "s3://uploads/text"});
        let request = json!({"task_id": task, "job_id": JOB, "resolved_artifact_ids": {"text": "P:text"},
            "artifact_index": {"P:text": artifact}, "config": {"takes_ms": 10}});
        self.enqueue(task, request.to_string()).await;
    }

    /// How many events of each type there are.
    async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (kind, _) in self.events().await {
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }

    /// Waits until so many tasks are completed. None may fail.
    async fn until_completed(&self, tasks: usize) {
        let all = async || {
            let counts = self.counts().await;
            assert_eq!(counts.get("task.failed"), None, "{counts:?}");
            (counts.get("task.completed") == Some(&tasks)).then_some(())
        };
        until("completed tasks", all).await;
    }
}

impl Worker {
    /// Waits until the worker says that it takes no tasks, and why.
    async fn until_unhealthy(&self, reason: &str) {
        let unhealthy = async || {
            let response = get(self.port, "/health").await?;
            let health = response.json();
            let problem = health["problem"].as_str()?;
            assert_eq!((response.status, &health["status"]), (503, &json!("unhealthy")));
            // The reason of a failed probe replaces that of the task that failed before.
            problem.contains(reason).then_some(())
        };
        until("unhealthy worker", unhealthy).await;
    }

    async fn until_healthy(&self) {
        let healthy = async || {
            let response = get(self.port, "/health").await?;
            (response.status == 200 && response.json().get("problem").is_none()).then_some(())
        };
        until("healthy worker", healthy).await;
    }
}

fn tasks() -> Vec<String> {
    (0..60).map(|number| format!("task-{number}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_its_model_leaves_the_queue_to_a_peer() {
    let deployment = Deployment::start().await;
    let broken = deployment.worker_with("broken", &[("DALSTON_DEFAULT_MODEL", "absent")]);
    // Three stop the reads, and each further one is a trial that fails.
    for number in 0..7 {
        let task = format!("first-{number}");
        deployment.enqueue(&task, request(&task, json!({}))).await;
    }
    broken.until_unhealthy("loading model \"absent\"").await;
    for task in tasks() {
        deployment
            .enqueue(&task, request(&task, json!({"takes_ms": 10})))
            .await;
    }
    let healthy = deployment.worker("healthy", "5");
    deployment.until_completed(67).await;
    assert_eq!(healthy.get("/health").await.status, 200);
    assert_eq!(deployment.pending().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_loses_its_temp_dir_recovers_when_it_is_back() {
    let deployment = Deployment::start().await;
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mut broken = deployment.worker_with("broken", &[("TMPDIR", root.to_str().unwrap())]);
    deployment.enqueue_with_text("before").await;
    deployment.until_completed(1).await;
    until("empty directory", async || {
        std::fs::remove_dir(&root).is_ok().then_some(())
    })
    .await;
    std::fs::write(&root, "a file").unwrap();
    for task in ["first-0", "first-1", "first-2"] {
        deployment.enqueue_with_text(task).await;
    }
    // The task and the probe name the directory.
    broken.until_unhealthy(root.to_str().unwrap()).await;
    for task in tasks() {
        deployment.enqueue_with_text(&task).await;
    }
    let mut healthy = deployment.worker("healthy", "5");
    deployment.until_completed(64).await;
    healthy.finish().await;
    broken.until_unhealthy("temporary files").await;

    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    broken.until_healthy().await;
    deployment.enqueue_with_text("after").await;
    deployment.until_completed(65).await;
    broken.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_outlast_expired_credentials() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker_with_short_lease("a", &[]);
    deployment.enqueue_with_text("before").await;
    deployment.until_completed(1).await;
    deployment.s3.trouble(Trouble::new(Fault::EXPIRED_TOKEN));
    for number in 0..5 {
        deployment.enqueue_with_text(&format!("during-{number}")).await;
    }
    worker.until_unhealthy("ExpiredToken").await;
    deployment.s3.heal();
    deployment.until_completed(6).await;
    worker.until_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_refused_by_the_storage_fails_after_two_hand_backs() {
    let deployment = Deployment::start().await;
    let denied = Trouble::new(Fault::ACCESS_DENIED).path("denied");
    deployment.s3.trouble(denied);
    let worker = deployment.worker_with_short_lease("a", &[]);
    deployment.enqueue("denied", request("denied", json!({}))).await;
    let failure = deployment.until_event("task.failed", "denied").await;
    let error = failure["error"].as_str().unwrap();
    assert!(
        error.contains("AccessDenied") && error.contains("request.json"),
        "{error}"
    );
    let expected = [("task.started", 1), ("task.failed", 1)].map(|(kind, count)| (kind.to_owned(), count));
    assert_eq!(deployment.counts().await, expected.into());
    deployment.enqueue("good", request("good", json!({}))).await;
    deployment.until_event("task.completed", "good").await;
    worker.until_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_whose_model_the_storage_refuses_is_handed_back() {
    let deployment = Deployment::start().await;
    for file in ["model.bin", ".complete"] {
        let place = format!("{}/models/tiny/{file}", TestS3::BUCKET);
        deployment.s3.put(&place, "weights");
    }
    let denied = Trouble::new(Fault::ACCESS_DENIED).path("model.bin");
    deployment.s3.trouble(denied);
    let cache = tempfile::tempdir().unwrap();
    let variables = [("DALSTON_MODEL_CACHE_DIR", cache.path().to_str().unwrap())];
    let _worker = deployment.worker_with_short_lease("a", &variables);
    let config = json!({"loaded_model_id": "tiny"});
    deployment.enqueue("T", request("T", config)).await;
    let metadata = ["HGET", "dalston:task:T", "handed_back_storage"];
    until("the task is handed back", async || {
        assert_eq!(deployment.counts().await.get("task.failed"), None);
        deployment.redis.send::<Option<String>>(&metadata).await
    })
    .await;
    deployment.s3.heal();
    deployment.until_completed(1).await;
}

/// Runs a worker with these variables until its probes fail with `reason`; then `repair` is called.
async fn reads_nothing_until(
    deployment: &Deployment,
    more: &[(&str, &str)],
    reason: &str,
    repair: impl FnOnce(),
) {
    let mut worker = deployment.worker_with("a", more);
    deployment.enqueue_with_text("task").await;
    worker.until_unhealthy(reason).await;
    until("status of the worker", async || {
        (deployment.status(&worker).await? == "loading").then_some(())
    })
    .await;
    assert_eq!(deployment.events().await, [] as [(String, Value); 0]);
    repair();
    deployment.until_completed(1).await;
    worker.until_healthy().await;
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_temp_dir_reads_nothing() {
    let deployment = Deployment::start().await;
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    let make = |root: &Path| std::fs::create_dir(root).unwrap();
    let variables = [("TMPDIR", root.to_str().unwrap())];
    reads_nothing_until(&deployment, &variables, "set TMPDIR", || make(&root)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_bucket_reads_nothing() {
    let deployment = Deployment::start().await;
    deployment.s3.trouble(Trouble::new(Fault::Answer {
        status: 404,
        code: "NoSuchBucket",
    }));
    let reason = "s3://dalston-artifacts/dalston-probe/echo-a: there is no such bucket";
    reads_nothing_until(&deployment, &[], reason, || deployment.s3.heal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_delete_of_the_probe_is_only_a_warning() {
    let deployment = Deployment::start().await;
    // Deletes are sent as a list.
    let no_deletes = Trouble::new(Fault::ACCESS_DENIED).method("POST");
    deployment.s3.trouble(no_deletes);
    let worker = deployment.worker("a", "5");
    deployment.enqueue("good", request("good", json!({}))).await;
    deployment.until_completed(1).await;
    worker.until_healthy().await;
    let keys = deployment.s3.keys(TestS3::BUCKET);
    assert!(keys.contains(&"dalston-probe/echo-a".to_owned()), "{keys:?}");
}
