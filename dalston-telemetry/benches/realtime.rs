//! The cost of the steps of a chunk of audio that has no span of its own.
//!
//! `cargo xtask bench realtime`. One chunk in a million is sampled here. The fastest of many short
//! rounds counts, because noise only adds time. The difference to the metrics alone is the cost of
//! the sampling.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::services::realtime::{RealtimeMetrics, RealtimeSteps, StartedSession};
use dalston_telemetry::{Env, LogWriter, Telemetry};
use testbed::report::{Report, is_quick, number};
use tracing::info_span;

const ROUNDS: u32 = 400;
const CHUNKS: u32 = 10_000;

/// Nanoseconds that the sampling of a chunk may cost.
const LIMIT: f64 = 10.0;

fn main() {
    let mut report = Report::start(&["tracing", "tracing-opentelemetry", "opentelemetry_sdk"]);
    let rounds = if is_quick() { 20 } else { ROUNDS };
    let env = Env::from_pairs([("OTEL_ENABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]);
    let telemetry = Telemetry::builder("bench")
        .env(env)
        .log_writer(LogWriter::new(std::io::sink()))
        .install();
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => panic!("{error}"),
    };
    let metrics = RealtimeMetrics::register(telemetry.metrics(), "asr", "asr-rt-1");
    let model = metrics.model("tiny");
    let steps = RealtimeSteps::new(telemetry.handle(), metrics).one_span_in(1_000_000);
    let mut session = steps.begin(&StartedSession {
        session_id: "sess_1",
        model: "tiny",
        language: "en",
        parent: Context::new(),
    });
    let (length, latency) = (Duration::from_millis(100), Duration::from_millis(2));

    let counted = best(rounds, || {
        model.audio_processed(black_box(length));
        model.chunk_latency(black_box(latency));
    });
    let stepped = best(rounds, || {
        let chunk = black_box(session.chunk());
        session.chunk_done(chunk, black_box(length), black_box(latency));
    });
    let spans = best(rounds / 10, || {
        let span = info_span!("process_audio_chunk", index = black_box(1));
        let _entered = black_box(&span).enter();
    });
    report.at_most(
        "sampling of a chunk without a span",
        LIMIT,
        stepped - counted,
        "ns",
    );
    let row = |what: &str, nanoseconds: f64| [what.to_owned(), number(nanoseconds)];
    report.table(
        "Nanoseconds for a chunk:",
        ["", "Nanoseconds"],
        &[
            row("its two metrics alone", counted),
            row("a chunk without a span, with its metrics", stepped),
            row("for comparison: a span for each chunk", spans),
        ],
    );
    report.finish();
}

fn best(rounds: u32, mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        for _ in 0..CHUNKS {
            work();
        }
        best = best.min(started.elapsed().as_nanos() as f64 / f64::from(CHUNKS));
    }
    best
}
