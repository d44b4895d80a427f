//! Jobs whose processes are killed, and a Redis that comes back empty.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::job::{has_jobs_in_progress, orchestrated_changes};
use crate::rig::{Rig, Series, changes, stereo, trace_id};
use crate::tree::tree;

/// A short lease, so that the test need not wait for the platform's 60 s.
const LEASE: [&str; 2] = ["--lease", "2"];

/// What the submission changes in the metrics of a gateway that is killed after it.
const SUBMITTED: [&str; 4] = [
    r#"dalston_gateway_jobs_created_total{tenant_id="default"} +1"#,
    r#"dalston_gateway_request_duration_seconds_count{method="POST",endpoint="/v1/audio/transcriptions"} +1"#,
    r#"dalston_gateway_requests_total{method="POST",endpoint="/v1/audio/transcriptions",status_code="201"} +1"#,
    // 32 044 of the recording; the rest is the form.
    "dalston_gateway_upload_bytes_total +32258",
];

/// And a look at the jobs in those of its successor.
const LISTED: [&str; 2] = [
    r#"dalston_gateway_request_duration_seconds_count{method="GET",endpoint="/v1/audio/transcriptions"} +1"#,
    r#"dalston_gateway_requests_total{method="GET",endpoint="/v1/audio/transcriptions",status_code="200"} +1"#,
];

/// What a job changes in the metrics of an orchestrator that is killed during its transcription.
const UNTIL_THE_KILL: [&str; 10] = [
    "dalston_orchestrator_dag_build_duration_seconds_count +1",
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.created"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} +2"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.created"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.started"} +2"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="audio-prepare",execution_profile="container",status="success"} +1"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="audio-prepare",stage="prepare",execution_profile="container"} +1"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"} +1"#,
];

/// And in those of its successor.
const AFTER_THE_KILL: [&str; 10] = [
    r#"dalston_orchestrator_audio_duration_seconds_count{engine_id="mock-asr",model=""} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.started"} +1"#,
    r#"dalston_orchestrator_job_duration_seconds_count{engine_id="mock-asr",model="",stage_count="2"} +1"#,
    r#"dalston_orchestrator_jobs_total{status="completed"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="mock-asr",execution_profile="container",status="success"} +1"#,
];
/// The spans of a job whose gateway, orchestrator and engine were killed. The span of the first
/// attempt died with its engine, so what stood below it has lost its parent.
const KILLED: &str = "
engine.download_input
POST /v1/audio/transcriptions {http.response.status_code=201}
  gateway.upload_to_s3
  gateway.create_job
  gateway.publish_job_created_event
    orchestrator.handle_job
      orchestrator.build_dag
      orchestrator.schedule_task {dalston.stage=prepare}
        engine.queue_wait
        engine.audio-prepare.process
          engine.download_input
          engine.process
          engine.upload_output
          orchestrator.handle_task_started
          orchestrator.handle_task_completed
            orchestrator.schedule_task {dalston.stage=transcribe}
              engine.queue_wait
              engine.queue_wait
              engine.mock-asr.process
                engine.download_input
                engine.process
                engine.upload_output
                orchestrator.handle_task_started
                orchestrator.handle_task_completed
                  orchestrator.mark_job_completed
orchestrator.handle_task_started
";

/// The platform with short leases.
async fn platform() -> Rig {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &LEASE);
    rig.run("mock-engine", &LEASE);
    rig.is_ready(2).await;
    rig
}

async fn submit(rig: &Rig) -> (String, String) {
    let response = rig
        .submit(&stereo(1), &[("speaker_detection", "per_channel")])
        .await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    (created["id"].as_str().unwrap().to_owned(), trace)
}

/// How often each span of interest is in the trace.
fn counts(rig: &mut Rig, trace: &str) -> [usize; 3] {
    let tree = tree(&rig.stop(trace));
    let names = tree.names();
    let count = |name: &str| names.iter().filter(|found| **found == name).count();
    [
        count("orchestrator.build_dag"),
        count("orchestrator.schedule_task"),
        count("orchestrator.mark_job_completed"),
    ]
}

#[tokio::test]
async fn job_survives_kill_of_gateway_orchestrator_and_engine() {
    let mut rig = platform().await;
    rig.hold("mock-engine");
    let (id, trace) = submit(&rig).await;
    rig.kill("gateway");
    rig.run("gateway", &[]);
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    rig.exported("dalston-orchestrator", "orchestrator.build_dag", 1)
        .await;
    rig.kill("orchestrator");
    rig.kill("mock-engine");
    rig.let_go("mock-engine");
    rig.run("mock-engine", &LEASE);
    rig.run("orchestrator", &[]);
    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 1.0s channel 1 1.0s");
    // Nothing was planned, queued or ended twice. A process that is killed may take along the spans
    // of the last tasks that it queued.
    assert_eq!(rig.entries_added("dalston:stream:audio-prepare").await, 1);
    assert_eq!(rig.entries_added("dalston:stream:mock-asr").await, 2);
    let [planned, _, ended] = counts(&mut rig, &trace);
    assert_eq!((planned, ended), (1, 1));
    let audit = rig.audit();
    let completed = audit.iter().filter(|record| record["action"] == "job.completed");
    assert_eq!(completed.count(), 1);
}

/// Waits for the last of these changes since the start of the orchestrator, and compares all.
async fn orchestrated(rig: &Rig, expected: &[&str]) {
    rig.changed("orchestrator", &Series::new(), orchestrated_changes, expected)
        .await;
}

/// As `orchestrated`, for the gateway, but without the changes by the waits for it.
async fn received(rig: &Rig, expected: &[&str]) {
    let of = |before: &Series, after: &Series| {
        let mut changes = changes(before, after, &["dalston_gateway_"]);
        changes.retain(|change| !change.contains("\"/v1/engines\""));
        changes
    };
    rig.changed("gateway", &Series::new(), of, expected).await;
}

#[tokio::test]
async fn kills_leave_trace_metrics_logs_and_audit_of_a_job() {
    let mut rig = Rig::new().await;
    // So that a process has exported what it ended before it is killed.
    rig.variables.push(("OTEL_BSP_SCHEDULE_DELAY", "20".to_owned()));
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &LEASE);
    rig.run("mock-engine", &LEASE);
    rig.is_ready(2).await;
    rig.hold("mock-engine");
    let response = rig.submit(&stereo(1), &[]).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();

    rig.exported("dalston-gateway", "POST /v1/audio/transcriptions", 1)
        .await;
    received(&rig, &SUBMITTED).await;
    rig.has_audited("job.created").await;
    rig.kill("gateway");
    rig.exported("dalston-orchestrator", "orchestrator.handle_task_started", 2)
        .await;
    rig.exported("dalston-engine-mock-asr", "engine.download_input", 1)
        .await;
    orchestrated(&rig, &UNTIL_THE_KILL).await;
    has_jobs_in_progress(&rig, 1).await;
    rig.has_acknowledged_events().await;
    rig.kill("orchestrator");
    rig.kill("mock-engine");
    rig.let_go("mock-engine");
    rig.run("gateway", &[]);
    rig.run("mock-engine", &LEASE);
    rig.run("orchestrator", &[]);
    rig.wait_for(&id, "completed").await;
    rig.exported("dalston-orchestrator", "orchestrator.mark_job_completed", 1)
        .await;
    orchestrated(&rig, &AFTER_THE_KILL).await;
    has_jobs_in_progress(&rig, 0).await;
    assert_eq!(rig.get("/v1/audio/transcriptions").await["total"], 1);
    received(&rig, &LISTED).await;
    tree(&rig.stop(&trace)).assert_eq(KILLED);

    // An engine that takes an entry over does not know the trace yet.
    let lines = rig.log_lines();
    let about = lines
        .iter()
        .filter(|line| line["job_id"] == id && line["event"] != "claimed_stale_task");
    for line in about {
        let ids = (&line["trace_id"], &line["request_id"]);
        assert_eq!(ids, (&json!(trace), &json!("req_test")), "{line}");
    }
    let audit = rig.audit();
    let actions: Vec<_> = audit.iter().map(|record| &record["action"]).collect();
    assert_eq!(actions, ["job.created", "job.completed"]);
    assert!(
        audit.iter().all(|record| record["trace_id"] == trace),
        "{audit:?}"
    );
}

#[tokio::test]
async fn job_is_found_without_its_event() {
    let mut rig = platform().await;
    rig.kill("orchestrator");
    let (id, trace) = submit(&rig).await;
    let _: i64 = rig.redis.send(&["DEL", "dalston:events:stream"]).await;
    rig.run("orchestrator", &[]);
    rig.job_with(&id, "completed").await;
    assert_eq!(counts(&mut rig, &trace), [1, 3, 1]);
}

#[tokio::test]
async fn queued_tasks_are_queued_again_if_redis_comes_back_empty() {
    let mut rig = platform().await;
    rig.hold("mock-engine");
    let (id, trace) = submit(&rig).await;
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    let () = rig.redis.send(&["FLUSHALL"]).await;
    rig.until("lost task", async || {
        let mut lines = rig.log_lines().into_iter();
        lines.find(|line| line["event"] == "task_lost_by_redis")
    })
    .await;
    rig.let_go("mock-engine");
    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 1.0s channel 1 1.0s");
    let [planned, queued, ended] = counts(&mut rig, &trace);
    assert_eq!((planned, ended), (1, 1));
    assert!(queued > 3, "{queued}");
}

#[tokio::test]
async fn job_ends_once_if_redis_restarts_empty() {
    let mut rig = platform().await;
    rig.hold("prepare");
    let (id, trace) = submit(&rig).await;
    rig.stage_with(&id, "prepare", "running").await;
    // It keeps nothing on disk.
    rig.redis.kill();
    rig.let_go("prepare");
    rig.redis.restart().await;
    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 1.0s channel 1 1.0s");
    let retries = job["stages"].as_array().unwrap().iter();
    let retries: Vec<_> = retries.map(|stage| &stage["retries"]).collect();
    assert_eq!(retries, [0, 0, 0]);
    let [planned, _, ended] = counts(&mut rig, &trace);
    assert_eq!((planned, ended), (1, 1));
    let audit = rig.audit();
    let completed = audit.iter().filter(|record| record["action"] == "job.completed");
    assert_eq!(completed.count(), 1);
}

#[tokio::test]
async fn attempt_is_queued_once_although_its_entry_was_not_kept() {
    let mut rig = platform().await;
    rig.hold("mock-engine");
    let (id, trace) = submit(&rig).await;
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    // As if the orchestrator was killed between the queue and the database.
    rig.kill("orchestrator");
    let changed =
        rig.database("UPDATE tasks SET message_id = NULL, status = 'ready' WHERE stage = 'transcribe_ch1'");
    assert_eq!(changed, 1);
    rig.run("orchestrator", &[]);
    rig.until("entry of the task", async || {
        let kept = "SELECT count(*) FROM tasks WHERE stage = 'transcribe_ch1' AND message_id IS NOT NULL";
        (rig.count(kept)? == 1).then_some(())
    })
    .await;
    rig.let_go("mock-engine");
    rig.job_with(&id, "completed").await;
    let entries = rig.entries_added("dalston:stream:mock-asr").await;
    assert_eq!(entries, 2);
    let [planned, _, ended] = counts(&mut rig, &trace);
    assert_eq!((planned, ended), (1, 1));
}

#[tokio::test]
async fn replayed_events_change_nothing() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &LEASE);
    rig.run("mock-engine", &["--lease", "2", "--delay", "1000"]);
    rig.is_ready(2).await;
    let response = rig.submit(&stereo(1), &[("prompt", "fail")]).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    rig.until("first retry", async || {
        let job = rig.get(&format!("/v1/audio/transcriptions/{id}")).await;
        let task = &job["stages"][1];
        // Usually it runs now.
        (task["retries"].as_u64()? >= 1).then_some(())
    })
    .await;
    rig.kill("orchestrator");
    let events = ["XGROUP", "SETID", "dalston:events:stream", "orchestrators", "0"];
    let () = rig.redis.send(&events).await;
    rig.run("orchestrator", &[]);
    let job = rig.job_with(&id, "failed").await;
    assert_eq!(job["stages"][1]["retries"], 2);
    let tree = tree(&rig.stop(&trace));
    let names = tree.names();
    let attempts = names.iter().filter(|name| **name == "engine.mock-asr.process");
    assert_eq!(attempts.count(), 3, "{tree}");
}

#[tokio::test]
async fn job_is_accepted_while_redis_is_down() {
    let rig = platform().await;
    rig.redis.kill();
    let response = rig.submit(&stereo(1), &[]).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap();
    rig.redis.restart().await;
    rig.job_with(id, "completed").await;
}
