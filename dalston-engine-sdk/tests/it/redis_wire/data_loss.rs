//! A server that loses its data, a stream, or a group.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, Claim, EventContext, Outcome, Ownership};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;

use super::{
    JOB, LEASE, STREAM, TASK, artifact, broker, enqueue, events, message, nothing_for, patient, pending,
    receive, take,
};

const DONE: Outcome = Outcome::Completed {
    artifacts: Vec::new(),
};

async fn start(broker: &RedisBroker, claim: &Claim) {
    broker.lookup(claim).await.unwrap();
    let started = broker.started(claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);
}

/// A server that lost its data while a task was processed.
async fn started_before_data_loss() -> (TestRedis, RedisBroker, Claim) {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;
    start(&broker, &claim).await;
    let () = server.send(&["FLUSHALL"]).await;
    (server, broker, claim)
}

async fn finish(broker: &RedisBroker, claim: &Claim) -> Ownership {
    broker
        .finish(claim, &DONE, &EventContext::default())
        .await
        .unwrap()
}

/// What the platform reads as the length of the queue.
async fn lag(server: &TestRedis) -> i64 {
    let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
    redis::from_redis_value_ref(&groups[0]["lag"]).unwrap()
}

#[tokio::test]
async fn result_is_reported_after_the_loss_of_all_data() {
    let (server, broker, claim) = started_before_data_loss().await;
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Unrecorded);
    let outcome = Outcome::Completed {
        artifacts: vec![artifact()],
    };
    let finished = broker.finish(&claim, &outcome, &EventContext::default()).await;

    assert_eq!(finished.unwrap(), Ownership::Unrecorded);
    let events = events(&server).await;
    assert_eq!((events.len(), &*events[0]["type"]), (1, "task.completed"));
    let index = format!("dalston:job:{JOB}:artifacts");
    assert_eq!(server.send::<usize>(&["HLEN", &index]).await, 1);
    let metadata = format!("dalston:task:{TASK}");
    let exists: bool = server.send(&["EXISTS", &metadata]).await;
    assert!(!exists, "metadata does not come back without its fields");
}

#[tokio::test]
async fn newer_messages_do_not_hide_the_loss_of_data() {
    let (server, broker, claim) = started_before_data_loss().await;
    let newer = take(&server, &broker, 1).await.remove(0);

    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Unrecorded);
    assert_eq!(broker.renew(&newer).await.unwrap(), Ownership::Held);
    assert_eq!(finish(&broker, &claim).await, Ownership::Unrecorded);
    assert_eq!(finish(&broker, &newer).await, Ownership::Held);
    assert_eq!(finish(&broker, &newer).await, Ownership::Lost);
}

#[tokio::test]
async fn restored_group_keeps_the_places_of_all_tasks() {
    let server = TestRedis::start().await;
    // Long enough for the steps up to the end of the lease, on a slow machine.
    let with_lease = || {
        let lease = Duration::from_secs(3);
        RedisBroker::with_lease(RedisServer::new(&server.url()).unwrap(), lease)
    };
    let (holder, peer) = (with_lease(), with_lease());
    // Of the messages 0 to 3, 1 and 3 are finished, and 2 is never renewed.
    let claims = take(&server, &holder, 4).await;
    for claim in &claims {
        start(&holder, claim).await;
    }
    for finished in [1, 3] {
        assert_eq!(finish(&holder, &claims[finished]).await, Ownership::Held);
    }
    let waiting = message(&server).await;

    let () = server.send(&["XGROUP", "DESTROY", STREAM, "engines"]).await;
    assert_eq!(holder.renew(&claims[0]).await.unwrap(), Ownership::Unrecorded);
    let next = receive(&peer, "b").await.claim;

    assert_eq!(
        next.message_id, waiting,
        "tasks in hand and finished ones do not come again"
    );
    let consumers = |rows: Vec<(String, String, u64)>| -> Vec<(String, String)> {
        rows.into_iter().map(|(id, consumer, _)| (id, consumer)).collect()
    };
    let entry = |claim: &Claim, consumer: &str| (claim.message_id.clone(), consumer.to_owned());
    let restored = [
        entry(&claims[0], "restored"),
        entry(&claims[2], "restored"),
        entry(&next, "b"),
    ];
    assert_eq!(consumers(pending(&server).await), restored);
    assert_eq!(lag(&server).await, 0);

    // The holder takes its task back. The peer claims the one that is not renewed.
    assert_eq!(holder.renew(&claims[0]).await.unwrap(), Ownership::Held);
    assert_eq!(finish(&holder, &claims[0]).await, Ownership::Held);
    let taken_over = receive(&peer, "b").await.claim;
    assert_eq!(taken_over.message_id, claims[2].message_id);
    assert_eq!(holder.renew(&claims[2]).await.unwrap(), Ownership::Lost);
    assert_eq!(finish(&peer, &taken_over).await, Ownership::Held);
    assert_eq!(finish(&peer, &next).await, Ownership::Held);
    nothing_for(&peer, "b", LEASE * 2).await;
    assert_eq!(pending(&server).await, []);
}

#[tokio::test]
async fn restored_group_begins_behind_the_last_delivered_task() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let finished = take(&server, &broker, 1).await.remove(0);
    start(&broker, &finished).await;
    assert_eq!(finish(&broker, &finished).await, Ownership::Held);
    // The platform tries the failed task once more, under another message.
    let (time, _) = finished.message_id.split_once('-').unwrap();
    let later = format!("{}-0", time.parse::<u64>().unwrap() + 60_000);
    let again = [
        "XADD",
        STREAM,
        &later,
        "task_id",
        &finished.task_id,
        "job_id",
        JOB,
    ];
    let again: String = server.send(&again).await;
    for _ in 0..2 {
        message(&server).await;
    }

    let () = server.send(&["XGROUP", "DESTROY", STREAM, "engines"]).await;
    let next = receive(&broker, "a").await.claim;

    assert_eq!((next.message_id, lag(&server).await), (again, 2));
}

#[tokio::test]
async fn tasks_that_waited_for_the_first_group_are_not_skipped() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
    let other = ["XADD", "dalston:events:stream", "*", "type", "task.completed"];
    let other = [&other[..], &["payload", r#"{"task_id": "another"}"#]].concat();
    let first = message(&server).await;
    let _: String = server.send(&other).await;
    let second = message(&server).await;

    assert_eq!(receive(&broker, "a").await.claim.message_id, first);
    assert_eq!(receive(&broker, "a").await.claim.message_id, second);
}
