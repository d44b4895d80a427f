//! The broker of this SDK without a runner: what the wire costs the worker.

use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, Consumer, EventContext, Lookup, Outcome, Ownership};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::figures::Stopwatch;
use crate::ours::runtime;
use crate::platform::{Address, ENGINE, Platform};

/// As the runner: how many entries are read at once.
const READ_AT_ONCE: usize = 32;
const LONG: Duration = Duration::from_secs(60);

/// Takes, starts and finishes tasks, with so many of them held.
pub(crate) fn throughput(redis: &str, tasks: usize, in_hand: usize) -> Value {
    let redis = Address::parse(redis);
    let mut platform = Platform::connect(redis.url, false);
    platform.describe(0..tasks);
    platform.make_group();
    platform.queue(0..tasks);
    let stopwatch = Stopwatch::start(redis.pid);
    runtime().block_on(async {
        let broker = RedisBroker::new(RedisServer::new(redis.url).unwrap());
        let turns = Arc::new(Semaphore::new(in_hand));
        tokio::spawn(take_all(broker, Arc::clone(&turns), tasks))
            .await
            .unwrap();
        let all = u32::try_from(in_hand).unwrap();
        drop(turns.acquire_many(all).await.unwrap());
    });
    let figures = stopwatch.stop(tasks);
    assert_eq!(platform.pending(), 0);
    assert_eq!(platform.events(), 2 * tasks, "each was started and completed");
    figures
}

async fn take_all(broker: RedisBroker, turns: Arc<Semaphore>, tasks: usize) {
    let consumer = Consumer {
        engine_id: ENGINE.to_owned(),
        instance: "bench-wire".to_owned(),
    };
    let mut taken = 0;
    while taken < tasks {
        let first = Arc::clone(&turns).acquire_owned().await.unwrap();
        let most = (turns.available_permits() + 1).min(READ_AT_ONCE);
        let deliveries = broker.receive_several(&consumer, most, LONG).await.unwrap();
        taken += deliveries.len();
        drop(first);
        for delivery in deliveries {
            let turn = Arc::clone(&turns).try_acquire_owned().unwrap();
            let broker = broker.clone();
            tokio::spawn(async move {
                let claim = &delivery.claim;
                assert!(matches!(broker.lookup(claim).await.unwrap(), Lookup::Task(_)));
                let context = EventContext::default();
                assert_eq!(broker.started(claim, &context).await.unwrap(), Ownership::Held);
                let outcome = Outcome::Completed {
                    artifacts: Vec::new(),
                };
                let owner = broker.finish(claim, &outcome, &context).await;
                assert_eq!(owner.unwrap(), Ownership::Held);
                drop(turn);
            });
        }
    }
}
