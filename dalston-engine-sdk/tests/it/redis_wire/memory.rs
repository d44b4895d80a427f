//! Servers that are out of memory.

use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, EventContext, Lookup, Ownership};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::TestRedis;

use super::{
    LEASE, LONG, METADATA, SHORT, STREAM, broker, consumer, enqueue, events, message, nothing_for, patient,
    pending, receive,
};

async fn memory_limit(server: &TestRedis, bytes: &str) {
    let () = server.send(&["CONFIG", "SET", "maxmemory", bytes]).await;
}

/// A read fails because the server is full, and takes nothing.
async fn read_is_refused(server: &TestRedis, broker: &RedisBroker) {
    let before = pending(server).await;
    let refused = broker.receive(&consumer("a"), LONG).await;
    let error = refused.expect_err("no memory");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("reading from {STREAM} on Redis at 127.0.0.1:")) && text.contains("OOM"),
        "{text}"
    );
    assert_eq!(pending(server).await, before);
}

#[tokio::test]
async fn nothing_is_read_while_the_server_is_out_of_memory() {
    let server = TestRedis::start().await;
    for _ in 0..3 {
        message(&server).await;
    }
    // The group exists, so the server refuses the read and not the creation of the group.
    let () = server.send(&["XGROUP", "CREATE", STREAM, "engines", "0"]).await;
    let broker = patient(&server);

    memory_limit(&server, "1").await;
    read_is_refused(&server, &broker).await;
    read_is_refused(&server, &broker).await;
    memory_limit(&server, "0").await;
    assert_eq!(receive(&broker, "a").await.claim.delivery_count, 1);
    // More tasks are waiting.
    memory_limit(&server, "1").await;
    read_is_refused(&server, &broker).await;
    memory_limit(&server, "0").await;
    for _ in 0..2 {
        assert_eq!(receive(&broker, "a").await.claim.delivery_count, 1);
    }
}

#[tokio::test]
async fn full_server_is_not_read_after_an_idle_time() {
    let server = TestRedis::start().await;
    let broker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    nothing_for(&broker, "a", SHORT).await;
    nothing_for(&broker, "a", Duration::from_millis(700)).await;
    message(&server).await;
    memory_limit(&server, "1").await;
    // One blocking read was under way and was allowed to take the task; the next one is not.
    let _ = broker.receive(&consumer("a"), LONG).await;
    read_is_refused(&server, &broker).await;
    assert_eq!(events(&server).await, []);
}

#[tokio::test]
async fn nothing_is_claimed_while_the_server_is_out_of_memory() {
    let server = TestRedis::start().await;
    // The peer has created the group, so the server refuses the claim and not the creation.
    let peer = broker(&server);
    nothing_for(&peer, "a", SHORT).await;
    // The read of the peer goes on in the background, for half a second at most.
    tokio::time::sleep(Duration::from_millis(700)).await;
    message(&server).await;
    let _ = receive(&broker(&server), "dead").await;
    // A lease, and until the peer looks for stale entries again.
    tokio::time::sleep(2 * LEASE).await;

    memory_limit(&server, "1").await;
    read_is_refused(&server, &peer).await;
    memory_limit(&server, "0").await;
    assert_eq!(receive(&peer, "a").await.claim.delivery_count, 2);
}

#[tokio::test]
async fn user_without_access_to_the_memory_check_gets_tasks() {
    let server = TestRedis::start().await;
    let rights = "resetkeys ~dalston:stream:* ~dalston:task:* ~dalston:job:* ~dalston:events:stream \
                  ~dalston:waiting_engine_tasks ~dalston:instance:*";
    let user: Vec<&str> = ["ACL", "SETUSER", "worker", "on", "nopass", "+@all", "allchannels"]
        .into_iter()
        .chain(rights.split_whitespace())
        .collect();
    let () = server.send(&user).await;
    let url = format!("redis://worker:any@127.0.0.1:{}", server.port());
    let narrow = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
    let id = message(&server).await;
    assert_eq!(receive(&narrow, "b").await.claim.message_id, id);
}

#[tokio::test]
async fn look_up_without_memory_fails_and_then_owns_the_task() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;

    memory_limit(&server, "1").await;
    let refused = broker.lookup(&claim).await;
    assert!(refused.unwrap_err().to_string().contains("OOM"));
    memory_limit(&server, "0").await;
    assert!(matches!(broker.lookup(&claim).await, Ok(Lookup::Task(_))));
    let owner: String = server.send(&["HGET", METADATA, "owner"]).await;
    assert_eq!(owner, format!("{} 1 a", claim.message_id));
}

#[tokio::test]
async fn task_released_without_memory_has_no_start_left() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    broker.lookup(&claim).await.unwrap();
    let started = broker.started(&claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);

    memory_limit(&server, "1").await;
    assert_eq!(broker.release(&claim).await.unwrap(), Ownership::Held);
    let starts: String = server.send(&["HGET", METADATA, "inference_starts"]).await;
    assert_eq!(starts, "0");
}
