//! `dev_platform demo`: everything on this machine, with one recording submitted.
//!
//! Unless the environment turns tracing on and names a collector, all processes send their spans to
//! the gateway, and the waterfall of the job is printed.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use dalston_telemetry::Env;
use dalston_telemetry::services::http::TRACE_ID_HEADER;
use reqwest::Client;
use reqwest::multipart::{Form, Part};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::service::terminated;

/// How long the processes may take to start, and a job to end.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a process may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(200);
/// How long the last spans of a trace may be on their way.
const TRACE_TIMEOUT: Duration = Duration::from_secs(10);
/// A trace is complete if it has the end of its job and did not change for this time, in which all
/// processes export.
const QUIET: Duration = Duration::from_millis(600);
/// The start of the names of the spans in which a job ends.
const END_OF_JOB: &str = "orchestrator.mark_job_";

/// What the demo runs.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The binary of an engine for the stage `transcribe`; without it, one without a model.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Its model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A recording to submit. Each of its channels becomes a task.
    #[arg(long)]
    recording: Option<PathBuf>,
    /// Where the database, the files and the logs are kept.
    #[arg(long, default_value = ".dalston")]
    directory: PathBuf,
}

/// Runs everything until Ctrl-C, `SIGTERM`, or the end of the terminal.
pub(crate) fn run(arguments: &Arguments, env: &Env) -> Result<()> {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // From now on Ctrl-C ends the demo in order, and not the process at once.
        let signal = terminated();
        let mut hangup = unix::signal(SignalKind::hangup())?;
        let mut demo = Demo::new(arguments, env).await?;
        let shown = tokio::select! {
            shown = demo.show(arguments) => shown,
            signal = signal => signal.map(drop),
            _ = hangup.recv() => Ok(()),
        };
        demo.stop().await;
        shown
    })
}

struct Demo {
    directory: PathBuf,
    url: String,
    variables: Vec<(&'static str, String)>,
    /// Whether the gateway gets the spans, and no other collector.
    has_traces: bool,
    processes: Vec<(&'static str, Child)>,
    client: Client,
}

impl Demo {
    async fn new(arguments: &Arguments, env: &Env) -> Result<Self> {
        fs::create_dir_all(&arguments.directory)?;
        let directory = arguments.directory.canonicalize()?;
        let port = env.get("DALSTON_GATEWAY_PORT").unwrap_or("8000");
        let path = |name: &str| directory.join(name).display().to_string();
        let redis_port = free_port()?;
        let has_traces = env.get("OTEL_ENABLED").is_none();
        let mut variables = vec![
            ("REDIS_URL", format!("redis://127.0.0.1:{redis_port}")),
            ("DALSTON_STORAGE_DIR", path("storage")),
            ("DALSTON_DATABASE", path("platform.db")),
            ("DALSTON_AUDIT_LOG", path("audit.jsonl")),
            ("DALSTON_METRICS_PORT", "0".to_owned()),
        ];
        // Machines may not know their own name.
        let sessions_port = match env.get("DALSTON_WORKER_PORT") {
            Some(port) => port.to_owned(),
            None => free_port()?.to_string(),
        };
        let endpoint = format!("ws://127.0.0.1:{sessions_port}");
        variables.extend([
            ("DALSTON_WORKER_ENDPOINT", endpoint),
            ("DALSTON_WORKER_PORT", sessions_port),
        ]);
        if has_traces {
            variables.extend(exporting(env)?);
        }
        let mut demo = Self {
            url: format!("http://127.0.0.1:{port}"),
            directory,
            variables,
            has_traces,
            processes: Vec::new(),
            client: Client::new(),
        };
        let redis = path_of_redis(&demo.directory)?;
        let mut server = Command::new("redis-server");
        server
            .arg("--port")
            .arg(redis_port.to_string())
            .arg("--bind")
            .arg("127.0.0.1");
        server
            .arg("--dir")
            .arg(redis)
            .arg("--appendonly")
            .arg("yes")
            .arg("--save")
            .arg("");
        demo.start("redis", server)
            .context("redis-server is needed; on Debian: apt-get install redis-server")?;
        let platform = std::env::current_exe()?;
        for role in ["all", "prepare"] {
            let mut command = Command::new(&platform);
            command.arg(role);
            demo.start(role, command)?;
        }
        let mut engine = match &arguments.engine {
            Some(engine) => {
                let mut command = Command::new(engine);
                command.arg("run");
                command
            }
            None => {
                let mut command = Command::new(&platform);
                command.args(["mock-engine", "--realtime"]);
                command
            }
        };
        if let Some(model) = &arguments.model {
            engine.env("DALSTON_DEFAULT_MODEL", model.canonicalize()?);
        }
        demo.start("engine", engine)?;
        Ok(demo)
    }

    /// Starts a process whose log goes to a file.
    fn start(&mut self, name: &'static str, mut command: Command) -> Result<()> {
        let log = File::create(self.directory.join(format!("{name}.log")))?;
        let child = command
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches all processes of a group at once. These end one after the other.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        self.processes.push((name, child));
        Ok(())
    }

    /// Submits the recording, prints what came of it, and waits for the end of a process.
    async fn show(&mut self, arguments: &Arguments) -> Result<()> {
        self.wait_for_engines().await?;
        print("the platform is ready\n");
        if let Some(recording) = &arguments.recording {
            self.submit(recording).await?;
        }
        let logs = self.directory.display();
        print(&format!(
            "\npage      {url}/, {url}/microphone\n\
             API       {url}/v1/audio/transcriptions, {url}/v1/engines\n\
             sessions  {sessions}/v1/audio/transcriptions/stream\n\
             metrics   {url}/metrics\n\
             logs      {logs}/*.log, audit records {logs}/audit.jsonl\n\
             traces    {traces}\n\
             try       curl -F file=@talk.wav {url}/v1/audio/transcriptions\n\
             Ctrl-C ends it.",
            url = self.url,
            sessions = self.url.replace("http", "ws"),
            traces = match self.has_traces {
                true => format!(
                    "{}/v1/traces/<X-Trace-ID of a response>?format=text, or =otlp, or =jaeger",
                    self.url
                ),
                false => "go to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names".to_owned(),
            },
        ));
        loop {
            self.all_run()?;
            sleep(INTERVAL).await;
        }
    }

    async fn wait_for_engines(&mut self) -> Result<()> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            self.all_run()?;
            let engines = self.get("/v1/engines").await;
            if engines.is_ok_and(|engines| engines["total"].as_u64() >= Some(2)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("no engine has registered: see {}", self.directory.display());
            }
            sleep(INTERVAL).await;
        }
    }

    async fn submit(&mut self, recording: &Path) -> Result<()> {
        let bytes = fs::read(recording).with_context(|| recording.display().to_string())?;
        let name = recording
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let form = Form::new()
            .part("file", Part::bytes(bytes).file_name(name.clone()))
            .text("speaker_detection", "per_channel");
        let url = format!("{}/v1/audio/transcriptions", self.url);
        let response = self.client.post(url).multipart(form).send().await?;
        let trace = response.headers().get(TRACE_ID_HEADER);
        let trace = trace.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let created: Value = response.json().await?;
        let id = created["id"].as_str().with_context(|| created.to_string())?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let job = loop {
            self.all_run()?;
            let job = self.get(&format!("/v1/audio/transcriptions/{id}")).await?;
            if matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
                break job;
            }
            if Instant::now() > deadline {
                bail!("the job {id} does not end: see {}", self.directory.display());
            }
            sleep(INTERVAL).await;
        };
        print(&describe(&name, &job));
        match trace {
            Some(trace) if self.has_traces => print(&format!("\n{}", self.waterfall(&trace).await?)),
            Some(trace) => print(&format!("\ntrace {trace}")),
            None => {}
        }
        Ok(())
    }

    /// The waterfall of a trace, once it is complete.
    async fn waterfall(&self, trace_id: &str) -> Result<String> {
        let url = format!("{}/v1/traces/{trace_id}?format=text", self.url);
        let deadline = Instant::now() + TRACE_TIMEOUT;
        let mut text = String::new();
        loop {
            sleep(QUIET).await;
            let now = self.client.get(&url).send().await?.text().await?;
            let is_complete = now == text && now.contains(END_OF_JOB) || Instant::now() > deadline;
            text = now;
            if is_complete {
                return Ok(text);
            }
        }
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let request = self.client.get(format!("{}{path}", self.url));
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    fn all_run(&mut self) -> Result<()> {
        for (name, child) in &mut self.processes {
            if let Some(status) = child.try_wait()? {
                let log = self.directory.join(format!("{name}.log"));
                let text = fs::read_to_string(&log).unwrap_or_default();
                let last = text.lines().last().unwrap_or_default();
                bail!("{name} has ended with {status}, see {}: {last}", log.display());
            }
        }
        Ok(())
    }

    /// Ends the processes in the opposite order of their starts: Redis is the last.
    async fn stop(&mut self) {
        print("\nending");
        while let Some((name, mut child)) = self.processes.pop() {
            let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
            if timeout(END_TIMEOUT, child.wait()).await.is_err() {
                print(&format!("{name} does not end, and is killed"));
                let _ = child.kill().await;
            }
        }
    }
}

/// A job as a few lines: its text, and where its time went.
fn describe(recording: &str, job: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = vec![format!("{recording}: {}", text(&job["status"]))];
    for segment in job["segments"].as_array().into_iter().flatten() {
        let seconds = |name: &str| segment[name].as_f64().unwrap_or(0.0);
        let (start, end) = (seconds("start"), seconds("end"));
        let speaker = text(&segment["speaker"]);
        lines.push(format!(
            "[{start:6.2} -> {end:6.2}]  {speaker}  {}",
            text(&segment["text"]).trim()
        ));
    }
    if let Some(error) = job["error"].as_str() {
        lines.push(error.to_owned());
    }
    lines.push(format!("\n{:<16} {:>8} {:>8}  engine", "stage", "wait", "run"));
    for stage in job["stages"].as_array().into_iter().flatten() {
        let time = |name: &str| {
            stage[name]
                .as_u64()
                .map_or("-".to_owned(), |time| format!("{time} ms"))
        };
        let (wait, run) = (time("wait_ms"), time("duration_ms"));
        lines.push(format!(
            "{:<16} {wait:>8} {run:>8}  {}",
            text(&stage["stage"]),
            text(&stage["engine_id"])
        ));
    }
    lines.join("\n")
}

fn path_of_redis(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("redis");
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// The variables with which the gateway receives the spans of all processes, also its own.
fn exporting(env: &Env) -> Result<[(&'static str, String); 5]> {
    let name = "DALSTON_OTLP_GRPC_PORT";
    let port = match env.get(name) {
        Some(port) => port.to_owned(),
        // The usual one, unless a collector has it.
        None => match TcpListener::bind("127.0.0.1:4317") {
            Ok(_) => "4317".to_owned(),
            Err(_) => free_port()?.to_string(),
        },
    };
    Ok([
        ("OTEL_ENABLED", "true".to_owned()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        (name, port),
    ])
}

/// A port below those that the kernel gives to connections: none of them can take it before its
/// server does.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u128 = 12_000;
    for _ in 0..100 {
        let offset = u16::try_from(Uuid::new_v4().as_u128() % COUNT)?;
        if TcpListener::bind(("127.0.0.1", FIRST + offset)).is_ok() {
            return Ok(FIRST + offset);
        }
    }
    bail!("no port is free")
}

/// A reader that is gone must not stop the demo before its processes.
fn print(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{text}").and_then(|()| output.flush());
}
