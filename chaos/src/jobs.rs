//! Jobs of the development platform, while its processes are killed and Redis comes back empty.
//!
//! The database is the only state that survives. Every job that the gateway accepted must be
//! completed, with one record of its creation and at least one of its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dalston_telemetry::audit::AuditAction;
use reqwest::Client;
use reqwest::multipart::{Form, Part};
use serde_json::Value;
use testbed::{TestRedis, stereo_recording};
use tokio::time::{Instant, sleep};

use crate::orchestrator::Orchestrator;
use crate::random::Random;

/// How long jobs are submitted and faults injected.
const STORM: Duration = Duration::from_secs(20);
/// The longest time from the last fault to the end of the last job.
const RECOVERY: Duration = Duration::from_secs(120);
/// The processes of the platform: its services, and two engines for each stage.
const PROCESSES: [&str; 6] = [
    "gateway",
    "orchestrator",
    "prepare",
    "prepare",
    "mock-engine",
    "mock-engine",
];
/// The arguments of engines: a short lease, and tasks that a kill can hit.
const ENGINE: [&str; 4] = ["--lease", "3", "--delay", "100"];
const TRANSCRIPT: &str = "channel 0 1.0s channel 1 1.0s";

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Jobs that the gateway accepted.
    pub(crate) accepted: usize,
    /// Submissions that were not answered. They may have made a job.
    pub(crate) unanswered: usize,
    pub(crate) kills: usize,
    /// How often Redis lost its data.
    pub(crate) emptied: usize,
}

/// The processes, their Redis and their files.
struct Services {
    redis: TestRedis,
    directory: PathBuf,
    port: u16,
    client: Client,
    running: Vec<Option<Child>>,
}

/// Runs the jobs, and reports violations to `orchestrator`.
pub(crate) async fn run(directory: &Path, orchestrator: &Orchestrator, random: &mut Random) -> Counts {
    let mut services = Services::start(directory.join("jobs")).await;
    let mut counts = Counts::default();
    let mut accepted = Vec::new();
    let over = Instant::now() + STORM;
    let mut fault_at = Instant::now() + Duration::from_secs(3);
    while Instant::now() < over {
        match services.submit().await {
            Some(id) => accepted.push(id),
            None => counts.unanswered += 1,
        }
        if Instant::now() >= fault_at {
            services.fault(random, &mut counts).await;
            fault_at = Instant::now() + Duration::from_secs_f64(random.between(0.5, 2.0));
        }
        sleep(Duration::from_secs_f64(random.between(0.05, 0.4))).await;
    }
    services.start_all();
    counts.accepted = accepted.len();

    let deadline = Instant::now() + RECOVERY;
    let mut open = services.open_jobs().await;
    while open != Some(0) && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
        open = services.open_jobs().await;
    }
    if open != Some(0) {
        let text = format!("{open:?} jobs have not ended {RECOVERY:?} after the last fault");
        orchestrator.violation(None, text);
    }
    let records = services.records();
    for id in &accepted {
        let job = services.job(id).await.unwrap_or_default();
        if job["status"] != "completed" || job["text"] != TRANSCRIPT {
            orchestrator.violation(Some(id), format!("its job is {job}"));
        }
        let of = |action: AuditAction| records.get(&(action.as_str().to_owned(), id.clone())).copied();
        let (created, completed) = (of(AuditAction::JobCreated), of(AuditAction::JobCompleted));
        if created != Some(1) || completed.is_none() {
            let text = format!("audit records: created {created:?}, completed {completed:?}");
            orchestrator.violation(Some(id), text);
        }
    }
    services.end(orchestrator);
    counts
}

impl Services {
    async fn start(directory: PathBuf) -> Self {
        for part in ["storage", "tmp"] {
            fs::create_dir_all(directory.join(part)).expect("a directory of the platform");
        }
        // The client asks for a provider of cryptography even without TLS. An error means that
        // there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // It keeps nothing on disk, so that it comes back empty.
        let redis = TestRedis::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("the address of a listener").port();
        drop(listener);
        let mut services = Self {
            redis,
            directory,
            port,
            client: Client::new(),
            running: PROCESSES.map(|_| None).into(),
        };
        services.start_all();
        services
    }

    /// Starts the processes that do not run.
    fn start_all(&mut self) {
        for index in 0..PROCESSES.len() {
            if self.running[index].is_none() {
                self.running[index] = Some(self.process(index));
            }
        }
    }

    /// Starts a process, whose log is added to that of its predecessor.
    fn process(&self, index: usize) -> Child {
        let role = PROCESSES[index];
        let path = |name: &str| self.directory.join(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(path(&format!("{role}-{index}.log")))
            .expect("the log of a process is created");
        let program = std::env::current_exe().expect("a program has a path");
        let mut command = Command::new(program.with_file_name("dev_platform"));
        command.arg(role);
        if role == "prepare" || role == "mock-engine" {
            command.args(ENGINE);
        }
        command
            .env("REDIS_URL", self.redis.url())
            .env("DALSTON_STORAGE_DIR", path("storage"))
            .env("DALSTON_DATABASE", path("platform.db"))
            .env("DALSTON_GATEWAY_PORT", self.port.to_string())
            .env("DALSTON_METRICS_PORT", "0")
            .env("DALSTON_OTLP_HTTP_PORT", "off")
            .env("DALSTON_OTLP_GRPC_PORT", "off")
            .env("DALSTON_AUDIT_LOG", path(&format!("{role}-{index}.audit")))
            .env("DALSTON_LOG_FORMAT", "json")
            .env("TMPDIR", path("tmp"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log of a process is created"))
            .stderr(log)
            .spawn()
            .expect("dev_platform is built beside this program")
    }

    /// Kills a process, starts one that was killed, or lets Redis lose its data.
    async fn fault(&mut self, random: &mut Random, counts: &mut Counts) {
        let index = random.below(PROCESSES.len() + 2);
        match self.running.get_mut(index) {
            Some(Some(_)) => {
                self.kill(index);
                counts.kills += 1;
                // Some are restarted at once, the others by a later fault.
                if random.below(2) == 0 {
                    self.running[index] = Some(self.process(index));
                }
            }
            Some(None) => self.running[index] = Some(self.process(index)),
            None if index == PROCESSES.len() => {
                let emptied: redis::RedisResult<()> = self.redis.try_send(&["FLUSHALL"]).await;
                emptied.expect("Redis runs");
                counts.emptied += 1;
            }
            None => {
                self.redis.kill();
                sleep(Duration::from_secs_f64(random.between(0.1, 1.5))).await;
                self.redis.restart().await;
                counts.emptied += 1;
            }
        }
    }

    fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.running[index].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The id of the new job, if the gateway answered.
    async fn submit(&self) -> Option<String> {
        let file = Part::bytes(stereo_recording(1)).file_name("call.wav");
        let form = Form::new()
            .part("file", file)
            .text("speaker_detection", "per_channel");
        let request = self.client.post(self.url("")).multipart(form);
        let answer = request.timeout(Duration::from_secs(5)).send().await.ok()?;
        let job: Value = answer.error_for_status().ok()?.json().await.ok()?;
        Some(job["id"].as_str()?.to_owned())
    }

    async fn job(&self, id: &str) -> Option<Value> {
        self.get(&format!("/{id}")).await
    }

    /// The number of jobs that have not ended, if the gateway answers.
    async fn open_jobs(&self) -> Option<u64> {
        let mut open = 0;
        for status in ["pending", "running", "cancelling"] {
            open += self.get(&format!("?status={status}")).await?["total"].as_u64()?;
        }
        Some(open)
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let request = self.client.get(self.url(path)).timeout(Duration::from_secs(10));
        request.send().await.ok()?.json().await.ok()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1/audio/transcriptions{path}", self.port)
    }

    /// The number of audit records of each action and job. A kill may cut off a line.
    fn records(&self) -> BTreeMap<(String, String), usize> {
        let mut records = BTreeMap::new();
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let audits = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "audit"));
        for audit in audits {
            let text = fs::read_to_string(audit.path()).unwrap_or_default();
            for record in text.lines().filter_map(|line| line.parse::<Value>().ok()) {
                let member = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
                *records
                    .entry((member("action"), member("resource_id")))
                    .or_default() += 1;
            }
        }
        records
    }

    /// Ends all processes. Each must end by itself after `SIGTERM`.
    fn end(&mut self, orchestrator: &Orchestrator) {
        let running = self.running.iter_mut().map(Option::take);
        let mut running: Vec<(&str, Child)> = PROCESSES
            .into_iter()
            .zip(running)
            .filter_map(|(role, child)| Some((role, child?)))
            .collect();
        for (_, child) in &running {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for (role, child) in &mut running {
            match child.wait() {
                Ok(status) if status.success() => {}
                ended => orchestrator.violation(None, format!("{role} ended with {ended:?}")),
            }
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for index in 0..self.running.len() {
            self.kill(index);
        }
    }
}
