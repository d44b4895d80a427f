//! Fails Redis over to a replica that lacks the last writes, while tasks run.
//!
//! The lost writes may be those of the orchestrator or of an engine, in any combination. So the
//! rules for single events do not apply. But every task must end, and must have its result.

use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::store::key;
use testbed::TestS3;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::random::Random;
use crate::recovery;
use crate::task::{Status, TaskPlan};

const ROUNDS: usize = 2;
const ENGINES: usize = 3;
/// The number of tasks of a round.
const TASKS: usize = 60;

/// Returns the number of tasks.
pub(crate) async fn run(
    platform: &Arc<Platform>,
    orchestrator: &Arc<Orchestrator>,
    fleet: &mut Fleet,
    random: &mut Random,
) -> usize {
    orchestrator.expect_lost_writes();
    fleet.fill(ENGINES);
    let lease = fleet.setup.lease;
    let (end, ended) = oneshot::channel();
    let recovery = recovery::run(
        Arc::clone(orchestrator),
        lease,
        random.fork(),
        Instant::now(),
        ended,
    );
    let recovery = tokio::spawn(recovery);
    let mut tasks = Vec::new();
    for _ in 0..ROUNDS {
        let ids: Vec<_> = (0..TASKS).map(|_| (random.uuid(), random.uuid())).collect();
        tasks.extend(ids.clone());
        let (queued_by, mut pauses) = (Arc::clone(orchestrator), random.fork());
        let queueing = tokio::spawn(async move {
            for (task, job) in ids {
                let plan = TaskPlan::plain(Duration::from_secs_f64(pauses.between(0.0, 0.3)));
                queued_by.queue(&task, &job, plan).await;
                sleep(Duration::from_secs_f64(pauses.between(0.0, 0.1))).await;
            }
        });
        sleep(Duration::from_secs_f64(random.between(0.2, 1.0))).await;
        platform
            .fail_over(Duration::from_secs_f64(random.between(0.2, 0.8)))
            .await;
        if let Err(error) = queueing.await {
            std::panic::resume_unwind(error.into_panic());
        }
        let deadline = Instant::now() + lease * 10 + Duration::from_secs(60);
        while !tasks.iter().all(|(task, _)| orchestrator.is_over(task)) && Instant::now() < deadline {
            fleet.supervise().await;
            sleep(Duration::from_millis(20)).await;
        }
    }
    drop(end);
    if let Err(error) = recovery.await {
        std::panic::resume_unwind(error.into_panic());
    }
    fleet.end_all().await;
    for (task, job) in &tasks {
        let place = format!("{}/{}", TestS3::BUCKET, key::task_response(job, task));
        let status = orchestrator.status(task).map(|(status, _)| status);
        if status != Some(Status::Completed) || platform.s3.get(&place).is_none() {
            let text = format!("after a fail-over, it is {status:?}, or has no response");
            orchestrator.violation(Some(task), text);
        }
    }
    tasks.len()
}
