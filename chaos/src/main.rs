//! Proves that no task is ever lost, with several engine processes, a real Redis that keeps its data, and a server that
//! speaks S3's protocol. `cargo xtask chaos` runs it.
//!
//! 1. A *storm*: tasks are queued while engines are killed at random instants and at the fault points between any two steps
//!    of a task, stopped past their lease and let go on, told to end; while Redis is restarted, connections are cut, delayed,
//!    stalled and lose their answers, and the storage refuses, is slow, or breaks off.
//! 2. A *calm*: everything works again, and every task has to end.
//! 3. *Takeovers*: how soon a peer has a task whose engine was killed, or told to end.
//!
//! All the while every event is held against the orchestrator's rules, and every result is read at the moment at which it is
//! reported. The exit status is 0 only if nothing was found.

#![allow(clippy::print_stdout, clippy::print_stderr)] // Talking to a terminal is its purpose.

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
use crate::orchestrator::{How, Orchestrator};
use crate::platform::Platform;
use crate::random::Random;
use crate::report::{Report, seconds};

#[derive(Debug, Parser)]
#[command(
    about = "Kills engines, restarts Redis, breaks network and storage, and counts the tasks that are lost: none"
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How long the storm lasts. Default 1.5; none with --platform-times.
    #[arg(long)]
    minutes: Option<f64>,
    /// What decides which things happen; printed, so that a run can be repeated. Default: the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Engine processes.
    #[arg(long, default_value_t = 6)]
    engines: usize,
    /// Seconds that an engine may be silent before its tasks go to others.
    #[arg(long, default_value_t = 3.0)]
    lease: f64,
    /// The platform's own 60 s instead.
    #[arg(long, conflicts_with = "lease")]
    platform_times: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One of the engines.
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

/// How likely it is at a fault point that the process kills itself there. A task comes by a dozen.
const KILL: f64 = 0.002;
/// The same for stopping.
const STOP: f64 = 0.001;
/// How long an engine that was told to end lets its tasks go on.
const DRAIN: Duration = Duration::from_millis(300);
/// How long the task of a killed engine may be without one, in leases: 75 s for 60 s.
const LEASES: f64 = 1.25;
/// How much longer than a lease it may be in any case: a short lease leaves a busy machine too little time.
const BUSY: f64 = 3.0;
/// Acknowledged entries go in blocks of a hundred.
const MOST_ENTRIES: u64 = 300;
/// Those that are gone stay for ten leases. After a storm of minutes there were hundreds.
const MOST_CONSUMERS: usize = 40;
/// Their peers remove them when their record ends. After a storm of minutes there were hundreds of these, too.
const MOST_GHOSTS: usize = 40;
/// How soon a task has to be with a peer that was handed back.
const HANDED_OVER: f64 = 1.0;

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
        let begun = Instant::now();
        let lasts = Duration::from_secs_f64(minutes * 60.0);
        let counts = storm::rage(&platform, &mut fleet, lasts, random.fork(), |fleet, counts| {
            println!(
                "{}",
                report::progress(begun.elapsed(), &orchestrator.counts(), &fleet.counts, counts)
            );
        });
        let counts = counts.await;
        drop(end_of_tasks);
        if let Err(error) = tasks.await {
            std::panic::resume_unwind(error.into_panic());
        }
        calm_down(&orchestrator, &mut fleet, &mut report).await;
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
    takeover::measure(&platform, &orchestrator, &mut fleet, &mut random, false).await;
    takeover::measure(&platform, &orchestrator, &mut fleet, &mut random, true).await;
    fleet.end_all().await;
    let (killed, drained) = (
        orchestrator.takeovers(How::Killed),
        orchestrator.takeovers(How::HandedBack),
    );
    let limit = (lease.as_secs_f64() * LEASES).max(lease.as_secs_f64() + BUSY);
    check_takeovers(&orchestrator, &killed, &drained, limit);
    report.takeovers(&killed, limit, &drained, HANDED_OVER);

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

/// Everything works again: every task has to end, and then every engine.
async fn calm_down(orchestrator: &Orchestrator, fleet: &mut Fleet, report: &mut Report) {
    let begun = Instant::now();
    // Retries of an engine's, its time-outs, and some leases, one after the other.
    let patience = fleet.setup.lease * 10 + Duration::from_secs(90);
    (fleet.setup.kill, fleet.setup.stop) = (0.0, 0.0);
    // Those that still kill themselves do so no more.
    for index in 0..fleet.len() {
        fleet.end(index);
    }
    while !orchestrator.open_tasks().is_empty() && begun.elapsed() < patience {
        fleet.look_after().await;
        sleep(Duration::from_millis(20)).await;
    }
    report.calm = begun.elapsed();
    let lost = orchestrator.open_tasks();
    report.lost = lost.len();
    for task in lost {
        let waited = seconds(begun.elapsed());
        orchestrator.violation(
            Some(&task),
            format!("it is lost: not ended {waited} after everything worked again"),
        );
    }
    fleet.end_all().await;
}

/// Nothing is left in the queue, and what was done does not pile up in it.
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
            format!("a task of a killed engine waited {longest:.1} s, more than {limit:.1} s"),
        );
    }
    if let Some(median) = drained.get(drained.len() / 2)
        && *median > HANDED_OVER
    {
        orchestrator.violation(
            None,
            format!("handed back tasks waited {median:.2} s, more than {HANDED_OVER} s"),
        );
    }
    if killed.is_empty() || drained.is_empty() {
        orchestrator.violation(None, "no takeover could be measured");
    }
}

/// Nothing is left that nobody will ever remove.
async fn check_keys(platform: &Platform, orchestrator: &Orchestrator, report: &mut Report) {
    let known = [
        queue(),
        keys::EVENT_STREAM.to_owned(),
        keys::INSTANCES.to_owned(),
        keys::engine_instances(ENGINE),
        keys::stage_instances(ENGINE),
        // By which engines know their own dead.
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
    report.ghosts = platform.ask(&["SCARD", keys::INSTANCES]).await;
    report.queue = platform.ask(&["XLEN", &queue()]).await;
    if report.queue > MOST_ENTRIES {
        orchestrator.violation(
            None,
            format!("{} acknowledged entries pile up in the queue", report.queue),
        );
    }
    if report.ghosts > MOST_GHOSTS {
        orchestrator.violation(
            None,
            format!("{} dead instances pile up in the registry", report.ghosts),
        );
    }
    if report.consumers > MOST_CONSUMERS {
        orchestrator.violation(
            None,
            format!("{} consumers pile up in the group", report.consumers),
        );
    }
}

/// Says what was found, with all that is known about it.
async fn conclude(orchestrator: &Orchestrator, directory: tempfile::TempDir) -> ExitCode {
    const SHOWN: usize = 10;
    let violations = orchestrator.violations();
    if violations.is_empty() {
        println!("nothing was lost");
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
        "\n{} violations. The logs of the engines are kept: {}",
        violations.len(),
        kept.display()
    );
    ExitCode::FAILURE
}

/// The logs that speak of a task.
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
