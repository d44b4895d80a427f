//! The processes and servers of a test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;
use testbed::collector::{Collector, Protocol};
use testbed::{RedisValue, TestRedis, TestS3};
use tokio::time::{Instant, sleep};

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Servers, and the processes of the platform by role.
pub(crate) struct Rig {
    pub(crate) redis: TestRedis,
    s3: TestS3,
    collector: Collector,
    directory: TempDir,
    port: u16,
    /// Of the orchestrator's metrics.
    metrics_port: u16,
    /// Further variables of processes that are started from now on.
    pub(crate) variables: Vec<(&'static str, &'static str)>,
    client: Client,
    processes: Vec<(&'static str, Child)>,
}

impl Rig {
    /// Servers without any process of the platform.
    pub(crate) async fn new() -> Self {
        // An error means that another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            redis: TestRedis::start().await,
            s3: TestS3::start(),
            collector: Collector::start(Protocol::Http),
            directory: tempfile::tempdir().unwrap(),
            port: free_port(),
            metrics_port: free_port(),
            variables: Vec::new(),
            client: Client::new(),
            processes: Vec::new(),
        }
    }

    /// The platform, complete and ready.
    pub(crate) async fn start() -> Self {
        let mut rig = Self::new().await;
        rig.run("gateway", &[]);
        rig.run("orchestrator", &[]);
        rig.run("prepare", &[]);
        // One channel is done well before the other.
        rig.run("mock-engine", &["--delay", "200"]);
        rig.is_ready(2).await;
        rig
    }

    /// The counters of the gateway or of the orchestrator that are not zero.
    pub(crate) async fn counters(&self, role: &str) -> Vec<String> {
        let port = if role == "orchestrator" {
            self.metrics_port
        } else {
            self.port
        };
        let response = self.client.get(format!("http://127.0.0.1:{port}/metrics")).send();
        let text = response.await.unwrap().text().await.unwrap();
        let prefix = format!("dalston_{role}_");
        let lines = text
            .lines()
            .map(|line| line.split(" # ").next().unwrap_or_default());
        let mut counters: Vec<String> = lines
            .filter_map(|line| line.strip_prefix(&prefix))
            .filter(|line| line.contains("_total") && !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect();
        counters.sort();
        counters
    }

    /// Starts a process. Its log is added to the one of its predecessor.
    pub(crate) fn run(&mut self, role: &'static str, arguments: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{role}.log")))
            .unwrap();
        let temp = self.path("tmp");
        let metrics_port = if role == "orchestrator" {
            self.metrics_port
        } else {
            0
        };
        fs::create_dir_all(&temp).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_dev_platform"))
            .arg(role)
            .args(arguments)
            .env_clear()
            .envs(self.collector.env())
            .env("REDIS_URL", self.redis.url())
            .env("DALSTON_S3_ENDPOINT_URL", self.s3.url())
            .env("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY)
            .env("DALSTON_DATABASE", self.path("platform.db"))
            .env("DALSTON_GATEWAY_PORT", self.port.to_string())
            .env("DALSTON_METRICS_PORT", metrics_port.to_string())
            .envs(self.variables.clone())
            .env("DALSTON_AUDIT_LOG", self.path(&format!("{role}.audit")))
            .env("DALSTON_LOG_FORMAT", "json")
            .env("TMPDIR", temp)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.push((role, child));
    }

    /// Kills a process as the kernel does when memory is short.
    pub(crate) fn kill(&mut self, role: &str) {
        let at = self.processes.iter().position(|(name, _)| *name == role).unwrap();
        let (_, mut child) = self.processes.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the gateway answers and this many engines are registered.
    pub(crate) async fn is_ready(&self, engines: u64) {
        self.until("engines", async || {
            let found = self.request(Method::GET, "/v1/engines").send().await.ok()?;
            let found: Value = found.json().await.ok()?;
            (found["total"] == engines).then_some(())
        })
        .await;
    }

    pub(crate) async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(Instant::now() < deadline, "no {what} in time\n{}", self.logs());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        self.client.request(method, url)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.request(Method::GET, path).send().await.unwrap();
        response.json().await.unwrap()
    }

    /// Submits a recording with these further fields.
    pub(crate) async fn submit(&self, recording: &[u8], fields: &[(&'static str, &'static str)]) -> Response {
        let file = Part::bytes(recording.to_vec()).file_name("call.wav");
        let form = fields
            .iter()
            .fold(Form::new().part("file", file), |form, (name, value)| {
                form.text(*name, *value)
            });
        let request = self.request(Method::POST, "/v1/audio/transcriptions");
        let request = request.header("X-Request-ID", "req_test").multipart(form);
        request.send().await.unwrap()
    }

    /// Waits until a job has this status.
    pub(crate) async fn job_with(&self, id: &str, status: &str) -> Value {
        let path = format!("/v1/audio/transcriptions/{id}");
        self.until(&format!("job that is {status}"), async || {
            let response = self.request(Method::GET, &path).send().await.ok()?;
            let job: Value = response.json().await.ok()?;
            (job["status"] == status).then_some(job)
        })
        .await
    }

    /// Waits until a stage of a job has this status.
    pub(crate) async fn stage_with(&self, id: &str, stage: &str, status: &str) {
        let path = format!("/v1/audio/transcriptions/{id}");
        self.until(&format!("stage {stage} that is {status}"), async || {
            let response = self.request(Method::GET, &path).send().await.ok()?;
            let job: Value = response.json().await.ok()?;
            let mut stages = job["stages"].as_array()?.iter();
            stages.find(|found| found["stage"] == stage && found["status"] == status)?;
            Some(())
        })
        .await;
    }

    /// Stops all processes, so that nothing more is exported, and returns the spans of a trace with
    /// their services.
    pub(crate) fn stop(&mut self, trace_id: &str) -> Vec<(String, Span)> {
        for (_, child) in &self.processes {
            let id = child.id().to_string();
            assert!(Command::new("kill").arg(&id).status().unwrap().success());
        }
        for (role, mut child) in self.processes.drain(..) {
            let status = child.wait().unwrap();
            assert!(status.success(), "{role}: {status}");
        }
        let mut found = Vec::new();
        for received in self.collector.rest() {
            let service = received.resource("service.name").unwrap();
            let resources = received.request.resource_spans.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_spans);
            let spans = scopes.flat_map(|scope| scope.spans);
            let spans = spans.filter(|span| hex(&span.trace_id) == trace_id);
            found.extend(spans.map(|span| (service.clone(), span)));
        }
        found
    }

    /// The keys of the files of a job.
    pub(crate) fn files_of(&self, job_id: &str) -> Vec<String> {
        let keys = self.s3.keys(TestS3::BUCKET).into_iter();
        keys.filter(|key| key.contains(job_id)).collect()
    }

    /// How many entries a stream has ever had.
    pub(crate) async fn entries_added(&self, stream: &str) -> i64 {
        let about: BTreeMap<String, RedisValue> = self.redis.send(&["XINFO", "STREAM", stream]).await;
        match about["entries-added"] {
            RedisValue::Int(count) => count,
            ref other => panic!("{other:?}"),
        }
    }

    /// Changes the database; returns the number of changed rows.
    pub(crate) fn database(&self, sql: &str) -> usize {
        let connection = rusqlite::Connection::open(self.path("platform.db")).unwrap();
        connection.execute(sql, []).unwrap()
    }

    /// The lines of all logs that are JSON.
    pub(crate) fn log_lines(&self) -> Vec<Value> {
        let logs = self.logs();
        logs.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The audit records of all processes, from the oldest to the newest.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = self.files("audit");
        let mut records: Vec<Value> = text.lines().map(|line| line.parse().unwrap()).collect();
        records.sort_by_key(|record| record["timestamp"].to_string());
        records
    }

    fn logs(&self) -> String {
        self.files("log")
    }

    fn files(&self, suffix: &str) -> String {
        let mut texts = String::new();
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|found| found == suffix) {
                texts += &fs::read_to_string(path).unwrap();
            }
        }
        texts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The trace id that a response names.
pub(crate) fn trace_id(response: &Response) -> String {
    response.headers()["x-trace-id"].to_str().unwrap().to_owned()
}

/// A stereo WAV file with a tone on each channel.
pub(crate) fn stereo(seconds: u32) -> Vec<u8> {
    const RATE: u32 = 8_000;
    let frames = RATE * seconds;
    let tone = |frame: u32, hertz: f32| {
        let phase = frame as f32 / RATE as f32 * hertz * std::f32::consts::TAU;
        (phase.sin() * 8_000.0) as i16
    };
    let samples = (0..frames).flat_map(|frame| [tone(frame, 440.0), tone(frame, 220.0)]);
    let data: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
    let mut file = Vec::new();
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&(36 + data.len() as u32).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x02\0");
    file.extend_from_slice(&RATE.to_le_bytes());
    file.extend_from_slice(&(RATE * 4).to_le_bytes());
    file.extend_from_slice(b"\x04\0\x10\0data");
    file.extend_from_slice(&(data.len() as u32).to_le_bytes());
    file.extend_from_slice(&data);
    file
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
