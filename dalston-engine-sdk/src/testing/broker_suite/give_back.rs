//! Checks of tasks that a worker gives back to the queue.

use super::{Platform, Report, ReportKind, finish, receive, receives_nothing};
use crate::broker::{Broker, Claim, EventContext, HandBack, Lookup, Ownership, RedeliveryReason};

/// A released task need not wait for its lease, and comes before new ones.
pub async fn released_task_is_delivered_before_its_lease_ends(platform: &dyn Platform) {
    let (worker, peer) = (platform.broker(), platform.broker());
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    platform.enqueue("T2", "J2", Some("transcribe")).await;
    let first = receive(&*worker, "a").await.claim;
    assert_eq!(worker.release(&first).await.unwrap(), Ownership::Held);
    assert_eq!(worker.release(&first).await.unwrap(), Ownership::Lost);

    let again = receive(&*peer, "b").await;
    assert_eq!(again.claim.task_id, "T1");
    assert_eq!(again.claim.delivery_count, 2);
    assert_eq!(again.redelivery, Some(RedeliveryReason::Deferred));
    assert_eq!(finish(&*worker, &first).await, Ownership::Lost);
    assert_eq!(finish(&*peer, &again.claim).await, Ownership::Held);
    let expected = [Report::new(ReportKind::Completed, "T1")];
    assert_eq!(platform.reports().await, expected);
}

/// A task whose start was reported can be released, too, and its deliveries go on to count.
pub async fn released_running_task_is_delivered_again(platform: &dyn Platform) {
    let (worker, peer) = (platform.broker(), platform.broker());
    let nothing = EventContext::default();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    for deliveries in 1..=2 {
        let claim = receive(&*worker, "a").await.claim;
        assert_eq!(deliveries_of(&*worker, &claim).await, deliveries);
        assert_eq!(worker.started(&claim, &nothing).await.unwrap(), Ownership::Held);
        assert_eq!(worker.release(&claim).await.unwrap(), Ownership::Held);
        assert_eq!(worker.release(&claim).await.unwrap(), Ownership::Lost);
        assert_eq!(finish(&*worker, &claim).await, Ownership::Lost);
        assert_eq!(platform.unfinished_tasks().await, 1);
    }
    let claim = receive(&*peer, "b").await.claim;
    assert_eq!(deliveries_of(&*peer, &claim).await, 3);
    platform.cancel_job("J1").await;
    let is_running = matches!(peer.lookup(&claim).await.unwrap(), Lookup::Cancelled { .. });
    assert!(is_running);
    assert_eq!(finish(&*peer, &claim).await, Ownership::Held);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// The number of this delivery among all of the task.
async fn deliveries_of(worker: &dyn Broker, claim: &Claim) -> u32 {
    match worker.lookup(claim).await.unwrap() {
        Lookup::Task(metadata) => metadata.earlier_deliveries + claim.delivery_count,
        other => panic!("{other:?}"),
    }
}

/// A worker with a fault of its own hands a task back, and all workers together do that only so
/// often for one cause.
pub async fn handed_back_task_goes_to_a_peer_up_to_its_limit(platform: &dyn Platform) {
    let workers = [
        platform.broker(),
        platform.broker(),
        platform.broker(),
        platform.broker(),
    ];
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    for (number, name) in ["a", "b"].into_iter().enumerate() {
        let worker = &workers[number];
        let delivery = receive(&**worker, name).await;
        if number > 0 {
            assert_eq!(delivery.redelivery, Some(RedeliveryReason::Deferred));
        }
        let claim = &delivery.claim;
        let handed = worker.hand_back(claim, "storage", 2).await.unwrap();
        assert_eq!(handed, HandBack::Done, "{name}");
        assert_eq!(finish(&**worker, claim).await, Ownership::Lost);
        receives_nothing(&**worker, name).await;
    }
    let third = receive(&*workers[2], "c").await.claim;
    let handed = workers[2].hand_back(&third, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Refused);
    assert_eq!(workers[2].renew(&third).await.unwrap(), Ownership::Held);
    let handed = workers[2].hand_back(&third, "disk", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done, "another cause has a count of its own");

    let last = receive(&*workers[3], "d").await.claim;
    assert_eq!(last.delivery_count, 4);
    assert_eq!(finish(&*workers[3], &last).await, Ownership::Held);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// A single worker gets back what it handed back, and then it may hold it.
pub async fn handed_back_task_returns_to_its_worker_after_a_lease(platform: &dyn Platform) {
    let worker = platform.broker();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*worker, "a").await.claim;
    let handed = worker.hand_back(&claim, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done);
    receives_nothing(&*worker, "a").await;
    let again = receive(&*worker, "a").await.claim;
    assert_eq!(again.delivery_count, 2);
    assert_eq!(finish(&*worker, &again).await, Ownership::Held);
}

/// A task whose start was reported is kept from the worker that handed it back, too.
pub async fn handed_back_running_task_goes_to_a_peer_first(platform: &dyn Platform) {
    let (broken, peer) = (platform.broker(), platform.broker());
    let nothing = EventContext::default();
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*broken, "a").await.claim;
    assert!(matches!(broken.lookup(&claim).await.unwrap(), Lookup::Task(_)));
    assert_eq!(broken.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    let handed = broken.hand_back(&claim, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done);
    receives_nothing(&*broken, "a").await;
    assert_eq!(finish(&*broken, &claim).await, Ownership::Lost);

    let again = receive(&*peer, "b").await.claim;
    assert_eq!(deliveries_of(&*peer, &again).await, 2);
    assert_eq!(finish(&*peer, &again).await, Ownership::Held);
    assert_eq!(platform.unfinished_tasks().await, 0);
}

/// A start counts against a task until its worker reports the end or gives the task back.
pub async fn starts_are_counted_until_their_end_is_known(platform: &dyn Platform) {
    let nothing = EventContext::default();
    let starts = async |worker: &dyn Broker, claim: &Claim| match worker.lookup(claim).await.unwrap() {
        Lookup::Task(metadata) => metadata.inference_starts,
        other => panic!("{other:?}"),
    };
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let waiting = platform.broker();
    let claim = receive(&*waiting, "waiting").await.claim;
    assert_eq!(starts(&*waiting, &claim).await, 0);
    assert_eq!(waiting.release(&claim).await.unwrap(), Ownership::Held);

    let dead = platform.broker();
    let claim = receive(&*dead, "dead").await.claim;
    for _ in 0..2 {
        assert_eq!(dead.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    }
    drop(dead);

    let draining = platform.broker();
    let claim = receive(&*draining, "draining").await.claim;
    assert_eq!(starts(&*draining, &claim).await, 1, "a repeated call counts once");
    let started = draining.started(&claim, &nothing).await.unwrap();
    assert_eq!((started, starts(&*draining, &claim).await), (Ownership::Held, 2));
    assert_eq!(draining.release(&claim).await.unwrap(), Ownership::Held);

    let broken = platform.broker();
    let claim = receive(&*broken, "broken").await.claim;
    assert_eq!(
        starts(&*broken, &claim).await,
        1,
        "the draining worker survived it"
    );
    assert_eq!(broken.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    let handed = broken.hand_back(&claim, "storage", 2).await.unwrap();
    assert_eq!(handed, HandBack::Done);

    let last = platform.broker();
    let claim = receive(&*last, "last").await.claim;
    assert_eq!(starts(&*last, &claim).await, 1, "the broken worker survived it");
    assert_eq!(last.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    assert_eq!(finish(&*last, &claim).await, Ownership::Held);

    // The platform may queue the task once more.
    platform.enqueue("T1", "J1", Some("transcribe")).await;
    let claim = receive(&*last, "last").await.claim;
    assert_eq!(starts(&*last, &claim).await, 0);
}
