//! Tests that no task is lost, with several engine processes, a persistent Redis and an S3 server.
//! `cargo xtask chaos` runs it.
//!
//! 1. The *storm* queues tasks, and meanwhile injects faults of engines, Redis, network, storage,
//!    machines and of the orchestrator.
//! 2. The *recovery* ends all faults. Every task must end.
//! 3. The *takeovers* measure the time until a peer starts a task whose engine was killed or
//!    terminated. Before that, idle engines share as many tasks, and none may wait for a busy one.
//! 4. The *fail-over* replaces Redis by a replica that lacks the last writes.
//! 5. Meanwhile, the *jobs* run on the development platform, while its processes are killed and
//!    Redis comes back empty.
//!
//! `chaos/README.md` lists the faults and the checks. The exit status is 0 only without violations.

#![allow(clippy::print_stdout, clippy::print_stderr)] // It is a command-line program.

mod broken;
mod checks;
mod engine;
mod events;
mod failover;
mod fleet;
mod http;
mod jobs;
mod measures;
mod orchestrator;
mod platform;
mod process;
mod published;
mod random;
mod recovery;
mod report;
mod results;
mod rules;
mod servers;
mod storm;
mod takeover;
mod task;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use dalston_engine_sdk::protocol::RECORD_TTL_SECONDS;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, Setup};
use crate::measures::Cause;
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::random::Random;
use crate::report::{Report, seconds};
use crate::takeover::SHARED_TASK;

#[derive(Debug, Parser)]
#[command(about = "Kills engines, breaks Redis, network, storage and machines, and fails if a task is lost")]
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

/// The probability that a process kills itself at a fault point. A task passes a dozen of them.
const KILL: f64 = 0.002;
/// The probability that it suspends itself there.
const STOP: f64 = 0.001;
/// The drain time-out of the engines.
const DRAIN: Duration = Duration::from_millis(300);
/// The end of a storm without new tasks that kill their workers.
const CALM: Duration = Duration::from_secs(60);

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
    // The logs outlive a panic of the test itself.
    let directory = tempfile::Builder::new()
        .prefix("dalston_chaos_")
        .disable_cleanup(true)
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
    let copies = Arc::clone(&orchestrator.copies).follow(Arc::clone(&platform));
    let copies = tokio::spawn(copies);
    let mut report = Report::new(seed);
    let mut starts = Vec::new();

    if minutes > 0.0 {
        let setup = Setup {
            lease,
            drain: DRAIN,
            keep_names: true,
            varied: true,
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
        fleet.start_broken();
        let started = Instant::now();
        let duration = Duration::from_secs_f64(minutes * 60.0);
        let calm = started + duration.mul_f64(0.4).max(duration.saturating_sub(CALM));
        let (end_of_tasks, ended) = oneshot::channel();
        let tasks = storm::queue_tasks(Arc::clone(&orchestrator), lease, random.fork(), calm, ended);
        let tasks = tokio::spawn(tasks);
        let (end_of_recovery, ended) = oneshot::channel();
        let over = started + duration;
        let recovery = recovery::run(Arc::clone(&orchestrator), lease, random.fork(), over, ended);
        let recovery = tokio::spawn(recovery);
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
        drop(end_of_recovery);
        if let Err(error) = recovery.await {
            std::panic::resume_unwind(error.into_panic());
        }
        checks::queues(&platform, &orchestrator).await;
        let http = counts.requests.end().await;
        checks::http(&orchestrator, &http);
        checks::duplicates(&orchestrator, &fleet, &counts.servers);
        checks::storm_takeovers(&orchestrator, lease, &counts.servers);
        report.http(&http);
        report.storm(&counts.servers, counts.longest_queue, &fleet, &orchestrator);
        starts = fleet.starts;
    }

    let setup = Setup {
        lease,
        drain: DRAIN,
        keep_names: false,
        varied: false,
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
    checks::until_consumers_are_removed(&platform, &mut fleet, &starts, lease).await;
    fleet.end_all().await;
    let (killed, drained) = (
        orchestrator.takeovers(Cause::Killed),
        orchestrator.takeovers(Cause::Released),
    );
    let limit = checks::takeover_limit(lease);
    checks::takeovers(&orchestrator, &killed, &drained, limit);
    report.shared(&shared);
    report.takeovers(&killed, limit, &drained, checks::RELEASE_LIMIT);

    checks::queues(&platform, &orchestrator).await;
    starts.extend_from_slice(&fleet.starts);
    checks::keys(&platform, &orchestrator, (&starts, lease), &mut report).await;
    report.mixed = orchestrator.check_all_results().await;
    copies.abort();
    for difference in orchestrator.copies.differences() {
        orchestrator.violation(None, difference);
    }
    if minutes > 0.0 {
        // The jobs have their own processes, and neither measures times.
        let mut of_jobs = random.fork();
        let (failed_over, jobs) = tokio::join!(
            failover::run(&platform, &orchestrator, &mut fleet, &mut random),
            jobs::run(directory.path(), &orchestrator, &mut of_jobs),
        );
        checks::queues(&platform, &orchestrator).await;
        report.failed_over = failed_over;
        report.jobs(&jobs);
    }
    events.abort();
    if let Err(error) = events.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
    report.print(&orchestrator);
    checks::conclude(&orchestrator, directory).await
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
        orchestrator.note_server_state(&task).await;
        let waited = seconds(started.elapsed());
        orchestrator.violation(
            Some(&task),
            format!("it is lost: not ended {waited} after the end of all faults"),
        );
    }
    fleet.end_all().await;
}
