//! The owner of a task that is queued under several messages.

use dalston_engine_sdk::broker::{Broker, Claim, EventContext, Lookup, Outcome, Ownership};
use dalston_engine_sdk::redis::RedisBroker;
use testbed::TestRedis;

use super::{METADATA, RELEASED, STREAM, enqueue, events, message, patient, pending, receive};

async fn is_wanted(broker: &RedisBroker, claim: &Claim) -> bool {
    match broker.lookup(claim).await.unwrap() {
        Lookup::Task(_) => true,
        Lookup::Lost => false,
        other => panic!("{other:?}"),
    }
}

/// What the platform's reconciler does when it believes that a task is lost.
async fn queue_again(server: &TestRedis) -> String {
    let id = message(server).await;
    let () = server.send(&["HSET", METADATA, "stream_message_id", &id]).await;
    id
}

async fn field(server: &TestRedis, name: &str) -> Option<String> {
    server.send(&["HGET", METADATA, name]).await
}

/// A task in the hands of `holder`, which the platform then queued again: both claims. The peer
/// learned that it is not to do the task.
async fn in_hand_and_queued_again(
    server: &TestRedis,
    holder: &RedisBroker,
    peer: &RedisBroker,
) -> (Claim, Claim) {
    enqueue(server).await;
    let claim = receive(holder, "a").await.claim;
    assert!(is_wanted(holder, &claim).await);
    let second = queue_again(server).await;
    let duplicate = receive(peer, "b").await.claim;
    assert_eq!(duplicate.message_id, second);
    assert!(!is_wanted(peer, &duplicate).await);
    (claim, duplicate)
}

/// A row of [`pending`] for a message that was delivered once.
fn entry(message: &str, consumer: &str) -> (String, String, u64) {
    (message.to_owned(), consumer.to_owned(), 1)
}

/// Makes an entry look as if its consumer had not renewed it for an hour.
async fn not_renewed(server: &TestRedis, claim: &Claim) {
    let (instance, id) = (&*claim.consumer.instance, &*claim.message_id);
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", instance, "0", id, "IDLE", "3600000", "JUSTID",
        ])
        .await;
}

async fn end(broker: &RedisBroker, claim: &Claim, outcome: &Outcome) -> Ownership {
    broker
        .finish(claim, outcome, &EventContext::default())
        .await
        .unwrap()
}

fn completed() -> Outcome {
    Outcome::Completed {
        artifacts: Vec::new(),
    }
}

#[tokio::test]
async fn second_message_of_a_task_in_hand_waits_for_its_end() {
    let server = TestRedis::start().await;
    let (holder, peer) = (patient(&server), patient(&server));
    let (claim, duplicate) = in_hand_and_queued_again(&server, &holder, &peer).await;
    let (first, second) = (&claim.message_id, &duplicate.message_id);
    assert_eq!(field(&server, "owner").await.unwrap(), format!("{first} 1 a"));

    let (owned, waiting) = (entry(first, "a"), entry(second, RELEASED));
    assert_eq!(pending(&server).await, [owned, waiting]);
    // The platform looks for this message.
    assert_eq!(field(&server, "stream_message_id").await.unwrap(), *first);
    assert_eq!(holder.renew(&claim).await.unwrap(), Ownership::Held);
    assert_eq!(end(&holder, &claim, &completed()).await, Ownership::Held);
    assert_eq!(events(&server).await.len(), 1);
    assert_eq!(pending(&server).await, []);
}

#[tokio::test]
async fn second_message_is_renewed_with_the_first() {
    let server = TestRedis::start().await;
    let (holder, peer) = (patient(&server), patient(&server));
    let (claim, mut duplicate) = in_hand_and_queued_again(&server, &holder, &peer).await;
    duplicate.consumer.instance = RELEASED.to_owned();
    not_renewed(&server, &duplicate).await;

    // The platform fails a running task that has an idle entry of a dead consumer.
    assert_eq!(holder.renew(&claim).await.unwrap(), Ownership::Held);
    let idle = ["XPENDING", STREAM, "engines", "IDLE", "60000", "-", "+", "9"];
    let idle: Vec<redis::Value> = server.send(&idle).await;
    assert!(idle.is_empty(), "{idle:?}");
    assert_eq!(pending(&server).await.len(), 2);
}

#[tokio::test]
async fn second_message_outlives_the_first_and_its_owner() {
    let server = TestRedis::start().await;
    let (dead, peer) = (patient(&server), patient(&server));
    let (claim, mut duplicate) = in_hand_and_queued_again(&server, &dead, &peer).await;
    let () = server.send(&["XACK", STREAM, "engines", &claim.message_id]).await;

    duplicate.consumer.instance = RELEASED.to_owned();
    not_renewed(&server, &duplicate).await;
    let current = receive(&patient(&server), "c").await.claim;
    assert_eq!(current.message_id, duplicate.message_id);
    assert!(is_wanted(&peer, &current).await);
    assert_eq!(peer.renew(&current).await.unwrap(), Ownership::Held);
    assert_eq!(dead.renew(&claim).await.unwrap(), Ownership::Lost);
    assert_eq!(end(&peer, &current, &completed()).await, Ownership::Held);
    assert_eq!(pending(&server).await, []);
}

#[tokio::test]
async fn both_messages_acknowledged_owner_goes_on() {
    let server = TestRedis::start().await;
    let (holder, peer) = (patient(&server), patient(&server));
    let (claim, duplicate) = in_hand_and_queued_again(&server, &holder, &peer).await;
    let (first, second) = (&claim.message_id, &duplicate.message_id);
    // The reconciler acknowledges the first message only after it has added the second.
    let () = server
        .send(&["HSET", METADATA, "stream_message_id", second])
        .await;
    let () = server.send(&["XACK", STREAM, "engines", first]).await;
    assert_eq!(pending(&server).await, [entry(second, RELEASED)]);

    assert_eq!(holder.renew(&claim).await.unwrap(), Ownership::Held);
    assert_eq!(pending(&server).await, [entry(first, "a")]);
    assert_eq!(field(&server, "stream_message_id").await.unwrap(), *first);

    // The next acknowledgement is about a task that the platform has ended.
    let () = server.send(&["XACK", STREAM, "engines", first]).await;
    assert_eq!(holder.renew(&claim).await.unwrap(), Ownership::Lost);
}

#[tokio::test]
async fn end_repeated_after_a_duplicate_is_one_event() {
    let server = TestRedis::start().await;
    let (holder, peer) = (patient(&server), patient(&server));
    let (claim, _) = in_hand_and_queued_again(&server, &holder, &peer).await;

    assert_eq!(end(&holder, &claim, &completed()).await, Ownership::Held);
    // As after an answer that was lost.
    assert_eq!(end(&holder, &claim, &completed()).await, Ownership::Lost);
    assert_eq!(events(&server).await.len(), 1);
    assert_eq!(pending(&server).await, []);
}

#[tokio::test]
async fn second_message_takes_over_from_a_dead_owner() {
    let server = TestRedis::start().await;
    let (dead, peer) = (patient(&server), patient(&server));
    enqueue(&server).await;
    let stale = receive(&dead, "a").await.claim;
    assert!(is_wanted(&dead, &stale).await);
    queue_again(&server).await;
    let current = receive(&peer, "b").await.claim;
    not_renewed(&server, &stale).await;
    assert!(is_wanted(&peer, &current).await);

    // Its entry is still pending for the first owner, and it must not write any more.
    assert_eq!(pending(&server).await[0].1, "a");
    assert_eq!(dead.renew(&stale).await.unwrap(), Ownership::Lost);
    let started = dead.started(&stale, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Lost);
    assert_eq!(end(&dead, &stale, &completed()).await, Ownership::Lost);
    assert_eq!(end(&peer, &current, &completed()).await, Ownership::Held);
    assert_eq!(events(&server).await.len(), 1);
}

#[tokio::test]
async fn second_message_leaves_the_task_to_a_python_engine() {
    let server = TestRedis::start().await;
    let (ours, peer) = (patient(&server), patient(&server));
    enqueue(&server).await;
    let stale = receive(&ours, "python").await.claim;
    assert!(is_wanted(&ours, &stale).await);
    queue_again(&server).await;
    let duplicate = receive(&peer, "b").await.claim;
    // It does not renew the entry, only its record.
    not_renewed(&server, &stale).await;
    let record = "dalston:engine:instance:python";
    let () = server.send(&["HSET", record, "status", "processing"]).await;
    let () = server.send(&["EXPIRE", record, "60"]).await;
    assert!(!is_wanted(&peer, &duplicate).await);
    assert_eq!(pending(&server).await.len(), 1);
}

#[tokio::test]
async fn message_from_before_the_end_of_its_task_is_removed() {
    let server = TestRedis::start().await;
    let (worker, peer) = (patient(&server), patient(&server));
    enqueue(&server).await;
    let claim = receive(&worker, "a").await.claim;
    assert!(is_wanted(&worker, &claim).await);
    queue_again(&server).await;
    let late = receive(&peer, "b").await.claim;
    until_next_millisecond(&server).await;
    let failed = Outcome::Failed {
        error: "no audio".to_owned(),
        code: "missing_input",
        retryable: true,
    };
    assert_eq!(end(&worker, &claim, &failed).await, Ownership::Held);
    assert!(!is_wanted(&peer, &late).await);
    assert_eq!(pending(&server).await, []);

    // The platform's next attempt comes after the end of this one.
    queue_again(&server).await;
    let retry = receive(&peer, "b").await.claim;
    assert!(is_wanted(&peer, &retry).await);
    assert_eq!(end(&peer, &retry, &completed()).await, Ownership::Held);
}

/// Ids of messages have the resolution of a millisecond.
async fn until_next_millisecond(server: &TestRedis) {
    let now = async || -> (u64, u64) { server.send(&["TIME"]).await };
    let (seconds, micros) = now().await;
    while now().await < (seconds, micros + 1_000) {}
}

#[tokio::test]
async fn task_without_a_known_owner_stays_with_its_holder() {
    let server = TestRedis::start().await;
    let worker = patient(&server);
    enqueue(&server).await;
    let claim = receive(&worker, "a").await.claim;
    assert!(is_wanted(&worker, &claim).await);
    let () = server.send(&["HDEL", METADATA, "owner"]).await;
    assert_eq!(worker.renew(&claim).await.unwrap(), Ownership::Held);
    assert_eq!(end(&worker, &claim, &completed()).await, Ownership::Held);
}
