//! apalis with its Redis back end and a job that does nothing.
//!
//! There are two configurations. *Locked* is the default and resembles the protocol of the platform
//! most: every job is marked as running, with its worker, before it starts. *Bare* omits this: it
//! takes jobs and stores results a hundred at a time.

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

/// The maximum of waiting jobs. The lock of apalis scans all waiting jobs, so that a long queue
/// would make it slow.
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
    let jobs = take_scheduled(&mut connection);
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
    assert_eq!(done.load(Ordering::Relaxed), tasks, "each job ran once");
    worker.abort();
    figures
}

/// Removes all scheduled jobs. This version of apalis schedules every job for now, and fails with
/// more than a few thousand of them. The caller moves them to the list of active jobs, as apalis
/// would.
fn take_scheduled(connection: &mut Connection) -> Vec<String> {
    let jobs: Vec<String> = connection.zrange("bench:scheduled", 0, -1).unwrap();
    let () = connection.del("bench:scheduled").unwrap();
    jobs
}
