//! apalis with its Redis back end and a job that does nothing, on one task of a worker.
//!
//! With two kinds of settings. *Locked* is its default, and what is most like the protocol of the platform: every job is
//! marked as running, by whom, and that is published before the job begins. *Bare* leaves that out: what is left is to take
//! jobs by the hundred and to store their results by the hundred.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apalis::prelude::{TaskSink, WorkerBuilder, WorkerBuilderExt};
use apalis_redis::{Config, RedisStorage};
use redis::{Commands, Connection};
use serde_json::Value;

use crate::figures::Stopwatch;
use crate::ours::runtime;
use crate::platform::{Address, job_id};

/// How many jobs wait at most. Its lock looks through all that wait, so that a long queue would make it slow.
const WAITING: usize = 400;
const FED: usize = 200;

pub(crate) fn throughput(redis: &str, tasks: usize, concurrency: usize, kind: &str) -> Value {
    let redis = Address::parse(redis);
    let runtime = runtime();
    let config = Config::default()
        .queue("bench")
        .batch_size(100)
        .lock_tasks(kind == "locked");
    let mut connection = redis::Client::open(redis.url).unwrap().get_connection().unwrap();
    let storage: RedisStorage<String> = runtime.block_on(async {
        let manager = apalis_redis::connect(redis.url).await.unwrap();
        let mut storage = RedisStorage::new(manager).with_config(config);
        for first in (0..tasks).step_by(1_000) {
            let jobs = (first..tasks.min(first + 1_000)).map(job_id).collect();
            storage.push_bulk(jobs).await.unwrap();
        }
        storage
    });
    let jobs = take_back(&mut connection);
    assert_eq!(jobs.len(), tasks);
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let job = move |_: String| {
        count.fetch_add(1, Ordering::Relaxed);
        async {}
    };

    let stopwatch = Stopwatch::start(redis.pid);
    let worker = runtime.spawn(async move {
        let worker = WorkerBuilder::new("bench")
            .backend(storage)
            .concurrency(concurrency)
            .build(job);
        worker.run().await.unwrap();
    });
    for some in jobs.chunks(FED) {
        let () = connection.rpush("bench:active", some).unwrap();
        while connection.llen::<_, usize>("bench:active").unwrap() > WAITING - FED {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    while connection.scard::<_, usize>("bench:done").unwrap() < tasks {
        std::thread::sleep(Duration::from_millis(1));
    }
    let figures = stopwatch.stop(tasks);
    assert_eq!(done.load(Ordering::Relaxed), tasks, "each was done once");
    worker.abort();
    figures
}

/// This version queues every job as one that is scheduled for now, and gives up when there are more than some thousands of
/// them. Takes them out again, so that they can be queued where it would have put them.
fn take_back(connection: &mut Connection) -> Vec<String> {
    let jobs: Vec<String> = connection.zrange("bench:scheduled", 0, -1).unwrap();
    let () = connection.del("bench:scheduled").unwrap();
    jobs
}
