//! Broken, hostile and absent input. It fails its own task, after a start, with an error that names
//! the problem, and the worker goes on.

use std::future::pending;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use dalston_engine_sdk::protocol::Timestamp;
use dalston_engine_sdk::worker;
use dalston_telemetry::TelemetryHandle;
use serde_json::json;
use testbed::{Fault, TestS3, Trouble};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Deployment, Echo, JOB, STREAM, Worker, request};
use crate::support::{get, until};

impl Deployment {
    /// The error of a task that must fail once, after one start.
    async fn error_of(&self, task: &str) -> String {
        let failure = self.until_event("task.failed", task).await;
        assert_eq!(self.kinds(task).await, ["task.started", "task.failed"], "{task}");
        let error = failure["error"].as_str().unwrap().to_owned();
        assert!((1..=2000).contains(&error.chars().count()), "{task}: {error}");
        assert!(!error.contains(['\n', '\r', '\0']), "{task}: {error:?}");
        assert!(!error.contains(TestS3::SECRET_ACCESS_KEY), "{task}: {error}");
        error
    }

    async fn kinds(&self, task: &str) -> Vec<String> {
        let events = self.events().await.into_iter();
        let about = events.filter(|(_, payload)| payload["task_id"] == task);
        about.map(|(kind, _)| kind).collect()
    }

    /// Checks that the worker completes a task and then has no other one.
    async fn goes_on(&self, worker: &Worker) {
        self.enqueue("good", request("good", json!({}))).await;
        self.until_event("task.completed", "good").await;
        self.until_nothing_pends().await;
        assert_eq!(worker.get("/health").await.status, 200);
    }

    async fn until_nothing_pends(&self) {
        until("empty queue", async || (self.pending().await == 0).then_some(())).await;
    }

    async fn enqueue_with_input(&self, task: &str, locator: &str) {
        let artifact = json!({"artifact_id": "P:text", "kind": "text", "storage_locator": locator});
        let request = json!({"task_id": task, "job_id": JOB, "resolved_artifact_ids": {"text": "P:text"},
            "artifact_index": {"P:text": artifact}, "config": {}});
        self.enqueue(task, request.to_string()).await;
    }

    async fn enqueue_until(&self, task: &str, deadline: Duration, request: Vec<u8>) {
        self.prepare(task, request).await;
        let at = Timestamp::from(SystemTime::now() + deadline).to_string();
        let message = [
            "XADD",
            STREAM,
            "*",
            "task_id",
            task,
            "job_id",
            JOB,
            "timeout_at",
            &at,
        ];
        let () = self.redis.send(&message).await;
    }

    async fn set_metadata(&self, task: &str, field: &[u8], value: &[u8]) {
        let key = format!("dalston:task:{task}");
        let () = self
            .redis
            .send_bytes(&[b"HSET", key.as_bytes(), field, value])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_without_a_task_is_removed() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    let long = vec![b'x'; 100_000];
    let messages: [&[&[u8]]; 7] = [
        &[b"nothing", b"at all"],
        &[b"task_id", b"T"],
        &[b"task_id", b"", b"job_id", b"J"],
        &[b"task_id", b"\xff\xfe", b"job_id", b"J"],
        &[b"task_id", b"../../etc/passwd", b"job_id", b"J"],
        &[b"task_id", b"T\0", b"job_id", b"J"],
        &[b"task_id", &long, b"job_id", b"J"],
    ];
    for fields in messages {
        let command: [&[u8]; 3] = [b"XADD", STREAM.as_bytes(), b"*"];
        let () = deployment.redis.send_bytes(&[&command, fields].concat()).await;
    }
    deployment.goes_on(&worker).await;
    assert_eq!(deployment.events().await.len(), 2, "only those of the good task");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_times_and_trace_contexts_are_ignored() {
    let deployment = Deployment::start().await;
    let _worker = deployment.worker("a", "5");
    deployment.prepare("odd", request("odd", json!({}))).await;
    for field in ["_trace_context", "request_id", "enqueued_at", "no such field"] {
        deployment.set_metadata("odd", field.as_bytes(), b"\xff{\0").await;
    }
    let message: [&[u8]; 13] = [
        b"XADD",
        STREAM.as_bytes(),
        b"*",
        b"task_id",
        b"odd",
        b"job_id",
        JOB.as_bytes(),
        b"timeout_at",
        b"soon",
        b"enqueued_at",
        b"\xff",
        b"\0",
        b"odd",
    ];
    let () = deployment.redis.send_bytes(&message).await;
    deployment.until_event("task.completed", "odd").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_metadata_fails_the_task() {
    let deployment = Deployment::start().await;
    // The worker starts later, so that it does not see incomplete tasks.
    let table: [(&str, &[u8], &[u8], &str); 6] = [
        (
            "no-text",
            b"stage",
            b"\xff",
            "\"stage\" of its metadata is not UTF-8",
        ),
        ("no-stage", b"stage", b"", "its metadata has no stage"),
        ("odd-stage", b"stage", b"../echo", "../echo"),
        (
            "odd-ids",
            b"resolved_artifact_ids_json",
            b"[1]",
            "resolved_artifact_ids_json",
        ),
        (
            "odd-bindings",
            b"request_bindings_json",
            b"{\"slot\": 1}",
            "request_bindings_json",
        ),
        (
            "no-selector",
            b"request_bindings_json",
            b"[{\"slot\": \"text\"}]",
            "request_bindings_json: [0].selector is missing",
        ),
    ];
    for (task, field, value, _) in table {
        deployment.enqueue(task, request(task, json!({}))).await;
        deployment.set_metadata(task, field, value).await;
        deployment.set_metadata(task, b"request_id", b"req-7").await;
    }
    deployment.enqueue("no-hash", request("no-hash", json!({}))).await;
    let () = deployment
        .redis
        .send(&["SET", "dalston:task:no-hash", "text"])
        .await;
    let worker = deployment.worker("a", "5");
    for (task, _, _, expected) in table {
        let error = deployment.error_of(task).await;
        assert!(error.contains(expected), "{task}: {error}");
        let failure = deployment.until_event("task.failed", task).await;
        assert_eq!(failure["request_id"], "req-7", "readable fields are passed on");
    }
    let error = deployment.error_of("no-hash").await;
    assert!(error.contains("metadata can't be read"), "{error}");
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_request_fails_the_task() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    let whole = request("truncated", json!({"key": "value"}));
    let nested = |with: &str| {
        format!(
            "{{\"task_id\": \"T\", \"job_id\": \"J\", \"config\": {{\"x\": {}",
            with.repeat(200_000)
        )
    };
    let table: [(&str, Vec<u8>, &str); 9] = [
        (
            "truncated",
            whole[..whole.len() / 2].to_vec(),
            "is not valid JSON: EOF",
        ),
        ("lists", nested("[").into(), "recursion limit"),
        ("objects", nested("{\"x\":").into(), "recursion limit"),
        ("latin", b"{\"task_id\": \"\xe9\"}".to_vec(), "is not valid JSON"),
        (
            "list",
            b"[]".to_vec(),
            "document is an empty list: expected an object",
        ),
        ("no-job", br#"{"task_id": "T"}"#.to_vec(), "job_id is missing"),
        (
            "config",
            br#"{"task_id": "T", "job_id": "J", "config": "fast"}"#.to_vec(),
            r#"config is "fast": expected an object"#,
        ),
        (
            "ids",
            br#"{"task_id": "T", "job_id": "J", "resolved_artifact_ids": {"text": 7}}"#.to_vec(),
            "resolved_artifact_ids.text is 7: expected a string",
        ),
        (
            "huge",
            vec![b' '; 128 * 1024 * 1024 + 1],
            "it has more than 134217728 bytes",
        ),
    ];
    for (task, content, expected) in table {
        deployment.enqueue(task, content).await;
        let error = deployment.error_of(task).await;
        assert!(error.contains(expected), "{task}: {error}");
        let place = format!("s3://dalston-artifacts/jobs/{JOB}/tasks/{task}/request.json");
        assert!(error.contains(&place), "{task}: {error}");
    }
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locator_reaches_only_objects() {
    let deployment = Deployment::start().await;
    deployment.s3.put("uploads/there", "hello");
    let temp = tempfile::tempdir().unwrap();
    let worker = deployment.worker_with("a", &[("TMPDIR", temp.path().to_str().unwrap())]);
    let long = format!("s3://uploads/{}", "x".repeat(5000));
    let table = [
        ("", "storage_locator is \"\""),
        ("/etc/passwd", "expected s3://bucket/key"),
        ("file:///etc/passwd", "does not read files of its own machine"),
        ("http://127.0.0.1:1/x", "expected s3://bucket/key"),
        ("s3://", "it has no key"),
        ("s3://uploads", "it has no key"),
        ("s3://uploads/", "it has no key"),
        ("s3:///there", "that can't be the name of a bucket"),
        ("s3://../there", "that can't be the name of a bucket"),
        ("s3://Uploads/there", "that can't be the name of a bucket"),
        ("s3://user@127.0.0.1/there", "that can't be the name of a bucket"),
        ("s3://uploads/../../etc/passwd", "no part of its key may be"),
        ("s3://uploads/./there", "no part of its key may be"),
        ("s3://uploads//there", "no part of its key may be"),
        ("s3://uploads/there/", "no part of its key may be"),
        ("s3://uploads/a\0b", "no part of its key may"),
        ("s3://uploads/a\r\nHost: evil", "hold control characters"),
        (&long, "KeyTooLong"),
        (
            "s3://uploads/not-there",
            "s3://uploads/not-there: there is no such object",
        ),
        ("s3://no-bucket/x", "s3://no-bucket/x: there is no such bucket"),
    ];
    for (number, (locator, expected)) in table.into_iter().enumerate() {
        let task = format!("task-{number}");
        deployment.enqueue_with_input(&task, locator).await;
        let error = deployment.error_of(&task).await;
        assert!(error.contains(expected), "{locator:?}: {error}");
    }
    deployment.enqueue_with_input("right", "s3://uploads/there").await;
    deployment.until_event("task.completed", "right").await;
    deployment.goes_on(&worker).await;
    let empty = async || temp.path().read_dir().unwrap().next().is_none().then_some(());
    until("empty temporary directory", empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_reach_no_other_file() {
    let deployment = Deployment::start().await;
    deployment.s3.put("uploads/there", "hello");
    let worker = deployment.worker("a", "5");
    let long = "x".repeat(5000);
    let names = [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "nul\0",
        "new\nline",
        &long,
    ];
    for (number, name) in names.into_iter().enumerate() {
        // As the name of an input it is only a part of a file's name.
        let task = format!("input-{number}");
        let artifact = json!({"artifact_id": format!("P:{name}"), "kind": "text", "storage_locator": "s3://uploads/there"});
        let ids = json!({name: format!("P:{name}"), "text": format!("P:{name}")});
        let request = json!({"task_id": task, "job_id": JOB, "resolved_artifact_ids": ids,
            "artifact_index": {format!("P:{name}"): artifact}});
        deployment.enqueue(&task, request.to_string()).await;
        deployment.until_event("task.completed", &task).await;
        assert_eq!(
            deployment.response(&task).unwrap().1["data"]["text"],
            "hello",
            "{name:?}"
        );

        // As the name of an output it would become part of a key.
        let task = format!("output-{number}");
        deployment
            .enqueue(&task, super::request(&task, json!({"output": name})))
            .await;
        let error = deployment.error_of(&task).await;
        assert!(error.contains("a name has 1 to 128 letters"), "{name:?}: {error}");
    }
    deployment.goes_on(&worker).await;
    let keys = deployment.s3.keys(TestS3::BUCKET);
    let strange = keys
        .iter()
        .find(|key| !key.ends_with("/request.json") && !key.ends_with("/response.json"));
    assert_eq!(strange, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_named_by_the_health_check() {
    let deployment = Deployment::start().await;
    let wrong = [
        (
            "stranger",
            ("AWS_ACCESS_KEY_ID", "stranger"),
            "InvalidAccessKeyId",
        ),
        (
            "forger",
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            "SignatureDoesNotMatch",
        ),
    ];
    for (task, credentials, expected) in wrong {
        let mut worker = deployment.worker_with(task, &[credentials]);
        deployment.enqueue(task, request(task, json!({}))).await;
        let problem = async || {
            let health = get(worker.port, "/health").await?.json();
            health["problem"].as_str().map(str::to_owned)
        };
        let problem = until("problem of the worker", problem).await;
        assert!(
            problem.contains(expected) && problem.contains("dalston-probe"),
            "{task}: {problem}"
        );
        assert!(!problem.contains("hunter2"), "{problem}");
        assert_eq!(deployment.kinds(task).await, [] as [&str; 0], "{task}");
        worker.finish().await;
    }
    let worker = deployment.worker("a", "5");
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brief_storage_failure_fails_no_task() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    deployment.s3.put("uploads/there", "hello world");
    for (number, fault) in [
        Fault::INTERNAL_ERROR,
        Fault::SLOW_DOWN,
        Fault::Delay(Duration::from_millis(500)),
        Fault::Truncate(5),
        Fault::Cut,
        Fault::LoseAnswer,
    ]
    .into_iter()
    .enumerate()
    {
        let task = format!("task-{number}");
        // The request, the input and the response.
        for path in [
            format!("{task}/request.json"),
            "there".to_owned(),
            format!("{task}/response.json"),
        ] {
            let trouble = Trouble::new(fault.clone()).path(&path).times(1);
            deployment.s3.trouble(trouble);
        }
        deployment.enqueue_with_input(&task, "s3://uploads/there").await;
        let ended = async || {
            let kinds = deployment.kinds(&task).await;
            kinds
                .contains(&"task.failed".to_owned())
                .then(|| panic!("{fault:?}: {kinds:?}"));
            kinds.contains(&"task.completed".to_owned()).then_some(())
        };
        until(&format!("end of {task}"), ended).await;
        assert_eq!(
            deployment.response(&task).unwrap().1["data"]["text"],
            "hello world",
            "{fault:?}"
        );
    }
    deployment.s3.heal();
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lasting_failure_of_another_bucket_fails_the_task() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    deployment.s3.put("uploads/there", "hello world");
    let table = [
        ("internal", Fault::INTERNAL_ERROR, "500"),
        ("busy", Fault::SLOW_DOWN, "503"),
        ("truncated", Fault::Truncate(0), "there"),
        ("denied", Fault::ACCESS_DENIED, "AccessDenied"),
    ];
    for (task, fault, expected) in table {
        deployment.s3.trouble(Trouble::new(fault).path("there"));
        deployment.enqueue_with_input(task, "s3://uploads/there").await;
        let error = deployment.error_of(task).await;
        assert!(
            error.contains(expected) && error.contains("s3://uploads/there"),
            "{task}: {error}"
        );
        deployment.s3.heal();
    }
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_storage_fails_the_task_at_its_deadline() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    // The deadline is short, so the worker must be ready before.
    deployment.until_registered(&worker).await;
    deployment.s3.trouble(Trouble::new(Fault::Hang).path("hanging"));
    deployment
        .enqueue_until("hanging", Duration::from_secs(3), request("hanging", json!({})))
        .await;
    let error = deployment.error_of("hanging").await;
    assert!(error.contains("not done before its deadline"), "{error}");
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_of_the_message_fails_the_task() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    // The deadline is short, so the worker must be ready before.
    deployment.until_registered(&worker).await;
    let slow = |task| request(task, json!({"takes_ms": 60_000}));
    deployment
        .enqueue_until("slow", Duration::from_secs(3), slow("slow"))
        .await;
    let error = deployment.error_of("slow").await;
    assert!(error.contains("not done before its deadline"), "{error}");

    deployment.prepare("late", request("late", json!({}))).await;
    let message = ["XADD", STREAM, "*", "task_id", "late", "job_id", JOB];
    let past = ["timeout_at", "2020-01-01T00:00:00+00:00"];
    let () = deployment.redis.send(&[&message[..], &past].concat()).await;
    let error = deployment.error_of("late").await;
    assert!(error.contains("after its deadline"), "{error}");
    deployment.goes_on(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_job_skips_waiting_and_stops_running_task() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker("a", "5");
    deployment
        .enqueue("running", request("running", json!({"takes_ms": 60_000})))
        .await;
    worker.until_busy().await;
    let () = deployment
        .redis
        .send(&["SET", &format!("dalston:job:cancelled:{JOB}"), "1"])
        .await;
    let cancelled = Instant::now();
    deployment.enqueue("waiting", request("waiting", json!({}))).await;
    deployment.until_event("task.completed", "running").await;
    let took = cancelled.elapsed();
    assert_eq!(deployment.response("running"), None);
    // The worker asks once a second. The task would take a minute.
    assert!(took < Duration::from_secs(30), "{took:?}");
    deployment.until_nothing_pends().await;
    let () = deployment
        .redis
        .send(&["DEL", &format!("dalston:job:cancelled:{JOB}")])
        .await;
    deployment.goes_on(&worker).await;
    assert_eq!(deployment.kinds("waiting").await, [] as [&str; 0]);
    assert_eq!(
        worker.begun.load(Ordering::SeqCst),
        2,
        "the running task and the good one"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_that_kills_three_workers_is_failed_by_the_fourth() {
    /// With this variable, which holds the addresses of the servers, the test is one of the
    /// engines.
    const ENGINE: &str = "TEST_ENGINE_OF";
    const LEASE: Duration = Duration::from_secs(1);
    let configs = |redis: &str, s3: &str, name: &str| {
        let (config, mut deployment) = super::configs(redis, s3, name, &[]);
        deployment.lease = LEASE;
        (config, deployment)
    };
    if let Ok(addresses) = std::env::var(ENGINE) {
        let (redis, s3) = addresses.split_once(' ').unwrap();
        let (config, deployment) = configs(redis, s3, &std::process::id().to_string());
        let telemetry = TelemetryHandle::disabled();
        worker::run(Echo::default(), config, deployment, telemetry, pending())
            .await
            .unwrap();
        return;
    }

    let name = "worker::hostile::task_that_kills_three_workers_is_failed_by_the_fourth";
    let deployment = Deployment::start().await;
    deployment
        .enqueue("poison", request("poison", json!({"abort": true})))
        .await;
    for _ in 0..3 {
        let engine = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(
                ENGINE,
                format!("{} {}", deployment.redis.url(), deployment.s3.url()),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let ended = timeout(Duration::from_secs(60), engine.unwrap().wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(ended.code(), None, "{ended}");
    }
    let (config, of_worker) = configs(&deployment.redis.url(), &deployment.s3.url(), "d");
    let worker = deployment.worker_as(config, of_worker);
    let failure = deployment.until_event("task.failed", "poison").await;
    let error = failure["error"].as_str().unwrap();
    assert!(
        error.contains("began 3 times (limit 3) and no worker survived it"),
        "{error}"
    );
    let started = "task.started";
    assert_eq!(
        deployment.kinds("poison").await,
        [started, started, started, started, "task.failed"]
    );
    deployment.goes_on(&worker).await;
    assert_eq!(worker.begun.load(Ordering::SeqCst), 1, "only the good task");
}
