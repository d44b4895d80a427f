//! What is removed from streams and groups.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, EventContext, Outcome};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;

use super::{Entries, SHORT, STREAM, broker, message, nothing_for, receive};

#[tokio::test]
async fn acknowledged_tasks_are_trimmed_and_lag_stays_known() {
    let server = TestRedis::start().await;
    for _ in 0..450 {
        message(&server).await;
    }
    let outcome = Outcome::Skipped;
    let worker = broker(&server);
    for _ in 0..430 {
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap();
    }
    // A worker cleans up when it starts and then once a minute.
    let next = broker(&server);
    let claim = receive(&next, "b").await.claim;
    let length: u64 = server.send(&["XLEN", STREAM]).await;
    assert!(
        length < 150,
        "{length} of 450 entries are left, 20 are not acknowledged"
    );
    let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
    assert_eq!(
        groups[0]["lag"],
        redis::Value::Int(19),
        "autoscaling depends on it"
    );
    let first: Entries = server
        .send(&["XRANGE", STREAM, &claim.message_id, &claim.message_id])
        .await;
    assert_eq!(first.len(), 1);
}

#[tokio::test]
async fn wrong_lag_of_a_former_replica_is_repaired() {
    let server = TestRedis::start().await;
    let lag = async || {
        let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
        groups[0]["lag"].clone()
    };
    let mut last = String::new();
    for _ in 0..3 {
        last = message(&server).await;
        let worker = broker(&server);
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    // A replica is told which entry was the last, but not how many there were.
    let () = server
        .send(&["XGROUP", "SETID", STREAM, "engines", &last, "ENTRIESREAD", "1"])
        .await;
    assert_eq!(lag().await, redis::Value::Int(2));

    let worker = broker(&server);
    nothing_for(&worker, "b", SHORT).await;
    worker.stop_reading().await;
    assert_eq!(lag().await, redis::Value::Int(0));
    message(&server).await;
    assert_eq!(lag().await, redis::Value::Int(1));
}

#[tokio::test]
async fn idle_consumers_are_removed() {
    let server = TestRedis::start().await;
    for instance in ["gone", "resting"] {
        message(&server).await;
        let worker = broker(&server);
        let claim = receive(&worker, instance).await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    // So many that a look at the pending list does not come to the end of it. With a long lease,
    // for a slow machine: nothing is claimed before its time.
    let long_lease = || RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let busy = long_lease();
    for _ in 0..40 {
        message(&server).await;
        receive(&busy, "busy").await;
    }
    message(&server).await;
    let lost = receive(&long_lease(), "killed").await.claim;
    let now = dalston_engine_sdk::protocol::Timestamp::now().to_string();
    let record = ["status", "processing", "last_heartbeat", &now];
    for instance in ["resting", "busy"] {
        let key = format!("dalston:engine:instance:{instance}");
        let () = server.send(&[&["HSET", &key][..], &record].concat()).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;

    let server_ = RedisServer::new(&server.url()).unwrap();
    let next = RedisBroker::with_lease(server_, Duration::from_millis(30));
    let found = receive(&next, "new").await.claim;
    assert_eq!(found.message_id, lost.message_id);

    let consumers: Vec<BTreeMap<String, redis::Value>> =
        server.send(&["XINFO", "CONSUMERS", STREAM, "engines"]).await;
    let mut names: Vec<String> = consumers
        .iter()
        .map(|consumer| redis::from_redis_value(consumer["name"].clone()).unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["busy", "killed", "new", "resting"]);
}

#[tokio::test]
async fn stream_with_another_group_is_not_trimmed() {
    let server = TestRedis::start().await;
    for _ in 0..300 {
        message(&server).await;
    }
    let () = server.send(&["XGROUP", "CREATE", STREAM, "others", "0"]).await;
    let worker = broker(&server);
    for _ in 0..300 {
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    nothing_for(&broker(&server), "b", SHORT).await;
    let length: u64 = server.send(&["XLEN", STREAM]).await;
    assert_eq!(length, 300);
}

#[tokio::test]
async fn message_of_a_task_in_hand_is_not_trimmed() {
    let server = TestRedis::start().await;
    for _ in 0..250 {
        message(&server).await;
    }
    let worker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let in_hand = receive(&worker, "a").await.claim;
    for _ in 1..250 {
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    // A worker cleans up when it starts.
    let next = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    nothing_for(&next, "b", SHORT).await;
    let id = &in_hand.message_id;
    let kept: Entries = server.send(&["XRANGE", STREAM, id, id]).await;
    assert_eq!(kept.len(), 1);
}
