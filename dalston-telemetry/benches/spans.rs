//! What a span costs, with tracing off and on, beside what it costs with other subscribers.
//!
//! `cargo xtask bench telemetry`, or `cargo bench -p dalston-telemetry --bench spans`.
//!
//! Every case runs in a process of its own, because a subscriber is for the whole process and because interest in a
//! callsite is remembered. The cases take turns for several rounds, and of each the fastest round counts.
//! Figures are nanoseconds for one span with two fields, started, entered, left and ended. With the collector away most spans are
//! dropped; what exporting costs beside others is measured by `cargo xtask bench spans`.
//!
//! Measured on 2026-11-20 (Intel(R) Xeon(R) Processor, 2 cores that were busy with other builds, Rust 1.95.0, tracing 0.1.44,
//! opentelemetry_sdk 0.33.1): no subscriber 0.65 to 0.88, off 0.93 to 0.97, tracing-subscriber's log lines 287,
//! opentelemetry_sdk's batch processor 766 to 846, tracing on with the collector away 962 to 1021 (without a log
//! layer, as the batch processor has none), not sampled 981, in memory 1090 to 1235 (both with the log layer).

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use dalston_telemetry::opentelemetry::trace::TracerProvider as _;
use dalston_telemetry::opentelemetry_sdk::error::OTelSdkResult;
use dalston_telemetry::opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use dalston_telemetry::{Env, LogWriter, SpanCollector, Telemetry};
use tracing::info_span;
use tracing_subscriber::layer::SubscriberExt;

const ROUNDS: usize = 5;

struct Case {
    name: &'static str,
    what: &'static str,
    /// Sets the subscriber up and gives what has to live as long as it.
    set_up: fn() -> Box<dyn std::any::Any>,
}

const CASES: &[Case] = &[
    Case {
        name: "none",
        what: "no subscriber at all (a disabled span of `tracing`)",
        set_up: || Box::new(()),
    },
    Case {
        name: "off",
        what: "dalston-telemetry, tracing off, JSON logs on (the default)",
        set_up: off,
    },
    Case {
        name: "fmt",
        what: "tracing-subscriber, log lines with their spans",
        set_up: fmt,
    },
    Case {
        name: "collect",
        what: "dalston-telemetry, spans kept in memory",
        set_up: collect,
    },
    Case {
        name: "unsampled",
        what: "dalston-telemetry, tracing on, trace not sampled",
        set_up: unsampled,
    },
    Case {
        name: "export",
        what: "dalston-telemetry, tracing on, collector away",
        set_up: export,
    },
    Case {
        name: "sdk-batch",
        what: "opentelemetry_sdk, batch processor, exporter that drops",
        set_up: sdk_batch,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--inside"
        && let Some(case) = CASES.iter().find(|case| case.name == name)
    {
        let keep = (case.set_up)();
        println!("{}", nanoseconds());
        // Not dropped: how long a process takes to end is not what this is about.
        std::mem::forget(keep);
        return ExitCode::SUCCESS;
    }
    let mut best = vec![f64::INFINITY; CASES.len()];
    for _ in 0..ROUNDS {
        for (case, best) in CASES.iter().zip(&mut best) {
            match run(case) {
                Some(nanoseconds) => *best = best.min(nanoseconds),
                None => {
                    println!("{}: the case did not run", case.name);
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    let bare = best[0];
    println!("{:>10}  {:>8}  case", "ns/span", "ratio");
    for (case, nanoseconds) in CASES.iter().zip(&best) {
        println!("{nanoseconds:>10.2}  {:>8.1}  {}", nanoseconds / bare, case.what);
    }
    ExitCode::SUCCESS
}

fn run(case: &Case) -> Option<f64> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new(program)
        .args(["--inside", case.name])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
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
            .span_collector(SpanCollector::new()),
    )
}

fn unsampled() -> Box<dyn std::any::Any> {
    let env = env(&[
        ("OTEL_ENABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ]);
    install(Telemetry::builder("bench").env(env))
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
    let processor = BatchSpanProcessor::builder(Away)
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
struct Away;

impl SpanExporter for Away {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        drop(batch);
        Ok(())
    }
}
