//! The checks after the faults, and the conclusion.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use dalston_engine_sdk::protocol::keys;
use tokio::time::{Instant, sleep};

use crate::engine::{BATCH, ENGINES, STAGE};
use crate::fleet::Fleet;
use crate::http;
use crate::measures::{self, Cause};
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::report::Report;
use crate::servers::Counts;

/// The longest time from the kill of an engine to the next start of its task, in leases: 75 s for
/// 60 s.
const LEASES: f64 = 1.25;
/// The minimum of that time beyond the lease, in seconds. A busy machine needs it with a short
/// lease.
const TAKEOVER_MARGIN: f64 = 3.0;
/// Workers trim acknowledged entries in blocks of a hundred.
const MOST_ENTRIES: u64 = 300;
/// Consumers of ended processes stay for so many leases, and then until the next removal.
const IDLE_CONSUMER_LEASES: u32 = 10;
const CONSUMER_REMOVAL_INTERVAL: Duration = Duration::from_secs(60);
/// Consumers beside those of the processes that were started in this time: the ones that ran
/// longer, and those of a removal that was late.
const SPARE_CONSUMERS: usize = 20;
/// Peers remove stale instances when their record expires. Without that, a storm leaves hundreds.
const MOST_STALE_INSTANCES: usize = 40;
/// How many tasks start again after the loss of an engine: those of one call, which it reported as
/// started and did not end. A third of the engines takes batches.
const DUPLICATES_PER_LOSS: f64 = (2.0 + BATCH as f64) / 3.0;
/// Duplicate starts that a short storm may have beyond the share.
const SPARE_DUPLICATES: f64 = 10.0;
/// The longest median time from the release of a task to its next start, in seconds.
pub(crate) const RELEASE_LIMIT: f64 = 1.0;

/// The longest time from the kill of an engine to the next start of its task.
pub(crate) fn takeover_limit(lease: Duration) -> f64 {
    (lease.as_secs_f64() * LEASES).max(lease.as_secs_f64() + TAKEOVER_MARGIN)
}

/// Checks that the queues have no pending entries, and that all of their messages were read.
pub(crate) async fn queues(platform: &Platform, orchestrator: &Orchestrator) {
    for stream in ENGINES.map(keys::task_stream) {
        let exists: bool = platform.ask(&["EXISTS", &stream]).await;
        if !exists {
            continue;
        }
        let rows: Vec<(String, String, u64, u64)> = platform
            .ask(&["XPENDING", &stream, keys::TASK_GROUP, "-", "+", "10"])
            .await;
        if !rows.is_empty() {
            orchestrator.violation(
                None,
                format!("entries are left in the pending list of {stream}: {rows:?}"),
            );
        }
        // The lag is not exact on a former replica.
        let groups: Vec<HashMap<String, redis::Value>> = platform.ask(&["XINFO", "GROUPS", &stream]).await;
        let read = groups.first().and_then(|group| group.get("last-delivered-id"));
        let info: HashMap<String, redis::Value> = platform.ask(&["XINFO", "STREAM", &stream]).await;
        let added = info.get("last-generated-id");
        if read != added {
            let what = format!("{stream} was read up to {read:?}, and its last message is {added:?}");
            orchestrator.violation(None, what);
        }
    }
}

/// Checks the answers over HTTP.
pub(crate) fn http(orchestrator: &Orchestrator, counts: &http::Counts) {
    for answer in &counts.wrong {
        orchestrator.violation(None, format!("an answer over HTTP: {answer}"));
    }
    if counts.answered == 0 {
        orchestrator.violation(None, format!("no request over HTTP was answered: {counts:?}"));
    }
}

/// Checks that there are not more duplicate starts than the faults explain.
pub(crate) fn duplicates(orchestrator: &Orchestrator, fleet: &Fleet, servers: &Counts) {
    let tasks = orchestrator.counts();
    let (duplicates, limit) = (tasks.duplicates, duplicates_limit(&tasks, fleet, servers));
    if duplicates as f64 > limit {
        orchestrator.violation(
            None,
            format!("{duplicates} tasks were started again while they ran; the faults explain {limit:.0}"),
        );
    }
}

/// The largest number of duplicate starts that the faults explain.
pub(crate) fn duplicates_limit(tasks: &measures::Counts, fleet: &Fleet, servers: &Counts) -> f64 {
    tasks.copies as f64
        + fleet.counts.losses() as f64 * DUPLICATES_PER_LOSS
        + servers.leases_lost as f64 * fleet.len() as f64
        + SPARE_DUPLICATES
}

/// Checks the times of the storm. They include the waits for Redis, for a free worker and for tasks
/// that run alone, so the limits are wider than those for an idle peer.
pub(crate) fn storm_takeovers(orchestrator: &Orchestrator, lease: Duration, servers: &Counts) {
    let limit = takeover_limit(lease);
    for cause in [Cause::Killed, Cause::KilledAndRestarted, Cause::Released] {
        let took = orchestrator.takeovers(cause);
        let (Some(median), Some(longest)) = (took.get(took.len() / 2), took.last()) else {
            continue;
        };
        let longest_limit = limit * 10.0 + servers.longest_outage.as_secs_f64();
        let median_limit = match cause {
            // Released tasks that had begun go to the end of the queue.
            Cause::Released => longest_limit,
            Cause::Killed | Cause::KilledAndRestarted => limit * 3.0,
        };
        if *median > median_limit || *longest > longest_limit {
            let text = format!(
                "{cause:?}: tasks waited {median:.1} s in the median and {longest:.1} s at most; the limits are {median_limit:.1} s and {longest_limit:.1} s"
            );
            // With the task that waited longest, whose history is printed.
            orchestrator.violation(orchestrator.slowest_takeover(cause).as_deref(), text);
        }
    }
}

pub(crate) fn takeovers(orchestrator: &Orchestrator, killed: &[f64], drained: &[f64], limit: f64) {
    if let Some(longest) = killed.last()
        && *longest > limit
    {
        orchestrator.violation(
            None,
            format!("a task of a killed engine waited {longest:.1} s; the limit is {limit:.1} s"),
        );
    }
    if let Some(median) = drained.get(drained.len() / 2)
        && *median > RELEASE_LIMIT
    {
        orchestrator.violation(
            None,
            format!("released tasks waited {median:.2} s; the limit is {RELEASE_LIMIT} s"),
        );
    }
    if killed.is_empty() || drained.is_empty() {
        orchestrator.violation(None, "no takeover was measured");
    }
}

/// Checks that no key, consumer or instance is left without a removal.
///
/// `starts` are those of all engines.
pub(crate) async fn keys(
    platform: &Platform,
    orchestrator: &Orchestrator,
    (starts, lease): (&[Instant], Duration),
    report: &mut Report,
) {
    let mut known = vec![
        keys::EVENT_STREAM.to_owned(),
        keys::INSTANCES.to_owned(),
        keys::stage_instances(STAGE),
    ];
    for engine in ENGINES {
        known.push(keys::task_stream(engine));
        known.push(keys::engine_instances(engine));
        // Engines recognise their earlier instances by it.
        known.push(keys::rejoining_instances(engine));
    }
    let found: Vec<String> = platform.ask(&["KEYS", "*"]).await;
    for key in found {
        let of_a_job = key.starts_with("dalston:job:");
        let of_a_task = key.starts_with(&keys::task(""));
        if !known.contains(&key) && !of_a_job && !of_a_task {
            orchestrator.violation(None, format!("a key is left in Redis: {key}"));
        }
    }
    report.consumers = consumers(platform).await;
    for stream in ENGINES.map(keys::task_stream) {
        let length: u64 = platform.ask(&["XLEN", &stream]).await;
        report.queue = report.queue.max(length);
    }
    report.stale_instances = platform.ask(&["SCARD", keys::INSTANCES]).await;
    if report.queue > MOST_ENTRIES {
        orchestrator.violation(
            None,
            format!("{} acknowledged entries are left in the queue", report.queue),
        );
    }
    if report.stale_instances > MOST_STALE_INSTANCES {
        orchestrator.violation(
            None,
            format!(
                "{} stale instances are left in the registry",
                report.stale_instances
            ),
        );
    }
    let most = most_consumers(starts, lease);
    if report.consumers > most {
        let what = format!(
            "{} consumers are left in the group, of {} processes; the limit is {most}",
            report.consumers,
            starts.len()
        );
        orchestrator.violation(None, what);
    }
}

/// Waits until the workers have removed the consumers of ended processes, or should have. After a
/// restart of Redis, all consumers look as if they had been busy just then.
pub(crate) async fn until_consumers_are_removed(
    platform: &Platform,
    fleet: &mut Fleet,
    earlier: &[Instant],
    lease: Duration,
) {
    let give_up = Instant::now() + consumers_stay(lease);
    let starts = [earlier, &fleet.starts].concat();
    while consumers(platform).await > most_consumers(&starts, lease) && Instant::now() < give_up {
        fleet.supervise().await;
        sleep(Duration::from_millis(100)).await;
    }
}

/// The consumers of the first queue. The second one has no workers after the storm.
async fn consumers(platform: &Platform) -> usize {
    let stream = keys::task_stream(ENGINES[0]);
    let words = ["XINFO", "CONSUMERS", &stream, keys::TASK_GROUP];
    let consumers: Vec<redis::Value> = platform.ask(&words).await;
    consumers.len()
}

fn most_consumers(starts: &[Instant], lease: Duration) -> usize {
    let stay = consumers_stay(lease);
    let recent = starts.iter().filter(|start| start.elapsed() < stay).count();
    recent + SPARE_CONSUMERS
}

fn consumers_stay(lease: Duration) -> Duration {
    lease * IDLE_CONSUMER_LEASES + CONSUMER_REMOVAL_INTERVAL
}

/// Prints the violations with their evidence.
pub(crate) async fn conclude(orchestrator: &Orchestrator, mut directory: tempfile::TempDir) -> ExitCode {
    const SHOWN: usize = 10;
    let violations = orchestrator.violations();
    if violations.is_empty() {
        directory.disable_cleanup(false);
        println!("no task was lost");
        return ExitCode::SUCCESS;
    }
    for violation in violations.iter().take(SHOWN) {
        match &violation.task {
            None => eprintln!("\nviolation: {}", violation.what),
            Some(task) => {
                eprintln!("\nviolation: task {task}: {}", violation.what);
                for line in orchestrator.evidence(task).await {
                    eprintln!("    {line}");
                }
                for line in mentions(directory.path(), task) {
                    eprintln!("    {line}");
                }
            }
        }
    }
    eprintln!(
        "\n{} violations. The logs of the engines are in {}",
        violations.len(),
        directory.path().display()
    );
    ExitCode::FAILURE
}

/// The logs that contain the id of a task.
fn mentions(directory: &Path, task: &str) -> Vec<String> {
    let logs = ["storm", "takeover", "jobs"]
        .iter()
        .flat_map(|part| std::fs::read_dir(directory.join(part)));
    logs.flatten()
        .flatten()
        .map(|log| log.path())
        .filter(|log| std::fs::read_to_string(log).is_ok_and(|text| text.contains(task)))
        .map(|log| format!("see {}", log.display()))
        .collect()
}
