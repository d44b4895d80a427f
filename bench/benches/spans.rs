//! What a span costs that is recorded and exported, beside tracing-opentelemetry as it comes, behind the SDK's batch processor
//! and the exporter of opentelemetry-otlp.
//!
//! `cargo xtask bench spans`. Both send OTLP over HTTP to the same kind of receiver, in a process of its own. Each measurement
//! is a process, too; the cases take turns, and the median of their rounds counts. A burst of spans is followed by a flush, so
//! that no queue is ever full: a span that is dropped costs less. Time is processor time, as the kernel counts it for each
//! thread: that of the thread that makes the spans, and that of all threads, which adds encoding and sending.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use bench::Server;
use dalston_telemetry::{Env, LogWriter, Telemetry};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider};
use serde_json::{Value, json};
use tracing::{info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

const ROUNDS: usize = 9;
const BURSTS: usize = 300;
/// Below a quarter of what the queues hold.
const SPANS: usize = 500;

const CASES: [(&str, &str); 3] = [
    (
        "peer",
        "tracing-opentelemetry's defaults, SDK, opentelemetry-otlp",
    ),
    ("ours", "dalston-telemetry"),
    ("ours-logs", "dalston-telemetry, with its log lines"),
];

/// A name, and what makes spans until there are [`SPANS`].
type Work = (&'static str, fn());

const WORK: [Work; 2] = [
    ("a span with two fields", two_fields),
    (
        "a span of a task of the runner (five spans, 17 attributes, an event)",
        tasks,
    ),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| *argument != "--bench")
        .collect();
    match arguments[..] {
        ["--serve"] => serve(),
        ["--measure", case, work, url] => println!("{}", measure(case, work.parse().unwrap(), url)),
        _ => report(),
    }
}

fn report() {
    println!(
        "Processor nanoseconds a span, median of {ROUNDS} interleaved rounds of {} spans",
        BURSTS * SPANS
    );
    for (number, (what, _)) in WORK.iter().enumerate() {
        println!(
            "\n{what}\n{:<62} {:>10} {:>7} {:>12} {:>7}",
            "", "its thread", "ratio", "all threads", "ratio"
        );
        let mut figures = [const { Vec::new() }; CASES.len()];
        for _ in 0..ROUNDS {
            for ((case, _), figures) in CASES.iter().zip(&mut figures) {
                figures.push(run(case, number));
            }
        }
        let medians = figures.map(|rounds| {
            [0, 1].map(|column| {
                let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
                values.sort_unstable_by(f64::total_cmp);
                values[values.len() / 2]
            })
        });
        for ((_, about), [thread, all]) in CASES.iter().zip(medians) {
            let [peer_thread, peer_all] = medians[0];
            println!(
                "  {about:<60} {thread:>10.0} {:>7.2} {all:>12.0} {:>7.2}",
                thread / peer_thread,
                all / peer_all
            );
        }
    }
}

/// Nanoseconds for a span: of the thread that makes it, of all threads.
fn run(case: &str, work: usize) -> [f64; 2] {
    let receiver = Server::start(&["--serve"]);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--measure", case, &work.to_string(), &receiver.url])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{case} failed");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["dropped"], 0, "{case} dropped spans");
    ["thread", "all"].map(|column| answer[column].as_f64().unwrap() / (BURSTS * SPANS) as f64)
}

fn measure(case: &str, work: usize, url: &str) -> Value {
    const WARM_UP: usize = 20;
    let exporter = match case {
        "peer" => Exporter::peer(url),
        _ => Exporter::ours(url, case == "ours-logs"),
    };
    let (bursts, next) = mpsc::sync_channel::<()>(0);
    let (made, done) = mpsc::sync_channel(0);
    let maker = std::thread::spawn(move || {
        for () in next {
            WORK[work].1();
            made.send(()).unwrap();
        }
        nanoseconds("/proc/thread-self/schedstat")
    });
    let mut before = 0;
    for burst in 0..WARM_UP + BURSTS {
        if burst == WARM_UP {
            before = of_all_threads();
        }
        bursts.send(()).unwrap();
        done.recv().unwrap();
        exporter.flush();
    }
    let all = of_all_threads() - before;
    drop(bursts);
    // The warm-up is in it, for both alike.
    let thread = maker.join().unwrap() as f64 * BURSTS as f64 / (WARM_UP + BURSTS) as f64;
    json!({"thread": thread, "all": all, "dropped": exporter.dropped()})
}

fn two_fields() {
    for number in 0..SPANS {
        let span = info_span!("work", number = black_box(number), name = black_box("value"));
        let _entered = black_box(&span).enter();
    }
}

fn tasks() {
    const TASK: &str = "7a5c0de0-1111-4111-8111-000000000001";
    const JOB: &str = "10b00000-2222-4222-8222-000000000001";
    for number in 0..SPANS / 5 {
        let task = info_span!(parent: None, "engine.task", otel.name = "engine.whisper.process", otel.kind = "consumer");
        for (name, value) in [
            ("dalston.task_id", TASK),
            ("dalston.job_id", JOB),
            ("dalston.engine_id", "whisper"),
            ("dalston.instance", "whisper-0f0e"),
            ("dalston.stage", "transcribe"),
            ("messaging.destination.name", "whisper"),
            ("messaging.message.id", TASK),
            ("messaging.message.conversation_id", JOB),
            ("messaging.system", "redis"),
            ("messaging.operation.type", "process"),
        ] {
            task.set_attribute(name, black_box(value).to_owned());
        }
        task.set_attribute("dalston.delivery_count", black_box(1));
        task.set_attribute("dalston.queue_wait_seconds", 0.25);
        for step in ["engine.queue_wait", "engine.download_input", "engine.process"] {
            let span = info_span!(parent: &task, "step", otel.name = step);
            let _entered = span.enter();
        }
        let upload = info_span!(parent: &task, "engine.upload_output", number);
        upload.in_scope(|| info!(artifacts = 1, "task_completed"));
    }
}

/// What has to be flushed, and lives until the end.
enum Exporter {
    Ours(Telemetry),
    Peer(SdkTracerProvider),
}

impl Exporter {
    fn ours(url: &str, with_logs: bool) -> Self {
        let env = Env::from_pairs([
            ("OTEL_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ]);
        let builder = Telemetry::builder("bench").env(env);
        let builder = match with_logs {
            true => builder.log_writer(LogWriter::new(std::io::sink())),
            false => builder.without_logs(),
        };
        Self::Ours(builder.install().unwrap())
    }

    fn peer(url: &str) -> Self {
        // Its HTTP client wants one even where nothing is encrypted.
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{url}/v1/traces"))
            .build()
            .unwrap();
        let provider = SdkTracerProvider::builder()
            .with_resource(Resource::builder().with_service_name("bench").build())
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
        // The exporter's own crates, as the documents of opentelemetry-otlp say; ours leaves them out by itself.
        let filter = tracing_subscriber::filter::filter_fn(|metadata| {
            !["hyper", "reqwest", "opentelemetry", "h2"]
                .iter()
                .any(|name| metadata.target().starts_with(name))
                && *metadata.level() <= tracing::Level::INFO
        });
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        tracing::subscriber::set_global_default(subscriber).unwrap();
        Self::Peer(provider)
    }

    fn flush(&self) {
        match self {
            Self::Ours(telemetry) => telemetry.flush(Duration::from_secs(10)).unwrap(),
            Self::Peer(provider) => provider.force_flush().unwrap(),
        }
    }

    /// The peer would have failed in `flush`, or says so in its log.
    fn dropped(&self) -> u64 {
        match self {
            Self::Ours(telemetry) => telemetry.handle().export_stats().dropped_total(),
            Self::Peer(_) => 0,
        }
    }
}

/// Processor time of all threads of this process, in nanoseconds.
fn of_all_threads() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let threads = threads.map(|thread| thread.unwrap().path().join("schedstat"));
    threads.map(|file| nanoseconds(file.to_str().unwrap())).sum()
}

fn nanoseconds(file: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Takes spans and does nothing with them.
fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let app = Router::new().route("/v1/traces", post(async |_: axum::body::Bytes| ()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("http://{}", listener.local_addr().unwrap());
        axum::serve(listener, app).await.unwrap();
    });
}
