//! Lost data, lost connections, lost replies.

use std::time::{Duration, Instant};

use dalston_engine_sdk::broker::{Broker, Claim, EventContext, Outcome, Ownership};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use testbed::{Proxy, TestRedis};

use super::{
    LEASE, LONG, SHORT, TASK, broker, consumer, enqueue, events, message, nothing_for, pending, receive,
};

#[tokio::test]
async fn broker_survives_the_loss_of_all_data() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    nothing_for(&broker, "a", SHORT).await;
    let () = server.send(&["FLUSHALL"]).await;
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;
    let () = server.send(&["FLUSHALL"]).await;
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Unrecorded);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    assert_eq!(
        broker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap(),
        Ownership::Unrecorded
    );
    enqueue(&server).await;
    assert_eq!(receive(&broker, "a").await.claim.task_id, TASK);
}

#[tokio::test]
async fn broker_survives_the_loss_of_its_connections() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    nothing_for(&broker, "a", SHORT).await;
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move {
            loop {
                // The runner, too, waits a little and tries again.
                match broker.receive(&consumer("a"), LONG).await {
                    Ok(found) => return found.expect("a task"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
    };
    let () = server
        .send(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    enqueue(&server).await;
    let claim = waiting.await.unwrap().claim;
    let () = server
        .send(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let mut attempts = 0;
    let done = loop {
        attempts += 1;
        match broker.finish(&claim, &outcome, &EventContext::default()).await {
            Ok(done) => break done,
            Err(error) if attempts > 20 => panic!("{error}"),
            Err(_) => {}
        }
    };
    assert_eq!(done, Ownership::Held);
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (1, 0)
    );
}

#[tokio::test]
async fn finish_with_a_lost_reply_can_be_repeated() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let nothing = EventContext::default();
    // The server knows the script only after the first use.
    let first = receive(&broker, "a").await.claim;
    assert_eq!(
        broker.finish(&first, &outcome, &nothing).await.unwrap(),
        Ownership::Held
    );
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;

    cable.lose_answers(true);
    broker.finish(&claim, &outcome, &nothing).await.unwrap_err();
    assert_eq!(pending(&server).await, [], "the server has done it");
    cable.lose_answers(false);
    let mut again = broker.finish(&claim, &outcome, &nothing).await;
    while again.is_err() {
        again = broker.finish(&claim, &outcome, &nothing).await;
    }

    assert_eq!(again.unwrap(), Ownership::Held);
    assert_eq!(events(&server).await.len(), 2);
}

#[tokio::test]
async fn dropped_finish_can_be_repeated() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let nothing = EventContext::default();
    let claim = receive(&broker, "a").await.claim;
    // The server knows the script only after the first use.
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Held);

    cable.stall(true);
    let finish = broker.finish(&claim, &outcome, &nothing);
    tokio::time::timeout(Duration::from_millis(300), finish)
        .await
        .unwrap_err();
    // It passes now, and its reply is lost.
    cable.stall(false);

    let renewed = broker.renew(&claim).await.unwrap();
    assert_eq!(renewed, Ownership::Held, "it is this worker that ended it");
    let again = broker.finish(&claim, &outcome, &nothing).await.unwrap();
    assert_eq!(again, Ownership::Held);
    assert_eq!(events(&server).await.len(), 1);
}

#[tokio::test]
async fn demoted_server_is_left_for_the_new_primary() {
    let (old, new) = (TestRedis::start().await, TestRedis::start().await);
    enqueue(&old).await;
    let cable = Proxy::to(old.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let claim = receive(&broker, "a").await.claim;
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Held);

    let () = old
        .send(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])
        .await;
    let () = new
        .send(&["REPLICAOF", "127.0.0.1", &old.port().to_string()])
        .await;
    while new
        .send::<String>(&["INFO", "replication"])
        .await
        .contains("master_link_status:down")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let () = new.send(&["REPLICAOF", "NO", "ONE"]).await;
    let () = old
        .send(&["REPLICAOF", "127.0.0.1", &new.port().to_string()])
        .await;
    cable.lead_to(new.port());

    // The connection to the old server still reads.
    let refused = broker.started(&claim, &EventContext::default()).await;
    assert!(refused.is_err(), "{refused:?}");
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let finished = broker.finish(&claim, &outcome, &EventContext::default()).await;
    assert_eq!(finished.unwrap(), Ownership::Held);
    assert_eq!((events(&new).await.len(), pending(&new).await), (1, Vec::new()));
}

#[tokio::test]
async fn silent_connections_are_left_for_the_new_server() {
    let (old, new) = (TestRedis::start().await, TestRedis::start().await);
    enqueue(&old).await;
    let cable = Proxy::to(old.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let server = RedisServer::new(&url)
        .unwrap()
        .with_timeout(Duration::from_secs(1));
    let broker = RedisBroker::with_lease(server, LONG);
    let held = receive(&broker, "a").await.claim;
    broker.lookup(&held).await.unwrap();
    nothing_for(&broker, "a", SHORT).await;

    cable.silence();
    cable.lead_to(new.port());
    let waiting = enqueue(&new).await;
    // Commands on the shared connection, as of a worker whose slots are all busy.
    let mut unanswered = Vec::new();
    let renewed = loop {
        match broker.renew(&held).await {
            Ok(renewed) => break renewed,
            Err(error) if unanswered.len() > 5 => panic!("{error}"),
            Err(error) => unanswered.push(error.to_string()),
        }
    };
    assert_eq!(renewed, Ownership::Unrecorded);
    // One, if a read that was under way was not answered either.
    assert!((1..=2).contains(&unanswered.len()), "{unanswered:?}");
    let address = format!("127.0.0.1:{}", cable.port());
    assert!(
        unanswered.iter().all(|error| error.contains(&address)),
        "{unanswered:?}"
    );

    // The blocking read has a connection of its own.
    let (next, _) = receive_after_failures(&broker).await;
    assert_eq!(next.message_id, waiting);
    let ended = broker
        .finish(&next, &Outcome::Skipped, &EventContext::default())
        .await;
    assert_eq!(ended.unwrap(), Ownership::Held);
}

/// Takes a task with repeated reads, and returns how many of them failed.
async fn receive_after_failures(broker: &RedisBroker) -> (Claim, usize) {
    let mut failures = 0;
    loop {
        match broker.receive(&consumer("a"), LONG).await {
            Ok(found) => return (found.expect("a task").claim, failures),
            Err(error) if failures > 5 => panic!("{error}"),
            Err(_) => failures += 1,
        }
    }
}

#[tokio::test]
async fn silence_ends_a_read_that_waits() {
    let (old, new) = (TestRedis::start().await, TestRedis::start().await);
    let cable = Proxy::to(old.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let server = RedisServer::new(&url)
        .unwrap()
        .with_timeout(Duration::from_secs(1));
    let broker = RedisBroker::with_lease(server, LONG);
    nothing_for(&broker, "a", SHORT).await;

    cable.silence();
    cable.lead_to(new.port());
    let waiting = enqueue(&new).await;
    let (claim, failures) = receive_after_failures(&broker).await;

    assert_eq!(claim.message_id, waiting);
    assert!((1..=3).contains(&failures), "{failures}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn kernel_asks_quiet_connections_for_a_sign_of_life() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    nothing_for(&broker, "a", SHORT).await;
    let timers = || -> Vec<String> {
        // One line per socket: local and remote address in hexadecimal, state, queues, timer.
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let remote = format!(":{:04X}", server.port());
        let lines = sockets.lines();
        let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = fields.filter(|fields| fields[2].ends_with(&remote) && fields[3] == "01");
        ours.map(|fields| fields[5][..2].to_owned()).collect()
    };
    let keepalive = "02";
    let asked = || timers().iter().filter(|timer| *timer == keepalive).count();
    // The timer of a connection is another one while data is on its way.
    let give_up = Instant::now() + LONG;
    while asked() != 2 && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        asked(),
        2,
        "the connection for commands and that for blocking reads: {:?}",
        timers()
    );
}

#[tokio::test]
async fn task_of_an_unanswered_read_comes_back() {
    let server = TestRedis::start().await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
    nothing_for(&broker, "a", SHORT).await;

    let reader = broker.clone();
    let lost = tokio::spawn(async move { reader.receive(&consumer("a"), LONG).await });
    cable.lose_answers(true);
    let missing = message(&server).await;
    while pending(&server).await.is_empty() {
        tokio::task::yield_now().await;
    }
    cable.lose_answers(false);
    cable.cut();

    lost.abort();
    let delivery = loop {
        // The read may fail once, on the connection that was cut.
        if let Ok(Some(delivery)) = broker.receive(&consumer("a"), LONG).await {
            break delivery;
        }
    };
    assert_eq!(delivery.claim.message_id, missing);
    let nothing = EventContext::default();
    let ended = broker.finish(&delivery.claim, &Outcome::Skipped, &nothing).await;
    assert_eq!(ended.unwrap(), Ownership::Held);
}
