//! What the runner costs with the whole protocol of the platform, beside a peer and beside readers written by hand.
//!
//! `cargo xtask bench runner`, with `--quick` for a look. Redis and the S3 server are real and run on the same machine. Every
//! measurement is a process of its own, which queues its tasks as the orchestrator does and then works through them; only
//! the work is timed. Processor time is what the kernel counted for that process and for the Redis server, in steps of
//! 10 ms.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod figures;
mod latency;
mod machine;
mod minimal;
mod ours;
mod peer;
mod platform;
mod servers;
mod wire;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::Server;
use serde_json::Value;
use testbed::TestRedis;

use self::figures::{Figures, median};

/// The figures of the platform's own runner in Python, by the issue that asked for this benchmark. Not measured here.
const PYTHON: (f64, f64) = (10.0, 33_000.0);

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

/// What a child process does. It answers with one line of JSON.
fn measure(what: &[&str]) -> Value {
    let number = |text: &str| text.parse::<usize>().unwrap();
    match *what {
        ["ours", redis, tasks, slots, traces] => {
            ours::throughput(redis, number(tasks), number(slots), traces)
        }
        ["s3", redis, tasks, slots, s3, traces] => {
            ours::with_s3(redis, number(tasks), number(slots), s3, traces)
        }
        ["memory", redis, tasks] => ours::memory(redis, number(tasks)),
        ["peer", redis, tasks, concurrency, kind] => {
            peer::throughput(redis, number(tasks), number(concurrency), kind)
        }
        ["minimal", redis, tasks, steps] => minimal::throughput(redis, number(tasks), number(steps)),
        ["wire", redis, tasks, in_hand] => wire::throughput(redis, number(tasks), number(in_hand)),
        ["latency", redis, tasks, traces] => latency::ours(redis, number(tasks), traces),
        ["blocking", redis, tasks] => latency::blocking_reader(redis, number(tasks)),
        _ => panic!("no such measurement: {what:?}"),
    }
}

/// Runs one measurement against a Redis server of its own.
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

/// How much is measured.
struct Extent {
    rounds: usize,
    tasks: usize,
    s3_tasks: usize,
    latencies: usize,
    memory: Option<usize>,
}

/// A name for `--only`, and what it measures.
type Part = (&'static str, fn(&Extent));

const FULL: Extent = Extent {
    rounds: 3,
    tasks: 60_000,
    s3_tasks: 4_000,
    latencies: 2_000,
    memory: Some(1_000_000),
};
const QUICK: Extent = Extent {
    rounds: 1,
    tasks: 30_000,
    s3_tasks: 1_500,
    latencies: 800,
    memory: None,
};

fn report(options: &[&str]) {
    let extent = if options.contains(&"--quick") { QUICK } else { FULL };
    let only = options.iter().find_map(|option| option.strip_prefix("--only="));
    let begun = Instant::now();
    println!("{}\n", machine::describe());
    let parts: [Part; 5] = [
        ("throughput", throughput),
        ("commands", commands),
        ("latency", latencies),
        ("s3", s3),
        ("memory", memory),
    ];
    for (name, part) in parts {
        if only.is_none_or(|only| only == name) {
            part(&extent);
        }
    }
    println!("took {:.0} s", begun.elapsed().as_secs_f64());
}

/// Queue wait, task, download, process, upload.
const SPANS_PER_TASK: usize = 5;

fn throughput(extent: &Extent) {
    println!(
        "Objects in memory, an engine that does nothing, {} tasks, median of {} interleaved round(s)",
        extent.tasks, extent.rounds
    );
    println!("{}", Figures::HEAD);
    let tasks = extent.tasks.to_string();
    for concurrency in ["8", "64"] {
        let (mut ours, mut traced, mut locked, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..extent.rounds {
            ours.push(Figures::from(run("ours", &[&tasks, concurrency, "off"])));
            locked.push(Figures::from(run("peer", &[&tasks, concurrency, "locked"])));
            bare.push(Figures::from(run("peer", &[&tasks, concurrency, "bare"])));
            let collector = Server::start(&["--serve", "collector"]);
            traced.push(Figures::from(run("ours", &[&tasks, concurrency, &collector.url])));
        }
        let (ours, traced) = (median(ours), median(traced));
        let (locked, bare) = (median(locked), median(bare));
        for (name, figures) in [
            (format!("apalis-redis, concurrency {concurrency}"), &locked),
            (format!("apalis-redis without locks, {concurrency}"), &bare),
            (format!("ours, {concurrency} slots"), &ours),
            (format!("ours, {concurrency} slots, traces exported"), &traced),
        ] {
            println!("{}", figures.row(&name, &locked));
        }
        println!(
            "    with traces: {:.0} % of the tasks/s without; {} of {} spans dropped",
            100.0 * traced.rate() / ours.rate(),
            traced.dropped_spans,
            SPANS_PER_TASK * extent.tasks,
        );
    }
    println!();
}

fn commands(extent: &Extent) {
    println!("Readers written by hand, 64 tasks a pipeline, each with one more part of the protocol");
    println!("{}", Figures::HEAD);
    let tasks = extent.tasks.to_string();
    let mut before: Option<Figures> = None;
    for (steps, name) in minimal::STEPS.iter().enumerate() {
        let figures = Figures::from(run("minimal", &[&tasks, &steps.to_string()]));
        let server = figures.server_micros();
        let more = before.as_ref().map_or(String::new(), |before| {
            format!("  {:+.1} µs of the server", server - before.server_micros())
        });
        println!("{}{more}", figures.row(name, &figures));
        before = Some(figures);
    }
    for in_hand in ["8", "128"] {
        let figures = Figures::from(run("wire", &[&tasks, in_hand]));
        let name = format!("the broker of this SDK, {in_hand} tasks in hand");
        println!("{}", figures.row(&name, &figures));
    }
    println!();
}

fn latencies(extent: &Extent) {
    println!(
        "From XADD to the handler, {} tasks at 200 tasks/s, milliseconds",
        extent.latencies
    );
    let tasks = extent.latencies.to_string();
    let collector = Server::start(&["--serve", "collector"]);
    for (name, answer) in [
        ("a minimal blocking reader", run("blocking", &[&tasks])),
        ("ours", run("latency", &[&tasks, "off"])),
        ("ours, traces exported", run("latency", &[&tasks, &collector.url])),
    ] {
        println!(
            "  {name:<34} p50 {:.3}   p99 {:.3}   longest {:.3}",
            answer["p50"].as_f64().unwrap(),
            answer["p99"].as_f64().unwrap(),
            answer["max"].as_f64().unwrap()
        );
    }
    println!();
}

fn s3(extent: &Extent) {
    println!(
        "S3 protocol in the path, {} tasks, 16 slots: request.json and one artifact in, response.json out",
        extent.s3_tasks
    );
    println!("{}", Figures::HEAD);
    let tasks = extent.s3_tasks.to_string();
    let (mut ours, mut traced) = (Vec::new(), Vec::new());
    for _ in 0..extent.rounds {
        let collector = Server::start(&["--serve", "collector"]);
        for (traces, rounds) in [("off", &mut ours), (&*collector.url, &mut traced)] {
            let store = Server::start(&["--serve", "s3"]);
            rounds.push(Figures::from(run("s3", &[&tasks, "16", &store.url, traces])));
        }
    }
    let (ours, traced) = (median(ours), median(traced));
    println!("{}", ours.row("ours, 16 slots", &ours));
    println!("{}", traced.row("ours, 16 slots, traces exported", &ours));
    println!(
        "  {:<40} {:>9.0} {:>12.0}   (the platform's runner, as quoted in the issue; not measured here)\n",
        "Python", PYTHON.0, PYTHON.1
    );
}

fn memory(extent: &Extent) {
    let Some(tasks) = extent.memory else { return };
    println!("Memory of the worker over {tasks} tasks, 64 slots, MiB");
    let answer = run("memory", &[&tasks.to_string()]);
    let samples: Vec<String> = answer["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sample| format!("{:.1}", sample.as_f64().unwrap()))
        .collect();
    println!("  after every tenth of them: {}\n", samples.join(" "));
}

/// Waits until `done` says so, without keeping the server busy.
fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
