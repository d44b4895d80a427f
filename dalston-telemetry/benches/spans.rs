//! The cost of a span on the thread that creates it, with tracing off and on, beside other
//! subscribers.
//!
//! `cargo xtask bench telemetry`.
//!
//! Each case runs in its own process, because a subscriber is for the whole process and `tracing`
//! caches the interest in a callsite. The cases alternate, and the fastest round of each counts. A
//! value is nanoseconds for one span with two fields that is started, entered, left and ended. In
//! the case without a collector most spans are dropped; `cargo xtask bench spans` measures exported
//! spans.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use dalston_telemetry::opentelemetry::trace::TracerProvider as _;
use dalston_telemetry::opentelemetry_sdk::error::OTelSdkResult;
use dalston_telemetry::opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use dalston_telemetry::{Env, LogWriter, SpanCollector, Telemetry};
use testbed::report::{Report, is_quick, number};
use tracing::info_span;
use tracing_subscriber::layer::SubscriberExt;

const ROUNDS: usize = 5;

/// Nanoseconds of a span while tracing is off.
const LIMIT_OFF: f64 = 1.5;

struct Case {
    name: &'static str,
    what: &'static str,
    /// Sets the subscriber up, and returns a value that lives as long as the subscriber.
    set_up: fn() -> Box<dyn std::any::Any>,
}

const CASES: &[Case] = &[
    Case {
        name: "none",
        what: "no subscriber (a disabled span of `tracing`)",
        set_up: || Box::new(()),
    },
    Case {
        name: "off",
        what: "dalston-telemetry, tracing off, JSON log lines (the default)",
        set_up: off,
    },
    Case {
        name: "fmt",
        what: "tracing-subscriber, log lines with spans",
        set_up: fmt,
    },
    Case {
        name: "collect",
        what: "dalston-telemetry, spans in memory",
        set_up: collect,
    },
    Case {
        name: "unsampled",
        what: "dalston-telemetry, tracing on, trace not sampled",
        set_up: unsampled,
    },
    Case {
        name: "export",
        what: "dalston-telemetry, tracing on, no collector",
        set_up: export,
    },
    Case {
        name: "sdk-batch",
        what: "opentelemetry_sdk, batch processor, exporter that discards",
        set_up: sdk_batch,
    },
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--inside"
        && let Some(case) = CASES.iter().find(|case| case.name == name)
    {
        let keep = (case.set_up)();
        println!("{}", nanoseconds());
        // The shutdown is not part of the measurement.
        std::mem::forget(keep);
        return;
    }
    let mut report = Report::start(&["tracing", "tracing-subscriber", "opentelemetry_sdk"]);
    let rounds = if is_quick() { 1 } else { ROUNDS };
    let mut best = vec![f64::INFINITY; CASES.len()];
    for _ in 0..rounds {
        for (case, best) in CASES.iter().zip(&mut best) {
            *best = run(case).min(*best);
        }
    }
    let rows = CASES.iter().zip(&best).map(|(case, nanoseconds)| {
        if case.name == "off" {
            report.at_most("a span while tracing is off", LIMIT_OFF, *nanoseconds, "ns");
        }
        [
            case.what.to_owned(),
            number(*nanoseconds),
            number(nanoseconds / best[0]),
        ]
    });
    let rows: Vec<_> = rows.collect();
    report.table(
        "Nanoseconds for a span:",
        ["", "Nanoseconds", "Ratio to no subscriber"],
        &rows,
    );
    report.finish();
}

fn run(case: &Case) -> f64 {
    let program = std::env::current_exe().expect("a program has a path");
    let output = Command::new(program)
        .args(["--inside", case.name])
        .output()
        .expect("the program starts again");
    let printed = String::from_utf8_lossy(&output.stdout);
    match printed.trim().parse() {
        Ok(nanoseconds) => nanoseconds,
        Err(_) => panic!("case {}: {}", case.name, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The fastest of many short measurements, so that a pause of the machine does not count.
fn nanoseconds() -> f64 {
    let mut best = f64::INFINITY;
    let mut spans = 16_u32;
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        let started = Instant::now();
        for number in 0..spans {
            let span = info_span!("work", number = black_box(number), name = black_box("value"));
            let _entered = black_box(&span).enter();
        }
        let elapsed = started.elapsed();
        if elapsed < Duration::from_micros(200) {
            // Too short for the clock.
            spans = spans.saturating_mul(2);
            continue;
        }
        best = best.min(elapsed.as_nanos() as f64 / f64::from(spans));
    }
    best
}

fn env(pairs: &[(&str, &str)]) -> Env {
    Env::from_pairs(pairs.iter().copied())
}

fn off() -> Box<dyn std::any::Any> {
    install(
        Telemetry::builder("bench")
            .env(Env::default())
            .log_writer(LogWriter::new(std::io::sink())),
    )
}

fn collect() -> Box<dyn std::any::Any> {
    install(
        Telemetry::builder("bench")
            .env(Env::default())
            .log_writer(LogWriter::new(std::io::sink()))
            .span_collector(SpanCollector::new()),
    )
}

fn unsampled() -> Box<dyn std::any::Any> {
    let env = env(&[
        ("OTEL_ENABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ]);
    install(
        Telemetry::builder("bench")
            .env(env)
            .log_writer(LogWriter::new(std::io::sink())),
    )
}

fn export() -> Box<dyn std::any::Any> {
    let env = env(&[
        ("OTEL_ENABLED", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
    ]);
    install(Telemetry::builder("bench").env(env).without_logs())
}

fn install(builder: dalston_telemetry::TelemetryBuilder) -> Box<dyn std::any::Any> {
    match builder.install() {
        Ok(telemetry) => Box::new(telemetry),
        Err(error) => panic!("{error}"),
    }
}

fn fmt() -> Box<dyn std::any::Any> {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    set(tracing_subscriber::registry().with(lines));
    Box::new(())
}

fn sdk_batch() -> Box<dyn std::any::Any> {
    let config = BatchConfigBuilder::default().build();
    let processor = BatchSpanProcessor::builder(Discard)
        .with_batch_config(config)
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("bench"))
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false);
    set(tracing_subscriber::registry().with(layer));
    Box::new(provider)
}

fn set(subscriber: impl tracing::Subscriber + Send + Sync) {
    if let Err(error) = tracing::subscriber::set_global_default(subscriber) {
        panic!("{error}");
    }
}

#[derive(Debug)]
struct Discard;

impl SpanExporter for Discard {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        drop(batch);
        Ok(())
    }
}
