//! The cost of the runner with the whole protocol of the platform, beside apalis.
//!
//! `cargo xtask bench runner`; `--quick` takes a minute, and `--only=throughput` (or `latency`,
//! `s3`, `memory`) runs one part. Redis and the S3 server are real and run on the same machine.
//! Each measurement is a process, which queues its tasks as the orchestrator does and then
//! processes them; only the processing is timed. Processor time is counted by the kernel for that
//! process and for the Redis server, in steps of 10 ms.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod figures;
mod latency;
mod ours;
mod peer;
mod platform;
mod servers;

use std::process::{Command, Stdio};
use std::time::Duration;

use bench::Server;
use serde_json::Value;
use testbed::TestRedis;
use testbed::report::{Report, first_line, is_quick, number};

use self::figures::{Figures, median};

/// Processor time of the worker for a task that does nothing, with S3 and traces, in microseconds.
const LIMIT_WORKER: f64 = 300.0;
/// The median time from XADD to the handler, in milliseconds.
const LIMIT_LATENCY: f64 = 0.5;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--measure", ref what @ ..] => println!("{}", measure(what)),
        ["--serve", what] => servers::serve(what),
        ref options => report(options),
    }
}

/// The work of a child process. It prints one line of JSON.
fn measure(what: &[&str]) -> Value {
    let number = |text: &str| text.parse::<usize>().unwrap();
    match *what {
        ["ours", redis, tasks, slots, traces] => {
            ours::throughput(redis, number(tasks), number(slots), traces)
        }
        ["s3", redis, tasks, slots, s3, traces] => {
            ours::with_s3(redis, number(tasks), number(slots), s3, traces)
        }
        ["storage", redis, tasks, concurrency, s3] => {
            ours::storage_alone(redis, number(tasks), number(concurrency), s3)
        }
        ["memory", redis, tasks] => ours::memory(redis, number(tasks)),
        ["peer", redis, tasks, concurrency, kind] => {
            peer::throughput(redis, number(tasks), number(concurrency), kind)
        }
        ["latency", redis, tasks, traces] => latency::ours(redis, number(tasks), traces),
        ["blocking", redis, tasks] => latency::blocking_reader(redis, number(tasks)),
        _ => panic!("no such measurement: {what:?}"),
    }
}

/// Runs one measurement in a process, with its own Redis server.
fn run(what: &str, more: &[&str]) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let address = format!("{}#{}", redis.url(), redis.pid());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--measure", what, &address])
        .args(more)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{what} {more:?} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The size of the measurements.
struct Extent {
    rounds: usize,
    tasks: usize,
    s3_tasks: usize,
    latencies: usize,
    memory: Option<usize>,
}

/// A name for `--only`, and its measurements.
type Part = (&'static str, fn(&Extent, &mut Report));

const FULL: Extent = Extent {
    rounds: 3,
    tasks: 30_000,
    s3_tasks: 4_000,
    latencies: 2_000,
    memory: Some(300_000),
};
const QUICK: Extent = Extent {
    rounds: 1,
    tasks: 10_000,
    s3_tasks: 1_500,
    latencies: 800,
    memory: None,
};

fn report(options: &[&str]) {
    let extent = if is_quick() { QUICK } else { FULL };
    let only = options.iter().find_map(|option| option.strip_prefix("--only="));
    let mut report = Report::start(&["redis", "apalis", "apalis-redis"]);
    let server = first_line("redis-server", &["--version"]);
    report.note(&format!("Server: {server}. The engine does nothing."));
    let parts: [Part; 4] = [
        ("s3", s3),
        ("latency", latencies),
        ("throughput", throughput),
        ("memory", memory),
    ];
    for (name, part) in parts {
        if only.is_none_or(|only| only == name) {
            part(&extent, &mut report);
        }
    }
    report.finish();
}

fn s3(extent: &Extent, report: &mut Report) {
    let tasks = extent.s3_tasks.to_string();
    let (mut ours, mut traced, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.rounds {
        let store = Server::start(&["--serve", "s3"]);
        alone.push(Figures::from(run("storage", &[&tasks, "16", &store.url])));
        let collector = Server::start(&["--serve", "collector"]);
        for (traces, rounds) in [("off", &mut ours), (&*collector.url, &mut traced)] {
            let store = Server::start(&["--serve", "s3"]);
            rounds.push(Figures::from(run("s3", &[&tasks, "16", &store.url, traces])));
        }
    }
    let (ours, traced, alone) = (median(ours), median(traced), median(alone));
    report.at_most(
        "processor time of the worker for a task, with S3 and traces",
        LIMIT_WORKER,
        traced.worker_micros(),
        "µs",
    );
    report.table(
        &format!(
            "With S3 ({tasks} tasks, 16 slots, medians of {} rounds): `request.json` and one artifact in, `response.json` out.",
            extent.rounds
        ),
        Figures::HEAD,
        &[
            alone.row("the three requests to S3 alone"),
            ours.row("the runner"),
            traced.row("the runner, traces exported"),
        ],
    );
}

fn latencies(extent: &Extent, report: &mut Report) {
    let tasks = extent.latencies.to_string();
    let collector = Server::start(&["--serve", "collector"]);
    let cases = [
        ("a blocking reader of one entry at a time", "blocking", None),
        ("the runner", "latency", Some("off")),
        ("the runner, traces exported", "latency", Some(&*collector.url)),
    ];
    let rows = cases.map(|(name, what, traces)| {
        let arguments: Vec<&str> = [&*tasks].into_iter().chain(traces).collect();
        let answer = run(what, &arguments);
        let percentile = |name: &str| answer[name].as_f64().unwrap();
        if what == "latency" {
            report.at_most(
                format!("median time from XADD to the handler, {name}"),
                LIMIT_LATENCY,
                percentile("p50"),
                "ms",
            );
        }
        [
            name.to_owned(),
            number(percentile("p50")),
            number(percentile("p99")),
            number(percentile("max")),
        ]
    });
    report.table(
        &format!("Milliseconds from XADD to the handler ({tasks} tasks at 200 tasks/s):"),
        ["", "p50", "p99", "Longest"],
        &rows,
    );
}

fn throughput(extent: &Extent, report: &mut Report) {
    let tasks = extent.tasks.to_string();
    let mut rows = Vec::new();
    for concurrency in ["8", "64"] {
        let (mut ours, mut traced, mut locked, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..extent.rounds {
            ours.push(Figures::from(run("ours", &[&tasks, concurrency, "off"])));
            locked.push(Figures::from(run("peer", &[&tasks, concurrency, "locked"])));
            bare.push(Figures::from(run("peer", &[&tasks, concurrency, "bare"])));
            let collector = Server::start(&["--serve", "collector"]);
            traced.push(Figures::from(run("ours", &[&tasks, concurrency, &collector.url])));
        }
        rows.extend([
            median(ours).row(format!("the runner, {concurrency} slots")),
            median(traced).row(format!("the runner, {concurrency} slots, traces exported")),
            median(locked).row(format!("apalis-redis, concurrency {concurrency}")),
            median(bare).row(format!("apalis-redis without locks, concurrency {concurrency}")),
        ]);
    }
    report.table(
        &format!(
            "With objects in memory ({tasks} tasks, medians of {} rounds). apalis stores fewer facts about a task than the platform's \
             protocol:",
            extent.rounds
        ),
        Figures::HEAD,
        &rows,
    );
}

fn memory(extent: &Extent, report: &mut Report) {
    let Some(tasks) = extent.memory else { return };
    let answer = run("memory", &[&tasks.to_string()]);
    let samples = answer["samples"].as_array().unwrap();
    let rows = samples.iter().enumerate().map(|(index, sample)| {
        let done = (index + 1) * tasks / samples.len();
        [done.to_string(), number(sample.as_f64().unwrap())]
    });
    report.table(
        "Resident memory of the worker, 64 slots:",
        ["Tasks", "MiB"],
        &rows.collect::<Vec<_>>(),
    );
}

/// Waits until `done` returns true, without a busy loop.
fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
