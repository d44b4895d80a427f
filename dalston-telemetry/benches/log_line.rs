//! What a log line costs, beside the JSON formatter of tracing-subscriber in the same run, and what a span costs
//! while lines are written and nobody exports spans.
//!
//! `cargo bench -p dalston-telemetry --bench log_line`. Lines go to a writer that forgets them. The peers take turns,
//! and the shortest of many rounds counts: noise only ever adds.
//!
//! Intel Xeon, two shared cores, Rust 1.95, tracing-subscriber 0.3.23 with flattened events and the current span:
//! a line takes 0.16 to 0.30 of its time, within a task 0.04 to 0.14 (the task's fields are set once, not kept per
//! span), within a traced task 0.2 to 0.5 (what remains is the event on the span). No allocation per line. A span
//! that nobody exports takes 0.9 ns beside our lines, 0.6 ns without any subscriber, and 650 ns beside theirs.

#![allow(clippy::print_stdout)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::time::Instant;

use dalston_telemetry::context::LogContext;
use dalston_telemetry::{Env, LogFormat, LogWriter, SpanCollector, Telemetry};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, info, info_span};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

const ROUNDS: u32 = 60;
const LINES: u32 = 5_000;

fn main() {
    spans();
    println!();
    allocations();
    println!();

    let ours = ours(false);
    let ours_traced = ours_with_spans();
    let theirs = theirs();

    println!(
        "{:<44} {:>10} {:>22} {:>7}",
        "", "ours", "tracing-subscriber", "ratio"
    );
    row("message only", &ours, &theirs, || info!("task_received"));
    row("message, three fields", &ours, &theirs, three_fields);
    row("formatted message, url, float", &ours, &theirs, formatted);

    // The fields of the task: set once with us, a span of which every field is kept with them.
    let task = LogContext::new().job_id(JOB).task_id(TASK).engine_id("whisper");
    let with_context = |f: fn()| {
        best(&ours, || {
            let _guard = task.enter();
            repeat(f);
        })
    };
    let with_span = |dispatch: &Dispatch, f: fn()| {
        best(dispatch, || {
            let span = info_span!("task", job_id = JOB, task_id = TASK, engine_id = "whisper");
            let _guard = span.enter();
            repeat(f);
        })
    };
    print_row(
        "three fields, within a task",
        with_context(three_fields),
        with_span(&theirs, three_fields),
    );
    print_row(
        "three fields, within a task that is traced",
        with_span(&ours_traced, three_fields),
        with_span(&theirs, three_fields),
    );
}

/// Alone with each subscriber: as long as another one lives, callsites ask every time.
fn spans() {
    let span = || {
        let span = info_span!("step", task_id = TASK, attempt = 1);
        let _guard = black_box(&span).enter();
    };
    let cost = |dispatch: Dispatch| best(&dispatch, || repeat(span));
    let disabled = cost(Dispatch::none());
    let ours = cost(ours(false));
    let theirs = cost(theirs());
    println!(
        "a span that nobody exports: {disabled:.1} ns without a subscriber, {ours:.1} ns with our log lines,"
    );
    println!("  {theirs:.1} ns with those of tracing-subscriber");
}

/// How often a line asks for memory, once its thread's buffers have grown.
fn allocations() {
    let task = LogContext::new().job_id(JOB).task_id(TASK).engine_id("whisper");
    let per_line = |dispatch: Dispatch| {
        with_default(&dispatch, || {
            let _guard = task.enter();
            repeat(formatted);
            let before = ALLOCATIONS.get();
            repeat(formatted);
            (ALLOCATIONS.get() - before) as f64 / f64::from(LINES)
        })
    };
    let (ours, theirs) = (per_line(ours(false)), per_line(theirs()));
    println!("allocations per line: {ours:.3} ours, {theirs:.3} tracing-subscriber");
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as of this function.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as of this function.
        unsafe { System.realloc(memory, layout, size) }
    }
}

const JOB: &str = "5f0c9f6e-6f5b-4f0e-9d8e-3d8f0f6f0b11";
const TASK: &str = "a3f4b6c1-93a9-4d0e-8a1b-7f3d2c1b0a99";

fn three_fields() {
    info!(
        delivery_count = 1,
        stream_id = "1700000000000-0",
        is_redelivery = false,
        "task_received"
    );
}

fn formatted() {
    let factor = black_box(0.125);
    info!(
        uri = "s3://dalston-artifacts/jobs/1/audio.wav",
        factor,
        "task {} has ended",
        black_box(7)
    );
}

fn ours(traced: bool) -> Dispatch {
    let mut builder = Telemetry::builder("engine-bench")
        .env(Env::default())
        .log_format(LogFormat::Json)
        .log_writer(LogWriter::new(io::sink()));
    if traced {
        builder = builder.span_collector(SpanCollector::new());
    }
    let (layer, telemetry) = builder.into_layer().expect("the environment is empty");
    // Ends with the process.
    std::mem::forget(telemetry);
    Dispatch::new(Registry::default().with(layer))
}

fn ours_with_spans() -> Dispatch {
    ours(true)
}

fn theirs() -> Dispatch {
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(io::sink)
        .with_filter(EnvFilter::new("info"));
    Dispatch::new(Registry::default().with(layer))
}

fn row(name: &str, ours: &Dispatch, theirs: &Dispatch, f: fn()) {
    // In turns, so that both see the same machine.
    let (mut our_best, mut their_best) = (f64::MAX, f64::MAX);
    for _ in 0..3 {
        our_best = our_best.min(best(ours, || repeat(f)));
        their_best = their_best.min(best(theirs, || repeat(f)));
    }
    print_row(name, our_best, their_best);
}

fn print_row(name: &str, ours: f64, theirs: f64) {
    println!(
        "{name:<44} {ours:>7.0} ns {theirs:>19.0} ns {:>7.2}",
        ours / theirs
    );
}

fn repeat(f: impl Fn()) {
    for _ in 0..LINES {
        f();
    }
}

/// Nanoseconds for one of the [`LINES`] in the best round.
fn best(dispatch: &Dispatch, round: impl Fn()) -> f64 {
    with_default(dispatch, || {
        (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                round();
                start.elapsed().as_nanos() as f64 / f64::from(LINES)
            })
            .fold(f64::MAX, f64::min)
    })
}
