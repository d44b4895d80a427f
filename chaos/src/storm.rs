//! The storm: tasks are queued while engines, network, storage and Redis fail.

use std::sync::Arc;
use std::time::Duration;

use testbed::{Fault, Trouble};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::fleet::Fleet;
use crate::orchestrator::{Kind, Orchestrator, TaskPlan};
use crate::platform::Platform;
use crate::random::Random;

/// The largest number of tasks that are queued or running.
const IN_FLIGHT: usize = 200;

/// The faults of the servers.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) redis_restarts: usize,
    pub(crate) network_faults: usize,
    pub(crate) storage_faults: usize,
    /// The largest number of entries in the queue.
    pub(crate) longest_queue: u64,
}

/// An event with this mean interval.
struct Every {
    seconds: f64,
    next: Instant,
}

impl Every {
    fn new(seconds: f64, random: &mut Random) -> Self {
        let next = Instant::now() + Duration::from_secs_f64(random.between(0.0, 2.0 * seconds));
        Self { seconds, next }
    }

    fn is_due(&mut self, random: &mut Random) -> bool {
        let due = self.next <= Instant::now();
        if due {
            self.next = Instant::now() + Duration::from_secs_f64(random.between(0.0, 2.0 * self.seconds));
        }
        due
    }
}

/// Queues tasks until `end` is dropped. Do not abort it: a partly queued task counts as lost.
pub(crate) async fn queue_tasks(
    orchestrator: Arc<Orchestrator>,
    lease: Duration,
    mut random: Random,
    mut end: oneshot::Receiver<()>,
) {
    let mut cancellations = JoinSet::new();
    while end.try_recv() == Err(TryRecvError::Empty) {
        if orchestrator.open_tasks().len() >= IN_FLIGHT {
            sleep(Duration::from_millis(10)).await;
            continue;
        }
        let kind = match random.below(100) {
            0..4 => Kind::Fails,
            4..6 => Kind::Panics,
            6..10 => Kind::Cancelled,
            _ => Kind::Plain,
        };
        let duration = match random.below(100) {
            // Longer than a lease, which the engine must renew.
            0..1 => lease.mul_f64(random.between(1.0, 2.0)),
            1..15 => Duration::from_secs_f64(random.between(0.1, 0.5)),
            _ => Duration::from_secs_f64(random.between(0.0, 0.03)),
        };
        let plan = TaskPlan {
            kind,
            duration,
            artifacts: random.below(4) as u64,
            length: 1 + random.below(100) as u64,
        };
        let (task, job) = (random.uuid(), random.uuid());
        orchestrator.queue(&task, &job, plan).await;
        if kind == Kind::Cancelled {
            let after = Duration::from_secs_f64(random.between(0.0, 1.0));
            let orchestrator = Arc::clone(&orchestrator);
            cancellations.spawn(async move {
                sleep(after).await;
                orchestrator.cancel(&task, &job).await;
            });
            while cancellations.try_join_next().is_some() {}
        }
    }
    cancellations.join_all().await;
}

/// Injects faults for this time, and then removes them.
pub(crate) async fn run(
    platform: &Platform,
    fleet: &mut Fleet,
    duration: Duration,
    mut random: Random,
    mut progress: impl FnMut(&Fleet, &Counts),
) -> Counts {
    let lease = fleet.setup.lease;
    let mut counts = Counts::default();
    let random = &mut random;
    let mut kill = Every::new(1.0, random);
    let mut end = Every::new(4.0, random);
    let mut stop = Every::new(4.0, random);
    let mut network = Every::new(2.0, random);
    let mut storage = Every::new(3.0, random);
    let mut restart = Every::new(10.0, random);
    let mut report = Instant::now();
    let (mut network_heals, mut storage_heals) = (None, None);
    let ends = Instant::now() + duration;
    let mut ticks = interval(Duration::from_millis(20));
    while Instant::now() < ends {
        ticks.tick().await;
        fleet.supervise().await;
        let engine = random.below(fleet.len());
        if kill.is_due(random) {
            fleet.kill(engine);
        }
        if end.is_due(random) {
            fleet.end(engine);
        }
        if stop.is_due(random) {
            fleet.stop(engine, lease.mul_f64(random.between(0.1, 2.5)));
        }
        if network_heals.is_some_and(|at| at <= Instant::now()) {
            network_heals = None;
            heal_network(platform);
        }
        if network_heals.is_none() && network.is_due(random) {
            counts.network_faults += 1;
            network_heals = Some(Instant::now() + disturb_network(platform, lease, random));
        }
        if storage_heals.is_some_and(|at| at <= Instant::now()) {
            storage_heals = None;
            platform.s3.heal();
        }
        if storage_heals.is_none() && storage.is_due(random) {
            counts.storage_faults += 1;
            platform.s3.trouble(storage_trouble(random));
            storage_heals = Some(Instant::now() + Duration::from_secs_f64(random.between(0.3, 2.0)));
        }
        if restart.is_due(random) {
            counts.redis_restarts += 1;
            platform.redis.kill();
            sleep(Duration::from_secs_f64(random.between(0.0, 1.0))).await;
            platform.redis.restart().await;
        }
        if report <= Instant::now() {
            report = Instant::now() + Duration::from_secs(5);
            let length: u64 = platform.ask(&["XLEN", &crate::queue()]).await;
            counts.longest_queue = counts.longest_queue.max(length);
            progress(fleet, &counts);
        }
    }
    heal_network(platform);
    platform.s3.heal();
    counts
}

fn heal_network(platform: &Platform) {
    let proxy = &platform.proxy;
    proxy.lose_answers(false);
    proxy.refuse(false);
    proxy.stall(false);
    proxy.delay(Duration::ZERO);
}

/// Starts a network fault. Returns its duration.
fn disturb_network(platform: &Platform, lease: Duration, random: &mut Random) -> Duration {
    let proxy = &platform.proxy;
    match random.below(12) {
        0..5 => {
            proxy.cut();
            Duration::ZERO
        }
        5..7 => {
            proxy.lose_answers(true);
            Duration::from_secs_f64(random.between(0.02, 0.5))
        }
        7..9 => {
            proxy.delay(Duration::from_secs_f64(random.between(0.001, 0.2)));
            Duration::from_secs_f64(random.between(0.5, 2.0))
        }
        9..11 => {
            proxy.refuse(true);
            proxy.cut();
            Duration::from_secs_f64(random.between(0.1, 1.0))
        }
        _ => {
            proxy.stall(true);
            lease.mul_f64(random.between(0.1, 1.5))
        }
    }
}

fn storage_trouble(random: &mut Random) -> Trouble {
    let fault = match random.below(7) {
        0 => Fault::INTERNAL_ERROR,
        1 => Fault::SLOW_DOWN,
        2 => Fault::Truncate(random.below(200)),
        3 => Fault::Cut,
        4 => Fault::LoseAnswer,
        _ => Fault::Delay(Duration::from_secs_f64(random.between(0.05, 0.5))),
    };
    Trouble::new(fault).fraction(random.between(0.05, 0.6))
}
