//! Jobs without faults.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Rig, stereo, trace_id};
use crate::tree::tree;

/// The spans of a job with two channels.
const STEREO: &str = "
POST /v1/audio/transcriptions {http.response.status_code=201}
  gateway.upload_to_s3
  gateway.create_job
  gateway.publish_job_created_event
    orchestrator.handle_job
      orchestrator.build_dag {dalston.engine_id=mock-asr}
      orchestrator.schedule_task {dalston.stage=prepare, dalston.engine_id=audio-prepare}
        engine.queue_wait
        engine.audio-prepare.process {dalston.stage=prepare, dalston.engine_id=audio-prepare}
          engine.download_input
          engine.process
          engine.upload_output
          orchestrator.handle_task_started
          orchestrator.handle_task_completed {dalston.engine_id=audio-prepare}
            orchestrator.schedule_task {dalston.stage=transcribe_ch0, dalston.engine_id=mock-asr}
              engine.queue_wait
              engine.mock-asr.process {dalston.stage=transcribe_ch0, dalston.engine_id=mock-asr}
                engine.download_input
                engine.process
                engine.upload_output
                orchestrator.handle_task_started
                orchestrator.handle_task_completed {dalston.engine_id=mock-asr}
            orchestrator.schedule_task {dalston.stage=transcribe_ch1, dalston.engine_id=mock-asr}
              engine.queue_wait
              engine.mock-asr.process {dalston.stage=transcribe_ch1, dalston.engine_id=mock-asr}
                engine.download_input
                engine.process
                engine.upload_output
                orchestrator.handle_task_started
                orchestrator.handle_task_completed {dalston.engine_id=mock-asr}
                  orchestrator.mark_job_completed
";

/// The counters of the orchestrator after that job.
const ORCHESTRATED: [&str; 13] = [
    r#"event_decisions_total{decision="ack",failure_reason="none",event_type="job.completed"} 1"#,
    r#"event_decisions_total{decision="ack",failure_reason="none",event_type="job.created"} 1"#,
    r#"event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} 3"#,
    r#"event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} 3"#,
    r#"events_processed_total{event_type="job.completed"} 1"#,
    r#"events_processed_total{event_type="job.created"} 1"#,
    r#"events_processed_total{event_type="task.completed"} 3"#,
    r#"events_processed_total{event_type="task.started"} 3"#,
    r#"jobs_total{status="completed"} 1"#,
    r#"tasks_completed_total{engine_id="audio-prepare",execution_profile="container",status="success"} 1"#,
    r#"tasks_completed_total{engine_id="mock-asr",execution_profile="container",status="success"} 2"#,
    r#"tasks_scheduled_total{engine_id="audio-prepare",stage="prepare",execution_profile="container"} 1"#,
    r#"tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"} 2"#,
];

#[tokio::test]
async fn stereo_job_is_one_trace_from_upload_to_transcript() {
    let mut rig = Rig::start().await;
    let fields = [("speaker_detection", "per_channel")];
    let response = rig.submit(&stereo(2), &fields).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let trace = trace_id(&response);
    assert_eq!(response.headers()["x-request-id"], "req_test");
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    assert_eq!(created["display_name"], "call.wav");

    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 2.0s channel 1 2.0s");
    let speaker = json!({"id": "SPEAKER_01", "label": "Channel 1", "channel": 1});
    assert_eq!(job["speakers"][1], speaker);
    let stages = job["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|stage| &stage["stage"]).collect();
    assert_eq!(names, ["prepare", "transcribe_ch0", "transcribe_ch1"]);
    for stage in stages {
        assert_eq!(
            (&stage["status"], &stage["retries"]),
            (&json!("completed"), &json!(0))
        );
        assert!(
            stage["wait_ms"].is_u64() && stage["duration_ms"].is_u64(),
            "{stage}"
        );
    }

    // Its own event is the last one that the orchestrator reads.
    rig.until("last event", async || {
        let counters = rig.counters("orchestrator").await;
        counters
            .iter()
            .find(|line| line.contains("job.completed"))
            .map(drop)
    })
    .await;
    let mut counters = rig.counters("orchestrator").await;
    counters.retain(|line| !line.starts_with("scanner_"));
    assert_eq!(counters, ORCHESTRATED);
    let gateway = rig.counters("gateway").await;
    let expected = [
        r#"jobs_created_total{tenant_id="default"} 1"#,
        r#"requests_total{method="POST",endpoint="/v1/audio/transcriptions",status_code="201"} 1"#,
    ];
    for line in expected {
        assert!(
            gateway.iter().any(|found| found == line),
            "{line} in {gateway:#?}"
        );
    }

    let spans = rig.stop(&trace);
    tree(&spans).assert_eq(STEREO);

    // The lines about the job, of each process, lead to the trace and to the request.
    let lines = rig.log_lines();
    let about: Vec<&Value> = lines.iter().filter(|line| line["job_id"] == id).collect();
    let services: BTreeSet<_> = about.iter().map(|line| line["service"].to_string()).collect();
    assert_eq!(services.len(), 4, "{services:?}");
    for line in about {
        assert_eq!(
            (&line["trace_id"], &line["request_id"]),
            (&json!(trace), &json!("req_test")),
            "{line}"
        );
    }

    let audit = rig.audit();
    let records: Vec<_> = audit
        .iter()
        .map(|record| [&record["action"], &record["resource_id"], &record["trace_id"]])
        .collect();
    let transcript = format!("{id}:transcript");
    assert_eq!(
        records[..2],
        [
            [&json!("job.created"), &json!(id), &json!(trace)],
            [&json!("job.completed"), &json!(id), &json!(trace)],
        ]
    );
    assert_eq!(records[2][..2], [&json!("artifact.read"), &json!(transcript)]);
    assert_eq!(audit[1]["audio_duration"], 2.0);
    assert_eq!(audit[1]["correlation_id"], "req_test");
}

#[tokio::test]
async fn api_lists_shows_and_deletes_jobs() {
    let rig = Rig::start().await;
    let response = rig
        .submit(&stereo(1), &[("model", "whisper-1"), ("response_format", "text")])
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.text().await.unwrap(), "mono 1.0s\n");

    let list = rig.get("/v1/audio/transcriptions?status=completed").await;
    assert_eq!(list["total"], 1);
    let id = list["jobs"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/audio/transcriptions/{id}");
    let tasks = rig.get(&format!("{path}/tasks")).await;
    let task = tasks["tasks"][1]["task_id"].as_str().unwrap().to_owned();
    let documents = rig.get(&format!("{path}/tasks/{task}/artifacts")).await;
    assert_eq!(documents["request"]["config"]["language"], "auto");
    assert_eq!(
        documents["request"]["previous_responses"]["prepare"]["split_channels"],
        false
    );
    assert_eq!(documents["response"]["data"]["text"], "mono 1.0s");

    let gone = rig.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let missing = rig.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    let trace = trace_id(&missing);
    let body: Value = missing.json().await.unwrap();
    assert_eq!(body["detail"], format!("there is no job {id}"));
    assert_eq!(body["trace_id"], trace);
    assert!(body["request_id"].as_str().unwrap().starts_with("req_"), "{body}");
    assert!(rig.files_of(&id).is_empty());
}

#[tokio::test]
async fn failing_task_is_retried_twice_and_fails_its_job() {
    let mut rig = Rig::start().await;
    let response = rig.submit(&stereo(1), &[("prompt", "fail")]).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    let job = rig.job_with(&id, "failed").await;
    let error = job["error"].as_str().unwrap();
    assert!(error.starts_with("Task transcribe failed: "), "{error}");
    assert_eq!(job["stages"][1]["retries"], 2);
    let tree = tree(&rig.stop(&trace));
    let names = tree.names();
    let count = |name| names.iter().filter(|found| **found == name).count();
    assert_eq!(count("engine.mock-asr.process"), 3, "{tree}");
    assert_eq!(count("orchestrator.mark_job_failed"), 1, "{tree}");
    let last = rig.audit().pop().unwrap();
    assert_eq!(
        (&last["action"], &last["trace_id"]),
        (&json!("job.failed"), &json!(trace))
    );
}

#[tokio::test]
async fn task_fails_at_its_deadline_with_and_without_an_engine() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_DEFAULT_TASK_TIMEOUT_S", "1"));
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    rig.run("mock-engine", &["--delay", "20000"]);
    rig.is_ready(2).await;
    let submit = async |rig: &Rig| {
        let created: Value = rig.submit(&stereo(1), &[]).await.json().await.unwrap();
        created["id"].as_str().unwrap().to_owned()
    };
    let id = submit(&rig).await;
    rig.stage_with(&id, "transcribe", "running").await;
    let job = rig.job_with(&id, "failed").await;
    let error = job["error"].as_str().unwrap();
    assert!(error.contains("deadline"), "{error}");
    assert_eq!(job["stages"][1]["retries"], 2);

    // It is registered for a minute more.
    rig.kill("mock-engine");
    let id = submit(&rig).await;
    let job = rig.job_with(&id, "failed").await;
    assert_eq!(
        job["error"],
        "Task transcribe failed: No engine took the task before its deadline"
    );
}

#[tokio::test]
async fn errors_have_the_form_of_their_api_and_the_ids() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret"));
    rig.run("gateway", &[]);
    let path = "/v1/audio/transcriptions";
    let refused = rig
        .until("answer", async || {
            rig.request(Method::GET, path).send().await.ok()
        })
        .await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    for (form, pointer) in [
        (&[("model", "whisper-1")][..], "/error"),
        (&[("model", "auto")], ""),
    ] {
        let file = reqwest::multipart::Part::bytes(b"no audio".to_vec()).file_name("a.txt");
        let form = form.iter().fold(
            reqwest::multipart::Form::new().part("file", file),
            |form, (name, value)| form.text(*name, *value),
        );
        let request = rig
            .request(Method::POST, path)
            .bearer_auth("secret")
            .multipart(form);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let trace = trace_id(&response);
        let body: Value = response.json().await.unwrap();
        let ids = body.pointer(pointer).unwrap();
        assert_eq!(ids["trace_id"], trace, "{body}");
        assert!(ids["request_id"].is_string(), "{body}");
    }
    let request = rig.request(Method::GET, &format!("{path}?status=odd"));
    let response = request.bearer_auth("secret").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let body: Value = response.json().await.unwrap();
    let detail = body["detail"].as_str().unwrap();
    assert!(
        detail.starts_with(r#"status is "odd": expected pending"#),
        "{detail}"
    );
}

#[tokio::test]
async fn waiting_job_is_cancelled() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    // A long task occupies the only inference thread.
    rig.run("mock-engine", &["--delay", "1500"]);
    rig.is_ready(2).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created: Value = rig.submit(&stereo(1), &[]).await.json().await.unwrap();
        let id = created["id"].as_str().unwrap().to_owned();
        rig.stage_with(&id, "prepare", "completed").await;
        ids.push(id);
    }
    let path = format!("/v1/audio/transcriptions/{}", ids[1]);
    let conflict = rig.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    let cancelled = rig
        .request(Method::POST, &format!("{path}/cancel"))
        .send()
        .await
        .unwrap();
    assert_eq!(cancelled.status(), StatusCode::OK);
    let job = rig.job_with(&ids[1], "cancelled").await;
    assert_eq!(job["stages"][1]["status"], "cancelled");
    rig.job_with(&ids[0], "completed").await;
}

#[tokio::test]
async fn gateway_does_not_wait_for_reads_of_orchestrator() {
    let mut rig = Rig::new().await;
    rig.run("all", &[]);
    rig.is_ready(0).await;
    // The orchestrator waits half a second for events, on a connection of its own.
    let began = Instant::now();
    for _ in 0..10 {
        rig.get("/v1/engines").await;
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
