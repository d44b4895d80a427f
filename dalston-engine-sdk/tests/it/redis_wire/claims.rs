//! Claims of tasks whose consumer no longer renews them.

use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, RedeliveryReason};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;

use super::{SHORT, STREAM, broker, enqueue, message, nothing_for, patient, pending, receive};

#[tokio::test]
async fn only_tasks_of_dead_engines_are_claimed() {
    let server = TestRedis::start().await;
    let alive = "2100-01-01T00:00:00.000000+00:00";
    let old = "2026-11-20T18:17:06.690014+00:00";
    let table: [(&str, &[&str], bool); 6] = [
        ("unregistered", &[], true),
        ("alive", &["status", "processing", "last_heartbeat", alive], false),
        (
            "draining",
            &["status", "draining", "last_heartbeat", alive],
            false,
        ),
        ("offline", &["status", "offline", "last_heartbeat", alive], true),
        ("silent", &["status", "processing", "last_heartbeat", old], true),
        (
            "garbled",
            &["status", "processing", "last_heartbeat", "yesterday"],
            true,
        ),
    ];
    for (name, record, dead) in table {
        let id = message(&server).await;
        if !record.is_empty() {
            let key = format!("dalston:engine:instance:{name}");
            let () = server.send(&[["HSET", &key].as_slice(), record].concat()).await;
        }
        // Python engines never renew; they may have had a task for hours.
        let _ = receive(&broker(&server), name).await;
        let () = server
            .send(&[
                "XCLAIM", STREAM, "engines", name, "0", &id, "IDLE", "3600000", "JUSTID",
            ])
            .await;
        let peer = broker(&server);
        if dead {
            let taken = receive(&peer, "peer").await;
            assert_eq!(
                (
                    &*taken.claim.message_id,
                    taken.claim.delivery_count,
                    taken.redelivery
                ),
                (&*id, 2, Some(RedeliveryReason::EngineCrash)),
                "{name}"
            );
        } else {
            nothing_for(&peer, "peer", Duration::from_millis(700)).await;
            assert_eq!(pending(&server).await.last().unwrap().1, name);
        }
        let () = server.send(&["XACK", STREAM, "engines", &id]).await;
        // A read that goes on would take the next message.
        peer.stop_reading().await;
    }
}

#[tokio::test]
async fn record_with_ttl_counts_as_alive_despite_clock_skew() {
    let server = TestRedis::start().await;
    let id = message(&server).await;
    let _ = receive(&broker(&server), "skewed").await;
    let key = "dalston:engine:instance:skewed";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2026-01-01T00:00:00Z",
        ])
        .await;
    let () = server.send(&["EXPIRE", key, "60"]).await;
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", "skewed", "0", &id, "IDLE", "3600000", "JUSTID",
        ])
        .await;
    nothing_for(&broker(&server), "peer", Duration::from_millis(700)).await;
}

#[tokio::test]
async fn dead_engine_is_found_behind_many_live_ones() {
    let server = TestRedis::start().await;
    let key = "dalston:engine:instance:alive";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let mut last = String::new();
    // With a long lease, for a slow machine: it would claim its own tasks after a short one.
    let alive = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    for _ in 0..150 {
        last = message(&server).await;
        let _ = receive(&alive, "alive").await;
        let () = server
            .send(&[
                "XCLAIM", STREAM, "engines", "alive", "0", &last, "IDLE", "3600000", "JUSTID",
            ])
            .await;
    }
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", "dead", "0", &last, "IDLE", "3600000", "JUSTID",
        ])
        .await;
    let taken = receive(&broker(&server), "peer").await;
    assert_eq!(taken.claim.message_id, last);
}

#[tokio::test]
async fn restarted_instance_gets_its_own_tasks_at_once() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let before = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let _ = receive(&before, "faster-whisper-fixed").await;
    drop(before);

    // The lease is a minute here, and the name even has a living record.
    let key = "dalston:engine:instance:faster-whisper-fixed";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let after = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let again = receive(&after, "faster-whisper-fixed").await;
    assert_eq!((again.claim.message_id, again.claim.delivery_count), (id, 2));
    nothing_for(&after, "faster-whisper-fixed", SHORT).await;
}

#[tokio::test]
async fn restarted_instance_begins_with_what_waited_longest() {
    let server = TestRedis::start().await;
    let (first, second) = (message(&server).await, message(&server).await);
    let killed = broker(&server);
    for _ in 0..2 {
        let _ = receive(&killed, "worker").await;
    }
    // Each process is killed after it took one of them.
    for expected in [&first, &second, &first] {
        // The server counts idle times in milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let taken = receive(&broker(&server), "worker").await;
        assert_eq!(&taken.claim.message_id, expected);
    }
}

#[tokio::test]
async fn task_of_an_earlier_process_of_a_name_is_claimed() {
    let server = TestRedis::start().await;
    message(&server).await;
    let killed = receive(&patient(&server), "fixed").await.claim;
    let words = ["XCLAIM", STREAM, "engines", "fixed", "0", &killed.message_id];
    let () = server
        .send(&[&words[..], &["IDLE", "61000", "JUSTID"]].concat())
        .await;
    // Its next process is alive, and does not read.
    let record = "dalston:engine:instance:fixed";
    let now = dalston_engine_sdk::protocol::Timestamp::now().to_string();
    let (seconds, _): (u64, u64) = server.send(&["TIME"]).await;
    let peer = patient(&server);
    for (started_before, is_earlier) in [(65, false), (55, true)] {
        let since = ((seconds - started_before) * 1000).to_string();
        let fields = ["status", "idle", "last_heartbeat", &now, "reserved_at_ms", &since];
        let () = server.send(&[&["HSET", record][..], &fields].concat()).await;
        if is_earlier {
            let taken = receive(&peer, "worker").await.claim;
            assert_eq!(taken.message_id, killed.message_id);
        } else {
            nothing_for(&peer, "worker", SHORT).await;
        }
    }
}

#[tokio::test]
async fn longest_idle_task_comes_before_many_older_ones() {
    let server = TestRedis::start().await;
    let dead = patient(&server);
    let mut messages = Vec::new();
    for _ in 0..40 {
        message(&server).await;
        messages.push(receive(&dead, "dead").await.claim.message_id);
    }
    // Every older one was killed a lease ago, and more of them are stale than one look sees.
    let (last, others) = messages.split_last().unwrap();
    for (message, idle) in others
        .iter()
        .map(|message| (message, "61000"))
        .chain([(last, "62000")])
    {
        let words = [
            "XCLAIM", STREAM, "engines", "dead", "0", message, "IDLE", idle, "JUSTID",
        ];
        let () = server.send(&words).await;
    }
    let taken = receive(&patient(&server), "worker").await;
    assert_eq!(&taken.claim.message_id, last);
}

#[tokio::test]
async fn abandoned_task_comes_back_to_its_own_process() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = broker(&server);
    let key = "dalston:engine:instance:a";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let _forgotten = receive(&broker, "a").await;
    let again = receive(&broker, "a").await;
    assert_eq!((again.claim.message_id, again.claim.delivery_count), (id, 2));
}

#[tokio::test]
async fn task_in_hand_is_not_taken_again_by_its_process() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let _in_hand = receive(&broker, "a").await;
    // Its renewals were lost, and the runner does not know that.
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", "a", "0", &id, "IDLE", "3600000", "JUSTID",
        ])
        .await;
    nothing_for(&broker, "a", Duration::from_millis(700)).await;
    assert_eq!(pending(&server).await, [(id, "a".to_owned(), 1)]);
}

#[tokio::test]
async fn abandoned_tasks_do_not_pile_up_in_a_process() {
    let server = TestRedis::start().await;
    let lease = Duration::from_millis(20);
    let broker = RedisBroker::with_lease(RedisServer::new(&server.url()).unwrap(), lease);
    for _ in 0..5 {
        let id = message(&server).await;
        let abandoned = receive(&broker, "a").await;
        assert_eq!(abandoned.claim.message_id, id);
        let () = server.send(&["XACK", STREAM, "engines", &id]).await;
    }
    assert!(!format!("{broker:?}").contains("held: 0"), "{broker:?}");
    let pruned = async {
        while !format!("{broker:?}").contains("held: 0") {
            nothing_for(&broker, "a", SHORT).await;
        }
    };
    let pruned = tokio::time::timeout(Duration::from_secs(20), pruned).await;
    assert!(pruned.is_ok(), "{broker:?}");
}
