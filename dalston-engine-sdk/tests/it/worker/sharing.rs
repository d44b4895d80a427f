//! Workers of one engine share their tasks.

use std::sync::atomic::Ordering;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_workers_prepare_the_tasks_of_a_backlog() {
    let deployment = Deployment::start().await;
    let workers = idle_workers(&deployment, 2).await;
    enqueue(&deployment, 5).await;
    until_all_begin(&workers).await;
    let prepared = async || (deployment.pending().await == 4).then_some(());
    until("two tasks read ahead", prepared).await;
}
