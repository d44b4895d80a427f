//! The cost of an exported span. The peer is tracing-opentelemetry with its defaults, the SDK's
//! batch processor and the exporter of opentelemetry-otlp.
//!
//! `cargo xtask bench spans`. Both send OTLP over HTTP to the same kind of receiver, in its own
//! process. Each measurement is a process, too. The cases alternate, and the median of the rounds
//! counts. A flush follows each burst of spans, so that no queue overflows: a dropped span costs
//! less. Times are processor times of the kernel, for the thread that creates the spans and for all
//! threads, which includes encoding and sending.

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
use testbed::report::{Report, is_quick, median, number};
use tracing::{info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

const ROUNDS: usize = 9;
const BURSTS: usize = 300;
/// Less than a quarter of the size of the queues.
const SPANS: usize = 500;

/// The argument that selects a case, and its row in the table.
const CASES: [(&str, &str); 3] = [
    (
        "peer",
        "tracing-opentelemetry's defaults, SDK, opentelemetry-otlp",
    ),
    ("ours", "dalston-telemetry"),
    ("ours-logs", "dalston-telemetry, with log lines"),
];

/// The name of a kind of span, and a function that creates [`SPANS`] of them.
type Work = (&'static str, fn());

const WORK: [Work; 2] = [
    ("a span with two fields", two_fields),
    ("a span of a task (five spans, 17 attributes, an event)", tasks),
];

/// Processor time of all threads for an exported span, as a part of the peer's.
const LIMIT: f64 = 0.75;

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
    let mut report = Report::start(&["tracing-opentelemetry", "opentelemetry_sdk", "opentelemetry-otlp"]);
    let rounds = if is_quick() { 1 } else { ROUNDS };
    for (number_of_work, (work, _)) in WORK.iter().enumerate() {
        let mut values = [const { Vec::new() }; CASES.len()];
        for _ in 0..rounds {
            for ((case, _), values) in CASES.iter().zip(&mut values) {
                values.push(run(case, number_of_work));
            }
        }
        let medians = values.map(|rounds| {
            [0, 1].map(|column| {
                let values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
                median(&values)
            })
        });
        let [peer_thread, peer_all] = medians[0];
        let rows = CASES.iter().zip(medians).map(|((_, about), [thread, all])| {
            [
                (*about).to_owned(),
                number(thread),
                number(thread / peer_thread),
                number(all),
                number(all / peer_all),
            ]
        });
        report.at_most(
            format!("{work}: processor time of all threads, ratio to the peer"),
            LIMIT,
            medians[1][1] / peer_all,
            "",
        );
        report.table(
            &format!(
                "Processor nanoseconds for {work}, medians of {rounds} interleaved rounds of {} spans:",
                BURSTS * SPANS
            ),
            ["", "Thread that ends it", "Ratio", "All threads", "Ratio"],
            &rows.collect::<Vec<_>>(),
        );
    }
    report.finish();
}

/// Nanoseconds for a span: of the thread that creates it, and of all threads.
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
    let (created, done) = mpsc::sync_channel(0);
    let creator = std::thread::spawn(move || {
        for () in next {
            WORK[work].1();
            created.send(()).unwrap();
        }
        nanoseconds("/proc/thread-self/schedstat")
    });
    let mut before = 0;
    for burst in 0..WARM_UP + BURSTS {
        if burst == WARM_UP {
            before = nanoseconds_of_all_threads();
        }
        bursts.send(()).unwrap();
        done.recv().unwrap();
        exporter.flush();
    }
    let all = nanoseconds_of_all_threads() - before;
    drop(bursts);
    // Includes the warm-up, in every case.
    let thread = creator.join().unwrap() as f64 * BURSTS as f64 / (WARM_UP + BURSTS) as f64;
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

/// The exporter of a case, which lives until the process ends.
enum Exporter {
    Ours(Box<Telemetry>),
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
        Self::Ours(Box::new(builder.install().unwrap()))
    }

    fn peer(url: &str) -> Self {
        // The HTTP client of the peer needs a provider even without TLS.
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
        // opentelemetry-otlp asks its users to filter out the crates that it uses. Ours does so
        // itself.
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

    /// Dropped spans. The peer reports them as an error of `flush` or in its log.
    fn dropped(&self) -> u64 {
        match self {
            Self::Ours(telemetry) => telemetry.handle().export_stats().dropped_total(),
            Self::Peer(_) => 0,
        }
    }
}

/// Processor time of all threads of this process, in nanoseconds.
fn nanoseconds_of_all_threads() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let threads = threads.map(|thread| thread.unwrap().path().join("schedstat"));
    threads.map(|file| nanoseconds(file.to_str().unwrap())).sum()
}

fn nanoseconds(file: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Accepts spans and discards them.
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
