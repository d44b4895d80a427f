//! Tests that no task is lost, with several engine processes, a persistent Redis and an S3 server.
//! `cargo xtask chaos` runs it.
//!
//! 1. The *storm* queues tasks. Meanwhile it kills engines at random times and at the fault points
//!    between the steps of a task, suspends them beyond their lease, and terminates them. It
//!    restarts Redis, it cuts, delays and stalls connections and loses answers, and the storage
//!    refuses requests, is slow, or truncates answers.
//! 2. The *recovery* ends all faults. Every task must end.
//! 3. The *takeovers* measure the time until a peer starts a task whose engine was killed or
//!    terminated. Before that, idle engines share as many tasks, and none may wait for a busy one.
//!
//! The test checks every event against the orchestrator's rules and reads every result when its
//! event arrives. The exit status is 0 only without violations.

#![allow(clippy::print_stdout, clippy::print_stderr)] // It is a command-line program.

mod engine;
mod fleet;
mod orchestrator;
mod platform;
mod random;
mod report;
mod storm;
mod takeover;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use dalston_engine_sdk::protocol::{RECORD_TTL_SECONDS, keys};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::engine::ENGINE;
use crate::fleet::{Fleet, Setup};
use crate::orchestrator::{Cause, Orchestrator};
use crate::platform::Platform;
use crate::random::Random;
use crate::report::{Report, seconds};
use crate::takeover::SHARED_TASK;

#[derive(Debug, Parser)]
#[command(about = "Kills engines, restarts Redis, breaks network and storage, and fails if a task is lost")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The duration of the storm. Default: 1.5, and 0 with --platform-times.
    #[arg(long)]
    minutes: Option<f64>,
    /// The seed of all random decisions, which the test prints. Default: the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// The number of engine processes.
    #[arg(long, default_value_t = 6)]
    engines: usize,
    /// The lease in seconds.
    #[arg(long, default_value_t = 3.0)]
    lease: f64,
    /// Use the platform's lease of 60 s.
    #[arg(long, conflicts_with = "lease")]
    platform_times: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one engine.
    #[command(hide = true)]
    Engine(engine::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Engine(arguments)) = &arguments.command {
        return engine::run(arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run(&arguments))
}

/// The queue of the engines.
pub(crate) fn queue() -> String {
    keys::task_stream(ENGINE)
}

/// The probability that a process kills itself at a fault point. A task passes a dozen of them.
const KILL: f64 = 0.002;
/// The probability that it suspends itself there.
const STOP: f64 = 0.001;
/// The drain time-out of the engines.
const DRAIN: Duration = Duration::from_millis(300);
/// The longest time from the kill of an engine to the next start of its task, in leases: 75 s for
/// 60 s.
const LEASES: f64 = 1.25;
/// The minimum of that time beyond the lease, in seconds. A busy machine needs it with a short
/// lease.
const TAKEOVER_MARGIN: f64 = 3.0;
/// Workers trim acknowledged entries in blocks of a hundred.
const MOST_ENTRIES: u64 = 300;
/// Consumers of ended processes stay for ten leases. Without their removal, a storm leaves
/// hundreds.
const MOST_CONSUMERS: usize = 40;
/// Peers remove stale instances when their record expires. Without that, a storm leaves hundreds.
const MOST_STALE_INSTANCES: usize = 40;
/// The longest median time from the release of a task to its next start, in seconds.
const RELEASE_LIMIT: f64 = 1.0;

async fn run(arguments: &Arguments) -> ExitCode {
    let lease = match arguments.platform_times {
        true => Duration::from_secs(RECORD_TTL_SECONDS),
        false => Duration::from_secs_f64(arguments.lease),
    };
    let minutes = arguments
        .minutes
        .unwrap_or(if arguments.platform_times { 0.0 } else { 1.5 });
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let seed = arguments.seed.unwrap_or_else(clock);
    let mut random = Random::new(seed);
    let directory = tempfile::Builder::new()
        .prefix("dalston_chaos_")
        .tempdir()
        .expect("a directory");
    println!(
        "seed {seed}, a storm of {minutes} min, {} engines, a lease of {lease:?}",
        arguments.engines
    );
    println!("logs of the engines: {}", directory.path().display());

    let platform = Arc::new(Platform::start().await);
    let orchestrator = Orchestrator::new(Arc::clone(&platform));
    let events = tokio::spawn(Arc::clone(&orchestrator).follow());
    let mut report = Report::new(seed);

    if minutes > 0.0 {
        let setup = Setup {
            lease,
            drain: DRAIN,
            slots: 1,
            keep_names: true,
            directory: directory.path().join("storm"),
            kill: KILL,
            stop: STOP,
        };
        let mut fleet = Fleet::new(
            Arc::clone(&platform),
            Arc::clone(&orchestrator),
            setup,
            random.fork(),
        );
        fleet.fill(arguments.engines);
        let (end_of_tasks, ended) = oneshot::channel();
        let tasks = tokio::spawn(storm::queue_tasks(
            Arc::clone(&orchestrator),
            lease,
            random.fork(),
            ended,
        ));
        let started = Instant::now();
        let duration = Duration::from_secs_f64(minutes * 60.0);
        let counts = storm::run(&platform, &mut fleet, duration, random.fork(), |fleet, counts| {
            println!(
                "{}",
                report::progress(started.elapsed(), &orchestrator.counts(), &fleet.counts, counts)
            );
        });
        let counts = counts.await;
        drop(end_of_tasks);
        if let Err(error) = tasks.await {
            std::panic::resume_unwind(error.into_panic());
        }
        recover(&orchestrator, &mut fleet, &mut report).await;
        check_queue(&platform, &orchestrator).await;
        report.storm(counts, &fleet, &orchestrator);
    }

    let setup = Setup {
        lease,
        drain: DRAIN,
        slots: 1,
        keep_names: false,
        directory: directory.path().join("takeover"),
        kill: 0.0,
        stop: 0.0,
    };
    orchestrator.forget_takeovers();
    let mut fleet = Fleet::new(
        Arc::clone(&platform),
        Arc::clone(&orchestrator),
        setup,
        random.fork(),
    );
    let shared = takeover::share(&orchestrator, &mut fleet, &mut random).await;
    if shared
        .last()
        .is_none_or(|longest| *longest >= SHARED_TASK.as_secs_f64())
    {
        let text = format!("a task waited for a busy engine beside idle ones: waits of {shared:.2?} s");
        orchestrator.violation(None, text);
    }
    takeover::measure(&platform, &orchestrator, &mut fleet, &mut random, false).await;
    takeover::measure(&platform, &orchestrator, &mut fleet, &mut random, true).await;
    fleet.end_all().await;
    let (killed, drained) = (
        orchestrator.takeovers(Cause::Killed),
        orchestrator.takeovers(Cause::Released),
    );
    let limit = (lease.as_secs_f64() * LEASES).max(lease.as_secs_f64() + TAKEOVER_MARGIN);
    check_takeovers(&orchestrator, &killed, &drained, limit);
    report.shared(&shared);
    report.takeovers(&killed, limit, &drained, RELEASE_LIMIT);

    check_queue(&platform, &orchestrator).await;
    check_keys(&platform, &orchestrator, &mut report).await;
    report.mixed = orchestrator.check_all_results().await;
    events.abort();
    if let Err(error) = events.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
    report.print(&orchestrator.counts());
    conclude(&orchestrator, directory).await
}

/// Waits after the end of all faults until every task and then every engine has ended.
async fn recover(orchestrator: &Orchestrator, fleet: &mut Fleet, report: &mut Report) {
    let started = Instant::now();
    // The retries and time-outs of an engine, and several leases.
    let limit = fleet.setup.lease * 10 + Duration::from_secs(90);
    (fleet.setup.kill, fleet.setup.stop) = (0.0, 0.0);
    // The running processes kill themselves with the earlier probability.
    for index in 0..fleet.len() {
        fleet.end(index);
    }
    while !orchestrator.open_tasks().is_empty() && started.elapsed() < limit {
        fleet.supervise().await;
        sleep(Duration::from_millis(20)).await;
    }
    report.recovery = started.elapsed();
    let lost = orchestrator.open_tasks();
    report.lost = lost.len();
    for task in lost {
        let waited = seconds(started.elapsed());
        orchestrator.violation(
            Some(&task),
            format!("it is lost: not ended {waited} after the end of all faults"),
        );
    }
    fleet.end_all().await;
}

/// Checks that the queue has no pending entries and no lag.
async fn check_queue(platform: &Platform, orchestrator: &Orchestrator) {
    let rows: Vec<(String, String, u64, u64)> = platform
        .ask(&["XPENDING", &queue(), keys::TASK_GROUP, "-", "+", "10"])
        .await;
    if !rows.is_empty() {
        orchestrator.violation(None, format!("entries are left in the pending list: {rows:?}"));
    }
    let groups: Vec<std::collections::HashMap<String, redis::Value>> =
        platform.ask(&["XINFO", "GROUPS", &queue()]).await;
    let lag = groups.first().and_then(|group| group.get("lag").cloned());
    if lag != Some(redis::Value::Int(0)) {
        orchestrator.violation(None, format!("the queue has a lag of {lag:?}, expected 0"));
    }
}

fn check_takeovers(orchestrator: &Orchestrator, killed: &[f64], drained: &[f64], limit: f64) {
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
async fn check_keys(platform: &Platform, orchestrator: &Orchestrator, report: &mut Report) {
    let known = [
        queue(),
        keys::EVENT_STREAM.to_owned(),
        keys::INSTANCES.to_owned(),
        keys::engine_instances(ENGINE),
        keys::stage_instances(ENGINE),
        // Engines recognise their earlier instances by it.
        keys::rejoining_instances(ENGINE),
    ];
    let found: Vec<String> = platform.ask(&["KEYS", "*"]).await;
    for key in found {
        let of_a_job = key.starts_with("dalston:job:");
        let of_a_task = key.starts_with(&keys::task(""));
        if !known.contains(&key) && !of_a_job && !of_a_task {
            orchestrator.violation(None, format!("a key is left in Redis: {key}"));
        }
    }
    let consumers: Vec<redis::Value> = platform
        .ask(&["XINFO", "CONSUMERS", &queue(), keys::TASK_GROUP])
        .await;
    report.consumers = consumers.len();
    report.stale_instances = platform.ask(&["SCARD", keys::INSTANCES]).await;
    report.queue = platform.ask(&["XLEN", &queue()]).await;
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
    if report.consumers > MOST_CONSUMERS {
        orchestrator.violation(
            None,
            format!("{} consumers are left in the group", report.consumers),
        );
    }
}

/// Prints the violations with their evidence.
async fn conclude(orchestrator: &Orchestrator, directory: tempfile::TempDir) -> ExitCode {
    const SHOWN: usize = 10;
    let violations = orchestrator.violations();
    if violations.is_empty() {
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
    let kept = directory.keep();
    eprintln!(
        "\n{} violations. The logs of the engines are in {}",
        violations.len(),
        kept.display()
    );
    ExitCode::FAILURE
}

/// The logs that contain the id of a task.
fn mentions(directory: &Path, task: &str) -> Vec<String> {
    let logs = ["storm", "takeover"]
        .iter()
        .flat_map(|part| std::fs::read_dir(directory.join(part)));
    logs.flatten()
        .flatten()
        .map(|log| log.path())
        .filter(|log| std::fs::read_to_string(log).is_ok_and(|text| text.contains(task)))
        .map(|log| format!("see {}", log.display()))
        .collect()
}
