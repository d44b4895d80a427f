//! The wire of the live platform, on a real Redis: what the orchestrator writes is typed here by hand from the description of the
//! protocol, and what an engine leaves behind is compared with it literally.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::broker::{
    Broker, Claim, Consumer, Delivery, EventContext, Lookup, Outcome, Ownership, RedeliveryReason,
};
use dalston_engine_sdk::protocol::ArtifactReference;
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};
use testbed::{Proxy, TestRedis};

const TASK: &str = "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
const JOB: &str = "0d4c2b1a-9f8e-4d7c-b6a5-443322110000";
const STREAM: &str = "dalston:stream:faster-whisper";
const METADATA: &str = "dalston:task:6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44";
const TRACE: &str = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

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

fn broker(server: &TestRedis) -> RedisBroker {
    RedisBroker::with_lease(RedisServer::new(&server.url()).unwrap(), LEASE)
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

#[tokio::test]
async fn a_task_that_was_queued_before_the_first_engine_started_is_delivered_with_its_times() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = broker(&server);

    let delivery = receive(&broker, "faster-whisper-a").await;

    let claim = &delivery.claim;
    assert_eq!(
        (
            &*claim.message_id,
            &*claim.task_id,
            &*claim.job_id,
            claim.delivery_count
        ),
        (&*id, TASK, JOB, 1)
    );
    assert_eq!(
        delivery.enqueued_at.unwrap().to_string(),
        "2026-11-20T18:17:06.690014+00:00"
    );
    assert_eq!(
        delivery.timeout_at.unwrap().to_string(),
        "2026-11-20T19:17:06.690014+00:00"
    );
    let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0]["name"], redis::Value::BulkString(b"engines".to_vec()));
    assert_eq!(pending(&server).await, [(id, "faster-whisper-a".to_owned(), 1)]);
}

#[tokio::test]
async fn the_metadata_is_read_and_the_wait_markers_are_removed() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let markers = [
        "waiting_for_engine",
        "true",
        "wait_enqueued_at",
        "x",
        "wait_timeout_s",
        "300",
        "wait_deadline_at",
        "y",
    ];
    let () = server
        .send(&[["HSET", METADATA].as_slice(), &markers].concat())
        .await;
    let () = server
        .send(&["SADD", "dalston:waiting_engine_tasks", TASK, "another"])
        .await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;

    let Lookup::Task(metadata) = broker.lookup(&claim).await.unwrap() else {
        panic!("a task")
    };

    assert_eq!(metadata.stage, "transcribe_ch0");
    assert_eq!(
        metadata.enqueued_at.unwrap().to_string(),
        "2026-11-20T18:17:06.690014+00:00"
    );
    assert_eq!(metadata.request_id.as_deref(), Some("req_5f"));
    assert_eq!(metadata.trace_context.as_deref(), Some(TRACE));
    let bindings = metadata.bindings.unwrap();
    assert_eq!(
        (bindings[0].slot.as_str(), bindings[0].selector.channel),
        ("audio", Some(0))
    );
    let ids = metadata.resolved_artifact_ids.unwrap();
    assert_eq!(
        ids,
        BTreeMap::from([("audio".to_owned(), "P:prepared_audio_ch0".to_owned())])
    );
    let fields: Vec<String> = server.send(&["HKEYS", METADATA]).await;
    assert!(
        !fields.iter().any(|field| field.starts_with("wait")),
        "{fields:?}"
    );
    let waiting: Vec<String> = server.send(&["SMEMBERS", "dalston:waiting_engine_tasks"]).await;
    assert_eq!(waiting, ["another"]);
}

#[tokio::test]
async fn a_task_that_the_platform_gave_up_is_left_alone() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let () = server
        .send(&[
            "HSET",
            METADATA,
            "blocked_reason",
            "engine_wait_timeout",
            "wait_timeout_s",
            "300",
        ])
        .await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;

    let Lookup::Blocked(reason) = broker.lookup(&claim).await.unwrap() else {
        panic!("blocked")
    };
    assert_eq!(reason, "engine_wait_timeout");
    let kept: Option<String> = server.send(&["HGET", METADATA, "wait_timeout_s"]).await;
    assert_eq!(kept.as_deref(), Some("300"));
    let done = broker
        .finish(&claim, &Outcome::Skipped, &EventContext::default())
        .await
        .unwrap();
    assert_eq!(
        (done, pending(&server).await.len(), events(&server).await.len()),
        (Ownership::Held, 0, 0)
    );
}

#[tokio::test]
async fn both_copies_of_every_event_are_as_the_platform_wants_them() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let client = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut published) = client.get_async_pubsub().await.unwrap().split();
    sink.subscribe("dalston:events").await.unwrap();
    let broker = broker(&server);
    let claim = receive(&broker, "faster-whisper-a").await.claim;
    let context = EventContext {
        request_id: Some("req_5f".to_owned()),
        trace_context: Some(TRACE.to_owned()),
    };

    let _ = broker.started(&claim, &context).await.unwrap();
    let outcome = Outcome::Failed {
        error: "no \"audio\" – 404".to_owned(),
        code: "missing_input",
        retryable: true,
    };
    let _ = broker.finish(&claim, &outcome, &context).await.unwrap();

    let durable = events(&server).await;
    assert_eq!(durable.len(), 2);
    let ids = json!({"task_id": TASK, "job_id": JOB, "engine_id": "faster-whisper", "request_id": "req_5f"});
    for (index, kind) in ["task.started", "task.failed"].into_iter().enumerate() {
        let entry = &durable[index];
        let names: Vec<&str> = entry.keys().map(String::as_str).collect();
        assert_eq!(names, ["_trace_context", "payload", "timestamp", "type"]);
        assert_eq!(entry["type"], kind);
        assert_eq!(entry["_trace_context"], TRACE);
        let (time, offset) = entry["timestamp"].split_at(26);
        assert!(
            time.as_bytes()[10] == b'T' && time.as_bytes()[19] == b'.',
            "{time}"
        );
        assert_eq!(offset, "+00:00");
        let mut payload = ids.clone();
        if kind == "task.failed" {
            payload["error"] = json!("no \"audio\" – 404");
        }
        assert_eq!(value(&entry["payload"]), payload);

        let mut flat = payload;
        flat["type"] = json!(kind);
        flat["timestamp"] = json!(entry["timestamp"]);
        flat["_trace_context"] = value(TRACE);
        let message = futures_util::StreamExt::next(&mut published).await.unwrap();
        assert_eq!(value(&message.get_payload::<String>().unwrap()), flat);
    }
}

#[tokio::test]
async fn a_task_whose_job_was_cancelled_while_it_ran_is_reported_as_completed_because_the_job_waits_for_that()
{
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "faster-whisper-a").await.claim;

    let ended = broker
        .finish(&claim, &Outcome::Cancelled, &EventContext::default())
        .await;

    assert_eq!(ended.unwrap(), Ownership::Held);
    let events = events(&server).await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].keys().collect::<Vec<_>>(),
        ["payload", "timestamp", "type"]
    );
    assert_eq!(events[0]["type"], "task.completed");
    assert_eq!(
        value(&events[0]["payload"]),
        json!({"task_id": TASK, "job_id": JOB, "engine_id": "faster-whisper"})
    );
    assert_eq!(pending(&server).await, []);
    let index: bool = server
        .send(&["EXISTS", &format!("dalston:job:{JOB}:artifacts")])
        .await;
    assert!(!index, "there are no artifacts");
}

#[tokio::test]
async fn artifacts_are_in_the_index_and_in_the_metadata_when_a_task_is_completed() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;

    let outcome = Outcome::Completed {
        artifacts: vec![artifact()],
    };
    assert_eq!(
        broker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap(),
        Ownership::Held
    );

    let index: BTreeMap<String, String> = server
        .send(&[
            "HGETALL",
            "dalston:job:0d4c2b1a-9f8e-4d7c-b6a5-443322110000:artifacts",
        ])
        .await;
    assert_eq!(
        index.keys().collect::<Vec<_>>(),
        ["6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44:words"]
    );
    assert_eq!(
        value(index.values().next().unwrap()),
        value(
            r#"{"artifact_id": "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44:words", "kind": "words",
                "storage_locator": "s3://dalston-artifacts/jobs/0d4c2b1a-9f8e-4d7c-b6a5-443322110000/tasks/6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44/words.json",
                "size": 17, "media_type": "application/json",
                "producer_task_id": "6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44", "producer_stage": "transcribe_ch0"}"#
        )
    );
    let ids: String = server
        .send(&["HGET", METADATA, "produced_artifact_ids_json"])
        .await;
    assert_eq!(value(&ids), json!(["6a1f7c3e-2b9d-4f0a-8c55-0e9b1d2f3a44:words"]));
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (1, 0)
    );
}

#[tokio::test]
async fn metadata_that_expired_is_not_made_again_by_a_task_that_ends() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    let () = server.send(&["DEL", METADATA]).await;
    let outcome = Outcome::Completed {
        artifacts: vec![artifact()],
    };
    let _ = broker
        .finish(&claim, &outcome, &EventContext::default())
        .await
        .unwrap();
    let there: bool = server.send(&["EXISTS", METADATA]).await;
    assert!(!there);
}

#[tokio::test]
async fn a_task_whose_event_can_not_be_written_stays_in_the_queue() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    let () = server
        .send(&["SET", "dalston:events:stream", "not a stream"])
        .await;

    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let error = broker
        .finish(&claim, &outcome, &EventContext::default())
        .await
        .unwrap_err();
    let text = error.to_string();
    let about = format!("finishing task {TASK} of faster-whisper on Redis at 127.0.0.1:");
    assert!(text.starts_with(&about) && text.contains("WRONGTYPE"), "{text}");
    assert_eq!(
        pending(&server).await.len(),
        1,
        "not acknowledged without its event"
    );

    let () = server.send(&["DEL", "dalston:events:stream"]).await;
    assert_eq!(
        broker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap(),
        Ownership::Held
    );
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (1, 0)
    );
}

#[tokio::test]
async fn only_tasks_of_dead_engines_are_taken_over() {
    let server = TestRedis::start().await;
    let alive = "2100-01-01T00:00:00.000000+00:00";
    let old = "2026-11-20T18:17:06.690014+00:00";
    let table: [(&str, &[&str], bool); 6] = [
        ("unregistered", &[], true),
        ("alive", &["status", "processing", "last_heartbeat", alive], false),
        (
            "draining",
            &["status", "draining", "last_heartbeat", alive],
            false,
        ),
        ("offline", &["status", "offline", "last_heartbeat", alive], true),
        ("silent", &["status", "processing", "last_heartbeat", old], true),
        (
            "garbled",
            &["status", "processing", "last_heartbeat", "yesterday"],
            true,
        ),
    ];
    for (name, record, dead) in table {
        let id = message(&server).await;
        if !record.is_empty() {
            let key = format!("dalston:engine:instance:{name}");
            let () = server.send(&[["HSET", &key].as_slice(), record].concat()).await;
        }
        // Python engines never renew; they may have had a task for hours.
        let _ = receive(&broker(&server), name).await;
        let () = server
            .send(&[
                "XCLAIM", STREAM, "engines", name, "0", &id, "IDLE", "3600000", "JUSTID",
            ])
            .await;
        let peer = broker(&server);
        if dead {
            let taken = receive(&peer, "peer").await;
            assert_eq!(
                (
                    &*taken.claim.message_id,
                    taken.claim.delivery_count,
                    taken.redelivery
                ),
                (&*id, 2, Some(RedeliveryReason::EngineCrash)),
                "{name}"
            );
        } else {
            nothing_for(&peer, "peer", Duration::from_millis(700)).await;
            assert_eq!(pending(&server).await.last().unwrap().1, name);
        }
        let () = server.send(&["XACK", STREAM, "engines", &id]).await;
    }
}

#[tokio::test]
async fn a_record_that_the_server_renewed_counts_as_alive_whatever_the_clocks_say() {
    let server = TestRedis::start().await;
    let id = message(&server).await;
    let _ = receive(&broker(&server), "skewed").await;
    let key = "dalston:engine:instance:skewed";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2026-01-01T00:00:00Z",
        ])
        .await;
    let () = server.send(&["EXPIRE", key, "60"]).await;
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", "skewed", "0", &id, "IDLE", "3600000", "JUSTID",
        ])
        .await;
    nothing_for(&broker(&server), "peer", Duration::from_millis(700)).await;
}

#[tokio::test]
async fn dead_engines_are_found_behind_many_that_live() {
    let server = TestRedis::start().await;
    let key = "dalston:engine:instance:alive";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let mut last = String::new();
    let alive = broker(&server);
    for _ in 0..150 {
        last = message(&server).await;
        let _ = receive(&alive, "alive").await;
        let () = server
            .send(&[
                "XCLAIM", STREAM, "engines", "alive", "0", &last, "IDLE", "3600000", "JUSTID",
            ])
            .await;
    }
    let () = server
        .send(&[
            "XCLAIM", STREAM, "engines", "dead", "0", &last, "IDLE", "3600000", "JUSTID",
        ])
        .await;
    let taken = receive(&broker(&server), "peer").await;
    assert_eq!(taken.claim.message_id, last);
}

#[tokio::test]
async fn an_instance_with_a_fixed_name_goes_on_at_once_with_what_it_had() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let before = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let _ = receive(&before, "faster-whisper-fixed").await;
    drop(before);

    // The lease is a minute here, and the name even has a living record.
    let key = "dalston:engine:instance:faster-whisper-fixed";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let after = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let again = receive(&after, "faster-whisper-fixed").await;
    assert_eq!((again.claim.message_id, again.claim.delivery_count), (id, 2));
    nothing_for(&after, "faster-whisper-fixed", SHORT).await;
}

#[tokio::test]
async fn a_task_that_the_process_gave_up_without_a_word_comes_back_to_it() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = broker(&server);
    let key = "dalston:engine:instance:a";
    let () = server
        .send(&[
            "HSET",
            key,
            "status",
            "idle",
            "last_heartbeat",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    let _forgotten = receive(&broker, "a").await;
    let again = receive(&broker, "a").await;
    assert_eq!((again.claim.message_id, again.claim.delivery_count), (id, 2));
}

#[tokio::test]
async fn a_task_that_was_handed_back_is_free_for_engines_of_any_kind() {
    let server = TestRedis::start().await;
    let id = enqueue(&server).await;
    let broker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    let claim = receive(&broker, "a").await.claim;
    let _ = broker.release(&claim).await.unwrap();
    let rows: Vec<(String, String, u64, u64)> = server
        .send(&["XPENDING", STREAM, "engines", "-", "+", "10"])
        .await;
    let (found, consumer, idle, deliveries) = &rows[0];
    assert_eq!((found, consumer.as_str(), *deliveries), (&id, "handed-back", 1));
    assert!(
        (60_000..600_000).contains(idle),
        "{idle}: past our lease, and not yet of interest to the scanner"
    );
}

#[tokio::test]
async fn a_message_that_names_no_task_is_removed_and_the_next_one_is_read() {
    let server = TestRedis::start().await;
    for (field, text) in [("note", "x"), ("task_id", "../../etc/passwd"), ("task_id", "")] {
        let () = server
            .send(&["XADD", STREAM, "*", field, text, "job_id", JOB])
            .await;
    }
    let () = server.send(&["XADD", STREAM, "*", "task_id", TASK]).await;
    let () = server
        .send_bytes(&[
            b"XADD",
            STREAM.as_bytes(),
            b"*",
            b"task_id",
            b"\xff\xfe",
            b"job_id",
            JOB.as_bytes(),
        ])
        .await;
    let id: String = server
        .send(&[
            "XADD",
            STREAM,
            "*",
            "task_id",
            TASK,
            "job_id",
            JOB,
            "timeout_at",
            "soon",
            "more",
            "fields",
        ])
        .await;
    let broker = broker(&server);
    let delivery = receive(&broker, "a").await;
    assert_eq!((&delivery.claim.message_id, delivery.timeout_at), (&id, None));
    assert_eq!(pending(&server).await.len(), 1);
}

#[tokio::test]
async fn metadata_that_makes_no_sense_is_a_reason_to_fail_the_task() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let table: [(&[&[u8]], &str); 6] = [
        (
            &[b"SET", METADATA.as_bytes(), b"text"],
            "its metadata can't be read: ",
        ),
        (
            &[b"HSET", METADATA.as_bytes(), b"job_id", JOB.as_bytes()],
            "its metadata has no stage",
        ),
        (
            &[b"HSET", METADATA.as_bytes(), b"stage", b"\xc3\x28"],
            "the field \"stage\" of its metadata is not UTF-8",
        ),
        (
            &[
                b"HSET",
                METADATA.as_bytes(),
                b"stage",
                b"transcribe",
                b"request_bindings_json",
                b"{}",
            ],
            "request_bindings_json: document is an object: expected a list",
        ),
        (
            &[
                b"HSET",
                METADATA.as_bytes(),
                b"stage",
                b"transcribe",
                b"request_bindings_json",
                b"[{}]",
            ],
            "request_bindings_json: [0].slot is missing: expected a non-empty string",
        ),
        (
            &[
                b"HSET",
                METADATA.as_bytes(),
                b"stage",
                b"transcribe",
                b"resolved_artifact_ids_json",
                b"[1]",
            ],
            "the field \"resolved_artifact_ids_json\" of its metadata: ",
        ),
    ];
    for (command, expected) in table {
        let () = server.send(&["DEL", METADATA]).await;
        let () = server.send_bytes(command).await;
        let is_hash = command[0] == b"HSET";
        if is_hash {
            let () = server.send(&["HSET", METADATA, "request_id", "req-1"]).await;
        }
        message(&server).await;
        let claim = receive(&broker, "a").await.claim;
        let Lookup::Malformed { problem, metadata } = broker.lookup(&claim).await.unwrap() else {
            panic!("{expected}")
        };
        assert!(
            problem.starts_with(expected),
            "{problem} should start with {expected}"
        );
        let known = metadata.request_id.as_deref();
        assert_eq!(known, is_hash.then_some("req-1"), "{expected}");
        let _ = broker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn odd_values_that_decide_nothing_are_passed_over() {
    let server = TestRedis::start().await;
    let () = server
        .send_bytes(&[
            b"HSET",
            METADATA.as_bytes(),
            b"stage",
            b"transcribe",
            b"enqueued_at",
            b"now",
            b"request_id",
            b"\xff",
            b"_trace_context",
            b"\xff",
            b"resolved_artifact_ids_json",
            b"",
        ])
        .await;
    message(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    let Lookup::Task(metadata) = broker.lookup(&claim).await.unwrap() else {
        panic!("a task")
    };
    assert_eq!(
        (metadata.enqueued_at, metadata.request_id, metadata.trace_context),
        (None, None, None)
    );
}

#[tokio::test]
async fn a_worker_survives_the_loss_of_everything_that_redis_knew() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    nothing_for(&broker, "a", SHORT).await;
    let () = server.send(&["FLUSHALL"]).await;
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;
    let () = server.send(&["FLUSHALL"]).await;
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Lost);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    assert_eq!(
        broker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap(),
        Ownership::Lost
    );
    enqueue(&server).await;
    assert_eq!(receive(&broker, "a").await.claim.task_id, TASK);
}

#[tokio::test]
async fn a_worker_survives_the_loss_of_its_connections() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    nothing_for(&broker, "a", SHORT).await;
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move {
            loop {
                // The runner, too, waits a little and tries again.
                match broker.receive(&consumer("a"), LONG).await {
                    Ok(found) => return found.expect("a task"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
    };
    let () = server
        .send(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    enqueue(&server).await;
    let claim = waiting.await.unwrap().claim;
    let () = server
        .send(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let mut attempts = 0;
    let done = loop {
        attempts += 1;
        match broker.finish(&claim, &outcome, &EventContext::default()).await {
            Ok(done) => break done,
            Err(error) if attempts > 20 => panic!("{error}"),
            Err(_) => {}
        }
    };
    assert_eq!(done, Ownership::Held);
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (1, 0)
    );
}

#[tokio::test]
async fn a_worker_that_does_not_hear_that_it_finished_finds_out_when_it_asks_again() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let nothing = EventContext::default();
    // The server knows the script only after the first use.
    let first = receive(&broker, "a").await.claim;
    assert_eq!(
        broker.finish(&first, &outcome, &nothing).await.unwrap(),
        Ownership::Held
    );
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;

    cable.lose_answers(true);
    broker.finish(&claim, &outcome, &nothing).await.unwrap_err();
    assert_eq!(pending(&server).await, [], "the server has done it");
    cable.lose_answers(false);
    let mut again = broker.finish(&claim, &outcome, &nothing).await;
    while again.is_err() {
        again = broker.finish(&claim, &outcome, &nothing).await;
    }

    assert_eq!(again.unwrap(), Ownership::Held);
    assert_eq!(events(&server).await.len(), 2);
}

#[tokio::test]
async fn a_worker_that_stopped_waiting_to_hear_that_it_finished_finds_out_when_it_asks_again() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let nothing = EventContext::default();
    let claim = receive(&broker, "a").await.claim;
    // The server knows the script only after the first use.
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Held);

    cable.stall(true);
    let finish = broker.finish(&claim, &outcome, &nothing);
    tokio::time::timeout(Duration::from_millis(300), finish)
        .await
        .unwrap_err();
    // It passes now, and nobody hears of it.
    cable.stall(false);

    let renewed = broker.renew(&claim).await.unwrap();
    assert_eq!(renewed, Ownership::Held, "it is this worker that ended it");
    let again = broker.finish(&claim, &outcome, &nothing).await.unwrap();
    assert_eq!(again, Ownership::Held);
    assert_eq!(events(&server).await.len(), 1);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left_for_the_one_that_its_name_leads_to_now() {
    let (old, new) = (TestRedis::start().await, TestRedis::start().await);
    enqueue(&old).await;
    let cable = Proxy::to(old.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LONG);
    let claim = receive(&broker, "a").await.claim;
    assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Held);

    let () = old
        .send(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])
        .await;
    let () = new
        .send(&["REPLICAOF", "127.0.0.1", &old.port().to_string()])
        .await;
    while new
        .send::<String>(&["INFO", "replication"])
        .await
        .contains("master_link_status:down")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let () = new.send(&["REPLICAOF", "NO", "ONE"]).await;
    let () = old
        .send(&["REPLICAOF", "127.0.0.1", &new.port().to_string()])
        .await;
    cable.lead_to(new.port());

    // The connection to the old one is as good as ever, for reading.
    let refused = broker.started(&claim, &EventContext::default()).await;
    assert!(refused.is_err(), "{refused:?}");
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let finished = broker.finish(&claim, &outcome, &EventContext::default()).await;
    assert_eq!(finished.unwrap(), Ownership::Held);
    assert_eq!((events(&new).await.len(), pending(&new).await), (1, Vec::new()));
}

#[tokio::test]
async fn acknowledged_tasks_leave_the_stream_and_the_queue_keeps_its_length() {
    let server = TestRedis::start().await;
    for _ in 0..450 {
        message(&server).await;
    }
    let outcome = Outcome::Skipped;
    let worker = broker(&server);
    for _ in 0..430 {
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &outcome, &EventContext::default())
            .await
            .unwrap();
    }
    // A worker cleans up when it starts and then once a minute.
    let next = broker(&server);
    let claim = receive(&next, "b").await.claim;
    let length: u64 = server.send(&["XLEN", STREAM]).await;
    assert!(
        length < 150,
        "{length} of 450 entries are left, 20 are not acknowledged"
    );
    let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
    assert_eq!(
        groups[0]["lag"],
        redis::Value::Int(19),
        "autoscaling depends on it"
    );
    let first: Entries = server
        .send(&["XRANGE", STREAM, &claim.message_id, &claim.message_id])
        .await;
    assert_eq!(first.len(), 1);
}

#[tokio::test]
async fn a_queue_that_a_former_replica_counts_wrongly_has_its_length_again_when_it_was_empty() {
    let server = TestRedis::start().await;
    let lag = async || {
        let groups: Vec<BTreeMap<String, redis::Value>> = server.send(&["XINFO", "GROUPS", STREAM]).await;
        groups[0]["lag"].clone()
    };
    let mut last = String::new();
    for _ in 0..3 {
        last = message(&server).await;
        let worker = broker(&server);
        let claim = receive(&worker, "a").await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    // A replica is told which entry was the last, but not how many there were.
    let () = server
        .send(&["XGROUP", "SETID", STREAM, "engines", &last, "ENTRIESREAD", "1"])
        .await;
    assert_eq!(lag().await, redis::Value::Int(2));

    nothing_for(&broker(&server), "b", SHORT).await;
    assert_eq!(lag().await, redis::Value::Int(0));
    message(&server).await;
    assert_eq!(lag().await, redis::Value::Int(1));
}

#[tokio::test]
async fn processes_that_are_gone_do_not_stay_in_the_group_for_ever() {
    let server = TestRedis::start().await;
    for instance in ["gone", "resting"] {
        message(&server).await;
        let worker = broker(&server);
        let claim = receive(&worker, instance).await.claim;
        let _ = worker
            .finish(&claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    // So many that a look at the pending list does not come to the end of it.
    let busy = broker(&server);
    for _ in 0..40 {
        message(&server).await;
        receive(&busy, "busy").await;
    }
    message(&server).await;
    let lost = receive(&broker(&server), "killed").await.claim;
    let now = dalston_engine_sdk::protocol::Timestamp::now().to_string();
    let record = ["status", "processing", "last_heartbeat", &now];
    for instance in ["resting", "busy"] {
        let key = format!("dalston:engine:instance:{instance}");
        let () = server.send(&[&["HSET", &key][..], &record].concat()).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;

    let server_ = RedisServer::new(&server.url()).unwrap();
    let next = RedisBroker::with_lease(server_, Duration::from_millis(30));
    let found = receive(&next, "new").await.claim;
    assert_eq!(found.message_id, lost.message_id);

    let consumers: Vec<BTreeMap<String, redis::Value>> =
        server.send(&["XINFO", "CONSUMERS", STREAM, "engines"]).await;
    let mut names: Vec<String> = consumers
        .iter()
        .map(|consumer| redis::from_redis_value(consumer["name"].clone()).unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["busy", "killed", "new", "resting"]);
}

#[tokio::test]
async fn a_stream_with_other_readers_is_not_trimmed() {
    let server = TestRedis::start().await;
    for _ in 0..300 {
        message(&server).await;
    }
    let () = server.send(&["XGROUP", "CREATE", STREAM, "others", "0"]).await;
    let worker = broker(&server);
    while let Some(delivery) = worker.receive(&consumer("a"), SHORT).await.unwrap() {
        let _ = worker
            .finish(&delivery.claim, &Outcome::Skipped, &EventContext::default())
            .await
            .unwrap();
    }
    nothing_for(&broker(&server), "b", SHORT).await;
    let length: u64 = server.send(&["XLEN", STREAM]).await;
    assert_eq!(length, 300);
}

#[tokio::test]
async fn neither_debug_nor_errors_show_the_password() {
    let server = RedisBroker::new(RedisServer::new("redis://user:hunter2@127.0.0.1:1/3").unwrap());
    let mut texts = vec![format!("{server:?}")];
    let error = server.receive(&consumer("a"), LONG).await.unwrap_err();
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = source {
        texts.push(format!("{error} {error:?}"));
        source = error.source();
    }
    let wrong = RedisServer::new("http://user:hunter2@127.0.0.1:1/3").unwrap_err();
    texts.push(format!("{wrong} {wrong:?}"));
    for text in texts {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn invalid_trace_contexts_are_left_out_of_events() {
    let server = TestRedis::start().await;
    enqueue(&server).await;
    let broker = broker(&server);
    let claim = receive(&broker, "a").await.claim;
    let with_state = r#"{"traceparent": "x", "tracestate": "y=z"}"#;
    for (context, expected) in [("not JSON", None), (with_state, Some(value(with_state)))] {
        let context = EventContext {
            request_id: Some("a \"quoted\" id".to_owned()),
            trace_context: Some(context.to_owned()),
        };
        assert_eq!(broker.started(&claim, &context).await.unwrap(), Ownership::Held);
        let event = events(&server).await.pop().unwrap();
        assert_eq!(value(&event["payload"])["request_id"], "a \"quoted\" id");
        assert_eq!(event.get("_trace_context").map(|text| value(text)), expected);
    }
}

#[tokio::test]
async fn tasks_that_are_looked_up_together_are_judged_one_by_one() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let claims = take(&server, &broker, 8).await;
    for command in [
        &["SET", "dalston:job:cancelled:job-0", "1"][..],
        &["HSET", "dalston:task:task-1", "blocked_reason", "waited too long"],
        &["DEL", "dalston:task:task-2"],
        &["HSET", "dalston:task:task-3", "request_bindings_json", "{"],
        &["DEL", "dalston:task:task-4"],
        &["SET", "dalston:task:task-4", "not a hash"],
        &[
            "XCLAIM",
            STREAM,
            "engines",
            "b",
            "0",
            &claims[5].message_id,
            "JUSTID",
        ],
        // Both are true: a cancellation says more.
        &["SET", "dalston:job:cancelled:job-6", "1"],
        &["HSET", "dalston:task:task-6", "blocked_reason", "waited too long"],
    ] {
        let _: redis::Value = server.send(command).await;
    }

    let lookups = claims.iter().map(|claim| async {
        match broker.lookup(claim).await.unwrap() {
            Lookup::Task(metadata) => metadata.stage,
            Lookup::Malformed { .. } => "malformed".to_owned(),
            other => format!("{other:?}"),
        }
    });

    assert_eq!(
        futures_util::future::join_all(lookups).await,
        [
            "Cancelled",
            "Blocked(\"waited too long\")",
            "Missing",
            "malformed",
            "malformed",
            "Lost",
            "Cancelled",
            "transcribe_ch7"
        ]
    );
    assert_eq!(events(&server).await.len(), 0);
}

#[tokio::test]
async fn tasks_whose_read_was_not_answered_come_back() {
    let server = TestRedis::start().await;
    let cable = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
    nothing_for(&broker, "a", SHORT).await;

    let reader = broker.clone();
    let lost = tokio::spawn(async move { reader.receive_several(&consumer("a"), 2, LONG).await });
    cable.lose_answers(true);
    let mut missing = [message(&server).await, message(&server).await].to_vec();
    while pending(&server).await.is_empty() {
        tokio::task::yield_now().await;
    }
    cable.lose_answers(false);
    cable.cut();

    lost.abort();
    while !missing.is_empty() {
        // The connection may still have to find out that it is gone.
        let Ok(again) = broker.receive_several(&consumer("a"), 2, LONG).await else {
            continue;
        };
        for delivery in again {
            let nothing = EventContext::default();
            let ended = broker.finish(&delivery.claim, &Outcome::Skipped, &nothing).await;
            assert_eq!(ended.unwrap(), Ownership::Held);
            missing.retain(|id| *id != delivery.claim.message_id);
        }
    }
}

async fn memory_limit(server: &TestRedis, bytes: &str) {
    let () = server.send(&["CONFIG", "SET", "maxmemory", bytes]).await;
}

/// A read fails because the server is full, and takes nothing.
async fn read_is_refused(server: &TestRedis, broker: &RedisBroker) {
    let before = pending(server).await;
    let refused = broker.receive_several(&consumer("a"), 2, LONG).await;
    let error = refused.expect_err("no memory");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("reading from {STREAM} on Redis at 127.0.0.1:")) && text.contains("OOM"),
        "{text}"
    );
    assert_eq!(pending(server).await, before);
}

#[tokio::test]
async fn nothing_is_read_while_the_server_is_out_of_memory() {
    let server = TestRedis::start().await;
    for _ in 0..3 {
        message(&server).await;
    }
    // The group is there already, so making it is not what is refused.
    let () = server.send(&["XGROUP", "CREATE", STREAM, "engines", "0"]).await;
    let broker = broker(&server);

    memory_limit(&server, "1").await;
    read_is_refused(&server, &broker).await;
    read_is_refused(&server, &broker).await;
    memory_limit(&server, "0").await;
    assert_eq!(receive(&broker, "a").await.claim.delivery_count, 1);
    // More tasks are waiting.
    memory_limit(&server, "1").await;
    read_is_refused(&server, &broker).await;
    memory_limit(&server, "0").await;
    let rest = broker.receive_several(&consumer("a"), 9, LONG).await.unwrap();
    assert_eq!(rest.len(), 2);
}

#[tokio::test]
async fn full_server_is_not_read_after_an_idle_time() {
    let server = TestRedis::start().await;
    let broker = RedisBroker::new(RedisServer::new(&server.url()).unwrap());
    nothing_for(&broker, "a", SHORT).await;
    nothing_for(&broker, "a", Duration::from_millis(700)).await;
    message(&server).await;
    memory_limit(&server, "1").await;
    // One blocking read was under way and was allowed to take the task; the next one is not.
    let _ = broker.receive(&consumer("a"), LONG).await;
    read_is_refused(&server, &broker).await;
    assert_eq!(events(&server).await, []);
}

#[tokio::test]
async fn full_server_gives_up_no_task_of_a_dead_worker() {
    let server = TestRedis::start().await;
    message(&server).await;
    let _ = receive(&broker(&server), "dead").await;
    tokio::time::sleep(LEASE).await;

    memory_limit(&server, "1").await;
    let peer = broker(&server);
    read_is_refused(&server, &peer).await;
    memory_limit(&server, "0").await;
    assert_eq!(receive(&peer, "a").await.claim.delivery_count, 2);
}

#[tokio::test]
async fn user_without_access_to_the_memory_probe_gets_tasks() {
    let server = TestRedis::start().await;
    let rights = "resetkeys ~dalston:stream:* ~dalston:task:* ~dalston:job:* ~dalston:events:stream \
                  ~dalston:waiting_engine_tasks ~dalston:instance:*";
    let user: Vec<&str> = ["ACL", "SETUSER", "worker", "on", "nopass", "+@all", "allchannels"]
        .into_iter()
        .chain(rights.split_whitespace())
        .collect();
    let () = server.send(&user).await;
    let url = format!("redis://worker:any@127.0.0.1:{}", server.port());
    let narrow = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
    let id = message(&server).await;
    assert_eq!(receive(&narrow, "b").await.claim.message_id, id);
}

#[tokio::test]
async fn tasks_come_over_either_version_of_the_protocol() {
    for query in ["", "?protocol=resp3"] {
        let server = TestRedis::start().await;
        let url = format!("{}/{query}", server.url());
        let broker = RedisBroker::with_lease(RedisServer::new(&url).unwrap(), LEASE);
        enqueue(&server).await;
        let claim = receive(&broker, "a").await.claim;
        let lookup = broker.lookup(&claim).await.unwrap();
        assert!(matches!(lookup, Lookup::Task(_)), "{query}: {lookup:?}");
        let nothing = EventContext::default();
        let ended = broker.finish(&claim, &Outcome::Skipped, &nothing).await;
        assert_eq!(ended.unwrap(), Ownership::Held);
        nothing_for(&broker, "a", SHORT).await;
    }
}

#[tokio::test]
async fn unreadable_time_is_logged_with_its_task() {
    let server = TestRedis::start().await;
    let telemetry = TestTelemetry::new();
    let broker = broker(&server);
    telemetry
        .attach(async {
            let claims = take(&server, &broker, 3).await;
            for task in ["task-1", "task-2"] {
                let hash = format!("dalston:task:{task}");
                let () = server.send(&["HSET", &hash, "enqueued_at", "now"]).await;
            }
            let all = claims.iter().map(|claim| broker.lookup(claim));
            futures_util::future::join_all(all).await;
        })
        .await;
    let lines = telemetry.logs();
    let mut tasks: Vec<String> = lines
        .iter()
        .filter(|line| line.event() == "task_time_unreadable")
        .map(|line| line.field("task_id").map(ToString::to_string).unwrap_or_default())
        .collect();
    tasks.sort();
    assert_eq!(tasks, [r#""task-1""#, r#""task-2""#], "{lines:?}");
}

#[tokio::test]
async fn several_tasks_come_at_once_but_never_more_than_were_asked_for() {
    let server = TestRedis::start().await;
    let mut queued = Vec::new();
    for _ in 0..5 {
        queued.push(message(&server).await);
    }
    let broker = broker(&server);
    let mut received = Vec::new();
    for (most, expected) in [(3, 3), (10, 2)] {
        let deliveries = broker.receive_several(&consumer("a"), most, LONG).await.unwrap();
        assert_eq!(deliveries.len(), expected);
        received.extend(deliveries.into_iter().map(|delivery| delivery.claim.message_id));
        assert_eq!(
            pending(&server).await.len(),
            received.len(),
            "none is taken that nobody asked for"
        );
    }
    assert_eq!(received, queued);
    assert!(
        broker
            .receive_several(&consumer("a"), 3, SHORT)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn what_goes_wrong_with_one_task_does_not_touch_those_that_are_asked_about_with_it() {
    let server = TestRedis::start().await;
    for number in 0..20 {
        let task = format!("task-{number}");
        let () = server
            .send(&["HSET", &format!("dalston:task:{task}"), "stage", "transcribe"])
            .await;
        let () = server
            .send(&["XADD", STREAM, "*", "task_id", &task, "job_id", "job"])
            .await;
    }
    let () = server
        .send(&["SET", "dalston:job:job-of-7:artifacts", "not a hash"])
        .await;
    let broker = broker(&server);
    let claims = broker.receive_several(&consumer("a"), 20, LONG).await.unwrap();
    let finishes = claims.into_iter().enumerate().map(|(number, delivery)| {
        let broker = broker.clone();
        async move {
            let mut claim = delivery.claim;
            if number == 7 {
                claim.job_id = "job-of-7".to_owned();
            }
            let outcome = Outcome::Completed {
                artifacts: vec![artifact()],
            };
            broker.finish(&claim, &outcome, &EventContext::default()).await
        }
    });
    let finished = futures_util::future::join_all(finishes).await;
    for (number, finished) in finished.into_iter().enumerate() {
        match finished {
            Ok(owner) => assert!(owner == Ownership::Held && number != 7),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    number == 7 && text.contains("finishing task task-7"),
                    "{number} {text}"
                );
            }
        }
    }
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (19, 1)
    );
}

/// Queues tasks `task-0` and so on of jobs `job-0` and so on, in the stages `transcribe_ch0` and so on, and takes them.
async fn take(server: &TestRedis, broker: &RedisBroker, tasks: usize) -> Vec<Claim> {
    for number in 0..tasks {
        let (task, job) = (format!("task-{number}"), format!("job-{number}"));
        let (metadata, stage) = (format!("dalston:task:{task}"), format!("transcribe_ch{number}"));
        let () = server.send(&["HSET", &metadata, "stage", &stage]).await;
        let () = server
            .send(&["XADD", STREAM, "*", "task_id", &task, "job_id", &job])
            .await;
    }
    let taken = broker.receive_several(&consumer("a"), tasks, LONG).await.unwrap();
    assert_eq!(taken.len(), tasks);
    taken.into_iter().map(|delivery| delivery.claim).collect()
}

#[tokio::test]
async fn of_tasks_that_end_together_only_those_that_are_still_ours_are_reported_and_acknowledged() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let claims = take(&server, &broker, 6).await;
    let ids: Vec<&str> = claims.iter().map(|claim| &*claim.message_id).collect();
    let taken_over = ["XCLAIM", STREAM, "engines", "b", "0", ids[1], "JUSTID"];
    let () = server.send(&taken_over).await;
    let delivered_again = [
        "XCLAIM",
        STREAM,
        "engines",
        "a",
        "0",
        ids[2],
        "RETRYCOUNT",
        "2",
        "JUSTID",
    ];
    let () = server.send(&delivered_again).await;
    let () = server.send(&["XACK", STREAM, "engines", ids[3]]).await;

    let ends = claims.iter().map(|claim| async {
        let outcome = Outcome::Completed {
            artifacts: Vec::new(),
        };
        broker
            .finish(claim, &outcome, &EventContext::default())
            .await
            .unwrap()
    });
    let ends = futures_util::future::join_all(ends).await;

    use Ownership::{Held, Lost};
    assert_eq!(ends, [Held, Lost, Lost, Lost, Held, Held]);
    let reported: Vec<Value> = events(&server)
        .await
        .iter()
        .map(|event| value(&event["payload"])["task_id"].clone())
        .collect();
    assert_eq!(reported, ["task-0", "task-4", "task-5"]);
    let left = [
        (ids[1].to_owned(), "b".to_owned(), 1),
        (ids[2].to_owned(), "a".to_owned(), 2),
    ];
    assert_eq!(pending(&server).await, left);
}

#[tokio::test]
async fn tasks_that_end_together_may_have_any_number_of_others_between_them() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let claims = take(&server, &broker, 40).await;
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let context = EventContext::default();

    let ends = [&claims[39], &claims[0], &claims[20]].map(|claim| broker.finish(claim, &outcome, &context));
    for end in futures_util::future::join_all(ends).await {
        assert_eq!(end.unwrap(), Ownership::Held);
    }

    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (3, 37)
    );
}

#[tokio::test]
async fn a_task_that_has_just_ended_can_be_neither_ended_nor_renewed_again_in_the_same_breath() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let claims = take(&server, &broker, 2).await;
    let (outcome, context) = (Outcome::Skipped, EventContext::default());
    // The server knows the scripts from their first use, and only then keeps the order of the calls.
    let warm_up = take(&server, &broker, 1).await;
    let _ = broker.renew(&warm_up[0]).await.unwrap();
    let _ = broker.finish(&warm_up[0], &outcome, &context).await.unwrap();
    assert_eq!(broker.release(&warm_up[0]).await.unwrap(), Ownership::Lost);

    let (finished, renewed, returned, too_late) = tokio::join!(
        broker.finish(&claims[0], &outcome, &context),
        broker.renew(&claims[0]),
        broker.release(&claims[1]),
        broker.renew(&claims[1]),
    );

    assert_eq!(
        (finished.unwrap(), returned.unwrap()),
        (Ownership::Held, Ownership::Held)
    );
    // It is not in the queue, but it was we who removed it.
    assert_eq!(renewed.unwrap(), Ownership::Held);
    assert_eq!(too_late.unwrap(), Ownership::Lost);
    let left = [(claims[1].message_id.clone(), "handed-back".to_owned(), 1)];
    assert_eq!(pending(&server).await, left);
}

#[tokio::test]
async fn each_of_the_tasks_that_are_asked_about_together_gets_the_answer_to_its_own_question() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let claims = take(&server, &broker, 5).await;
    for job in ["job-1", "job-3"] {
        let () = server
            .send(&["SET", &format!("dalston:job:cancelled:{job}"), "1"])
            .await;
    }
    let outcome = Outcome::Completed {
        artifacts: vec![artifact()],
    };
    let context = EventContext::default();

    let (first, cancelled, second, finished, not_cancelled, third) = tokio::join!(
        broker.lookup(&claims[0]),
        broker.is_cancelled(&claims[3]),
        broker.lookup(&claims[1]),
        broker.finish(&claims[4], &outcome, &context),
        broker.is_cancelled(&claims[0]),
        broker.lookup(&claims[2]),
    );

    let stage = |lookup: Lookup| match lookup {
        Lookup::Task(metadata) => metadata.stage,
        other => format!("{other:?}"),
    };
    let stages = [first.unwrap(), second.unwrap(), third.unwrap()].map(stage);
    assert_eq!(stages, ["transcribe_ch0", "Cancelled", "transcribe_ch2"]);
    assert_eq!((cancelled.unwrap(), not_cancelled.unwrap()), (true, false));
    assert_eq!(finished.unwrap(), Ownership::Held);
    let artifacts: Vec<String> = server.send(&["HKEYS", "dalston:job:job-4:artifacts"]).await;
    assert_eq!(artifacts, [format!("{TASK}:words")]);
}
