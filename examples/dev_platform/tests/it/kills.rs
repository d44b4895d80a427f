//! Jobs whose processes are killed, and a Redis that comes back empty.

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
