//! Realtime sessions with the shipped model: how long after the end of speech its transcript comes,
//! and what a session costs.
//!
//! `cargo xtask bench whisper-sessions`; `--quick` takes half a minute. The worker is a process
//! with a real Redis. The clients stream the shipped recordings one after the other, in pieces of
//! 100 ms, in real time and at five times real time.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bench::{Server, machine};
use dalston_engine_sdk::audio::{AudioFormat, decode_file};
use dalston_engine_sdk::{DeploymentConfig, RunnerConfig, worker};
use dalston_telemetry::{Env, TelemetryHandle};
use faster_whisper::FasterWhisper;
use serde_json::Value;
use tempfile::TempDir;
use testbed::report::{Report, is_quick, number, percentile};
use testbed::{TestRedis, WebSocketClient, free_port};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Seconds from the silence that ends an utterance to its transcript.
const LIMIT_ENDPOINT: f64 = 0.2;
/// Seconds from the end of speech, which include that silence.
const LIMIT_SPEECH: f64 = 0.6;
/// The silence that ends an utterance, in seconds: the default.
const SILENCE: f64 = 0.4;
/// Sessions count as served below this time after the end of speech.
const LIMIT_SERVED: f64 = 1.0;
/// Sessions at a time, and their speed.
const RUNS: [(usize, f64); 4] = [(1, 1.0), (1, 5.0), (4, 1.0), (16, 1.0)];
/// A recording of 25 s and longer is left out of a quick run.
const SHORT: f64 = 10.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", redis, storage, port] => serve(redis, storage, port),
        _ => runtime().block_on(report()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// The worker. It prints that it has begun, and ends when it is killed.
fn serve(redis: &str, storage: &str, port: &str) {
    let env = Env::from_pairs([
        ("REDIS_URL", redis),
        ("DALSTON_STORAGE_DIR", storage),
        ("DALSTON_WORKER_PORT", port),
        ("DALSTON_METRICS_PORT", "0"),
        ("DALSTON_DEVICE", "cpu"),
        ("DALSTON_MODEL_PRELOAD", "true"),
        ("DALSTON_MAX_SESSIONS", "1000"),
    ]);
    let config = RunnerConfig::from_env(&env).unwrap();
    let deployment = DeploymentConfig::from_env(&env).unwrap();
    println!("begun");
    let (engine, telemetry) = (FasterWhisper, TelemetryHandle::disabled());
    let running = worker::run(
        engine,
        config,
        deployment,
        telemetry,
        std::future::pending::<()>(),
    );
    runtime().block_on(running).unwrap();
}

/// Samples of 16 bits at 16 kHz.
struct Recording {
    bytes: Vec<u8>,
    seconds: f64,
}

/// Those with speech.
fn recordings() -> Vec<Recording> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio");
    let manifest = std::fs::read(place.join("manifest.json")).unwrap();
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    let files = manifest.iter().filter(|entry| entry["text"] != "");
    let files = files.map(|entry| place.join(entry["file"].as_str().unwrap()));
    let recording = |file: PathBuf| {
        let audio = decode_file(&file, AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap();
        let samples = audio.read(..).unwrap();
        let sample = |sample: &f32| ((sample * 32_767.0) as i16).to_le_bytes();
        Recording {
            bytes: samples.iter().flat_map(sample).collect(),
            seconds: audio.duration().as_secs_f64(),
        }
    };
    files
        .map(recording)
        .filter(|found| !is_quick() || found.seconds < SHORT)
        .collect()
}

/// What sessions at the same time measured, in seconds.
#[derive(Default)]
struct Figures {
    /// From the end of speech, and from the silence after it.
    finals: Vec<f64>,
    endpoints: Vec<f64>,
    partials: Vec<f64>,
    failed: usize,
    /// Share of a core that the worker used.
    processor: f64,
    /// The largest resident memory of the worker.
    memory_mib: f64,
}

async fn report() {
    let mut report = Report::start(&["tch", "torch-sys", "earshot"]);
    let (redis, storage, port) = (TestRedis::start().await, TempDir::new().unwrap(), free_port());
    let place = storage.path().to_str().unwrap();
    let worker = Server::start(&["--serve", &redis.url(), place, &port.to_string()]);
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    let recordings = Arc::new(recordings());
    // The model is loaded, and its first window is slower than the others.
    session(port, Arc::clone(&recordings), 0, 5.0, 1).await;

    let runs = if is_quick() { &RUNS[..2] } else { &RUNS[..] };
    let (mut rows, mut measured) = (Vec::new(), Vec::new());
    for &(sessions, speed) in runs {
        let figures = run(&worker, port, &recordings, sessions, speed).await;
        let p95 = |values: &[f64]| number(percentile(values, 0.95));
        rows.push([
            format!("{sessions} at {speed} × real time"),
            number(percentile(&figures.endpoints, 0.5)),
            p95(&figures.endpoints),
            // At another speed the silence does not last as long.
            if speed == 1.0 {
                p95(&figures.finals)
            } else {
                "-".to_owned()
            },
            p95(&figures.partials),
            number(figures.processor * 100.0),
            number(figures.memory_mib),
            figures.failed.to_string(),
        ]);
        measured.push((sessions, speed, figures));
    }
    for (sessions, speed, figures) in &measured {
        if *sessions > 1 {
            continue;
        }
        report.at_most(
            format!("end of utterance to final transcript at {speed} × real time, p95"),
            LIMIT_ENDPOINT,
            percentile(&figures.endpoints, 0.95),
            "s",
        );
        if *speed == 1.0 {
            report.at_most(
                "end of speech to final transcript in real time, p95",
                LIMIT_SPEECH,
                percentile(&figures.finals, 0.95),
                "s",
            );
        }
    }
    report.table(
        "Sessions at a time that stream the shipped recordings. Seconds to the final transcript from the end of an utterance \
         (0.4 s of silence, or the end of the recording), and from the end of its speech; seconds from the newest audio of a \
         partial transcript to its arrival:",
        [
            "Sessions",
            "Utterance, p50",
            "Utterance, p95",
            "Speech, p95",
            "Partial, p95",
            "Core, %",
            "Memory, MiB",
            "Failed",
        ],
        &rows,
    );
    let alone = measured.first().map_or(0.0, |(.., figures)| figures.memory_mib);
    if let Some((sessions, _, most)) = measured.iter().max_by_key(|(sessions, ..)| *sessions)
        && *sessions > 1
    {
        let each = (most.memory_mib - alone) / (*sessions - 1) as f64;
        report.note(&format!(
            "A further session takes {} MiB of resident memory.",
            number(each)
        ));
    }
    let served = measured.iter().filter(|(_, speed, figures)| {
        *speed == 1.0 && figures.failed == 0 && percentile(&figures.finals, 0.95) < LIMIT_SERVED
    });
    let served = served.map(|(sessions, ..)| *sessions).max().unwrap_or_default();
    report.note(&format!(
        "{served} sessions in real time have a final transcript within {LIMIT_SERVED} s of the end of speech at p95."
    ));
    report.finish();
}

async fn run(
    worker: &Server,
    port: u16,
    recordings: &Arc<Vec<Recording>>,
    sessions: usize,
    speed: f64,
) -> Figures {
    let pid = worker.pid();
    let (began, used) = (std::time::Instant::now(), machine::processor_seconds(pid));
    let streams: Vec<_> = (0..sessions)
        .map(|first| tokio::spawn(session(port, Arc::clone(recordings), first, speed, usize::MAX)))
        .collect();
    let mut figures = Figures::default();
    while !streams.iter().all(tokio::task::JoinHandle::is_finished) {
        figures.memory_mib = figures.memory_mib.max(machine::resident_mib(pid));
        sleep(Duration::from_millis(200)).await;
    }
    for stream in streams {
        let found = stream.await.unwrap();
        figures.finals.extend(found.finals);
        figures.endpoints.extend(found.endpoints);
        figures.partials.extend(found.partials);
        figures.failed += found.failed;
    }
    let used = machine::processor_seconds(pid) - used;
    figures.processor = used / began.elapsed().as_secs_f64();
    figures
}

/// Streams at most so many recordings one after the other, `first` ones later than other sessions.
async fn session(
    port: u16,
    recordings: Arc<Vec<Recording>>,
    first: usize,
    speed: f64,
    most: usize,
) -> Figures {
    let mut figures = Figures::default();
    let order = (0..recordings.len()).map(|at| (at + first) % recordings.len());
    for recording in order.take(most).filter_map(|at| recordings.get(at)) {
        let (client, _) = WebSocketClient::session(port, "/session").await;
        let messages = client.stream(&recording.bytes, speed).await;
        figures.failed += usize::from(
            messages
                .last()
                .is_none_or(|(_, last)| last["type"] != "session.end"),
        );
        for (arrived, message) in messages {
            let end = message["end"].as_f64().unwrap_or_default();
            let since = |spoken: f64| arrived.as_secs_f64() - spoken / speed;
            match message["type"].as_str().unwrap() {
                "transcript.final" => {
                    figures.finals.push(since(end));
                    figures
                        .endpoints
                        .push(since((end + SILENCE).min(recording.seconds)));
                }
                "transcript.partial" => figures.partials.push(since(end)),
                _ => {}
            }
        }
    }
    figures
}
