//! The storm: tasks are queued while engines, network, storage and Redis fail.

use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::protocol::keys;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::engine::{ENGINES, MODELS};
use crate::fleet::Fleet;
use crate::http::Requests;
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::random::Random;
use crate::servers::{self, Every, Servers};
use crate::task::{Kind, TaskPlan};

/// The largest number of tasks that are queued or running.
const IN_FLIGHT: usize = 200;
/// The size of large files. They are uploaded in parts.
const LARGE: u64 = 20 << 20;
/// The length of a line of an input: a task id and the end of the line.
const LINE: u64 = 37;
/// The largest number of tasks with large files, which the storage keeps in memory.
const LARGE_TASKS: u32 = 12;

/// What happened.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) servers: servers::Counts,
    /// They end with the engines, at the latest.
    pub(crate) requests: Requests,
    /// The largest number of entries in the queue.
    pub(crate) longest_queue: u64,
}

/// Queues tasks until `end` is dropped. Do not abort it: a partly queued task counts as lost.
///
/// Tasks that kill their workers take long, so none of them is queued after `calm`.
pub(crate) async fn queue_tasks(
    orchestrator: Arc<Orchestrator>,
    lease: Duration,
    mut random: Random,
    calm: Instant,
    mut end: oneshot::Receiver<()>,
) {
    let random = &mut random;
    let mut killer = Every::new(20.0, random);
    let mut large = Every::new(15.0, random);
    let mut large_left = LARGE_TASKS;
    let mut cancellations = JoinSet::new();
    while end.try_recv() == Err(TryRecvError::Empty) {
        if orchestrator.open_tasks().len() >= IN_FLIGHT {
            sleep(Duration::from_millis(10)).await;
            continue;
        }
        let mut plan = any_task(random, lease);
        if Instant::now() < calm && killer.is_due(random) {
            // The deadline of a late task is near, and would end it before it kills.
            plan.timeout = TaskPlan::plain(plan.duration).timeout;
            plan.kind = Kind::Kills;
        } else if large_left > 0 && large.is_due(random) {
            large_left -= 1;
            plan = TaskPlan {
                artifacts: 1,
                length: LARGE / LINE,
                filler: LARGE,
                ..TaskPlan::plain(plan.duration)
            };
        }
        let (task, job) = (random.uuid(), random.uuid());
        orchestrator.queue(&task, &job, plan).await;
        if plan.kind == Kind::Cancelled {
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

fn any_task(random: &mut Random, lease: Duration) -> TaskPlan {
    let kind = match random.below(200) {
        0..8 => Kind::Fails,
        8..12 => Kind::Panics,
        12..20 => Kind::Cancelled,
        20 => Kind::Late,
        _ => Kind::Plain,
    };
    let duration = match random.below(100) {
        // Longer than a lease, which the engine must renew.
        0..1 => lease.mul_f64(random.between(1.0, 2.0)),
        1..15 => Duration::from_secs_f64(random.between(0.1, 0.5)),
        _ => Duration::from_secs_f64(random.between(0.0, 0.03)),
    };
    let mut plan = TaskPlan {
        // A third of the engines has the second id.
        engine: if random.below(4) == 0 {
            ENGINES[1]
        } else {
            ENGINES[0]
        },
        // Most tasks name the same one.
        model: if random.below(4) == 0 {
            random.below(MODELS)
        } else {
            0
        },
        kind,
        artifacts: random.below(4) as u64,
        length: 1 + random.below(100) as u64,
        twice: kind == Kind::Plain && random.below(30) == 0,
        ..TaskPlan::plain(duration)
    };
    if kind == Kind::Late {
        // Some of them wait that long in the queue.
        plan.timeout = Duration::from_secs_f64(random.between(1.0, 15.0));
    }
    plan
}

/// Injects faults for this time, and then removes them.
pub(crate) async fn run(
    platform: &Platform,
    fleet: &mut Fleet,
    duration: Duration,
    mut random: Random,
    mut progress: impl FnMut(&Fleet, &servers::Counts),
) -> Counts {
    let lease = fleet.setup.lease;
    let mut servers = Servers::new(platform, lease, random.fork());
    let random = &mut random;
    let mut kill = Every::new(1.0, random);
    let mut end = Every::new(4.0, random);
    let mut stop = Every::new(4.0, random);
    let mut request = Every::new(0.3, random);
    let mut requests = Requests::default();
    let stream = keys::task_stream(ENGINES[0]);
    let mut longest_queue = 0;
    let mut report = Instant::now();
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
        if request.is_due(random)
            && let Some(port) = fleet.http_port(engine)
        {
            requests.send(port, random.uuid());
        }
        servers.act().await;
        if report <= Instant::now() {
            report = Instant::now() + Duration::from_secs(5);
            if servers.redis_works()
                && let Ok(length) = platform.try_ask::<u64>(&["XLEN", &stream]).await
            {
                longest_queue = longest_queue.max(length);
            }
            progress(fleet, &servers.counts);
        }
    }
    servers.heal().await;
    Counts {
        requests,
        servers: servers.counts,
        longest_queue,
    }
}
