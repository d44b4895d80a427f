//! Reads of a worker that has no free inference thread.

use dalston_engine_sdk::broker::{Broker, Delivery};
use dalston_engine_sdk::redis::RedisBroker;
use testbed::TestRedis;

use super::{LONG, SHORT, STREAM, consumer, message, patient, pending, receive};

async fn receive_ahead(broker: &RedisBroker) -> Option<Delivery> {
    broker.receive_ahead(&consumer("busy"), SHORT).await.unwrap()
}

/// Writes the registry record of an engine.
async fn register(server: &TestRedis, instance: &str, fields: &[&str]) {
    let record = format!("dalston:engine:instance:{instance}");
    let () = server.send(&[&["HSET", &*record], fields].concat()).await;
    let () = server.send(&["EXPIRE", &record, "60"]).await;
    let members = "dalston:engine:engine_id:faster-whisper";
    let () = server.send(&["SADD", members, instance]).await;
}

#[tokio::test]
async fn tasks_for_idle_peers_are_not_read_ahead() {
    let server = TestRedis::start().await;
    let idle = ["status", "idle", "capacity", "2", "active_batch", "0"];
    register(&server, "idle", &idle).await;
    let one_left = ["status", "processing", "capacity", "3", "active_batch", "2"];
    register(&server, "one-left", &one_left).await;
    let worker = patient(&server);
    for _ in 0..3 {
        message(&server).await;
    }
    assert!(receive_ahead(&worker).await.is_none());
    assert_eq!(pending(&server).await, []);

    let fourth = message(&server).await;
    assert!(receive_ahead(&worker).await.is_some());
    assert!(receive_ahead(&worker).await.is_none());
    // The lag is nil now, and the entries are still counted.
    let () = server.send(&["XDEL", STREAM, &fourth]).await;
    assert!(receive_ahead(&worker).await.is_none());
    message(&server).await;
    message(&server).await;
    assert!(receive_ahead(&worker).await.is_some());
}

#[tokio::test]
async fn engines_that_begin_no_task_do_not_stop_reads_ahead() {
    let server = TestRedis::start().await;
    for status in ["offline", "draining", "loading", "downloading", "error"] {
        register(&server, status, &["status", status, "capacity", "4"]).await;
    }
    register(
        &server,
        "full",
        &["status", "busy", "capacity", "1", "active_realtime", "1"],
    )
    .await;
    register(&server, "busy", &["status", "processing", "capacity", "4"]).await;
    let members = "dalston:engine:engine_id:faster-whisper";
    let () = server.send(&["SADD", members, "killed"]).await;
    message(&server).await;
    assert!(receive_ahead(&patient(&server)).await.is_some());
}

#[tokio::test]
async fn released_tasks_are_left_to_idle_peers() {
    let server = TestRedis::start().await;
    register(&server, "idle", &["status", "idle", "capacity", "1"]).await;
    let peer = patient(&server);
    message(&server).await;
    let claim = receive(&peer, "idle").await.claim;
    let _ = peer.release(&claim).await.unwrap();

    let busy = patient(&server);
    assert!(receive_ahead(&busy).await.is_none());
    register(&server, "idle", &["active_batch", "1"]).await;
    let taken = busy.receive_ahead(&consumer("busy"), LONG).await.unwrap();
    assert_eq!(taken.expect("the task").claim.delivery_count, 2);
}

#[tokio::test]
async fn stale_task_left_to_idle_peers_comes_before_new_ones() {
    let server = TestRedis::start().await;
    register(&server, "idle", &["status", "idle", "capacity", "4"]).await;
    let peer = patient(&server);
    let stale = message(&server).await;
    let claim = receive(&peer, "idle").await.claim;
    let _ = peer.release(&claim).await.unwrap();
    message(&server).await;

    let worker = patient(&server);
    assert!(receive_ahead(&worker).await.is_none());
    // Its inference thread has become free before a peer took the task.
    assert_eq!(receive(&worker, "busy").await.claim.message_id, stale);
}
