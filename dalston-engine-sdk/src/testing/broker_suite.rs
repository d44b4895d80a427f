//! Tests that every broker has to pass: implement [`Platform`] for yours and call
//! [`broker_suite!`](crate::broker_suite).
//!
//! The suite takes both sides of a queue. It works through [`Broker`] as workers do, several of
//! them at a time, and looks through [`Platform`] at what they leave behind. This is how the broker
//! in memory is tested:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use async_trait::async_trait;
//! use dalston_engine_sdk::broker::{Broker, EventKind, MemoryBroker, QueuedTask, TaskMetadata};
//! use dalston_engine_sdk::testing::broker_suite::{ENGINE, Platform, Report, ReportKind};
//!
//! struct InMemory(MemoryBroker);
//!
//! #[async_trait]
//! impl Platform for InMemory {
//!     fn broker(&self) -> Arc<dyn Broker> {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>) {
//!         let mut task = QueuedTask::new(ENGINE, task_id, job_id);
//!         task.metadata = stage.map(TaskMetadata::new);
//!         self.0.enqueue(task).expect("room in the queue");
//!     }
//!
//!     async fn cancel_job(&self, job_id: &str) {
//!         self.0.cancel_job(job_id);
//!     }
//!
//!     async fn reports(&self) -> Vec<Report> {
//!         let reports = self.0.events().into_iter().map(|event| {
//!             let kind = match event.kind {
//!                 EventKind::Started => ReportKind::Started,
//!                 EventKind::Completed { .. } => ReportKind::Completed,
//!                 EventKind::Failed { error, .. } => ReportKind::Failed(error),
//!                 other => panic!("an unknown event: {other:?}"),
//!             };
//!             Report { kind, task_id: event.task_id, context: event.context }
//!         });
//!         reports.collect()
//!     }
//!
//!     async fn unfinished_tasks(&self) -> usize {
//!         self.0.waiting() + self.0.held()
//!     }
//! }
//!
//! mod in_memory {
//!     async fn platform() -> super::InMemory {
//!         super::InMemory(super::MemoryBroker::with(super::Duration::from_secs(1), 1000))
//!     }
//!
//!     dalston_engine_sdk::broker_suite!(platform);
//! }
//! # fn main() {}
//! ```

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod give_back;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::yield_now;
use tokio::time::timeout;

pub use self::give_back::{
    handed_back_running_task_goes_to_a_peer_first, handed_back_task_goes_to_a_peer_up_to_its_limit,
    handed_back_task_returns_to_its_worker_after_a_lease, released_running_task_is_delivered_again,
    released_task_is_delivered_before_its_lease_ends, starts_are_counted_until_their_end_is_known,
};
use crate::broker::{
    Broker, Claim, Consumer, Delivery, EventContext, Lookup, Outcome, Ownership, RedeliveryReason,
};

/// The engine of all tasks.
pub const ENGINE: &str = "my-asr";

/// Long enough for a slow machine. No check waits so long if the broker works.
const LONG: Duration = Duration::from_secs(20);

/// One deployment, seen from the platform's side. Each check gets a fresh one.
#[async_trait]
pub trait Platform: Send + Sync {
    /// The broker of another worker process. A short lease makes the suite quick: 1 s is a good
    /// one.
    fn broker(&self) -> Arc<dyn Broker>;

    /// Queues a task for [`ENGINE`]. Without a stage, nothing is known about the task but its ids.
    async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>);

    /// Cancels a job.
    async fn cancel_job(&self, job_id: &str);

    /// The events that were reported, oldest first.
    async fn reports(&self) -> Vec<Report>;

    /// How many tasks wait or are held. A task that was queued twice counts once.
    async fn unfinished_tasks(&self) -> usize;
}

/// An event as the platform gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What happened.
    pub kind: ReportKind,
    /// To which task.
    pub task_id: String,
    /// What came with it.
    pub context: EventContext,
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum ReportKind {
    /// Work began.
    Started,
    /// It is completed.
    Completed,
    /// It failed, for this reason.
    Failed(String),
}

impl Report {
    /// An event without context.
    #[must_use]
    pub fn new(kind: ReportKind, task_id: impl Into<String>) -> Self {
        Self {
            kind,
            task_id: task_id.into(),
            context: EventContext::default(),
        }
    }
}

/// Makes a test of each check. The argument is the path of an asynchronous function that starts a
/// [`Platform`].
///
/// The tests bring their own runtime. See [`testing::broker_suite`](crate::testing::broker_suite)
/// for an example.
#[macro_export]
macro_rules! broker_suite {
    ($platform:path) => {
        $crate::broker_suite! {
            $platform:
            finished_task_is_gone,
            tasks_come_in_queue_order,
            waiting_worker_gets_the_next_task,
            busy_worker_reads_ahead_if_no_peer_is_idle,
            events_carry_error_and_context,
            task_without_metadata_is_missing,
            waiting_task_of_cancelled_job_is_skipped,
            running_task_sees_cancellation_of_its_job,
            cancelled_task_is_reported_as_completed,
            failure_without_start_reports_the_start_first,
            starts_are_counted_until_their_end_is_known,
            task_of_dead_worker_is_delivered_again,
            stale_owner_can_change_nothing,
            task_that_is_queued_twice_is_done_once,
            task_is_finished_once,
            renewed_task_stays_with_its_worker,
            released_task_is_delivered_before_its_lease_ends,
            released_running_task_is_delivered_again,
            handed_back_task_goes_to_a_peer_up_to_its_limit,
            handed_back_task_returns_to_its_worker_after_a_lease,
            handed_back_running_task_goes_to_a_peer_first,
            dropped_receive_loses_no_task,
            workers_share_tasks_and_do_each_once,
        }
    };
    ($platform:path: $($check:ident),+ $(,)?) => {
        $(
            #[test]
            fn $check() {
                $crate::testing::broker_suite::run(async {
                    $crate::testing::broker_suite::$check(&$platform().await).await;
                });
            }
        )+
    };
}

/// Runs one check on a runtime of its own.
///
/// # Panics
///
/// If the check fails.
pub fn run(check: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(check);
}

fn consumer(instance: &str) -> Consumer {
    Consumer {
        engine_id: ENGINE.to_owned(),
        instance: instance.to_owned(),
    }
}

async fn receive(worker: &dyn Broker, instance: &str) -> Delivery {
    let found = worker.receive(&consumer(instance), LONG).await.unwrap();
    found.expect("a task")
}

/// Much shorter than a lease, and long enough to see that nothing comes.
fn short(worker: &dyn Broker) -> Duration {
    worker.lease() / 5
}

async fn receives_nothing(worker: &dyn Broker, instance: &str) {
    let found = worker.receive(&consumer(instance), short(worker)).await.unwrap();
    assert!(found.is_none(), "{instance} got {found:?}");
}

fn completed() -> Outcome {
    Outcome::Completed {
        artifacts: Vec::new(),
    }
}

async fn end(worker: &dyn Broker, claim: &Claim, outcome: &Outcome) -> Ownership {
    let nothing = EventContext::default();
    worker.finish(claim, outcome, &nothing).await.unwrap()
}

async fn finish(worker: &dyn Broker, claim: &Claim) -> Ownership {
    end(worker, claim, &completed()).await
}

/// A task goes to one worker, and is gone when that worker has finished it.
pub async fn finished_task_is_gone(platform: &dyn Platform) {
    let (a, b) = (platform.broker(), platform.broker());
    platform.enqueue("T1", "J1", Some("transcribe_ch0")).await;

    let delivery = receive(&*a, "a").await;
    receives_nothing(&*b, "b").await;

    let claim = &delivery.claim;
    assert_eq!(
        (&*claim.task_id, &*claim.job_id, claim.delivery_count),
        ("T1", "J1", 1)
    );
    assert_eq!((delivery.redelivery, delivery.requeued_at), (None, None));
    let Lookup::Task(metadata) = a.lookup(claim).await.unwrap() else {
        panic!("the task is known")
    };
    assert_eq!(metadata.stage, "transcribe_ch0");
    let started = a.started(claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);
    assert_eq!(platform.unfinished_tasks().await, 1);
    assert_eq!(finish(&*a, claim).await, Ownership::Held);

    assert_eq!(platform.unfinished_tasks().await, 0);
    let expected = [ReportKind::Started, ReportKind::Completed].map(|kind| Report::new(kind, "T1"));
    assert_eq!(platform.reports().await, expected);
    receives_nothing(&*b, "b").await;
}

/// The oldest task comes first.
pub async fn tasks_come_in_queue_order(platform: &dyn Platform) {
    let worker = platform.broker();
    for task in ["T1", "T2", "T3"] {
        platform.enqueue(task, "J1", Some("transcribe")).await;
    }
    for task in ["T1", "T2", "T3"] {
        assert_eq!(receive(&*worker, "a").await.claim.task_id, task);
    }
}

/// A task that is queued during a read goes to the worker that waits.
pub async fn waiting_worker_gets_the_next_task(platform: &dyn Platform) {
    let worker = platform.broker();
    let waiting = tokio::spawn(async move { receive(&*worker, "a").await });
    yield_now().await;
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    assert_eq!(waiting.await.unwrap().claim.task_id, "T1");
}

/// Without an idle peer, a busy worker takes a task that waits, and one that comes.
pub async fn busy_worker_reads_ahead_if_no_peer_is_idle(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let found = worker.receive_ahead(&consumer("a"), LONG).await.unwrap();
    assert_eq!(found.expect("a task").claim.task_id, "T1");
    let none = worker.receive_ahead(&consumer("a"), short(&*worker)).await;
    assert!(none.unwrap().is_none());
    let waiting = tokio::spawn(async move { worker.receive_ahead(&consumer("a"), LONG).await });
    yield_now().await;
    platform.enqueue("T2", "J1", Some("transcribe")).await;
    let found = waiting.await.unwrap().unwrap();
    assert_eq!(found.expect("a task").claim.task_id, "T2");
}

/// The event of a failure has its error, and each event has the context that it was given.
pub async fn events_carry_error_and_context(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    let trace = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
    let context = EventContext {
        request_id: Some("req_1".to_owned()),
        trace_context: Some(trace.to_owned()),
    };
    let failure = Outcome::Failed {
        error: "no such audio".to_owned(),
        code: "missing_input",
        retryable: false,
    };

    assert_eq!(worker.started(&claim, &context).await.unwrap(), Ownership::Held);
    let failed = worker.finish(&claim, &failure, &context).await;
    assert_eq!(failed.unwrap(), Ownership::Held);

    let failure = ReportKind::Failed("no such audio".to_owned());
    let expected = [ReportKind::Started, failure].map(|kind| Report {
        context: context.clone(),
        ..Report::new(kind, "T1")
    });
    assert_eq!(platform.reports().await, expected);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// A task without metadata is told from a task that should be skipped.
pub async fn task_without_metadata_is_missing(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", None).await;
    let claim = receive(&*worker, "a").await.claim;
    assert!(matches!(worker.lookup(&claim).await.unwrap(), Lookup::Missing));
}

/// A task that is cancelled while it waits is removed without an event.
pub async fn waiting_task_of_cancelled_job_is_skipped(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.cancel_job("J1").await;
    let claim = receive(&*worker, "a").await.claim;
    assert!(matches!(
        worker.lookup(&claim).await.unwrap(),
        Lookup::Cancelled { .. }
    ));
    assert_eq!(end(&*worker, &claim, &Outcome::Skipped).await, Ownership::Held);
    assert_eq!(platform.unfinished_tasks().await, 0);
    assert_eq!(platform.reports().await, []);
}

/// The cancellation of a job reaches its running tasks and no others.
pub async fn running_task_sees_cancellation_of_its_job(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.enqueue("T2", "J2", Some("transcribe")).await;
    let first = receive(&*worker, "a").await.claim;
    let second = receive(&*worker, "a").await.claim;
    assert!(!worker.is_cancelled(&first).await.unwrap());
    platform.cancel_job("J1").await;
    assert!(worker.is_cancelled(&first).await.unwrap());
    assert!(!worker.is_cancelled(&second).await.unwrap());
}

/// A cancelled job waits for the completion of its running tasks, so a cancelled task is completed
/// and not failed.
pub async fn cancelled_task_is_reported_as_completed(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    let started = worker.started(&claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);
    platform.cancel_job("J1").await;
    assert_eq!(end(&*worker, &claim, &Outcome::Cancelled).await, Ownership::Held);

    let expected = [ReportKind::Started, ReportKind::Completed].map(|kind| Report::new(kind, "T1"));
    assert_eq!(platform.reports().await, expected);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// The platform expects the start of a task before its failure, and each start once.
pub async fn failure_without_start_reports_the_start_first(platform: &dyn Platform) {
    let worker = platform.broker();
    let nothing = EventContext::default();
    let failure = Outcome::Failed {
        error: "no such audio".to_owned(),
        code: "missing_input",
        retryable: false,
    };
    let failed = || ReportKind::Failed("no such audio".to_owned());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.enqueue("T2", "J2", Some("transcribe")).await;

    let claim = receive(&*worker, "a").await.claim;
    assert_eq!(end(&*worker, &claim, &failure).await, Ownership::Held);
    let claim = receive(&*worker, "a").await.claim;
    for _ in 0..2 {
        assert_eq!(worker.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    }
    assert_eq!(end(&*worker, &claim, &failure).await, Ownership::Held);

    let expected = [
        Report::new(ReportKind::Started, "T1"),
        Report::new(failed(), "T1"),
        Report::new(ReportKind::Started, "T2"),
        Report::new(failed(), "T2"),
    ];
    assert_eq!(platform.reports().await, expected);
}

/// When a lease has ended, the task goes to another worker, with its true number of deliveries.
pub async fn task_of_dead_worker_is_delivered_again(platform: &dyn Platform) {
    let dead = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let first = receive(&*dead, "dead").await;
    drop(dead);

    let peer = platform.broker();
    receives_nothing(&*peer, "peer").await;
    let second = receive(&*peer, "peer").await;

    assert_eq!(second.claim.task_id, "T1");
    assert_eq!(second.claim.message_id, first.claim.message_id);
    assert_eq!(second.claim.delivery_count, 2);
    assert_eq!(second.redelivery, Some(RedeliveryReason::EngineCrash));
    assert!(second.requeued_at.is_some());
    assert_eq!(second.enqueued_at, first.enqueued_at);
    drop(peer);

    let third = receive(&*platform.broker(), "third").await;
    assert_eq!(third.claim.delivery_count, 3);
}

/// A worker that lost a task can neither renew nor report nor release it.
pub async fn stale_owner_can_change_nothing(platform: &dyn Platform) {
    let (slow, peer) = (platform.broker(), platform.broker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let stale = receive(&*slow, "slow").await.claim;
    let current = receive(&*peer, "peer").await.claim;

    assert_eq!(slow.renew(&stale).await.unwrap(), Ownership::Lost);
    let started = slow.started(&stale, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Lost);
    for outcome in [completed(), Outcome::Cancelled, Outcome::Skipped] {
        assert_eq!(
            end(&*slow, &stale, &outcome).await,
            Ownership::Lost,
            "{outcome:?}"
        );
    }
    assert_eq!(slow.release(&stale).await.unwrap(), Ownership::Lost);
    assert!(matches!(slow.lookup(&stale).await.unwrap(), Lookup::Lost));

    assert_eq!(platform.reports().await, []);
    assert_eq!(platform.unfinished_tasks().await, 1);
    assert_eq!(peer.renew(&current).await.unwrap(), Ownership::Held);
    assert_eq!(finish(&*peer, &current).await, Ownership::Held);
    let expected = [Report::new(ReportKind::Completed, "T1")];
    assert_eq!(platform.reports().await, expected);
}

/// The platform may queue a task again while a worker, or the same one, processes it.
pub async fn task_that_is_queued_twice_is_done_once(platform: &dyn Platform) {
    let (worker, peer) = (platform.broker(), platform.broker());
    for _ in 0..3 {
        platform.enqueue("T1", "J1", Some("transcribe")).await;
    }
    let claim = receive(&*worker, "a").await.claim;
    assert!(matches!(worker.lookup(&claim).await.unwrap(), Lookup::Task(_)));
    for (broker, name) in [(&worker, "a"), (&peer, "b")] {
        let second = receive(&**broker, name).await.claim;
        assert_ne!(second.message_id, claim.message_id);
        assert!(
            matches!(broker.lookup(&second).await.unwrap(), Lookup::Lost),
            "{name}"
        );
        assert_eq!(finish(&**broker, &second).await, Ownership::Lost);
    }
    assert_eq!(platform.unfinished_tasks().await, 1);

    assert!(matches!(worker.lookup(&claim).await.unwrap(), Lookup::Task(_)));
    assert_eq!(finish(&*worker, &claim).await, Ownership::Held);
    let expected = [Report::new(ReportKind::Completed, "T1")];
    assert_eq!(platform.reports().await, expected);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// A second report of an outcome changes nothing.
pub async fn task_is_finished_once(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    assert_eq!(finish(&*worker, &claim).await, Ownership::Held);
    assert_eq!(finish(&*worker, &claim).await, Ownership::Lost);
    let expected = [Report::new(ReportKind::Completed, "T1")];
    assert_eq!(platform.reports().await, expected);
}

/// A task that is renewed in time is never delivered again.
pub async fn renewed_task_stays_with_its_worker(platform: &dyn Platform) {
    let (worker, peer) = (platform.broker(), platform.broker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    for _ in 0..10 {
        receives_nothing(&*peer, "b").await;
        assert_eq!(worker.renew(&claim).await.unwrap(), Ownership::Held);
    }
    assert_eq!(finish(&*worker, &claim).await, Ownership::Held);
}

/// A worker that stops waiting takes no task with it.
pub async fn dropped_receive_loses_no_task(platform: &dyn Platform) {
    let worker = platform.broker();
    receives_nothing(&*worker, "a").await;
    let dropped = timeout(short(&*worker), worker.receive(&consumer("a"), LONG)).await;
    assert!(dropped.is_err());
    platform.enqueue("T1", "J1", Some("transcribe")).await;

    let peer = platform.broker();
    let claim = receive(&*peer, "b").await.claim;
    assert_eq!(claim.task_id, "T1");
    assert_eq!(finish(&*peer, &claim).await, Ownership::Held);
}

/// Of many tasks and several workers, each task is done by one worker.
pub async fn workers_share_tasks_and_do_each_once(platform: &dyn Platform) {
    const TASKS: usize = 60;
    let expected: Vec<String> = (0..TASKS).map(|number| format!("T{number:03}")).collect();
    for task in &expected {
        platform.enqueue(task, "J1", Some("transcribe")).await;
    }
    let workers = (0..4).map(|number| {
        let worker = platform.broker();
        tokio::spawn(async move {
            let me = consumer(&format!("w{number}"));
            while let Some(delivery) = worker.receive(&me, short(&*worker)).await.unwrap() {
                assert_eq!(finish(&*worker, &delivery.claim).await, Ownership::Held);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let reports = platform.reports().await;
    let mut done: Vec<&str> = reports.iter().map(|report| &*report.task_id).collect();
    done.sort_unstable();
    assert_eq!(done, expected);
    assert_eq!(platform.unfinished_tasks().await, 0);
}
