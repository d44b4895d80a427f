//! Jobs that run again after they have failed or were cancelled.

use std::collections::BTreeSet;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::job::orchestrated_changes;
use crate::rig::{Rig, hex, stereo, trace_id};
use crate::tree::tree;

/// The spans of the second run: the stage `prepare` is completed.
const SECOND_RUN: &str = "
\"POST /v1/audio/transcriptions/{id}/retry\" {http.response.status_code=200}
  gateway.publish_job_created_event
    orchestrator.handle_job
      orchestrator.build_dag {dalston.engine_id=mock-asr}
      orchestrator.schedule_task {dalston.stage=transcribe, dalston.engine_id=mock-asr}
        engine.queue_wait
        engine.mock-asr.process {dalston.stage=transcribe, dalston.engine_id=mock-asr}
          engine.download_input
          engine.process
          engine.upload_output
          orchestrator.handle_task_started
          orchestrator.handle_task_completed {dalston.engine_id=mock-asr}
            orchestrator.mark_job_completed
";

/// What it changes in the metrics of the orchestrator.
const CHANGES: [&str; 14] = [
    r#"dalston_orchestrator_audio_duration_seconds_count{engine_id="mock-asr",model=""} +1"#,
    "dalston_orchestrator_dag_build_duration_seconds_count +1",
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="job.created"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_event_decisions_total{decision="ack",failure_reason="none",event_type="task.started"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="job.created"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.completed"} +1"#,
    r#"dalston_orchestrator_events_processed_total{event_type="task.started"} +1"#,
    r#"dalston_orchestrator_job_duration_seconds_count{engine_id="mock-asr",model="",stage_count="2"} +1"#,
    r#"dalston_orchestrator_jobs_total{status="completed"} +1"#,
    r#"dalston_orchestrator_tasks_completed_total{engine_id="mock-asr",execution_profile="container",status="success"} +1"#,
    r#"dalston_orchestrator_tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"} +1"#,
];

/// As if the cause of the failure was removed.
pub(crate) fn remove_the_cause(rig: &Rig) {
    let sql = "UPDATE jobs SET parameters = json_remove(parameters, '$.prompt')";
    assert!(rig.database(sql) > 0);
}

pub(crate) async fn retry(rig: &Rig, id: &str) -> Response {
    let path = format!("/v1/audio/transcriptions/{id}/retry");
    let request = rig.request(Method::POST, &path);
    request.header("X-Request-ID", "req_retry").send().await.unwrap()
}

/// A refusal with the ids of its request.
async fn refused(response: Response) -> String {
    assert_eq!(response.status(), StatusCode::CONFLICT);
    let trace = trace_id(&response);
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        (&body["request_id"], &body["trace_id"]),
        (&json!("req_retry"), &json!(trace))
    );
    body["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn failed_job_runs_again_without_its_completed_stages() {
    let mut rig = Rig::start().await;
    let response = rig.submit(&stereo(1), &[("prompt", "fail")]).await;
    let first_trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    let failed = rig.job_with(&id, "failed").await;
    // Its own event is the last one.
    rig.has_acknowledged_events().await;
    let before = rig.series("orchestrator").await;
    let counts = before[r#"dalston_orchestrator_tasks_scheduled_total{engine_id="mock-asr",stage="transcribe",execution_profile="container"}"#];
    assert_eq!(counts, 3.0);

    remove_the_cause(&rig);
    let (first, second) = tokio::join!(retry(&rig, &id), retry(&rig, &id));
    let (response, other) = match first.status() {
        StatusCode::OK => (first, second),
        _ => (second, first),
    };
    assert_eq!(response.status(), StatusCode::OK);
    let trace = trace_id(&response);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, json!({"id": id, "status": "pending"}));
    let detail = refused(other).await;
    assert!(
        detail.ends_with("only a failed or cancelled job can run again"),
        "{detail}"
    );

    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "mono 1.0s");
    assert_eq!((&job["retries"], &job["error"]), (&json!(1), &Value::Null));
    assert!(job["retried_at"].is_string(), "{job}");
    let stages = |job: &Value, field: &str| {
        let stages = job["stages"].as_array().unwrap().iter();
        stages.map(|stage| stage[field].clone()).collect::<Vec<_>>()
    };
    assert_eq!(stages(&failed, "retries"), [0, 2]);
    assert_eq!(stages(&job, "retries"), [0, 0]);
    assert_eq!(stages(&job, "status"), ["completed", "completed"]);
    let (old, new) = (stages(&failed, "task_id"), stages(&job, "task_id"));
    assert_eq!(old[0], new[0]);
    assert_ne!(old[1], new[1]);
    assert_eq!(rig.entries_added("dalston:stream:audio-prepare").await, 1);
    assert_eq!(rig.entries_added("dalston:stream:mock-asr").await, 4);
    let detail = refused(retry(&rig, &id).await).await;
    assert_eq!(
        detail,
        "the job is completed: only a failed or cancelled job can run again"
    );
    let missing = retry(&rig, "51c0").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);

    rig.has_acknowledged_events().await;
    rig.changed("orchestrator", &before, orchestrated_changes, &CHANGES)
        .await;

    let spans = rig.stop(&trace);
    tree(&spans).assert_eq(SECOND_RUN);
    let request = spans
        .iter()
        .find(|(_, span)| span.name.starts_with("POST"))
        .unwrap();
    let linked: Vec<_> = request.1.links.iter().map(|link| hex(&link.trace_id)).collect();
    assert_eq!(linked, [first_trace]);
    // A search by the new request finds the lines of each process that took part.
    let lines = rig.log_lines();
    let of_request = lines.iter().filter(|line| line["request_id"] == "req_retry");
    let services: BTreeSet<_> = of_request.map(|line| line["service"].as_str().unwrap()).collect();
    assert_eq!(services, ["engine-mock-asr", "gateway", "orchestrator"].into());
    let audit = rig.audit();
    let records = audit.iter().map(|record| {
        let text = |name: &str| record[name].as_str().unwrap();
        format!("{} {}", text("action"), text("correlation_id"))
    });
    let records: Vec<_> = records.filter(|record| record.starts_with("job.")).collect();
    let expected = [
        "job.created req_test",
        "job.failed req_test",
        "job.retried req_retry",
        "job.completed req_retry",
    ];
    assert_eq!(records, expected);
}
