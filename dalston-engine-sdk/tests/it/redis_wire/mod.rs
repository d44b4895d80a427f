//! The wire of the live platform, on a real Redis. What the orchestrator writes is typed here by
//! hand from the description of the protocol, and what an engine leaves behind is compared with it
//! literally.

mod claims;
mod concurrency;
mod connections;
mod data_loss;
mod deliveries;
mod events;
mod give_back;
mod lookup;
mod memory;
mod ownership;
mod read_ahead;
mod trim;

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, Claim, Consumer, Delivery};
use dalston_engine_sdk::protocol::ArtifactReference;
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use serde_json::Value;
use testbed::TestRedis;

const TASK: &str = "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
const JOB: &str = "0d4c2b1a-9f8e-4d7c-b6a5-443322110000";
const STREAM: &str = "dalston:stream:faster-whisper";
const METADATA: &str = "dalston:task:6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
const TRACE: &str = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

/// The consumer of released tasks.
const RELEASED: &str = "handed-back";

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);
const LEASE: Duration = Duration::from_millis(400);

type Entries = Vec<(String, BTreeMap<String, String>)>;

fn consumer(instance: &str) -> Consumer {
    Consumer {
        engine_id: "faster-whisper".to_owned(),
        instance: instance.to_owned(),
    }
}

/// A broker with a short lease, for tests in which one ends. It also takes its own tasks again that
/// it did not renew in this time.
fn broker(server: &TestRedis) -> RedisBroker {
    RedisBroker::with_lease(RedisServer::new(&server.url()).unwrap(), LEASE)
}

/// A broker whose leases last longer than a test on the slowest machine.
fn patient(server: &TestRedis) -> RedisBroker {
    RedisBroker::new(RedisServer::new(&server.url()).unwrap())
}

/// What the orchestrator does, sections 2.2 and 2.3.
async fn enqueue(server: &TestRedis) -> String {
    let () = server
        .send(&[
            "HSET",
            METADATA,
            "job_id",
            JOB,
            "stage",
            "transcribe_ch0",
            "engine_id",
            "faster-whisper",
            "queue_id",
            "faster-whisper",
            "execution_profile",
            "container",
            "enqueued_at",
            "2026-11-20T18:17:06.690014+00:00",
            "request_bindings_json",
            r#"[{"slot": "audio", "selector": {"producer_stage": "prepare", "kind": "audio", "channel": 0, "role": "prepared", "required": true}}]"#,
            "resolved_artifact_ids_json",
            r#"{"audio": "P:prepared_audio_ch0", "optional": null}"#,
            "request_id",
            "req_5f",
            "_trace_context",
            TRACE,
        ])
        .await;
    let () = server.send(&["EXPIRE", METADATA, "14400"]).await;
    message(server).await
}

async fn message(server: &TestRedis) -> String {
    server
        .send(&[
            "XADD",
            STREAM,
            "*",
            "task_id",
            TASK,
            "job_id",
            JOB,
            "enqueued_at",
            "2026-11-20T18:17:06.690014+00:00",
            "timeout_at",
            "2026-11-20T19:17:06.690014+00:00",
        ])
        .await
}

async fn receive(broker: &RedisBroker, instance: &str) -> Delivery {
    broker
        .receive(&consumer(instance), LONG)
        .await
        .unwrap()
        .expect("a task")
}

async fn nothing_for(broker: &RedisBroker, instance: &str, wait: Duration) {
    let found = broker.receive(&consumer(instance), wait).await.unwrap();
    assert!(found.is_none(), "{instance} got {found:?}");
}

async fn events(server: &TestRedis) -> Vec<BTreeMap<String, String>> {
    let entries: Entries = server.send(&["XRANGE", "dalston:events:stream", "-", "+"]).await;
    entries.into_iter().map(|(_, fields)| fields).collect()
}

/// Ids, consumers and deliveries of the pending list.
async fn pending(server: &TestRedis) -> Vec<(String, String, u64)> {
    let rows: Vec<(String, String, u64, u64)> = server
        .send(&["XPENDING", STREAM, "engines", "-", "+", "100"])
        .await;
    rows.into_iter()
        .map(|(id, consumer, _, deliveries)| (id, consumer, deliveries))
        .collect()
}

fn value(text: &str) -> Value {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn artifact() -> ArtifactReference {
    let locator = format!("s3://dalston-artifacts/jobs/{JOB}/tasks/{TASK}/words.json");
    let mut artifact = ArtifactReference::new(format!("{TASK}:words"), "words", locator)
        .size(17)
        .producer(TASK, "transcribe_ch0");
    artifact.media_type = Some("application/json".to_owned());
    artifact
}

/// Queues tasks `task-0` and so on of jobs `job-0` and so on, in the stages `transcribe_ch0` and so
/// on, and takes them.
async fn take(server: &TestRedis, broker: &RedisBroker, tasks: usize) -> Vec<Claim> {
    for number in 0..tasks {
        let (task, job) = (format!("task-{number}"), format!("job-{number}"));
        let (metadata, stage) = (format!("dalston:task:{task}"), format!("transcribe_ch{number}"));
        let () = server.send(&["HSET", &metadata, "stage", &stage]).await;
        let () = server
            .send(&["XADD", STREAM, "*", "task_id", &task, "job_id", &job])
            .await;
    }
    let mut claims = Vec::new();
    while claims.len() < tasks {
        claims.push(receive(broker, "a").await.claim);
    }
    claims
}
