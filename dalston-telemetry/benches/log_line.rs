//! The cost of a JSON log line, beside the JSON formatter of tracing-subscriber in the same run.
//!
//! `cargo xtask bench log`. The lines go to a writer that discards them. The cases alternate, and
//! the shortest of many rounds counts, because noise only adds time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::time::Instant;

use dalston_telemetry::context::LogContext;
use dalston_telemetry::opentelemetry::trace::TracerProvider as _;
use dalston_telemetry::opentelemetry_sdk::trace::SdkTracerProvider;
use dalston_telemetry::{Env, LogFormat, LogWriter, SpanCollector, Telemetry};
use testbed::report::{Report, is_quick, number};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, info, info_span};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

const ROUNDS: u32 = 60;
const QUICK_ROUNDS: u32 = 5;
const LINES: u32 = 5_000;

fn main() {
    let mut report = Report::start(&["tracing-subscriber"]);
    let ours = our_subscriber(false);
    let ours_traced = our_subscriber(true);
    let theirs = their_subscriber(false);
    let theirs_traced = their_subscriber(true);

    // The peer repeats the fields of a span in every line. Ours takes the fields of the task from a
    // `LogContext`.
    let task = LogContext::new().job_id(JOB).task_id(TASK).engine_id("whisper");
    let within_context = || {
        best(&ours, || {
            let _guard = task.enter();
            repeat(three_fields);
        })
    };
    let within_span = |dispatch: &Dispatch| {
        best(dispatch, || {
            let span = info_span!("task", job_id = JOB, task_id = TASK, engine_id = "whisper");
            let _guard = span.enter();
            repeat(three_fields);
        })
    };
    let alone = |line: fn()| alternate(|| best(&ours, || repeat(line)), || best(&theirs, || repeat(line)));
    let cases = [
        ("a message", 0.50, alone(|| info!("task_received"))),
        ("a message and three fields", 0.75, alone(three_fields)),
        ("a formatted message, a URL and a number", 0.75, alone(formatted)),
        (
            "three fields, within a task",
            0.40,
            alternate(within_context, || within_span(&theirs)),
        ),
        (
            "three fields, within a traced task",
            1.00,
            // Both also add the line to the span, as an event.
            alternate(|| within_span(&ours_traced), || within_span(&theirs_traced)),
        ),
    ];
    let rows = cases.map(|(name, limit, [ours, theirs])| {
        report.at_most(
            format!("{name}, ratio to tracing-subscriber"),
            limit,
            ours / theirs,
            "",
        );
        [
            name.to_owned(),
            number(ours),
            number(theirs),
            number(ours / theirs),
        ]
    });
    let [ours_allocates, theirs_allocates] = allocations();
    // The queue of the writer grows now and then.
    report.at_most("allocations of a line", 0.01, ours_allocates, "");
    report.table(
        "Nanoseconds for a log line:",
        ["", "dalston-telemetry", "tracing-subscriber", "Ratio"],
        &rows,
    );
    report.table(
        "Allocations for a log line:",
        ["", "dalston-telemetry", "tracing-subscriber"],
        &[[
            "a formatted message, a URL and a number".to_owned(),
            number(ours_allocates),
            number(theirs_allocates),
        ]],
    );
    report.finish();
}

/// Allocations of a line, after the buffers of its thread have grown: ours and theirs.
fn allocations() -> [f64; 2] {
    let task = LogContext::new().job_id(JOB).task_id(TASK).engine_id("whisper");
    [our_subscriber(false), their_subscriber(false)].map(|dispatch| {
        with_default(&dispatch, || {
            let _guard = task.enter();
            repeat(formatted);
            let before = ALLOCATIONS.get();
            repeat(formatted);
            (ALLOCATIONS.get() - before) as f64 / f64::from(LINES)
        })
    })
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract of this function.
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

fn our_subscriber(is_traced: bool) -> Dispatch {
    let mut builder = Telemetry::builder("engine-bench")
        .env(Env::default())
        .log_format(LogFormat::Json)
        .log_writer(LogWriter::new(io::sink()));
    if is_traced {
        builder = builder.span_collector(SpanCollector::new());
    }
    let (layer, telemetry) = builder.into_layer().expect("the environment is empty");
    // Telemetry lives until the process ends.
    std::mem::forget(telemetry);
    Dispatch::new(Registry::default().with(layer))
}

fn their_subscriber(is_traced: bool) -> Dispatch {
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(io::sink)
        .with_filter(EnvFilter::new("info"));
    let traces = is_traced.then(|| {
        let provider = SdkTracerProvider::builder().build();
        tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"))
    });
    Dispatch::new(Registry::default().with(layer).with(traces))
}

/// The best of three rounds of each, which alternate so that the state of the machine affects both.
fn alternate(ours: impl Fn() -> f64, theirs: impl Fn() -> f64) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..3 {
        best = [best[0].min(ours()), best[1].min(theirs())];
    }
    best
}

fn repeat(f: impl Fn()) {
    for _ in 0..LINES {
        f();
    }
}

/// Nanoseconds for one of the [`LINES`] in the best round.
fn best(dispatch: &Dispatch, round: impl Fn()) -> f64 {
    let rounds = if is_quick() { QUICK_ROUNDS } else { ROUNDS };
    with_default(dispatch, || {
        (0..rounds)
            .map(|_| {
                let start = Instant::now();
                round();
                start.elapsed().as_nanos() as f64 / f64::from(LINES)
            })
            .fold(f64::MAX, f64::min)
    })
}
