//! The time from queueing a task to the call of its handler.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use dalston_engine_sdk::TaskContext;
use dalston_engine_sdk::store::Store;
use serde_json::{Value, json};

use crate::ours::{self, NoOp};
use crate::platform::{Address, GROUP, Platform, STREAM, number_of, write_requests};
use crate::wait_until;

const INTERVAL: Duration = Duration::from_millis(5);
/// Tasks whose times do not count, because connections and scripts are set up.
const WARM_UP: usize = 100;

/// Nanoseconds since the start of the process, by task.
struct Times {
    queued: Vec<AtomicU64>,
    handled: Vec<AtomicU64>,
    count: AtomicUsize,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Times {
    fn new(tasks: usize) -> Arc<Self> {
        let zeros = || (0..tasks).map(|_| AtomicU64::new(0)).collect();
        let count = AtomicUsize::new(0);
        Arc::new(Self {
            queued: zeros(),
            handled: zeros(),
            count,
        })
    }

    fn handle(&self, task_id: &str) {
        self.handled[number_of(task_id)].store(now(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    /// Queues the tasks one by one and waits until all were handled.
    fn produce(&self, platform: &mut Platform) -> Value {
        // The reader connects first.
        thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        for number in 0..self.queued.len() {
            let due = started + INTERVAL * u32::try_from(number).unwrap_or(u32::MAX);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.queued[number].store(now(), Ordering::Relaxed);
            platform.queue_one(number);
        }
        wait_until(|| self.count.load(Ordering::Acquire) == self.queued.len());
        let pairs = self.queued.iter().zip(&self.handled).skip(WARM_UP);
        let mut times: Vec<u64> = pairs
            .map(|(queued, handled)| handled.load(Ordering::Relaxed) - queued.load(Ordering::Relaxed))
            .collect();
        times.sort_unstable();
        let milliseconds = |part: f64| times[(part * (times.len() - 1) as f64) as usize] as f64 / 1e6;
        json!({"p50": milliseconds(0.5), "p99": milliseconds(0.99), "max": milliseconds(1.0)})
    }
}

pub(crate) fn ours(redis: &str, tasks: usize, collector: &str) -> Value {
    let redis = Address::parse(redis);
    let telemetry = ours::telemetry(collector);
    let store = Store::memory();
    let runtime = ours::runtime();
    runtime.block_on(write_requests(&store, 0..tasks, None));
    let mut platform = Platform::connect(redis.url, telemetry.is_some());
    platform.describe(0..tasks);
    let times = Times::new(tasks);
    let handled = Arc::clone(&times);
    let engine = NoOp(move |cx: &TaskContext| handled.handle(&cx.info().task_id));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = ours::start(
        &runtime,
        engine,
        redis.url,
        &store,
        8,
        telemetry.as_ref(),
        stopped,
    );
    let answer = times.produce(&mut platform);
    stop.send(()).unwrap();
    runtime.block_on(running).unwrap();
    answer
}

/// A thread that only reads one entry at a time.
pub(crate) fn blocking_reader(redis: &str, tasks: usize) -> Value {
    type Streams = Option<Vec<(String, Vec<(String, Vec<(String, String)>)>)>>;
    let redis = Address::parse(redis);
    let mut platform = Platform::connect(redis.url, false);
    platform.make_group();
    let times = Times::new(tasks);
    let handled = Arc::clone(&times);
    let mut connection = redis::Client::open(redis.url).unwrap().get_connection().unwrap();
    let reader = thread::spawn(move || {
        let mut count = 0;
        while count < tasks {
            let streams: Streams = redis::cmd("XREADGROUP")
                .arg("GROUP")
                .arg(GROUP)
                .arg("bench-blocking")
                .arg("COUNT")
                .arg(1)
                .arg("BLOCK")
                .arg(1_000)
                .arg("STREAMS")
                .arg(STREAM)
                .arg(">")
                .query(&mut connection)
                .unwrap();
            for (_, fields) in streams.into_iter().flatten().flat_map(|(_, entries)| entries) {
                let task = fields.iter().find(|(name, _)| name == "task_id").unwrap();
                handled.handle(&task.1);
                count += 1;
            }
        }
    });
    let answer = times.produce(&mut platform);
    reader.join().unwrap();
    answer
}
