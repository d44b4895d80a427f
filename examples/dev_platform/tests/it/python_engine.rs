//! An engine in Python, with the Redis and S3 clients of the live platform's engines.

use std::path::PathBuf;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testbed::python;

use crate::rig::{Rig, stereo, trace_id};
use crate::tree::tree;

const ENGINE: &str = "python-asr";

/// The spans of a job with two channels. The engine makes none, and passes the trace on.
const STEREO: &str = "
POST /v1/audio/transcriptions {http.response.status_code=201}
  gateway.upload_to_s3
  gateway.create_job
  gateway.publish_job_created_event
    orchestrator.handle_job
      orchestrator.build_dag {dalston.engine_id=python-asr}
      orchestrator.schedule_task {dalston.stage=prepare, dalston.engine_id=audio-prepare}
        engine.queue_wait
        engine.audio-prepare.process {dalston.stage=prepare, dalston.engine_id=audio-prepare}
          engine.download_input
          engine.process
          engine.upload_output
          orchestrator.handle_task_started
          orchestrator.handle_task_completed {dalston.engine_id=audio-prepare}
            orchestrator.schedule_task {dalston.stage=transcribe_ch0, dalston.engine_id=python-asr}
              orchestrator.handle_task_started
              orchestrator.handle_task_completed {dalston.engine_id=python-asr}
            orchestrator.schedule_task {dalston.stage=transcribe_ch1, dalston.engine_id=python-asr}
              orchestrator.handle_task_started
              orchestrator.handle_task_completed {dalston.engine_id=python-asr}
                orchestrator.mark_job_completed
";

/// The platform with this engine alone for transcriptions.
async fn platform(python: PathBuf) -> Rig {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    rig.run_in_python(&python, ENGINE);
    rig.is_ready(2).await;
    rig
}

#[tokio::test]
async fn engine_in_python_completes_both_channels() {
    let Some(python) = python() else {
        return;
    };
    let mut rig = platform(python).await;
    let response = rig
        .submit(&stereo(2), &[("speaker_detection", "per_channel")])
        .await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap();
    let job = rig.job_with(id, "completed").await;
    assert_eq!(job["text"], "python 0 2.0s python 1 2.0s");
    for stage in &job["stages"].as_array().unwrap()[1..] {
        assert_eq!(
            (&stage["engine_id"], &stage["retries"]),
            (&json!(ENGINE), &json!(0))
        );
        assert!(
            stage["wait_ms"].is_u64() && stage["duration_ms"].is_u64(),
            "{stage}"
        );
    }
    rig.has_acknowledged_events().await;
    rig.has_acknowledged(&format!("dalston:stream:{ENGINE}")).await;
    tree(&rig.stop(&trace)).assert_eq(STEREO);
}

#[tokio::test]
async fn failing_engine_in_python_gets_three_attempts() {
    let Some(python) = python() else {
        return;
    };
    let rig = platform(python).await;
    let created: Value = rig
        .submit(&stereo(1), &[("prompt", "fail")])
        .await
        .json()
        .await
        .unwrap();
    let job = rig.job_with(created["id"].as_str().unwrap(), "failed").await;
    let error = "Task transcribe failed: the prompt asks for a failure";
    assert_eq!(job["error"], error);
    assert_eq!(job["stages"][1]["retries"], 2);
}

#[tokio::test]
async fn engine_in_python_passes_over_a_cancelled_job() {
    let Some(python) = python() else {
        return;
    };
    let rig = platform(python).await;
    rig.hold(ENGINE);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created: Value = rig.submit(&stereo(1), &[]).await.json().await.unwrap();
        let id = created["id"].as_str().unwrap().to_owned();
        rig.stage_with(&id, "prepare", "completed").await;
        ids.push(id);
    }
    rig.stage_with(&ids[0], "transcribe", "running").await;
    let path = format!("/v1/audio/transcriptions/{}/cancel", ids[1]);
    let cancelled = rig.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::OK);
    rig.job_with(&ids[1], "cancelled").await;
    rig.let_go(ENGINE);
    rig.job_with(&ids[0], "completed").await;
    rig.has_acknowledged(&format!("dalston:stream:{ENGINE}")).await;
    let job = rig.get(&format!("/v1/audio/transcriptions/{}", ids[1])).await;
    assert_eq!(job["stages"][1]["status"], "cancelled");
    let mut files = rig.files_of(&ids[1]);
    files.retain(|key| key.ends_with("/response.json"));
    assert_eq!(files.len(), 1, "only that of prepare: {files:?}");
}
