//! Workers of one engine share their tasks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::{Deployment, Worker, request};
use crate::support::until;

/// Starts workers with one inference thread each, and waits until they are idle.
async fn idle_workers(deployment: &Deployment, count: usize) -> Vec<Worker> {
    let workers: Vec<_> = (0..count)
        .map(|number| deployment.worker(&format!("w{number}"), "0"))
        .collect();
    for worker in &workers {
        let idle = async || (deployment.status(worker).await? == "idle").then_some(());
        until("idle worker", idle).await;
    }
    workers
}

/// Queues tasks that take longer than the test.
async fn enqueue(deployment: &Deployment, count: usize) {
    let name = |number| format!("task-{number}");
    for task in (0..count).map(name) {
        deployment
            .prepare(&task, request(&task, json!({"takes_ms": 60_000})))
            .await;
    }
    for task in (0..count).map(name) {
        deployment.queue(&task).await;
    }
}

async fn until_all_begin(workers: &[Worker]) {
    let begun = |worker: &Worker| worker.begun.load(Ordering::SeqCst);
    until("tasks in all workers", async || {
        workers.iter().all(|worker| begun(worker) == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tasks_begin_at_once_on_two_idle_workers() {
    let deployment = Deployment::start().await;
    let workers = idle_workers(&deployment, 2).await;
    enqueue(&deployment, 2).await;
    until_all_begin(&workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_tasks_begin_at_once_on_eight_idle_workers() {
    let deployment = Deployment::start().await;
    let workers = idle_workers(&deployment, 8).await;
    enqueue(&deployment, 8).await;
    until_all_begin(&workers).await;
}

/// Writes the registry record of an engine that is idle and does not read.
async fn register_idle(deployment: &Deployment, name: &str) {
    let record = format!("dalston:engine:instance:{name}");
    let fields = [
        "HSET",
        &*record,
        "status",
        "idle",
        "capacity",
        "1",
        "active_batch",
        "0",
    ];
    let () = deployment.redis.send(&fields).await;
    let () = deployment.redis.send(&["EXPIRE", &record, "60"]).await;
    let members = "dalston:engine:engine_id:echo";
    let () = deployment.redis.send(&["SADD", members, name]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_worker_leaves_its_peers_one_task_each() {
    for peers in [1, 7] {
        let deployment = Deployment::start().await;
        for peer in 0..peers {
            register_idle(&deployment, &format!("echo-peer-{peer}")).await;
        }
        let workers = idle_workers(&deployment, 1).await;
        enqueue(&deployment, 1 + peers).await;
        until_all_begin(&workers).await;
        // It looks for tasks twice in this time.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(deployment.pending().await, 1, "beside {peers} idle peers");
        deployment.queue(&format!("task-{peers}")).await;
        let ahead = async || (deployment.pending().await == 2).then_some(());
        until("task that no peer can begin", ahead).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_workers_prepare_the_tasks_of_a_backlog() {
    let deployment = Deployment::start().await;
    let workers = idle_workers(&deployment, 2).await;
    enqueue(&deployment, 5).await;
    until_all_begin(&workers).await;
    let prepared = async || (deployment.pending().await == 4).then_some(());
    until("two tasks read ahead", prepared).await;
}
