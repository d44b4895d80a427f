//! What every broker promises, shown on each of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dalston_engine_sdk::broker::{
    Broker, Claim, Consumer, Delivery, EventContext, EventKind, Lookup, MemoryBroker, Outcome, Ownership,
    QueuedTask, RedeliveryReason, TaskMetadata,
};

/// Long enough for a slow machine. Nothing here waits for so long when it works.
const LONG: Duration = Duration::from_secs(20);
/// Short enough to see that nothing comes.
const SHORT: Duration = Duration::from_millis(150);
/// How long a silent worker keeps a task.
const LEASE: Duration = Duration::from_millis(600);

const ENGINE: &str = "my-asr";

/// A platform, seen from outside.
#[async_trait]
trait Platform: Send + Sync {
    /// The broker of another worker process.
    fn worker(&self) -> Arc<dyn Broker>;
    async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>);
    async fn cancel(&self, job_id: &str);
    /// What was reported: kind, task, error, request id, trace context.
    async fn events(&self) -> Vec<Event>;
    /// Tasks that are neither finished nor skipped.
    async fn unfinished(&self) -> usize;
}

#[derive(Debug, Clone, PartialEq)]
struct Event {
    kind: &'static str,
    task_id: String,
    error: Option<String>,
    request_id: Option<String>,
    trace_context: Option<String>,
}

fn event(kind: &'static str, task_id: &str) -> Event {
    Event {
        kind,
        task_id: task_id.to_owned(),
        error: None,
        request_id: None,
        trace_context: None,
    }
}

fn consumer(instance: &str) -> Consumer {
    Consumer {
        engine_id: ENGINE.to_owned(),
        instance: instance.to_owned(),
    }
}

async fn receive(worker: &dyn Broker, instance: &str) -> Delivery {
    worker
        .receive(&consumer(instance), LONG)
        .await
        .unwrap()
        .expect("a task")
}

async fn receives_nothing(worker: &dyn Broker, instance: &str) {
    let found = worker.receive(&consumer(instance), SHORT).await.unwrap();
    assert!(found.is_none(), "{instance} got {found:?}");
}

fn completed() -> Outcome {
    Outcome::Completed {
        artifacts: Vec::new(),
    }
}

async fn finish(worker: &dyn Broker, claim: &Claim) -> Ownership {
    worker
        .finish(claim, &completed(), &EventContext::default())
        .await
        .unwrap()
}

async fn a_task_goes_to_one_worker_and_is_gone_when_it_is_finished(platform: &dyn Platform) {
    let (a, b) = (platform.worker(), platform.worker());
    platform.enqueue("T1", "J1", Some("transcribe_ch0")).await;

    let delivery = receive(&*a, "a").await;
    receives_nothing(&*b, "b").await;

    let claim = &delivery.claim;
    assert_eq!(
        (
            claim.task_id.as_str(),
            claim.job_id.as_str(),
            claim.delivery_count
        ),
        ("T1", "J1", 1)
    );
    assert_eq!((delivery.redelivery, delivery.requeued_at), (None, None));
    let Lookup::Task(metadata) = a.lookup(claim).await.unwrap() else {
        panic!("the task is known")
    };
    assert_eq!(metadata.stage, "transcribe_ch0");
    assert_eq!(
        a.started(claim, &EventContext::default()).await.unwrap(),
        Ownership::Held
    );
    assert_eq!(platform.unfinished().await, 1);
    assert_eq!(finish(&*a, claim).await, Ownership::Held);

    assert_eq!(platform.unfinished().await, 0);
    assert_eq!(
        platform.events().await,
        [event("started", "T1"), event("completed", "T1")]
    );
    receives_nothing(&*b, "b").await;
}

async fn tasks_come_in_the_order_of_the_queue(platform: &dyn Platform) {
    let worker = platform.worker();
    for task in ["T1", "T2", "T3"] {
        platform.enqueue(task, "J1", Some("transcribe")).await;
    }
    for task in ["T1", "T2", "T3"] {
        assert_eq!(receive(&*worker, "a").await.claim.task_id, task);
    }
}

async fn a_worker_that_waits_gets_the_task_that_comes(platform: &dyn Platform) {
    let worker = platform.worker();
    let waiting = tokio::spawn(async move { receive(&*worker, "a").await });
    tokio::task::yield_now().await;
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    assert_eq!(waiting.await.unwrap().claim.task_id, "T1");
}

async fn a_failure_carries_its_error_and_every_event_its_context(platform: &dyn Platform) {
    let worker = platform.worker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    let context = EventContext {
        request_id: Some("req_1".to_owned()),
        trace_context: Some(
            r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#.to_owned(),
        ),
    };
    let failure = Outcome::Failed {
        error: "no such audio".to_owned(),
        code: "missing_input",
        retryable: false,
    };

    assert_eq!(worker.started(&claim, &context).await.unwrap(), Ownership::Held);
    assert_eq!(
        worker.finish(&claim, &failure, &context).await.unwrap(),
        Ownership::Held
    );

    let with_context = |kind, error: Option<&str>| Event {
        error: error.map(str::to_owned),
        request_id: context.request_id.clone(),
        trace_context: context.trace_context.clone(),
        ..event(kind, "T1")
    };
    let expected = [
        with_context("started", None),
        with_context("failed", Some("no such audio")),
    ];
    assert_eq!(platform.events().await, expected);
    assert_eq!(platform.unfinished().await, 0);
}

async fn a_task_of_which_nothing_is_known_is_missing(platform: &dyn Platform) {
    let worker = platform.worker();
    platform.enqueue("T1", "J1", None).await;
    let claim = receive(&*worker, "a").await.claim;
    assert!(matches!(worker.lookup(&claim).await.unwrap(), Lookup::Missing));
}

async fn a_waiting_task_of_a_cancelled_job_is_skipped_without_an_event(platform: &dyn Platform) {
    let worker = platform.worker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.cancel("J1").await;
    let claim = receive(&*worker, "a").await.claim;
    assert!(matches!(worker.lookup(&claim).await.unwrap(), Lookup::Cancelled));
    let skipped = worker
        .finish(&claim, &Outcome::Skipped, &EventContext::default())
        .await
        .unwrap();
    assert_eq!(skipped, Ownership::Held);
    assert_eq!(
        (platform.unfinished().await, platform.events().await),
        (0, Vec::new())
    );
}

async fn a_running_task_hears_of_the_cancellation_of_its_job(platform: &dyn Platform) {
    let worker = platform.worker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.enqueue("T2", "J2", Some("transcribe")).await;
    let (first, second) = (
        receive(&*worker, "a").await.claim,
        receive(&*worker, "a").await.claim,
    );
    assert!(!worker.is_cancelled(&first).await.unwrap());
    platform.cancel("J1").await;
    assert!(worker.is_cancelled(&first).await.unwrap());
    assert!(!worker.is_cancelled(&second).await.unwrap());
}

async fn a_task_whose_worker_died_goes_to_another_one(platform: &dyn Platform) {
    let dead = platform.worker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let first = receive(&*dead, "dead").await;
    drop(dead);

    let peer = platform.worker();
    receives_nothing(&*peer, "peer").await;
    let second = receive(&*peer, "peer").await;

    assert_eq!(second.claim.task_id, "T1");
    assert_eq!(second.claim.message_id, first.claim.message_id);
    assert_eq!(second.claim.delivery_count, 2);
    assert_eq!(second.redelivery, Some(RedeliveryReason::EngineCrash));
    assert!(second.requeued_at.is_some());
    assert_eq!(second.enqueued_at, first.enqueued_at);
    drop(peer);

    let third = receive(&*platform.worker(), "third").await;
    assert_eq!(third.claim.delivery_count, 3, "the count is the true one");
}

async fn a_stale_owner_can_neither_renew_nor_finish_nor_hand_back(platform: &dyn Platform) {
    let (slow, peer) = (platform.worker(), platform.worker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let stale = receive(&*slow, "slow").await.claim;
    let current = receive(&*peer, "peer").await.claim;

    let nothing = EventContext::default();
    assert_eq!(slow.renew(&stale).await.unwrap(), Ownership::Lost);
    assert_eq!(slow.started(&stale, &nothing).await.unwrap(), Ownership::Lost);
    assert_eq!(
        slow.finish(&stale, &completed(), &nothing).await.unwrap(),
        Ownership::Lost
    );
    assert_eq!(
        slow.finish(&stale, &Outcome::Skipped, &nothing).await.unwrap(),
        Ownership::Lost
    );
    assert_eq!(slow.release(&stale).await.unwrap(), Ownership::Lost);
    assert!(matches!(slow.lookup(&stale).await.unwrap(), Lookup::Lost));

    assert_eq!(platform.events().await, [], "a stale owner says nothing");
    assert_eq!(platform.unfinished().await, 1, "and erases nothing");
    assert_eq!(peer.renew(&current).await.unwrap(), Ownership::Held);
    assert_eq!(finish(&*peer, &current).await, Ownership::Held);
    assert_eq!(platform.events().await, [event("completed", "T1")]);
}

async fn a_task_is_finished_once(platform: &dyn Platform) {
    let worker = platform.worker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    assert_eq!(finish(&*worker, &claim).await, Ownership::Held);
    assert_eq!(finish(&*worker, &claim).await, Ownership::Lost);
    assert_eq!(platform.events().await, [event("completed", "T1")]);
}

async fn a_renewed_task_stays_with_its_worker(platform: &dyn Platform) {
    let (worker, peer) = (platform.worker(), platform.worker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    for _ in 0..8 {
        receives_nothing(&*peer, "b").await;
        assert_eq!(worker.renew(&claim).await.unwrap(), Ownership::Held);
    }
    assert_eq!(finish(&*worker, &claim).await, Ownership::Held);
}

async fn a_task_that_was_handed_back_goes_to_a_peer_before_its_lease_ends(platform: &dyn Platform) {
    let (worker, peer) = (platform.worker(), platform.worker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.enqueue("T2", "J2", Some("transcribe")).await;
    let first = receive(&*worker, "a").await.claim;
    assert_eq!(worker.release(&first).await.unwrap(), Ownership::Held);
    assert_eq!(worker.release(&first).await.unwrap(), Ownership::Lost);

    let again = receive(&*peer, "b").await;
    assert_eq!(again.claim.task_id, "T1", "old work goes before new work");
    assert_eq!(again.claim.delivery_count, 2);
    assert_eq!(again.redelivery, Some(RedeliveryReason::Deferred));
    assert_eq!(finish(&*worker, &first).await, Ownership::Lost);
    assert_eq!(finish(&*peer, &again.claim).await, Ownership::Held);
    assert_eq!(platform.events().await, [event("completed", "T1")]);
}

async fn a_worker_that_stops_waiting_takes_no_task_with_it(platform: &dyn Platform) {
    let worker = platform.worker();
    receives_nothing(&*worker, "a").await;
    let impatient = tokio::time::timeout(SHORT, worker.receive(&consumer("a"), LONG)).await;
    assert!(impatient.is_err());
    platform.enqueue("T1", "J1", Some("transcribe")).await;

    let peer = platform.worker();
    let claim = receive(&*peer, "b").await.claim;
    assert_eq!(claim.task_id, "T1");
    assert_eq!(finish(&*peer, &claim).await, Ownership::Held);
}

async fn many_workers_share_the_tasks_and_each_is_done_once(platform: &dyn Platform) {
    const TASKS: usize = 60;
    let expected: Vec<String> = (0..TASKS).map(|number| format!("T{number:03}")).collect();
    for task in &expected {
        platform.enqueue(task, "J1", Some("transcribe")).await;
    }
    let workers = (0..4).map(|number| {
        let worker = platform.worker();
        tokio::spawn(async move {
            let name = format!("w{number}");
            while let Some(delivery) = worker.receive(&consumer(&name), SHORT).await.unwrap() {
                assert_eq!(finish(&*worker, &delivery.claim).await, Ownership::Held);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut done: Vec<String> = platform
        .events()
        .await
        .into_iter()
        .map(|event| event.task_id)
        .collect();
    done.sort();
    assert_eq!(done, expected);
    assert_eq!(platform.unfinished().await, 0);
}

struct InMemory(MemoryBroker);

#[async_trait]
impl Platform for InMemory {
    fn worker(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.clone())
    }

    async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>) {
        let mut task = QueuedTask::new(ENGINE, task_id, job_id);
        task.metadata = stage.map(TaskMetadata::new);
        self.0.enqueue(task).unwrap();
    }

    async fn cancel(&self, job_id: &str) {
        self.0.cancel_job(job_id);
    }

    async fn events(&self) -> Vec<Event> {
        let events = self.0.events().into_iter().map(|recorded| {
            let (kind, error) = match recorded.kind {
                EventKind::Started => ("started", None),
                EventKind::Completed { .. } => ("completed", None),
                EventKind::Failed { error, .. } => ("failed", Some(error)),
                other => panic!("{other:?}"),
            };
            let (request_id, trace_context) = (recorded.context.request_id, recorded.context.trace_context);
            Event {
                kind,
                task_id: recorded.task_id,
                error,
                request_id,
                trace_context,
            }
        });
        events.collect()
    }

    async fn unfinished(&self) -> usize {
        self.0.waiting() + self.0.held()
    }
}

#[cfg(feature = "redis")]
mod on_redis {
    use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
    use serde_json::Value;
    use testbed::TestRedis;

    use super::*;

    pub(super) struct OnRedis(pub(super) TestRedis);

    #[async_trait]
    impl Platform for OnRedis {
        fn worker(&self) -> Arc<dyn Broker> {
            Arc::new(RedisBroker::with_lease(
                RedisServer::new(&self.0.url()).unwrap(),
                LEASE,
            ))
        }

        async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>) {
            if let Some(stage) = stage {
                let key = format!("dalston:task:{task_id}");
                let () = self
                    .0
                    .send(&["HSET", &key, "stage", stage, "job_id", job_id])
                    .await;
            }
            let now = "2026-11-20T18:17:06.690014+00:00";
            let message = [
                "task_id",
                task_id,
                "job_id",
                job_id,
                "enqueued_at",
                now,
                "timeout_at",
                now,
            ];
            let words: Vec<&str> = ["XADD", "dalston:stream:my-asr", "*"]
                .into_iter()
                .chain(message)
                .collect();
            let () = self.0.send(&words).await;
        }

        async fn cancel(&self, job_id: &str) {
            let () = self
                .0
                .send(&[
                    "SET",
                    &format!("dalston:job:cancelled:{job_id}"),
                    "1",
                    "EX",
                    "86400",
                ])
                .await;
        }

        async fn events(&self) -> Vec<Event> {
            type Entries = Vec<(String, Vec<(String, String)>)>;
            let entries: Entries = self.0.send(&["XRANGE", "dalston:events:stream", "-", "+"]).await;
            let read = |fields: Vec<(String, String)>| {
                let field = |name: &str| {
                    fields
                        .iter()
                        .find(|(key, _)| key == name)
                        .map(|(_, value)| value.clone())
                };
                let payload: Value = field("payload").unwrap().parse().unwrap();
                let text = |key: &str| payload.get(key).map(|value| value.as_str().unwrap().to_owned());
                let kind = match field("type").unwrap().as_str() {
                    "task.started" => "started",
                    "task.completed" => "completed",
                    "task.failed" => "failed",
                    other => panic!("{other}"),
                };
                Event {
                    kind,
                    task_id: text("task_id").unwrap(),
                    error: text("error"),
                    request_id: text("request_id"),
                    trace_context: field("_trace_context"),
                }
            };
            entries.into_iter().map(|(_, fields)| read(fields)).collect()
        }

        async fn unfinished(&self) -> usize {
            let waiting: usize = self.0.send(&["XLEN", "dalston:stream:my-asr"]).await;
            type Groups = Vec<std::collections::HashMap<String, ::redis::Value>>;
            let groups: Groups = self.0.send(&["XINFO", "GROUPS", "dalston:stream:my-asr"]).await;
            let number = |name: &str| -> usize {
                groups
                    .iter()
                    .map(|group| ::redis::from_redis_value_ref::<usize>(&group[name]).unwrap())
                    .sum()
            };
            if groups.is_empty() {
                waiting
            } else {
                number("pending") + number("lag")
            }
        }
    }
}

macro_rules! on_every_broker {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::InMemory(super::MemoryBroker::with(super::LEASE, 1000))).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                let server = testbed::TestRedis::start().await;
                super::$name(&super::on_redis::OnRedis(server)).await;
            })*
        }
    };
}

on_every_broker! {
    a_task_goes_to_one_worker_and_is_gone_when_it_is_finished,
    tasks_come_in_the_order_of_the_queue,
    a_worker_that_waits_gets_the_task_that_comes,
    a_failure_carries_its_error_and_every_event_its_context,
    a_task_of_which_nothing_is_known_is_missing,
    a_waiting_task_of_a_cancelled_job_is_skipped_without_an_event,
    a_running_task_hears_of_the_cancellation_of_its_job,
    a_task_whose_worker_died_goes_to_another_one,
    a_stale_owner_can_neither_renew_nor_finish_nor_hand_back,
    a_task_is_finished_once,
    a_renewed_task_stays_with_its_worker,
    a_task_that_was_handed_back_goes_to_a_peer_before_its_lease_ends,
    a_worker_that_stops_waiting_takes_no_task_with_it,
    many_workers_share_the_tasks_and_each_is_done_once,
}
