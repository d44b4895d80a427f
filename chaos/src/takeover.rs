//! Measures the time until a peer starts a task that lost its engine, without other faults. The
//! times of a storm include waits for Redis and for an idle peer.

use std::time::Duration;

use dalston_engine_sdk::protocol::keys;
use tokio::time::{Instant, sleep};

use crate::engine::ENGINES as IDS;
use crate::fleet::Fleet;
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::random::Random;
use crate::task::TaskPlan;

/// The number of measurements.
const ROUNDS: usize = 5;
/// One engine has the task, and the others are idle.
const ENGINES: usize = 3;
/// How long a task takes that idle engines share.
pub(crate) const SHARED_TASK: Duration = Duration::from_secs(2);

/// Kills or terminates the engine of a task, and waits until a peer has finished the task.
pub(crate) async fn measure(
    platform: &Platform,
    orchestrator: &Orchestrator,
    fleet: &mut Fleet,
    random: &mut Random,
    kill: bool,
) {
    let timeout = fleet.setup.lease * 2 + Duration::from_secs(60);
    for _ in 0..ROUNDS {
        fleet.fill(ENGINES);
        let (task, job) = (random.uuid(), random.uuid());
        let plan = TaskPlan {
            artifacts: 1,
            ..TaskPlan::plain(Duration::from_secs(2))
        };
        orchestrator.queue(&task, &job, plan).await;
        let deadline = Instant::now() + timeout;
        let mut freed = false;
        while !orchestrator.is_over(&task) && Instant::now() < deadline {
            fleet.supervise().await;
            if !freed
                && orchestrator.starts(&task) == 1
                && let Some(index) = owner(platform).await.and_then(|owner| fleet.find(&owner))
            {
                // A random time between two heartbeats.
                sleep(Duration::from_secs_f64(random.between(0.0, 1.0))).await;
                if kill {
                    fleet.kill(index);
                } else {
                    fleet.end(index);
                }
                freed = true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        if !orchestrator.is_over(&task) {
            orchestrator.violation(
                Some(&task),
                format!("its engine ended, and no peer finished it within {timeout:?}"),
            );
            // Further rounds would also time out.
            return;
        }
    }
}

/// Queues one task for each idle engine at the same time. Returns the sorted seconds until each
/// started: a task that a busy engine took waits for the end of another one.
pub(crate) async fn share(orchestrator: &Orchestrator, fleet: &mut Fleet, random: &mut Random) -> Vec<f64> {
    fleet.fill(ENGINES);
    let mut tasks = Vec::new();
    for _ in 0..ROUNDS {
        // The registry shows that they are idle.
        let idle = Instant::now() + Duration::from_secs(2);
        while Instant::now() < idle {
            fleet.supervise().await;
            sleep(Duration::from_millis(10)).await;
        }
        let begun = tasks.len();
        for _ in 0..ENGINES {
            let (task, job) = (random.uuid(), random.uuid());
            orchestrator
                .queue(&task, &job, TaskPlan::plain(SHARED_TASK))
                .await;
            tasks.push(task);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline && !tasks[begun..].iter().all(|task| orchestrator.is_over(task)) {
            fleet.supervise().await;
            sleep(Duration::from_millis(10)).await;
        }
    }
    orchestrator.waits(&tasks)
}

/// The consumer of the only pending entry.
async fn owner(platform: &Platform) -> Option<String> {
    let rows: Vec<(String, String, u64, u64)> = platform
        .ask(&[
            "XPENDING",
            &keys::task_stream(IDS[0]),
            keys::TASK_GROUP,
            "-",
            "+",
            "1",
        ])
        .await;
    let owner = rows.into_iter().next()?.1;
    owner.starts_with(&format!("{}-", IDS[0])).then_some(owner)
}
