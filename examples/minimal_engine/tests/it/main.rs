//! The binary of an engine, run from a command line.
#![allow(clippy::unwrap_used)]

mod keywords;
#[cfg(unix)]
mod live;
mod pages;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::collector::{Collector, Protocol};

/// The binary in its own directory, with an empty environment.
struct Engine {
    dir: tempfile::TempDir,
}

struct Finished {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Engine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn with_file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn command(&self, args: &str) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_minimal_engine"), args)
    }

    fn command_of(&self, program: &str, args: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(args.split_whitespace())
            .current_dir(&self.dir)
            .env_clear()
            .env("TMPDIR", self.dir.path());
        command
    }

    fn run(&self, args: &str) -> Finished {
        finish(&mut self.command(args))
    }
}

fn finish(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    Finished {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn lines_of_json(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The span names of a waterfall, from the top down. The times differ from run to run.
fn names_in(waterfall: &str) -> Vec<&str> {
    waterfall
        .lines()
        .skip(1)
        .filter_map(|line| {
            line.trim_start_matches(['├', '└', '─', '│', ' '])
                .split_whitespace()
                .next()
        })
        // Attributes are on lines of their own.
        .filter(|name| !name.contains('='))
        .collect()
}

#[test]
fn result_of_a_file_is_printed() {
    let ran = Engine::new()
        .with_file("notes.txt", "one two three")
        .run("transcribe notes.txt");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout, "{\n  \"words\": 3\n}\n");
}

#[test]
fn results_keep_the_order_of_the_arguments() {
    let engine = Engine::new()
        .with_file("a", "one")
        .with_file("b", "one two")
        .with_file("c", "");
    let ran = engine.run("transcribe b c a b --json");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let expected = [("b", 2), ("c", 0), ("a", 1), ("b", 2)];
    let expected = expected.map(|(file, words)| json!({ "file": file, "data": { "words": words } }));
    assert_eq!(lines_of_json(&ran.stdout), expected);
}

#[test]
fn bad_file_fails_alone_with_a_line_that_names_it() {
    let engine = Engine::new().with_file("good", "one two");
    std::fs::write(engine.dir.path().join("binary"), [0xff, 0xfe]).unwrap();
    std::fs::create_dir(engine.dir.path().join("folder")).unwrap();
    let ran = engine.run("transcribe gone good folder binary --json");
    assert_eq!(ran.status, Some(1));
    assert_eq!(
        lines_of_json(&ran.stdout),
        [json!({ "file": "good", "data": { "words": 2 } })]
    );
    assert_eq!(
        ran.stderr,
        "error: gone: there is no such file\n\
         error: folder: is a directory, not a file\n\
         error: binary: stream did not contain valid UTF-8\n"
    );
}

#[test]
fn dash_is_the_standard_input() {
    let engine = Engine::new().with_file("a", "one");
    let mut running = engine
        .command("transcribe a - --json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(b"one two three").unwrap();
    let ran = running.wait_with_output().unwrap();
    let lines = lines_of_json(&String::from_utf8(ran.stdout).unwrap());
    let counted: Vec<_> = lines
        .iter()
        .map(|line| (&line["file"], &line["data"]["words"]))
        .collect();
    assert_eq!(counted, [(&json!("a"), &json!(1)), (&json!("-"), &json!(3))]);
    let twice = engine.run("transcribe - -");
    assert_eq!(twice.status, Some(2));
    assert!(twice.stderr.contains("- is given twice"), "{}", twice.stderr);
    assert_eq!(files_in(engine.dir.path()), ["a"]);
}

#[test]
fn trace_option_prints_the_waterfall() {
    let engine = Engine::new().with_file("notes.txt", "one two three");
    let ran = engine.run("transcribe notes.txt --trace");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let waterfall = ran.stdout.strip_prefix("{\n  \"words\": 3\n}\n").unwrap();
    assert_eq!(
        names_in(waterfall),
        [
            "local.task",
            "engine.queue_wait",
            "engine.word-counter.process",
            "engine.download_input",
            "engine.process",
            "engine.upload_output",
        ],
        "{waterfall}"
    );

    // Standard output contains only JSON, for programs that parse it.
    let ran = engine.run("transcribe notes.txt --trace --json");
    assert_eq!(lines_of_json(&ran.stdout).len(), 1);
    assert!(
        ran.stderr.contains("engine.word-counter.process"),
        "{}",
        ran.stderr
    );
}

#[test]
fn metrics_option_prints_the_changed_metrics() {
    let ran = Engine::new().with_file("a", "").run("transcribe a a --metrics");
    let processed = ran
        .stdout
        .lines()
        .find(|line| line.contains("dalston_engine_tasks_processed_total"));
    assert!(
        processed.is_some_and(|line| line.contains("  +2  {")),
        "{}",
        ran.stdout
    );
}

#[test]
fn invalid_usage_exits_with_2_and_names_accepted_values() {
    let engine = Engine::new().with_file("a", "");
    for (args, named) in [
        ("", "Usage:"),
        ("translate a", "translate"),
        ("transcribe", "FILE"),
        ("transcribe a --device tpu", "auto, cpu, cuda or cuda:N"),
        (
            "transcribe a --precision float8",
            "auto, float32, float16, bfloat16 or int8",
        ),
        ("transcribe a --timestamps maybe", "true"),
        (
            "transcribe a --language e!",
            "expected a code such as en or de, a name such as German, or auto",
        ),
        ("transcribe a --task summarise", "translate"),
    ] {
        let ran = engine.run(args);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "{args}");
        assert!(ran.stderr.contains(named), "{args}: {}", ran.stderr);
    }
    for (name, value) in [
        ("DALSTON_SLOTS", "0"),
        ("OTEL_ENABLED", "perhaps"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ] {
        let ran = finish(
            engine
                .command("transcribe a")
                .env("OTEL_ENABLED", "true")
                .env(name, value),
        );
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "{name}");
        assert!(
            ran.stderr
                .starts_with(&format!("error: {name} is \"{value}\": expected ")),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = Engine::new().run("--help");
    assert_eq!((help.status, help.stderr.as_str()), (Some(0), ""));
    for word in ["transcribe", "describe", "doctor", "word-counter"] {
        assert!(help.stdout.contains(word), "{}", help.stdout);
    }
    let version = Engine::new().run("--version");
    assert_eq!(
        version.stdout,
        format!("minimal_engine {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn describe_prints_json() {
    let ran = Engine::new().run("describe");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let described: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(described["engine_id"], "word-counter");
    assert_eq!(described["stages"], json!(["count"]));
    assert_eq!(described["capabilities"]["supports_cpu"], true);
}

#[test]
fn describe_prints_the_files_of_the_platform() {
    let ran = Engine::new().run("describe --engine-yaml");
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        r#"# stage is count: the platform expects one of prepare, transcribe, align, diarize, pii_detect, audio_redact
# container.memory is a guess: set EngineInfo::memory_gib
schema_version: "1.1"
id: "word-counter"
engine_id: "word-counter"
stage: "count"
name: "word-counter"
version: "{version}"
description: "word-counter {version}, an engine built with dalston-engine-sdk {version}"
execution_profile: "container"
container:
  gpu: "none"
  memory: "2G"
capabilities:
  languages: ["all"]
  native_streaming: false
  word_timestamps: false
  includes_diarization: false
  language_forcing: true
hardware:
  supports_cpu: true
performance:
  rtf_gpu: null
  rtf_cpu: null
"#
    );
    assert_eq!((ran.status, ran.stdout), (Some(0), expected));

    let row = Engine::new().run("describe --model-yaml=small");
    assert_eq!(row.status, Some(0), "{}", row.stderr);
    assert!(
        row.stdout.contains("\nloaded_model_id: \"small\"\n"),
        "{}",
        row.stdout
    );
    let none = Engine::new().run("describe --model-yaml");
    assert_eq!((none.status, none.stdout.as_str()), (Some(2), ""));
    let advice = "error: the engine has no default model: name one with --model-yaml=MODEL\n";
    assert_eq!(none.stderr, advice);
}

#[test]
fn doctor_names_broken_settings() {
    let engine = Engine::new();
    let sound = engine.run("doctor");
    assert_eq!(
        (sound.status, sound.stderr.as_str()),
        (Some(0), ""),
        "{}",
        sound.stdout
    );
    assert!(
        sound.stdout.contains("ok       temporary files"),
        "{}",
        sound.stdout
    );

    for (name, value, row) in [
        (
            "TMPDIR",
            "/nowhere",
            "missing  temporary files  /nowhere can't be written: no such file",
        ),
        (
            "DALSTON_SLOTS",
            "many",
            "missing  environment      DALSTON_SLOTS is \"many\": expected ",
        ),
        (
            "OTEL_TRACES_SAMPLER",
            "sometimes",
            "missing  environment      OTEL_TRACES_SAMPLER is \"sometimes\": expected ",
        ),
    ] {
        let broken = finish(
            engine
                .command("doctor")
                .env("OTEL_ENABLED", "true")
                .env(name, value),
        );
        assert_eq!(broken.status, Some(1), "{name}");
        assert!(broken.stdout.contains(row), "{}", broken.stdout);
    }
}

#[test]
fn closed_standard_output_is_no_error() {
    let engine = Engine::new().with_file("a", "");
    let mut child = engine
        .command(&format!("transcribe {}", "a ".repeat(500)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert_eq!(ended.status.code(), Some(0));
}

#[cfg(unix)]
#[test]
fn signal_stops_work_and_keeps_printed_results() {
    for (name, status) in [("INT", 130), ("TERM", 143)] {
        end_by(name, status);
    }
}

#[cfg(unix)]
fn end_by(name: &str, status: i32) {
    // Too many to finish before the signal arrives.
    const FILES: usize = 50_000;
    let engine = Engine::new().with_file("a", "");
    let mut child = engine
        .command(&format!("transcribe --json {}", "a ".repeat(FILES)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert_eq!(lines_of_json(&first).len(), 1);
    signal(child.id(), name);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(status));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "error: interrupted\n");
    assert!(rest.len() < FILES - 1);
    assert_eq!(lines_of_json(&rest.join("\n")).len(), rest.len());
}

#[cfg(unix)]
#[test]
fn worker_logs_to_standard_output_and_stops_on_sigterm() {
    worker_logs_and_stops(None, "engine-word-counter");
}

#[test]
fn engine_id_of_the_environment_names_the_service() {
    worker_logs_and_stops(Some("words-2"), "engine-words-2");
}

/// Expects this service in the lines of the worker.
fn worker_logs_and_stops(engine_id: Option<&str>, service: &str) {
    let engine = Engine::new();
    let mut command = engine.command("run");
    command.envs(engine_id.map(|id| ("DALSTON_ENGINE_ID", id)));
    let mut child = command
        // Nothing listens on this port. The worker starts and waits for Redis.
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("DALSTON_METRICS_PORT", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, lines) = mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let _ = tell.send(line.unwrap());
        }
    });
    let process = Guard(child);
    let starting = wait_for_event(&lines, "engine_loop_starting");
    assert_eq!(
        (&starting["level"], &starting["service"]),
        (&json!("info"), &json!(service)),
        "{starting}"
    );
    signal(process.0.id(), "TERM");
    let received = wait_for_event(&lines, "shutdown_signal_received");
    assert_eq!(received["signal"], "SIGTERM");
    wait_for_event(&lines, "engine_loop_stopped");
    let ended = process.end();
    reader.join().unwrap();
    assert_eq!(
        (
            ended.status.code(),
            String::from_utf8_lossy(&ended.stderr).as_ref()
        ),
        (Some(0), "")
    );
}

#[cfg(unix)]
#[test]
fn worker_on_ec2_detects_its_type_and_drains_on_notice() {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let imds = server.block_on(testbed::TestImds::start());
    let port = testbed::free_port();
    let engine = Engine::new();
    let mut child = engine
        .command("run")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())
        .env("INSTANCE_TYPE", "")
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("DALSTON_METRICS_PORT", port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, lines) = mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let _ = tell.send(line.unwrap());
        }
    });
    let process = Guard(child);
    let starting = wait_for_event(&lines, "engine_loop_starting");
    assert_eq!(starting["instance_type"], "g5.xlarge", "{starting}");

    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let counter = metrics
        .lines()
        .find(|line| line.starts_with("dalston_engine_tasks_processed_total{"));
    let counter = counter.unwrap_or_else(|| panic!("no counter in {metrics}"));
    assert!(counter.contains(r#"instance_type="g5.xlarge""#), "{counter}");

    imds.put("meta-data/spot/instance-action", r#"{"action": "terminate"}"#);
    let notice = wait_for_event(&lines, "spot_interruption_notice");
    assert_eq!(
        (&notice["action"], &notice["level"]),
        (&json!("terminate"), &json!("warning"))
    );
    wait_for_event(&lines, "engine_loop_stopped");
    let ended = process.end();
    reader.join().unwrap();
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn transcribe_detects_ec2_only_while_tracing_is_on() {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let imds = server.block_on(testbed::TestImds::start());
    let engine = Engine::new().with_file("notes.txt", "one two three");
    let transcribe = || {
        let mut command = engine.command("transcribe notes.txt --trace");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
        command
    };
    assert_eq!(finish(&mut transcribe()).status, Some(0));
    assert!(imds.requests().is_empty());

    let collector = Collector::start(Protocol::Http);
    let ran = finish(transcribe().envs(collector.env()));
    assert_eq!((ran.status, &*ran.stderr), (Some(0), ""));
    let spans = collector.next();
    assert_eq!(spans.resource("host.type").as_deref(), Some("g5.xlarge"));
    assert_eq!(
        spans.resource("host.id").as_deref(),
        Some(testbed::TestImds::INSTANCE_ID)
    );
}

/// Kills the process at the end of its test.
#[cfg(unix)]
struct Guard(Child);

#[cfg(unix)]
impl Guard {
    /// Waits for the process to exit.
    fn end(mut self) -> Output {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "the process does not end");
            thread::sleep(Duration::from_millis(10));
        };
        let mut stderr = Vec::new();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output {
            status,
            stdout: Vec::new(),
            stderr,
        }
    }
}

#[cfg(unix)]
impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a test waits on a busy machine.
#[cfg(unix)]
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a line about `event`. Every line before it must be JSON, too.
#[cfg(unix)]
fn wait_for_event(lines: &mpsc::Receiver<String>, event: &str) -> Value {
    loop {
        let line = lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("no line about {event}: {error}"));
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["event"] == event {
            return line;
        }
    }
}

#[cfg(unix)]
fn signal(process: u32, name: &str) {
    let sent: ExitStatus = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{name} {process}"))
        .status()
        .unwrap();
    assert!(sent.success());
}

#[test]
fn unreachable_collector_neither_fails_nor_delays_results() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = ([127, 0, 0, 1], testbed::free_port()).into();
    let engine = Engine::new().with_file("notes.txt", "one two three");
    for collector in [absent, hanging.local_addr().unwrap()] {
        let began = Instant::now();
        let ran = finish(
            engine
                .command("transcribe notes.txt --json")
                .env("OTEL_ENABLED", "true")
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}")),
        );
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        assert_eq!(lines_of_json(&ran.stdout)[0]["data"], json!({ "words": 3 }));
        assert!(
            ran.stderr.starts_with("warning: ") && ran.stderr.lines().count() == 1,
            "{}",
            ran.stderr
        );
        // Telemetry gives up after 5 s. The rest allows for a busy machine.
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}

#[test]
fn no_temporary_files_remain() {
    let engine = Engine::new().with_file("a", "one");
    let _ = engine.run("transcribe a gone --trace");
    let _ = engine.run("doctor");
    assert_eq!(files_in(engine.dir.path()), ["a"]);
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
