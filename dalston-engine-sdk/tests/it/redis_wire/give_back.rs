//! Tasks that go back to the queue, seen by an engine in Python and by the platform.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, Claim, EventContext, HandBack, Lookup, Ownership, TaskMetadata};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;

use super::{Entries, JOB, METADATA, STREAM, TASK, broker, enqueue, nothing_for, patient, pending, receive};

async fn look_up(broker: &RedisBroker, claim: &Claim) -> TaskMetadata {
    match broker.lookup(claim).await.unwrap() {
        Lookup::Task(metadata) => *metadata,
        other => panic!("{other:?}"),
    }
}

async fn start(broker: &RedisBroker, claim: &Claim) {
    let started = broker.started(claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);
}

/// The ids that an engine in Python may claim: idle for 600 s, and of an unregistered consumer.
async fn claimable_in_python(server: &TestRedis) -> Vec<String> {
    let rows: Vec<(String, String, u64, u64)> = server
        .send(&["XPENDING", STREAM, "engines", "IDLE", "600000", "-", "+", "10"])
        .await;
    let mut claimable = Vec::new();
    for (id, consumer, ..) in rows {
        let record = format!("dalston:engine:instance:{consumer}");
        let registered: bool = server.send(&["EXISTS", &record]).await;
        if !registered {
            claimable.push(id);
        }
    }
    claimable
}

/// The next message that an engine in Python reads.
async fn read_in_python(server: &TestRedis) -> Option<(String, BTreeMap<String, String>)> {
    let read = [
        "XREADGROUP",
        "GROUP",
        "engines",
        "python",
        "COUNT",
        "1",
        "STREAMS",
        STREAM,
        ">",
    ];
    let read: Option<Vec<(String, Entries)>> = server.send(&read).await;
    read?.pop()?.1.pop()
}

/// Expects that the task of `claim` waits under a copy of its message, and returns the copy's id.
async fn expect_copy(server: &TestRedis, claim: &Claim) -> String {
    assert_eq!(pending(server).await, [], "the old message is acknowledged");
    let (copy, fields) = read_in_python(server).await.expect("a message");
    assert_ne!(copy, claim.message_id);
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["enqueued_at", "job_id", "task_id", "timeout_at"]);
    assert_eq!((&*fields["task_id"], &*fields["job_id"]), (TASK, JOB));
    assert_eq!(fields["timeout_at"], "2026-11-20T19:17:06.690014+00:00");
    let known: String = server.send(&["HGET", METADATA, "stream_message_id"]).await;
    assert_eq!(known, copy);
    copy
}

#[tokio::test]
async fn waiting_task_is_released_to_engines_in_python() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    look_up(&broker, &claim).await;
    assert_eq!(broker.release(&claim).await.unwrap(), Ownership::Held);
    assert_eq!(claimable_in_python(&server).await, [id]);
    assert_eq!(read_in_python(&server).await, None, "it keeps its place");
}

#[tokio::test]
async fn released_waiting_task_has_waited_since_its_release() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let (broker, peer) = (broker(&server), broker(&server));
    let claim = receive(&broker, "a").await.claim;
    let _ = broker.release(&claim).await.unwrap();
    let released_at = receive(&peer, "b").await.requeued_at.unwrap();
    let now = dalston_engine_sdk::protocol::Timestamp::now();
    let ago = now.seconds_since(released_at);
    assert!((0.0..60.0).contains(&ago), "{ago}");
}

#[tokio::test]
async fn running_task_is_queued_again_when_released() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    look_up(&broker, &claim).await;
    start(&broker, &claim).await;
    assert_eq!(broker.release(&claim).await.unwrap(), Ownership::Held);
    expect_copy(&server, &claim).await;
}

#[tokio::test]
async fn running_task_is_queued_again_when_handed_back() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    look_up(&broker, &claim).await;
    start(&broker, &claim).await;
    let handed = broker.hand_back(&claim, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done);
    expect_copy(&server, &claim).await;
}

#[tokio::test]
async fn task_of_a_dead_engine_counts_as_running() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    // It may have reported the start.
    let _ = receive(&broker(&server), "dead").await;
    let peer = broker(&server);
    let claim = receive(&peer, "b").await.claim;
    assert_eq!(claim.delivery_count, 2);
    look_up(&peer, &claim).await;
    assert_eq!(peer.release(&claim).await.unwrap(), Ownership::Held);
    expect_copy(&server, &claim).await;
}

#[tokio::test]
async fn copy_of_a_released_task_knows_its_past() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let (broker, peer) = (broker(&server), broker(&server));
    let first = receive(&broker, "a").await.claim;
    look_up(&broker, &first).await;
    start(&broker, &first).await;
    let worked = Duration::from_millis(300);
    tokio::time::sleep(worked).await;
    let _ = broker.release(&first).await.unwrap();

    let second = receive(&peer, "b").await.claim;
    let metadata = look_up(&peer, &second).await;
    assert_eq!((metadata.earlier_deliveries, second.delivery_count), (1, 1));
    let (age, waited) = (metadata.age.unwrap(), metadata.waited.unwrap());
    assert!(age >= waited + worked, "{age:?} {waited:?}");
    // It waited there only, and the platform takes it for running.
    assert_eq!(peer.release(&second).await.unwrap(), Ownership::Held);
    expect_copy(&server, &second).await;
}

#[tokio::test]
async fn copy_counts_as_running_before_it_is_looked_up() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let _ = receive(&broker(&server), "dead").await;
    let peer = broker(&server);
    let claim = receive(&peer, "b").await.claim;
    look_up(&peer, &claim).await;
    assert_eq!(peer.release(&claim).await.unwrap(), Ownership::Held);
    let copy = receive(&peer, "b").await.claim;
    assert_eq!(peer.release(&copy).await.unwrap(), Ownership::Held);
    expect_copy(&server, &copy).await;
}

#[tokio::test]
async fn entry_of_another_owner_does_not_look_idle() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let (holder, peer) = (patient(&server), patient(&server));
    let claim = receive(&holder, "a").await.claim;
    look_up(&holder, &claim).await;
    start(&holder, &claim).await;
    super::message(&server).await;
    let duplicate = receive(&peer, "b").await.claim;
    assert_eq!(peer.release(&duplicate).await.unwrap(), Ownership::Held);
    // The platform fails a running task that has an idle entry of a dead consumer.
    assert_eq!(claimable_in_python(&server).await, [] as [&str; 0]);
    assert_eq!(read_in_python(&server).await, None);
}

#[tokio::test]
async fn cancelled_copy_of_a_running_task_needs_its_end() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let cancelled = format!("dalston:job:cancelled:{JOB}");
    let claim = receive(&broker, "a").await.claim;
    look_up(&broker, &claim).await;
    start(&broker, &claim).await;
    let _ = broker.release(&claim).await.unwrap();
    let copy = receive(&broker, "a").await.claim;
    let () = server.send(&["SET", &cancelled, "1"]).await;
    let lookup = broker.lookup(&copy).await.unwrap();
    assert!(
        matches!(lookup, Lookup::Cancelled { is_running: true }),
        "{lookup:?}"
    );
}

#[tokio::test]
async fn handed_back_task_comes_back_to_a_worker_without_peers() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    // The pause lasts for a lease.
    let lease = Duration::from_secs(2);
    let broker = RedisBroker::with_lease(RedisServer::new(&server.url()).unwrap(), lease);
    let claim = receive(&broker, "a").await.claim;
    look_up(&broker, &claim).await;
    start(&broker, &claim).await;
    let handed = broker.hand_back(&claim, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done);
    nothing_for(&broker, "a", super::SHORT).await;
    let again = receive(&broker, "a").await.claim;
    let metadata = look_up(&broker, &again).await;
    assert_eq!(metadata.earlier_deliveries, 1, "copies in between do not count");
}
