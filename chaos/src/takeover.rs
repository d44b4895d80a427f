//! How soon a peer has a task that lost its engine, with nothing else going on: the figures of a storm also hold the waits
//! for Redis to come back and for a peer to be free.

use std::time::Duration;

use dalston_engine_sdk::protocol::keys;
use tokio::time::{Instant, sleep};

use crate::engine::ENGINE;
use crate::fleet::Fleet;
use crate::orchestrator::{Kind, Orchestrator, Order};
use crate::platform::Platform;
use crate::random::Random;

/// How often each is measured.
const ROUNDS: usize = 5;
/// Of engines: one has the task, the others have nothing to do.
const ENGINES: usize = 3;

/// Kills, or tells to end, the engine that works on a task, and waits until a peer has finished it.
pub(crate) async fn measure(
    platform: &Platform,
    orchestrator: &Orchestrator,
    fleet: &mut Fleet,
    random: &mut Random,
    kill: bool,
) {
    let patience = fleet.setup.lease * 2 + Duration::from_secs(60);
    for _ in 0..ROUNDS {
        fleet.fill(ENGINES);
        let (task, job) = (random.uuid(), random.uuid());
        let order = Order {
            kind: Kind::Plain,
            takes: Duration::from_secs(2),
            artifacts: 1,
            length: 10,
        };
        orchestrator.queue(&task, &job, order).await;
        let give_up = Instant::now() + patience;
        let mut freed = false;
        while !orchestrator.is_over(&task) && Instant::now() < give_up {
            fleet.look_after().await;
            if !freed
                && orchestrator.starts(&task) == 1
                && let Some(index) = owner(platform).await.and_then(|owner| fleet.find(&owner))
            {
                // At any time between two heartbeats.
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
                format!("its engine was gone, and no peer finished it in {patience:?}"),
            );
            // The others would fail as slowly.
            return;
        }
    }
}

/// Who has the only entry that is pending.
async fn owner(platform: &Platform) -> Option<String> {
    let rows: Vec<(String, String, u64, u64)> = platform
        .ask(&["XPENDING", &crate::queue(), keys::TASK_GROUP, "-", "+", "1"])
        .await;
    let owner = rows.into_iter().next()?.1;
    owner.starts_with(&format!("{ENGINE}-")).then_some(owner)
}
