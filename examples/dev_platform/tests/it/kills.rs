//! Jobs whose processes are killed, and a Redis that comes back empty.

use reqwest::StatusCode;
use serde_json::Value;

use crate::rig::{Rig, stereo, trace_id};
use crate::tree::tree;

/// A short lease, so that the test need not wait for the platform's 60 s.
const LEASE: [&str; 4] = ["--lease", "2", "--delay", "1000"];

async fn slow_rig() -> Rig {
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
    let mut rig = slow_rig().await;
    let (id, trace) = submit(&rig).await;
    rig.kill("gateway");
    rig.run("gateway", &[]);
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    rig.kill("orchestrator");
    rig.kill("mock-engine");
    rig.run("mock-engine", &LEASE);
    rig.run("orchestrator", &[]);
    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 1.0s channel 1 1.0s");
    // Nothing was planned, queued or ended twice.
    assert_eq!(counts(&mut rig, &trace), [1, 3, 1]);
    let audit = rig.audit();
    let completed = audit.iter().filter(|record| record["action"] == "job.completed");
    assert_eq!(completed.count(), 1);
}

#[tokio::test]
async fn job_is_found_without_its_event() {
    let mut rig = slow_rig().await;
    rig.kill("orchestrator");
    let (id, trace) = submit(&rig).await;
    let _: i64 = rig.redis.send(&["DEL", "dalston:events:stream"]).await;
    rig.run("orchestrator", &[]);
    rig.job_with(&id, "completed").await;
    assert_eq!(counts(&mut rig, &trace), [1, 3, 1]);
}

#[tokio::test]
async fn queued_tasks_are_queued_again_if_redis_comes_back_empty() {
    let mut rig = slow_rig().await;
    let (id, trace) = submit(&rig).await;
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    let () = rig.redis.send(&["FLUSHALL"]).await;
    let job = rig.job_with(&id, "completed").await;
    assert_eq!(job["text"], "channel 0 1.0s channel 1 1.0s");
    let [planned, queued, ended] = counts(&mut rig, &trace);
    assert_eq!((planned, ended), (1, 1));
    assert!(queued > 3, "{queued}");
}

#[tokio::test]
async fn attempt_is_queued_once_although_its_entry_was_not_kept() {
    let mut rig = slow_rig().await;
    let (id, trace) = submit(&rig).await;
    rig.stage_with(&id, "transcribe_ch0", "running").await;
    // As if the orchestrator was killed between the queue and the database.
    rig.kill("orchestrator");
    let changed =
        rig.database("UPDATE tasks SET message_id = NULL, status = 'ready' WHERE stage = 'transcribe_ch1'");
    assert_eq!(changed, 1);
    rig.run("orchestrator", &[]);
    rig.job_with(&id, "completed").await;
    let entries = rig.entries_added("dalston:stream:mock-asr").await;
    assert_eq!(entries, 2);
    assert_eq!(counts(&mut rig, &trace), [1, 4, 1]);
}

#[tokio::test]
async fn replayed_events_change_nothing() {
    let mut rig = slow_rig().await;
    let response = rig.submit(&stereo(1), &[("prompt", "fail")]).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    rig.until("first retry", async || {
        let job = rig.get(&format!("/v1/audio/transcriptions/{id}")).await;
        let task = &job["stages"][1];
        (task["retries"] == 1 && task["status"] == "running").then_some(())
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
    let rig = slow_rig().await;
    rig.redis.kill();
    let response = rig.submit(&stereo(1), &[]).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let created: Value = response.json().await.unwrap();
    let id = created["id"].as_str().unwrap();
    rig.redis.restart().await;
    rig.job_with(id, "completed").await;
}
