//! A whole worker in a deployment: Redis, S3, registry, HTTP, drain.

mod client_spans;
mod clocks;
mod data_loss;
mod hostile;
mod local_failures;
mod names;
mod output;
mod refused_writes;
mod rights;
mod sharing;
mod spot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dalston_engine_sdk::worker::{self, WorkerError};
use dalston_engine_sdk::{
    DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, OutputFile, RunnerConfig, Stage, TaskContext,
    TaskError, TaskRequest,
};
use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::services::engine::spans::attr;
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::tracing::Dispatch;
use dalston_telemetry::tracing::instrument::WithSubscriber;
use dalston_telemetry::tracing::level_filters::LevelFilter;
use dalston_telemetry::{Env, TelemetryHandle};
use serde_json::{Value, json};
use testbed::{Fault, TestRedis, TestS3, Trouble};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{Response, free_port, get, until};

const JOB: &str = "0d4c2b1a-9f8e-4d7c-b6a5-443322110000";
const STREAM: &str = "dalston:stream:echo";

/// An engine that returns its input. The configuration of a task can make it abort, take a while,
/// or write an output file.
#[derive(Default)]
struct Echo {
    begun: Arc<AtomicUsize>,
    released: Arc<AtomicBool>,
}

impl Engine for Echo {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("echo", "1.0.0").stage(Stage::other("echo").unwrap())
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<(), TaskError> {
        if !model.is_unnamed() {
            cx.model_dir(model)?;
        }
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if task.config().get("abort").is_some() {
            std::process::abort();
        }
        let takes = task.config().get("takes_ms").and_then(Value::as_u64).unwrap_or(0);
        let end = Instant::now() + Duration::from_millis(takes);
        while Instant::now() < end && !self.released.load(Ordering::SeqCst) {
            cx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(name) = task.config().get("output").and_then(Value::as_str) {
            let path = cx.temp_dir().join("output.txt");
            std::fs::write(&path, "output")?;
            cx.add_output_file(OutputFile::new(name, "text", path))?;
        }
        let text = task
            .input("text")
            .map(|input| std::fs::read_to_string(input.path()))
            .transpose()?;
        Ok(json!({ "text": text, "attempt": cx.info().attempt }))
    }
}

struct Deployment {
    redis: TestRedis,
    s3: TestS3,
}

struct Worker {
    port: u16,
    instance: String,
    begun: Arc<AtomicUsize>,
    released: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Worker {
    /// Ends all waits of tasks, now and later.
    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Stops the worker and waits for its end.
    async fn finish(&mut self) {
        self.stop().await;
        (&mut self.running).await.unwrap().unwrap();
    }

    /// The registry may know the worker before its port is open.
    async fn get(&self, path: &str) -> Response {
        until("open port", async || get(self.port, path).await).await
    }

    /// Waits until the engine processes a task.
    async fn until_busy(&self) {
        let begun = async || (self.begun.load(Ordering::SeqCst) == 1).then_some(());
        until("busy engine", begun).await;
    }
}

impl Deployment {
    async fn start() -> Self {
        Self {
            redis: TestRedis::start().await,
            s3: TestS3::start(),
        }
    }

    fn worker(&self, name: &str, drain: &str) -> Worker {
        self.worker_with(name, &[("DALSTON_DRAIN_TIMEOUT_SECONDS", drain)])
    }

    fn worker_with(&self, name: &str, more: &[(&str, &str)]) -> Worker {
        let (config, deployment) = configs(&self.redis.url(), &self.s3.url(), name, more);
        self.worker_as(config, deployment)
    }

    fn worker_as(&self, config: RunnerConfig, deployment: DeploymentConfig) -> Worker {
        self.worker_traced(config, deployment, None)
    }

    fn worker_on(
        &self,
        cloud: Cloud,
        name: &str,
        more: &[(&str, &str)],
        telemetry: Option<&TestTelemetry>,
    ) -> Worker {
        let (config, deployment) = configs(&self.redis.url(), &self.s3.url(), name, more);
        self.worker_traced(config, deployment.cloud(cloud), telemetry)
    }

    fn worker_traced(
        &self,
        config: RunnerConfig,
        deployment: DeploymentConfig,
        telemetry: Option<&TestTelemetry>,
    ) -> Worker {
        let (port, instance) = (deployment.http_port, config.instance_suffix.clone().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let engine = Echo::default();
        let (begun, released) = (Arc::clone(&engine.begun), Arc::clone(&engine.released));
        let handle = telemetry.map_or_else(TelemetryHandle::disabled, TestTelemetry::handle);
        let dispatch = telemetry.map_or_else(Dispatch::none, |telemetry| telemetry.dispatch().clone());
        let run = worker::run(engine, config, deployment, handle, shutdown);
        let running = tokio::spawn(run.with_subscriber(dispatch));
        Worker {
            port,
            instance: format!("echo-{instance}"),
            begun,
            released,
            stop: Some(stop),
            running,
        }
    }

    /// Writes the documents of a task and queues it.
    async fn enqueue(&self, task: &str, request: impl Into<Vec<u8>>) {
        self.prepare(task, request).await;
        self.queue(task).await;
    }

    /// Queues a task as the orchestrator does.
    async fn queue(&self, task: &str) {
        let message = ["XADD", STREAM, "*", "task_id", task, "job_id", JOB];
        let () = self.redis.send(&message).await;
    }

    /// Writes the documents of a task.
    async fn prepare(&self, task: &str, request: impl Into<Vec<u8>>) {
        let request: Vec<u8> = request.into();
        self.s3.put(
            &format!("dalston-artifacts/jobs/{JOB}/tasks/{task}/request.json"),
            request,
        );
        let key = format!("dalston:task:{task}");
        let metadata = [
            "HSET",
            &key,
            "job_id",
            JOB,
            "stage",
            "echo",
            "request_id",
            "req_5f",
        ];
        let () = self.redis.send(&metadata).await;
    }

    /// The fields of each event.
    async fn event_fields(&self) -> Vec<BTreeMap<String, String>> {
        let range = ["XRANGE", "dalston:events:stream", "-", "+"];
        let entries: Vec<(String, BTreeMap<String, String>)> = self.redis.send(&range).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// The type and the payload of each event.
    async fn events(&self) -> Vec<(String, Value)> {
        let events = self.event_fields().await.into_iter();
        events
            .map(|fields| (fields["type"].clone(), fields["payload"].parse().unwrap()))
            .collect()
    }

    async fn until_event(&self, kind: &str, task: &str) -> Value {
        let found = async || {
            self.events()
                .await
                .into_iter()
                .find(|(k, payload)| k == kind && payload["task_id"] == task)
        };
        until(&format!("{kind} of {task}"), found).await.1
    }

    /// The status of a worker in the registry.
    async fn status(&self, worker: &Worker) -> Option<String> {
        let key = format!("dalston:engine:instance:{}", worker.instance);
        self.redis.send(&["HGET", &key, "status"]).await
    }

    async fn until_registered(&self, worker: &Worker) {
        until("registration", async || self.status(worker).await).await;
    }

    async fn until_draining(&self, worker: &Worker) {
        until("draining worker", async || {
            (self.status(worker).await? == "draining").then_some(())
        })
        .await;
    }

    async fn pending(&self) -> usize {
        let rows: Vec<(String, String, u64, u64)> = self
            .redis
            .send(&["XPENDING", STREAM, "engines", "-", "+", "10"])
            .await;
        rows.len()
    }

    fn response(&self, task: &str) -> Option<(String, Value)> {
        let place = format!("dalston-artifacts/jobs/{JOB}/tasks/{task}/response.json");
        let object = self.s3.get(&place)?;
        let response = serde_json::from_slice(&object.content).unwrap();
        Some((object.content_type.unwrap_or_default(), response))
    }
}

/// The configuration of a worker.
fn configs(redis: &str, s3: &str, name: &str, more: &[(&str, &str)]) -> (RunnerConfig, DeploymentConfig) {
    let port = free_port().to_string();
    let env = [
        ("REDIS_URL", redis),
        ("DALSTON_S3_ENDPOINT_URL", s3),
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY),
        ("DALSTON_METRICS_PORT", &port),
        ("DALSTON_WORKER_ID", name),
        ("DALSTON_DRAIN_TIMEOUT_SECONDS", "5"),
    ];
    let env = Env::from_pairs(env.iter().chain(more).copied());
    let config = RunnerConfig::from_env(&env).unwrap();
    let deployment = DeploymentConfig::from_env(&env).unwrap();
    (config, deployment)
}

fn request(task: &str, config: Value) -> Vec<u8> {
    json!({"task_id": task, "job_id": JOB, "config": config})
        .to_string()
        .into_bytes()
}

/// The contexts in the two events of a task with the parent context `parent`, and the ids of its
/// exported span.
async fn contexts_of(
    telemetry: &TestTelemetry,
    deployment: &Deployment,
    task: &str,
    parent: Option<&str>,
) -> ([String; 2], String) {
    let mut worker = deployment.worker_on(Cloud::unknown(), task, &[], Some(telemetry));
    deployment.prepare(task, request(task, json!({}))).await;
    if let Some(parent) = parent {
        let key = format!("dalston:task:{task}");
        let () = deployment
            .redis
            .send(&["HSET", &key, "_trace_context", parent])
            .await;
    }
    deployment.queue(task).await;
    deployment.until_event("task.completed", task).await;
    worker.finish().await;
    let events = deployment.event_fields().await.into_iter();
    let contexts: Vec<_> = events
        .filter(|fields| fields["payload"].contains(&format!("\"{task}\"")))
        .map(|mut fields| fields.remove("_trace_context").unwrap_or_default())
        .collect();
    let spans = telemetry.spans();
    let exported = spans.iter().find(|span| {
        let of = span.attribute(attr::TASK_ID).map(ToString::to_string);
        span.name == "engine.echo.process" && of.as_deref() == Some(task)
    });
    let exported = exported.map_or_else(
        || "none".to_owned(),
        |span| {
            let parent = span.parent_span_id;
            format!("{} {} {parent:?}", span.trace_id, span.span_id)
        },
    );
    (contexts.try_into().unwrap(), exported)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_pass_the_producers_context_if_the_span_is_filtered() {
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::with(|builder| builder.span_level(LevelFilter::WARN));
    let parent = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

    let (contexts, span) = contexts_of(&telemetry, &deployment, "child", Some(parent)).await;
    assert_eq!(
        (contexts, &*span),
        ([parent.to_owned(), parent.to_owned()], "none")
    );

    let (contexts, span) = contexts_of(&telemetry, &deployment, "first", None).await;
    assert_eq!((contexts, &*span), ([String::new(), String::new()], "none"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_waited_together_start_under_own_spans() {
    const TASKS: usize = 20;
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    let tasks: Vec<String> = (0..TASKS).map(|number| format!("waiting-{number}")).collect();
    for task in &tasks {
        deployment.enqueue(task, request(task, json!({}))).await;
    }
    let mut worker = deployment.worker_on(Cloud::unknown(), "together", &[], Some(&telemetry));
    for task in &tasks {
        deployment.until_event("task.completed", task).await;
    }
    worker.finish().await;

    let events = deployment.event_fields().await;
    let mut said: Vec<String> = events
        .iter()
        .map(|fields| {
            let payload: Value = serde_json::from_str(&fields["payload"]).unwrap();
            format!(
                "{} {} {}",
                payload["task_id"], fields["type"], fields["_trace_context"]
            )
        })
        .collect();
    let spans = telemetry.spans();
    let mut expected: Vec<String> = spans
        .iter()
        .filter(|span| span.name == "engine.echo.process")
        .flat_map(|span| {
            let task = span.attribute(attr::TASK_ID).unwrap();
            let context = format!(r#"{{"traceparent":"00-{}-{}-01"}}"#, span.trace_id, span.span_id);
            ["task.started", "task.completed"].map(|kind| format!(r#""{task}" {kind} {context}"#))
        })
        .collect();
    said.sort();
    expected.sort();
    assert_eq!(said.len(), 2 * TASKS);
    assert_eq!(said, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_events_of_a_task_carry_the_context_of_its_span() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let deployment = Deployment::start().await;

    let parent = format!(r#"{{"traceparent": "00-{TRACE}-00f067aa0ba902b7-01"}}"#);
    let ([started, completed], span) =
        contexts_of(&TestTelemetry::new(), &deployment, "sampled", Some(&parent)).await;
    assert_eq!(started, completed);
    let (trace_id, rest) = span.split_once(' ').unwrap();
    let (span_id, parent) = rest.split_once(' ').unwrap();
    assert_eq!((trace_id, parent), (TRACE, "Some(00f067aa0ba902b7)"));
    assert_eq!(started, format!(r#"{{"traceparent":"00-{TRACE}-{span_id}-01"}}"#));

    let ([started, completed], span) = contexts_of(&TestTelemetry::new(), &deployment, "first", None).await;
    assert_eq!(started, completed);
    let (ids, parent) = span.rsplit_once(' ').unwrap();
    let expected = format!(r#"{{"traceparent":"00-{}-01"}}"#, ids.replace(' ', "-"));
    assert_eq!((&*started, parent), (&*expected, "None"));

    // A span that is not sampled also has a context.
    let parent = format!(r#"{{"traceparent": "00-{TRACE}-00f067aa0ba902b7-00"}}"#);
    let ([started, completed], span) =
        contexts_of(&TestTelemetry::new(), &deployment, "unsampled", Some(&parent)).await;
    assert_eq!((started.as_str(), span.as_str()), (completed.as_str(), "none"));
    assert!(
        started.starts_with(&format!(r#"{{"traceparent":"00-{TRACE}-"#)) && started.ends_with(r#"-00"}"#),
        "{started}"
    );
    assert!(!started.contains("00f067aa0ba902b7"), "{started}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_registers_works_and_deregisters() {
    let deployment = Deployment::start().await;
    let begun = Instant::now();
    let mut worker = deployment.worker("a", "120");
    deployment.until_registered(&worker).await;
    // Heartbeats come every ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());

    let response = worker.get("/health").await;
    let health = response.json();
    assert_eq!(
        (
            response.status,
            &health["status"],
            &health["redis"],
            &health["engine_id"]
        ),
        (200, &json!("healthy"), &json!("connected"), &json!("echo"))
    );
    let response = worker.get("/v1/capabilities").await;
    let capabilities = response.json();
    assert_eq!(
        (
            response.status,
            &capabilities["stages"],
            &capabilities["max_concurrency"]
        ),
        (200, &json!(["echo"]), &json!(1))
    );

    // The input lies in another bucket, where the locator says.
    deployment.s3.put("uploads/a/b.txt", "hello");
    let task = "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
    let selector = json!({"producer_stage": "prepare", "kind": "text"});
    let artifact =
        json!({"artifact_id": "P:text", "kind": "text", "storage_locator": "s3://uploads/a/b.txt"});
    let request = json!({"task_id": task, "job_id": JOB, "request_bindings": [{"slot": "text", "selector": selector}],
        "resolved_artifact_ids": {"text": "P:text"}, "artifact_index": {"P:text": artifact}, "config": {}});
    deployment.enqueue(task, request.to_string()).await;
    deployment.until_event("task.completed", task).await;

    let ids = json!({"task_id": task, "job_id": JOB, "engine_id": "echo", "request_id": "req_5f"});
    let expected = [
        ("task.started".to_owned(), ids.clone()),
        ("task.completed".to_owned(), ids),
    ];
    assert_eq!(deployment.events().await, expected);
    let (kind, response) = deployment
        .response(task)
        .expect("the response is there before the event");
    assert_eq!(
        (kind.as_str(), &response["data"]),
        ("application/json", &json!({"text": "hello", "attempt": 1}))
    );
    assert_eq!(deployment.pending().await, 0);
    let response = worker.get("/metrics").await;
    let metrics = response.body;
    assert_eq!(response.status, 200, "{metrics}");
    let head = "# TYPE dalston_engine_tasks_processed_total counter\n";
    assert!(metrics.contains(head), "text that every tool reads: {metrics}");

    let begun = Instant::now();
    worker.finish().await;
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "an idle worker stops before its drain timeout: {:?}",
        begun.elapsed()
    );
    assert_eq!(deployment.status(&worker).await, None);
    let members: Vec<String> = deployment
        .redis
        .send(&["SMEMBERS", "dalston:engine:instances"])
        .await;
    assert_eq!(members, [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_zero_before_the_first_task() {
    let deployment = Deployment::start().await;
    let models = [
        ("DALSTON_DEFAULT_MODEL", "tiny"),
        ("DALSTON_SLOTS", "2"),
        ("INSTANCE_TYPE", "g5.xlarge"),
    ];
    let worker = deployment.worker_with("a", &models);
    deployment.until_registered(&worker).await;
    let text = worker.get("/metrics").await.body;
    let engine = r#"engine_id="echo""#;
    let profile = r#"execution_profile="container",instance_type="g5.xlarge""#;
    let per_model = format!(r#"{engine},model="tiny",{profile}"#);
    for series in [
        format!(r#"tasks_processed_total{{{per_model},status="success"}}"#),
        format!(r#"tasks_processed_total{{{per_model},status="failure"}}"#),
        format!("task_duration_seconds_count{{{per_model}}}"),
        format!("model_load_seconds_count{{{per_model}}}"),
        format!(r#"model_cache_hits_total{{{engine},model="tiny"}}"#),
        format!(r#"model_acquire_seconds_count{{{engine},model="tiny",in_memory="true"}}"#),
        format!(r#"model_acquire_seconds_count{{{engine},model="tiny",in_memory="false"}}"#),
        format!(r#"recognize_seconds_count{{{engine},model="tiny",device="cuda"}}"#),
        format!("vad_segment_count_count{{{engine}}}"),
        format!(r#"realtime_factor_ratio_count{{{engine},model="tiny",device="cpu"}}"#),
        format!(r#"realtime_factor_ratio_count{{{engine},model="tiny",device="cuda"}}"#),
        format!(r#"realtime_factor_ratio_bucket{{{engine},model="tiny",device="cuda",le="0.001"}}"#),
        format!(r#"realtime_factor_ratio_bucket{{{engine},model="tiny",device="cuda",le="5.0"}}"#),
        format!("queue_wait_seconds_count{{{engine},{profile}}}"),
        format!("s3_download_seconds_count{{{engine},{profile}}}"),
        format!("s3_upload_seconds_count{{{engine},{profile}}}"),
        format!(r#"audio_duration_seconds_count{{{engine},instance_type="g5.xlarge"}}"#),
        r#"task_redelivery_total{stage="echo",reason="engine_crash"}"#.to_owned(),
        r#"task_redelivery_total{stage="echo",reason="deferred"}"#.to_owned(),
        r#"tasks_skipped_cancelled_total{stage="echo"}"#.to_owned(),
        format!(r#"inference_busy_ratio{{{engine},slot="0"}}"#),
        format!(r#"inference_busy_ratio{{{engine},slot="1"}}"#),
        format!(r#"direct_requests_total{{{engine},endpoint="/v1/transcribe",status_code="500"}}"#),
    ] {
        let series = format!("dalston_engine_{series} ");
        let line = text.lines().find(|line| line.starts_with(&series));
        let value = line.map(|line| &line[series.len()..]);
        assert!(matches!(value, Some("0" | "0.0")), "{series}{value:?} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_task_fails_after_its_start_and_worker_goes_on() {
    let deployment = Deployment::start().await;
    // The worker starts later, so that it does not see incomplete tasks.
    deployment.enqueue("not-json", "{").await;
    deployment.enqueue("wrong-type", r#"{"task_id": 7}"#).await;
    deployment.enqueue("no-request", "").await;
    deployment
        .enqueue("no-metadata", request("no-metadata", json!({})))
        .await;
    let () = deployment.redis.send(&["DEL", "dalston:task:no-metadata"]).await;
    deployment
        .enqueue("bad-metadata", request("bad-metadata", json!({})))
        .await;
    let () = deployment
        .redis
        .send(&["HSET", "dalston:task:bad-metadata", "request_bindings_json", "{"])
        .await;
    deployment.enqueue("good", request("good", json!({}))).await;

    let worker = deployment.worker("a", "5");
    deployment.until_event("task.completed", "good").await;
    let table = [
        ("not-json", "request.json"),
        ("wrong-type", "task_id is 7: expected a non-empty string"),
        ("no-request", "request.json"),
        ("no-metadata", "its metadata is gone"),
        ("bad-metadata", "request_bindings_json"),
    ];
    for (task, expected) in table {
        let failure = deployment.until_event("task.failed", task).await;
        let error = failure["error"].as_str().unwrap();
        assert!(error.contains(expected), "{task}: {error}");
        let events = deployment.events().await;
        let kinds: Vec<&str> = events
            .iter()
            .filter(|(_, payload)| payload["task_id"] == task)
            .map(|(kind, _)| kind.as_str())
            .collect();
        assert_eq!(kinds, ["task.started", "task.failed"], "{task}");
    }
    assert_eq!(deployment.pending().await, 0);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_worker_is_registered_until_its_last_task() {
    let deployment = Deployment::start().await;
    let mut worker = deployment.worker("a", "120");
    deployment
        .enqueue("long", request("long", json!({"takes_ms": 600_000})))
        .await;
    worker.until_busy().await;
    worker.stop().await;
    deployment.until_draining(&worker).await;
    assert_eq!(worker.get("/health").await.status, 200);
    deployment.enqueue("late", request("late", json!({}))).await;
    worker.release();
    (&mut worker.running).await.unwrap().unwrap();

    deployment.until_event("task.completed", "long").await;
    assert_eq!(deployment.status(&worker).await, None);
    assert!(
        deployment
            .events()
            .await
            .iter()
            .all(|(_, payload)| payload["task_id"] != "late"),
        "nothing new is begun"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_counts_no_more_tasks_than_capacity() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "0");
    for task in ["first", "second"] {
        deployment
            .enqueue(task, request(task, json!({"takes_ms": 60_000})))
            .await;
    }
    // One is on the only inference thread, the other one is read ahead.
    until("task that is read ahead", async || {
        let health = get(worker.port, "/health").await?.json();
        (health["active_tasks"] == 2).then_some(())
    })
    .await;
    let active = async || {
        let key = format!("dalston:engine:instance:{}", worker.instance);
        let (capacity, active): (String, String) = deployment
            .redis
            .send(&["HMGET", &key, "capacity", "active_batch"])
            .await;
        assert_eq!(capacity, "1");
        assert!(active == "0" || active == "1", "{active}");
        (active == "1").then_some(())
    };
    until("active task", active).await;
    assert_eq!(deployment.pending().await, 2);
    // Which of the two has the thread is open.
    let started = async || (!deployment.events().await.is_empty()).then_some(());
    until("start of a task", started).await;
    let events = deployment.events().await;
    let ids: Vec<&Value> = events.iter().map(|(_, payload)| &payload["task_id"]).collect();
    assert_eq!(
        ids.len(),
        1,
        "a task that waits is not reported as started: {ids:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_download_shows_in_registry_and_reaches_peer() {
    let deployment = Deployment::start().await;
    for file in ["model.bin", ".complete"] {
        deployment
            .s3
            .put(&format!("dalston-artifacts/models/team/large/{file}"), "weights");
    }
    deployment
        .s3
        .trouble(Trouble::new(Fault::Hang).path("model.bin").times(1));
    let cache = tempfile::tempdir().unwrap();
    let dir = cache.path().display().to_string();
    let variables = [
        ("DALSTON_MODEL_CACHE_DIR", &*dir),
        ("DALSTON_DRAIN_TIMEOUT_SECONDS", "0.2"),
    ];
    let mut first = deployment.worker_with("a", &variables);
    let task = request("T1", json!({"loaded_model_id": "team/large"}));
    deployment.enqueue("T1", task).await;
    let downloading =
        async || (deployment.status(&first).await.as_deref() == Some("downloading")).then_some(());
    until("worker that downloads", downloading).await;

    // It waits in vain. A peer takes the task over, and the model comes.
    first.finish().await;
    let _second = deployment.worker_with("b", &[("DALSTON_MODEL_CACHE_DIR", &dir)]);
    deployment.until_event("task.completed", "T1").await;
    assert_eq!(
        std::fs::read(cache.path().join("team--large/model.bin")).unwrap(),
        b"weights"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_that_outlives_the_drain_goes_to_a_peer_at_once() {
    let deployment = Deployment::start().await;
    let mut worker = deployment.worker("a", "0.2");
    deployment
        .enqueue("long", request("long", json!({"takes_ms": 600_000})))
        .await;
    worker.until_busy().await;
    let peer = deployment.worker("b", "5");
    deployment.until_registered(&peer).await;

    worker.stop().await;
    let handed_back = Instant::now();
    let starts = async || {
        let events = deployment.events().await;
        (events.iter().filter(|(kind, _)| kind == "task.started").count() == 2).then_some(())
    };
    until("second start", starts).await;
    let took = handed_back.elapsed();
    // Without the hand-back, a peer waits for the end of the lease of a minute.
    assert!(took < Duration::from_secs(30), "{took:?}");
    peer.release();
    deployment.until_event("task.completed", "long").await;
    assert_eq!(deployment.response("long").unwrap().1["data"]["attempt"], 2);
    (&mut worker.running).await.unwrap().unwrap();
    drop(peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_has_ended_takes_no_task_along() {
    let deployment = Deployment::start().await;
    for round in 0..5 {
        let mut worker = deployment.worker(&format!("w{round}"), "0");
        // The read goes on until it is over, or a task comes.
        until("blocking read", async || {
            let clients: String = deployment.redis.send(&["CLIENT", "LIST"]).await;
            clients.contains("cmd=xreadgroup").then_some(())
        })
        .await;
        let stopped = Instant::now();
        worker.finish().await;
        deployment.queue(&format!("task-{round}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let took = stopped.elapsed();
        assert_eq!(deployment.pending().await, 0, "round {round}, after {took:?}");
        let () = deployment.redis.send(&["DEL", STREAM]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_while_redis_does_not_answer() {
    let Deployment { redis, s3 } = Deployment::start().await;
    let deployment = Arc::new(Deployment { redis, s3 });
    let worker = deployment.worker("a", "0");
    deployment.until_registered(&worker).await;
    let () = deployment.redis.send(&["CLIENT", "PAUSE", "60000", "ALL"]).await;
    let response = worker.get("/health").await;
    let health = response.json();
    assert_eq!(
        (response.status, &health["status"], &health["redis"]),
        (503, &json!("unhealthy"), &json!("unreachable"))
    );
}
