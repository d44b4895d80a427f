//! Realtime sessions: how many of them one core serves, their latency and their memory.
//!
//! `cargo xtask bench sessions`; `--quick` takes a minute. The worker is a process on one core,
//! with a real Redis and an engine that answers at once: what is measured is all that the SDK does
//! for a session. The clients stream a recording in real time, in pieces of 100 ms.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bench::{Server, machine};
use dalston_engine_sdk::audio::AudioFormat;
use dalston_engine_sdk::worker;
use dalston_engine_sdk::{
    DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, RunnerConfig, Segment, Stage, TaskContext,
    TaskError, TaskRequest, Transcript,
};
use dalston_telemetry::{Env, TelemetryHandle};
use tempfile::TempDir;
use testbed::report::{Report, is_quick, number, percentile};
use testbed::{TestRedis, WebSocketClient, free_port};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

/// Seconds from the end of speech to the final transcript. 0.4 of them are the silence that ends an
/// utterance.
const LIMIT_FINAL: f64 = 0.6;
/// Sessions count as served below this time.
const LIMIT_SERVED: f64 = 1.0;
const SESSIONS: [usize; 5] = [1, 100, 300, 600, 900];
const IDLE_SESSIONS: usize = 200;
/// 16,000 samples of 16 bits.
const BYTES_PER_SECOND: usize = 32_000;
const HEADER_BYTES: usize = 44;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", redis, storage, port] => serve(redis, storage, port),
        _ => runtime().block_on(report()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Answers at once.
struct Fixed;

impl Engine for Fixed {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("fixed", "1.0.0")
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .realtime(true)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Transcript, TaskError> {
        let seconds = task.audio()?.duration().as_secs_f64();
        let segment = Segment::new(0.0, seconds, "one two three four five");
        Ok(Transcript::from_segments([segment]))
    }
}

/// The worker. It prints that it has begun, and ends when it is killed.
fn serve(redis: &str, storage: &str, port: &str) {
    let env = Env::from_pairs([
        ("REDIS_URL", redis),
        ("DALSTON_STORAGE_DIR", storage),
        ("DALSTON_WORKER_PORT", port),
        ("DALSTON_METRICS_PORT", "0"),
        ("DALSTON_MAX_SESSIONS", "10000"),
    ]);
    let config = RunnerConfig::from_env(&env).unwrap();
    let deployment = DeploymentConfig::from_env(&env).unwrap();
    println!("begun");
    let telemetry = TelemetryHandle::disabled();
    let running = worker::run(Fixed, config, deployment, telemetry, std::future::pending::<()>());
    runtime().block_on(running).unwrap();
}

async fn report() {
    let mut report = Report::start(&["tokio-tungstenite", "earshot"]);
    let redis = TestRedis::start().await;
    let storage = TempDir::new().unwrap();
    let port = free_port();
    let place = storage.path().to_str().unwrap();
    let worker = Server::start(&["--serve", &redis.url(), place, &port.to_string()]);
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    pin(worker.pid(), "0");
    pin(std::process::id(), &format!("1-{}", cores - 1));

    let idle = idle(&worker, port).await;
    let (sessions, seconds) = if is_quick() {
        (&SESSIONS[..2], 8)
    } else {
        (&SESSIONS[..], 20)
    };
    let mut rows = Vec::new();
    let (mut served, mut alone) = (0, f64::NAN);
    for &count in sessions {
        let figures = stream(&worker, port, count, seconds).await;
        let latency = percentile(&figures.finals, 0.95);
        if count == 1 {
            alone = latency;
        }
        if latency < LIMIT_SERVED && figures.failed == 0 {
            served = count;
        }
        rows.push([
            count.to_string(),
            number(percentile(&figures.finals, 0.5)),
            number(latency),
            number(percentile(&figures.partials, 0.95)),
            number(figures.processor * 100.0),
            figures.failed.to_string(),
        ]);
        if served < count {
            break;
        }
    }
    report.at_most(
        "end of speech to final transcript, one session, p95",
        LIMIT_FINAL,
        alone,
        "s",
    );
    report.table(
        "Sessions that stream speech in real time, with the worker on one core. Seconds from the end of speech to the final \
         transcript, and from the newest audio of a partial transcript to its arrival:",
        ["Sessions", "Final, p50", "Final, p95", "Partial, p95", "Core, %", "Failed"],
        &rows,
    );
    report.note(&format!(
        "{served} sessions on one core have a final transcript within {LIMIT_SERVED} s at p95."
    ));
    report.table(
        &format!("One of {IDLE_SESSIONS} open sessions without audio:"),
        ["", "Value"],
        &[
            [
                "resident memory, KiB".to_owned(),
                number(idle.memory_mib * 1024.0),
            ],
            ["of a core, %".to_owned(), number(idle.processor * 100.0)],
        ],
    );
    report.finish();
}

/// What one open session without audio costs.
struct Idle {
    memory_mib: f64,
    /// Share of a core.
    processor: f64,
}

async fn idle(worker: &Server, port: u16) -> Idle {
    let (pid, count) = (worker.pid(), IDLE_SESSIONS as f64);
    let before = machine::resident_mib(pid);
    let mut open = Vec::new();
    for _ in 0..IDLE_SESSIONS {
        open.push(WebSocketClient::session(port, "/session").await);
    }
    let memory_mib = (machine::resident_mib(pid) - before) / count;
    let (began, used) = (Instant::now(), machine::processor_seconds(pid));
    sleep(Duration::from_secs(10)).await;
    let used = machine::processor_seconds(pid) - used;
    Idle {
        memory_mib,
        processor: used / began.elapsed().as_secs_f64() / count,
    }
}

/// What sessions at the same time measured, in seconds.
#[derive(Default)]
struct Figures {
    finals: Vec<f64>,
    partials: Vec<f64>,
    /// Sessions that ended early or without a final transcript.
    failed: usize,
    /// Share of a core that the worker used.
    processor: f64,
}

async fn stream(worker: &Server, port: u16, count: usize, seconds: usize) -> Figures {
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/faster_whisper/audio/en_pauses_25s.wav"
    );
    let audio: Arc<[u8]> = std::fs::read(recording).unwrap()[HEADER_BYTES..].into();
    let (began, used) = (Instant::now(), machine::processor_seconds(worker.pid()));
    let sessions: Vec<_> = (0..count)
        .map(|at| {
            // So that not all utterances end at once.
            let begin = began + Duration::from_secs_f64(5.0 * at as f64 / count as f64);
            tokio::spawn(session(port, Arc::clone(&audio), begin, seconds))
        })
        .collect();
    let mut figures = Figures::default();
    for session in sessions {
        let (finals, partials) = session.await.unwrap();
        figures.failed += usize::from(finals.is_empty());
        figures.finals.extend(finals);
        figures.partials.extend(partials);
    }
    let used = machine::processor_seconds(worker.pid()) - used;
    figures.processor = used / began.elapsed().as_secs_f64();
    figures
}

/// Streams so many seconds; returns the latencies of final and of partial transcripts. None if the
/// worker refused or ended the session.
async fn session(port: u16, audio: Arc<[u8]>, begin: Instant, seconds: usize) -> (Vec<f64>, Vec<f64>) {
    sleep_until(begin).await;
    let client = WebSocketClient::open(port, "/session", &[]).await;
    let spoken = audio.len().min(seconds * BYTES_PER_SECOND);
    let (mut finals, mut partials, mut is_ended) = (Vec::new(), Vec::new(), false);
    for (arrived, message) in client.stream(&audio[..spoken], 1.0).await {
        let latency = || arrived.as_secs_f64() - message["end"].as_f64().unwrap();
        match message["type"].as_str().unwrap() {
            "transcript.final" => finals.push(latency()),
            "transcript.partial" => partials.push(latency()),
            "session.end" => is_ended = true,
            _ => {}
        }
    }
    match is_ended {
        true => (finals, partials),
        false => (Vec::new(), Vec::new()),
    }
}

/// Lets all threads of a process run on these cores only.
fn pin(pid: u32, cores: &str) {
    let pid = pid.to_string();
    let arguments = ["--all-tasks", "--cpu-list", "--pid", cores, &pid];
    let output = Command::new("taskset").args(arguments).output().unwrap();
    assert!(output.status.success(), "taskset {cores} {pid}: {output:?}");
}
