//! Reading messages of a task stream.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, EventContext, Lookup, Outcome, Ownership, RedeliveryReason};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;
use tokio::time::timeout;

use super::{
    JOB, LEASE, LONG, SHORT, STREAM, TASK, broker, consumer, enqueue, message, nothing_for, patient, pending,
    receive,
};

#[tokio::test]
async fn task_queued_before_the_first_engine_is_delivered() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = broker(&server);

    let delivery = receive(&broker, "faster-whisper-a").await;

    let claim = &delivery.claim;
    assert_eq!(
        (
            &*claim.message_id,
            &*claim.task_id,
            &*claim.job_id,
            claim.delivery_count
        ),
        (&*id, TASK, JOB, 1)
    );
    assert_eq!(
        delivery.enqueued_at.unwrap().to_string(),
        "2026-11-20T18:17:06.690014+00:00"
    );
    assert_eq!(
        delivery.timeout_at.unwrap().to_string(),
        "2026-11-20T19:17:06.690014+00:00"
    );
    let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0]["name"], redis::Value::BulkString(b"engines".to_vec()));
    assert_eq!(pending(&server).await, [(id, "faster-whisper-a".to_owned(), 1)]);
}

#[tokio::test]
async fn message_without_task_is_removed() {
    let server = TestRedis::start().await;
    for (field, text) in [("note", "x"), ("task_id", "../../etc/passwd"), ("task_id", "")] {
        let () = server
            .send(&["XADD", STREAM, "*", field, text, "job_id", JOB])
            .await;
    }
    let () = server.send(&["XADD", STREAM, "*", "task_id", TASK]).await;
    let () = server
        .send_bytes(&[
            b"XADD",
            STREAM.as_bytes(),
            b"*",
            b"task_id",
            b"\xff\xfe",
            b"job_id",
            JOB.as_bytes(),
        ])
        .await;
    let id: String = server
        .send(&[
            "XADD",
            STREAM,
            "*",
            "task_id",
            TASK,
            "job_id",
            JOB,
            "timeout_at",
            "soon",
            "more",
            "fields",
        ])
        .await;
    let broker = broker(&server);
    let delivery = receive(&broker, "a").await;
    assert_eq!((&delivery.claim.message_id, delivery.timeout_at), (&id, None));
    assert_eq!(pending(&server).await.len(), 1);
}

#[tokio::test]
async fn read_takes_one_task() {
    let server = TestRedis::start().await;
    let mut queued = Vec::new();
    for _ in 0..5 {
        queued.push(message(&server).await);
    }
    let broker = patient(&server);
    let mut received = Vec::new();
    for _ in 0..5 {
        received.push(receive(&broker, "a").await.claim.message_id);
        assert_eq!(pending(&server).await.len(), received.len());
    }
    assert_eq!(received, queued);
    nothing_for(&broker, "a", SHORT).await;
}

#[tokio::test]
async fn tasks_come_over_resp2_and_resp3() {
    for query in ["", "?protocol=resp3"] {
        let server = TestRedis::start().await;
        let url = format!("{}/{query}", server.url());
        let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
        enqueue(&server).await;
        let claim = receive(&broker, "a").await.claim;
        let lookup = broker.lookup(&claim).await.unwrap();
        assert!(matches!(lookup, Lookup::Task(_)), "{query}: {lookup:?}");
        let nothing = EventContext::default();
        let ended = broker.finish(&claim, &Outcome::Skipped, &nothing).await;
        assert_eq!(ended.unwrap(), Ownership::Held);
        nothing_for(&broker, "a", SHORT).await;
    }
}

#[tokio::test]
async fn password_is_not_in_debug_or_errors() {
    let server = RedisBroker::new(RedisServer::new("redis://user:hunter2@127.0.0.1:1/3").unwrap());
    let mut texts = vec![format!("{server:?}")];
    let error = server.receive(&consumer("a"), LONG).await.unwrap_err();
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = source {
        texts.push(format!("{error} {error:?}"));
        source = error.source();
    }
    let wrong = RedisServer::new("http://user:hunter2@127.0.0.1:1/3").unwrap_err();
    texts.push(format!("{wrong} {wrong:?}"));
    for text in texts {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// A broker whose lease is a minute, and a task that its read for consumer `a` is about to take
/// although its caller is gone.
async fn dropped_read(server: &TestRedis) -> RedisBroker {
    let broker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    nothing_for(&broker, "a", SHORT).await;
    let me = consumer("a");
    let dropped = timeout(SHORT, broker.receive(&me, LONG)).await;
    assert!(dropped.is_err());
    message(server).await;
    broker
}

#[tokio::test]
async fn task_of_a_dropped_read_goes_to_a_peer_soon() {
    let server = TestRedis::start().await;
    let taken = async || {
        while pending(&server).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let _broker = loop {
        let broker = dropped_read(&server).await;
        // A read lasts for half a second. On a slow machine it is over before the message comes.
        if timeout(Duration::from_secs(3), taken()).await.is_ok() {
            break broker;
        }
        let _: u64 = server.send(&["DEL", STREAM]).await;
    };
    let peer = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let delivery = receive(&peer, "b").await;
    assert_eq!(delivery.claim.delivery_count, 2);
    assert_eq!(delivery.redelivery, Some(RedeliveryReason::Deferred));
}

#[tokio::test]
async fn next_read_gets_the_task_of_a_dropped_read() {
    let server = TestRedis::start().await;
    let broker = dropped_read(&server).await;
    let delivery = receive(&broker, "a").await;
    assert_eq!((delivery.claim.delivery_count, delivery.redelivery), (1, None));
    let nothing = EventContext::default();
    let ended = broker.finish(&delivery.claim, &Outcome::Skipped, &nothing).await;
    assert_eq!(ended.unwrap(), Ownership::Held);
}
