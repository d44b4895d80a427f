//! Jobs without faults.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::retry::retry;
use crate::rig::{Rig, Series, changes, stereo, trace_id};
use crate::tree::tree;

/// The spans of a job with two channels.
pub(crate) const STEREO: &str = "
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

/// What the job and one look at it change in the metrics of the gateway.
const GATEWAY: [&str; 6] = [
    r#"dalston_gateway_jobs_created_total{tenant_id="default"} +1"#,
    r#"dalston_gateway_request_duration_seconds_count{method="GET",endpoint="/v1/audio/transcriptions/{id}"} +1"#,
    r#"dalston_gateway_request_duration_seconds_count{method="POST",endpoint="/v1/audio/transcriptions"} +1"#,
    r#"dalston_gateway_requests_total{method="GET",endpoint="/v1/audio/transcriptions/{id}",status_code="200"} +1"#,
    r#"dalston_gateway_requests_total{method="POST",endpoint="/v1/audio/transcriptions",status_code="201"} +1"#,
    // 64 044 of the recording; the rest is the form.
    "dalston_gateway_upload_bytes_total +64402",
];

/// And of the orchestrator.
const ORCHESTRATOR: [&str; 16] = [
    r#"dalston_orchestrator_audio_duration_seconds_count{engine_id="mock-asr",model=""} +1"#,
    "dalston_orchestrator_dag_build_duration_seconds_count +1",
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.created"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} +3"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} +3"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.created"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.completed"} +3"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.started"} +3"#,
    r#"dalston_orchestrator_job_duration_seconds_count{engine_id="mock-asr",model="",stage_count="3"} +1"#,
    r#"dalston_orchestrator_jobs_total{status="completed"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="audio-prepare",execution_profile="container",status="success"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="mock-asr",execution_profile="container",status="success"} +2"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="audio-prepare",stage="prepare",execution_profile="container"} +1"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"} +2"#,
];

/// The metrics of stages of audio, in all services.
const PIPELINE: [&str; 5] = ["audio_", "wake_", "end_to_end_", "pre_stt_", "stt_"];

/// And of the engine that prepares: two seconds are two chunks.
const PREPARE: [&str; 3] = [
    "audio_chunks_processed_total +2",
    "audio_processing_duration_seconds_count +2",
    "pre_stt_encode_seconds_count +1",
];

/// And of the orchestrator about the transcriptions of both channels.
const TRANSCRIPTIONS: [&str; 5] = [
    "end_to_end_response_duration_seconds_count +1",
    "stt_latency_seconds_count +2",
    "stt_requests_total +2",
    "stt_transcription_duration_seconds_count +2",
    r#"stt_transcriptions_total{model="mock-asr",status="success"} +2"#,
];

#[tokio::test]
async fn stereo_job_is_one_trace_from_upload_to_transcript() {
    let mut rig = Rig::start_with_metrics().await;
    rig.run("mock-engine", &["--delay", "200"]);
    rig.is_ready(3).await;
    // So that each of two engines takes a channel.
    rig.hold("mock-engine");
    let before = [
        rig.series("gateway").await,
        rig.series("orchestrator").await,
        rig.series("prepare").await,
    ];
    let fields = [("speaker_detection", "per_channel")];
    let response = rig.submit(&stereo(2), &fields).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let trace = trace_id(&response);
    assert_eq!(response.headers()["x-request-id"], "req_test");
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    assert_eq!(created["display_name"], "call.wav");

    rig.until("transcription of both channels", async || {
        let sql = "SELECT count(*) FROM tasks WHERE stage LIKE 'transcribe%' AND status = 'running'";
        (rig.count(sql) == Some(2)).then_some(())
    })
    .await;
    rig.let_go("mock-engine");
    rig.wait_for(&id, "completed").await;
    let job = rig.get(&format!("/v1/audio/transcriptions/{id}")).await;
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
    rig.has_acknowledged_events().await;
    let pipeline_changes = |before: &Series, after: &Series| changes(before, after, &PIPELINE);
    let gateway_changes = |before: &Series, after: &Series| changes(before, after, &["dalston_gateway_"]);
    let [gateway, orchestrator, prepare] = &before;
    rig.changed("gateway", gateway, gateway_changes, &GATEWAY).await;
    rig.changed("orchestrator", orchestrator, orchestrated_changes, &ORCHESTRATOR)
        .await;
    rig.changed("prepare", prepare, pipeline_changes, &PREPARE).await;
    rig.changed("orchestrator", orchestrator, pipeline_changes, &TRANSCRIPTIONS)
        .await;
    has_jobs_in_progress(&rig, 0).await;

    let spans = rig.stop(&trace);
    tree(&spans).assert_eq(STEREO);

    // A search by the request finds the lines of each process.
    let lines = rig.log_lines();
    let of_request = lines.iter().filter(|line| line["request_id"] == "req_test");
    let services: BTreeSet<_> = of_request.map(|line| line["service"].as_str().unwrap()).collect();
    let expected = [
        "engine-audio-prepare",
        "engine-mock-asr",
        "gateway",
        "orchestrator",
    ];
    assert_eq!(services, expected.into());

    // The lines about the job, of each process, lead to the trace and to the request.
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
        .map(|record| {
            [
                &record["action"],
                &record["resource_id"],
                &record["correlation_id"],
            ]
        })
        .collect();
    let reader = &audit[2]["correlation_id"];
    assert_eq!(
        records,
        [
            [&json!("job.created"), &json!(id), &json!("req_test")],
            [&json!("job.completed"), &json!(id), &json!("req_test")],
            [
                &json!("artifact.read"),
                &json!(format!("{id}:transcript")),
                reader
            ],
        ]
    );
    assert_ne!(*reader, "req_test");
    for record in &audit[..2] {
        assert_eq!(record["trace_id"], trace);
    }
    assert_eq!(audit[1]["audio_duration"], 2.0);
}

/// What the scans of the orchestrator count. How many there were, and whether one of them saw a
/// job, depends on the time.
const SCANS: [&str; 2] = ["dalston_orchestrator_scanner_", JOBS_IN_PROGRESS];
const JOBS_IN_PROGRESS: &str = "dalston_orchestrator_jobs_in_progress";

/// The changes but for the scans.
pub(crate) fn orchestrated_changes(before: &Series, after: &Series) -> Vec<String> {
    let mut changes = changes(before, after, &["dalston_orchestrator_"]);
    changes.retain(|change| !SCANS.iter().any(|name| change.starts_with(name)));
    changes
}

/// Waits until a scan of the orchestrator has counted so many jobs.
pub(crate) async fn has_jobs_in_progress(rig: &Rig, jobs: u32) {
    rig.until("scan", async || {
        let series = rig.series("orchestrator").await;
        (series[JOBS_IN_PROGRESS] == f64::from(jobs)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn api_lists_shows_and_deletes_jobs() {
    let mut rig = Rig::start().await;
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
    let artifacts = documents["request"]["artifact_index"].as_object().unwrap();
    assert!(
        artifacts.values().any(|artifact| artifact["kind"] == "loudness"),
        "{artifacts:?}"
    );

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
    rig.end_all();
    let audit = rig.audit();
    let records = audit.iter().map(|record| {
        let text = |name: &str| record[name].as_str().unwrap();
        format!("{} {}", text("action"), text("resource_id"))
    });
    let expected = [
        format!("job.created {id}"),
        format!("job.completed {id}"),
        format!("artifact.read {id}:transcript"),
        format!("artifact.read {task}:response"),
        format!("job.deleted {id}"),
    ];
    assert_eq!(records.collect::<Vec<_>>(), expected);
}

/// What a job whose transcription fails three times and two unreadable events change in the metrics
/// of the orchestrator.
const FAILING: [&str; 20] = [
    "dalston_orchestrator_dag_build_duration_seconds_count +1",
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.created"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.failed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.failed"} +3"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} +4"#,
    r#"dalston_orchestrator_event_decisions_total{decision="dlq",failure_reason="invalid_payload_json",event_type="job.created"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="dlq",failure_reason="unknown_event_type",event_type="__other__"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="__other__"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.created"} +2"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.failed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.failed"} +3"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.started"} +4"#,
    r#"dalston_orchestrator_job_duration_seconds_count{engine_id="mock-asr",model="",stage_count="2"} +1"#,
    r#"dalston_orchestrator_jobs_total{status="failed"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="audio-prepare",execution_profile="container",status="success"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="mock-asr",execution_profile="container",status="failure"} +3"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="audio-prepare",stage="prepare",execution_profile="container"} +1"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"} +3"#,
];

/// And about its transcription, which counts once.
const FAILED_TRANSCRIPTION: [&str; 4] = [
    "stt_latency_seconds_count +1",
    "stt_requests_total +1",
    "stt_transcription_duration_seconds_count +1",
    r#"stt_transcriptions_total{model="mock-asr",status="failure"} +1"#,
];

/// What the exporter of the queues' metrics shows then: empty queues.
const QUEUE_METRICS: [&str; 3] = ["dalston_queue", "dalston_events_", "dalston_redis_"];
const QUEUES: [&str; 2] = ["dalston_events_dead_letters +2", "dalston_redis_connected +1"];

#[tokio::test]
async fn failing_task_is_retried_twice_and_fails_its_job() {
    let mut rig = Rig::start_with_metrics().await;
    let before = rig.series("orchestrator").await;
    let response = rig.submit(&stereo(1), &[("prompt", "fail")]).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    let job = rig.job_with(&id, "failed").await;
    // Neither is an event of the platform.
    for (kind, payload) in [("job.created", "{"), ("job.lost", "{}")] {
        let words = [
            "XADD",
            "dalston:events:stream",
            "*",
            "type",
            kind,
            "payload",
            payload,
        ];
        let _: String = rig.redis.send(&words).await;
    }
    rig.has_acknowledged_events().await;
    let queue_changes = |before: &Series, after: &Series| changes(before, after, &QUEUE_METRICS);
    rig.changed("queue-exporter", &Series::new(), queue_changes, &QUEUES)
        .await;
    rig.changed("orchestrator", &before, orchestrated_changes, &FAILING)
        .await;
    let pipeline_changes = |before: &Series, after: &Series| changes(before, after, &PIPELINE);
    rig.changed("orchestrator", &before, pipeline_changes, &FAILED_TRANSCRIPTION)
        .await;
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
    rig.variables
        .push(("DALSTON_DEFAULT_TASK_TIMEOUT_S", "2".to_owned()));
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
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.run("gateway", &[]);
    let path = "/v1/audio/transcriptions";
    let refused = rig
        .until("answer", async || {
            rig.request(Method::GET, path).send().await.ok()
        })
        .await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let refused = rig.request(Method::GET, "/v1/traces/5").send().await.unwrap();
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
async fn wishes_without_a_stage_are_refused_by_name() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    for (fields, detail) in [
        (
            &[("audio_url", "https://example.org/a.wav")][..],
            "audio_url is not supported here: send the recording as file",
        ),
        (
            &[("speaker_detection", "diarize")],
            "speaker_detection=diarize is not supported here: no stage tells speakers apart",
        ),
        (
            &[("max_speakers", "2")],
            "max_speakers is not supported here: no stage here tells speakers apart",
        ),
        (
            &[("pii_detection", "true")],
            "pii_detection is not supported here: no stage here finds or redacts personal data",
        ),
        (
            &[("response_format", "srt")],
            "response_format is not supported here: it needs a model of OpenAI's API",
        ),
        (
            &[("webhook_id", "w"), ("stream", "false")],
            "webhook_id is not supported here: leave it out",
        ),
        (
            &[("language", "de"), ("language", "en")],
            "language is given more than once",
        ),
    ] {
        let response = rig.submit(&stereo(1), fields).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{fields:?}");
        let body: Value = response.json().await.unwrap();
        let found = body["detail"].as_str().unwrap();
        assert!(found.starts_with(detail), "{found}");
    }
    let openai = [("model", "whisper-1"), ("include[]", "logprobs")];
    let body: Value = rig.submit(&stereo(1), &openai).await.json().await.unwrap();
    let detail = "include[] is not supported here: leave it out";
    assert_eq!(body["error"]["message"], detail, "{body}");
    let response = rig.submit(&stereo(1), &[("pii_detection", "false")]).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(rig.get("/v1/audio/transcriptions").await["total"], 1);
}

#[tokio::test]
async fn waiting_job_is_cancelled_and_runs_again() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    // A long task occupies the only inference thread.
    rig.hold("mock-engine");
    rig.run("mock-engine", &[]);
    rig.is_ready(2).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created: Value = rig.submit(&stereo(1), &[]).await.json().await.unwrap();
        let id = created["id"].as_str().unwrap().to_owned();
        rig.stage_with(&id, "prepare", "completed").await;
        ids.push(id);
    }
    rig.stage_with(&ids[0], "transcribe", "running").await;
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
    // The engine has the task already, or takes it now.
    let is_cancelled = |line: &Value| {
        let event = &line["event"];
        line["job_id"] == *ids[1] && (event == "task_cancelled" || event == "task_skipped_job_cancelled")
    };
    rig.until("end of the task", async || {
        rig.log_lines().into_iter().find(is_cancelled)
    })
    .await;
    rig.let_go("mock-engine");
    rig.job_with(&ids[0], "completed").await;

    // The event of the retry gets lost, and the entry of the first run may still be in the queue.
    rig.end("orchestrator");
    assert_eq!(retry(&rig, &ids[1]).await.status(), StatusCode::OK);
    let _: i64 = rig.redis.send(&["DEL", "dalston:events:stream"]).await;
    rig.run("orchestrator", &[]);
    let job = rig.job_with(&ids[1], "completed").await;
    assert_eq!(job["text"], "mono 1.0s");
    assert_eq!(rig.entries_added("dalston:stream:mock-asr").await, 3);
    rig.end_all();
    let starts = rig.log_lines();
    let starts = starts.iter().filter(|line| {
        line["service"] == "engine-mock-asr" && line["job_id"] == *ids[1] && line["event"] == "task_completed"
    });
    assert_eq!(starts.count(), 1);
}

#[tokio::test]
async fn gateway_does_not_wait_for_reads_of_orchestrator() {
    let mut rig = Rig::new().await;
    rig.run("all", &[]);
    rig.is_ready(0).await;
    // The orchestrator waits half a second for events, on a connection of its own. On the same one,
    // the requests would take 20 s.
    let began = Instant::now();
    for _ in 0..40 {
        rig.get("/v1/engines").await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
