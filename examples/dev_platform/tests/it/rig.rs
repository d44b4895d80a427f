//! The processes and servers of a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;
use testbed::collector::{Collector, Protocol, ReceivedMetrics, env};
pub(crate) use testbed::free_port;
pub(crate) use testbed::stereo_recording as stereo;
use testbed::{RedisValue, TestRedis, TestRotel, TestS3};
use tokio::time::{Instant, sleep};

use crate::tree::with_services;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Values by name and labels.
pub(crate) type Series = BTreeMap<String, f64>;

/// Servers, and the processes of the platform by role.
pub(crate) struct Rig {
    pub(crate) redis: TestRedis,
    s3: TestS3,
    collector: Collector,
    directory: TempDir,
    port: u16,
    /// Of the metrics of processes other than the gateway.
    metrics_ports: BTreeMap<&'static str, u16>,
    /// The variables of processes that export.
    exports: Vec<(String, String)>,
    /// Further variables of processes that are started from now on.
    pub(crate) variables: Vec<(&'static str, String)>,
    client: Client,
    processes: Vec<(&'static str, Child)>,
    /// The exported spans with their services.
    spans: Vec<(String, Span)>,
}

impl Rig {
    /// Servers without any process of the platform.
    pub(crate) async fn new() -> Self {
        // An error means that another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let collector = Collector::start(Protocol::Http);
        Self {
            redis: TestRedis::start().await,
            s3: TestS3::start(),
            exports: collector.env(),
            collector,
            directory: tempfile::tempdir().unwrap(),
            port: free_port(),
            metrics_ports: ["orchestrator", "prepare", "queue-exporter"]
                .map(|role| (role, free_port()))
                .into(),
            variables: Vec::new(),
            client: Client::new(),
            processes: Vec::new(),
            spans: Vec::new(),
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

    /// The platform with the exporter of its queues' metrics, complete and ready.
    pub(crate) async fn start_with_metrics() -> Self {
        let mut rig = Self::start().await;
        rig.variables.push(("DALSTON_SCRAPE_INTERVAL", "1".to_owned()));
        rig.run("queue-exporter", &[]);
        rig
    }

    /// Lets processes that are started from now on export to another receiver, which forwards what
    /// it accepts. `None` on a machine without it.
    pub(crate) fn export_through_rotel(&mut self, protocol: Protocol) -> Option<TestRotel> {
        let rotel = TestRotel::start(self.collector.address)?;
        self.exports = env(protocol, &format!("http://{}", rotel.address(protocol)));
        Some(rotel)
    }

    /// The address of the metrics of a process.
    pub(crate) fn metrics_of(&self, role: &str) -> SocketAddr {
        let port = self.metrics_ports.get(role).copied().unwrap_or(self.port);
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// The series of a process, without their exemplars.
    pub(crate) async fn series(&self, role: &str) -> Series {
        let url = format!("http://{}/metrics", self.metrics_of(role));
        self.until("metrics", async || {
            let text = self.client.get(&url).send().await.ok()?.text().await.ok()?;
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let series = lines.filter_map(|line| {
                let line = line.split(" # ").next()?;
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            });
            Some(series.collect())
        })
        .await
    }

    /// Waits until the changes of a process since a scrape are these. A scrape is no snapshot: what
    /// happens meanwhile may be in one of its series and not in another.
    pub(crate) async fn changed(
        &self,
        role: &str,
        before: &Series,
        of: impl Fn(&Series, &Series) -> Vec<String>,
        expected: &[&str],
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = of(before, &self.series(role).await);
            if found == expected {
                return;
            }
            if Instant::now() > deadline {
                assert_eq!(found, expected, "{}", self.logs());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the orchestrator has read all events and says so to Redis.
    pub(crate) async fn has_acknowledged_events(&self) {
        self.has_acknowledged("dalston:events:stream").await;
    }

    /// Waits until the group of a stream has read and acknowledged all its messages.
    pub(crate) async fn has_acknowledged(&self, stream: &str) {
        let words = ["XINFO", "GROUPS", stream];
        self.until("acknowledged messages", async || {
            let groups: Vec<BTreeMap<String, RedisValue>> = self.redis.send(&words).await;
            let is_zero = |name| groups[0].get(name) == Some(&RedisValue::Int(0));
            (is_zero("pending") && is_zero("lag")).then_some(())
        })
        .await;
    }

    /// Keeps the tasks of an engine waiting, also those that it has begun.
    pub(crate) fn hold(&self, role: &str) {
        File::create(self.hold_file(role)).unwrap();
    }

    /// Lets the tasks of an engine go on.
    pub(crate) fn let_go(&self, role: &str) {
        fs::remove_file(self.hold_file(role)).unwrap();
    }

    fn hold_file(&self, role: &str) -> PathBuf {
        self.path(&format!("{role}.hold"))
    }

    /// Starts a process of the platform.
    pub(crate) fn run(&mut self, role: &'static str, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dev_platform"));
        command.arg(role).args(arguments);
        if matches!(role, "prepare" | "mock-engine") {
            command.arg("--hold").arg(self.hold_file(role));
        }
        self.start_process(role, command);
    }

    /// Starts an engine in Python, which has this id as its role.
    pub(crate) fn run_in_python(&mut self, python: &Path, engine_id: &'static str) {
        let mut command = Command::new(python);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_engine.py"))
            .arg(engine_id)
            .arg(self.hold_file(engine_id));
        self.start_process(engine_id, command);
    }

    /// Starts a process. Its log is added to the one of its predecessor.
    fn start_process(&mut self, role: &'static str, mut command: Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{role}.log")))
            .unwrap();
        let temp = self.path("tmp");
        let metrics_port = self.metrics_ports.get(role).copied().unwrap_or(0);
        let sessions_port = free_port().to_string();
        fs::create_dir_all(&temp).unwrap();
        let child = command
            .env_clear()
            .envs(self.exports.clone())
            .env("REDIS_URL", self.redis.url())
            .env("DALSTON_S3_ENDPOINT_URL", self.s3.url())
            .env("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY)
            .env("DALSTON_DATABASE", self.path("platform.db"))
            .env("DALSTON_GATEWAY_PORT", self.port.to_string())
            .env("DALSTON_METRICS_PORT", metrics_port.to_string())
            .env(
                "DALSTON_WORKER_ENDPOINT",
                format!("ws://127.0.0.1:{sessions_port}"),
            )
            .env("DALSTON_WORKER_PORT", sessions_port)
            .env("DALSTON_OTLP_HTTP_PORT", "off")
            .env("DALSTON_OTLP_GRPC_PORT", "off")
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

    /// Ends a process in order.
    pub(crate) fn end(&mut self, role: &str) {
        let child = self.begin_end(role);
        self.ended(child);
    }

    /// Tells a process to end.
    pub(crate) fn begin_end(&mut self, role: &str) -> Child {
        let at = self.processes.iter().position(|(name, _)| *name == role).unwrap();
        let (_, child) = self.processes.remove(at);
        let id = child.id().to_string();
        assert!(Command::new("kill").arg(&id).status().unwrap().success());
        child
    }

    /// Waits for the end of a process that was told to end.
    pub(crate) fn ended(&self, mut child: Child) {
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.logs());
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

    /// Waits until the gateway answers.
    pub(crate) async fn answers(&self) {
        self.until("answer", async || {
            self.request(Method::GET, "/health").send().await.ok().map(drop)
        })
        .await;
    }

    /// Waits until the workers have this many places for sessions.
    pub(crate) async fn has_places(&self, count: u64) {
        self.answers().await;
        self.until("places", async || (self.places().await.0 == count).then_some(()))
            .await;
    }

    /// The places of all workers for sessions, and the sessions.
    pub(crate) async fn places(&self) -> (u64, u64) {
        let request = self.request(Method::GET, "/v1/realtime/status");
        let key = self.variables.iter().find(|(name, _)| *name == "DALSTON_API_KEY");
        let request = match key {
            Some((_, key)) => request.bearer_auth(key),
            None => request,
        };
        self.until("status of the workers", async || {
            let response = request.try_clone()?.send().await.ok()?;
            let status: Value = response.json().await.ok()?;
            let number = |name: &str| status[name].as_u64();
            Some((number("total_capacity")?, number("active_sessions")?))
        })
        .await
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
        self.client.request(method, self.url(path))
    }

    /// The port of the gateway.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// An address of the gateway.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
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

    /// Waits until a job has this status without any request, so that the gateway counts none.
    pub(crate) async fn wait_for(&self, id: &str, status: &str) {
        let connection = rusqlite::Connection::open(self.path("platform.db")).unwrap();
        self.until(&format!("job that is {status}"), async || {
            let sql = "SELECT status FROM jobs WHERE id = ?1";
            let found: String = connection.query_row(sql, [id], |row| row.get(0)).ok()?;
            (found == status).then_some(())
        })
        .await;
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
        self.end_all();
        self.spans_of(trace_id)
    }

    /// Stops all processes, so that nothing more is exported.
    pub(crate) fn end_all(&mut self) {
        for (_, child) in &self.processes {
            let id = child.id().to_string();
            assert!(Command::new("kill").arg(&id).status().unwrap().success());
        }
        for (role, mut child) in self.processes.drain(..) {
            let status = child.wait().unwrap();
            assert!(status.success(), "{role}: {status}");
        }
    }

    /// The spans of a trace that have arrived, with their services.
    pub(crate) fn spans_of(&mut self, trace_id: &str) -> Vec<(String, Span)> {
        self.receive();
        let spans = self.spans.iter();
        let found = spans.filter(|(_, span)| hex(&span.trace_id) == trace_id);
        found.cloned().collect()
    }

    /// The pushed metrics that have arrived since the last call.
    pub(crate) fn pushed_metrics(&self) -> Vec<ReceivedMetrics> {
        self.collector.rest_of_metrics()
    }

    fn receive(&mut self) {
        for received in self.collector.rest() {
            self.spans.extend(with_services(received.request));
        }
    }

    /// Waits until a service has exported so many spans with this name.
    pub(crate) async fn exported(&mut self, service: &str, name: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.receive();
            let found = self
                .spans
                .iter()
                .filter(|(of, span)| of == service && span.name == name);
            let found = found.count();
            if found >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{found} spans {name}\n{}", self.logs());
            sleep(Duration::from_millis(20)).await;
        }
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

    /// The number that a query of the database counts; `None` while others write.
    pub(crate) fn count(&self, sql: &str) -> Option<i64> {
        let connection = rusqlite::Connection::open(self.path("platform.db")).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).ok()
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

    /// Waits until a process has written an audit record of this action.
    pub(crate) async fn has_audited(&self, action: &str) {
        self.until(action, async || {
            let text = self.files("audit");
            // The last line may be half a record.
            let records = text.lines().filter_map(|line| line.parse::<Value>().ok());
            let mut actions = records.map(|record| record["action"].clone());
            actions.any(|found| found == action).then_some(())
        })
        .await;
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

/// What has changed in the series whose names start with one of these texts. Durations differ from
/// run to run: of a histogram only its count is compared.
pub(crate) fn changes(before: &Series, after: &Series, prefixes: &[&str]) -> Vec<String> {
    let names = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
    let mut changes = Vec::new();
    for name in names {
        let plain = name.split('{').next().unwrap_or_default();
        let is_compared = prefixes.iter().any(|prefix| plain.starts_with(prefix));
        let value = |series: &Series| series.get(name).copied().unwrap_or_default();
        let change = value(after) - value(before);
        if is_compared && !plain.ends_with("_bucket") && !plain.ends_with("_sum") && change != 0.0 {
            changes.push(format!("{name} {change:+}"));
        }
    }
    changes
}

/// The trace id that a response names.
pub(crate) fn trace_id(response: &Response) -> String {
    response.headers()["x-trace-id"].to_str().unwrap().to_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
