//! Events, artifacts and the end of a task.

use std::collections::BTreeMap;

use dalston_engine_sdk::broker::{Broker, EventContext, Outcome, Ownership};
use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
use serde_json::json;
use testbed::TestRedis;

use super::{JOB, METADATA, TASK, TRACE, artifact, broker, enqueue, events, pending, receive, value};

#[tokio::test]
async fn both_copies_of_events_match_the_protocol() {
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
async fn user_without_channels_reports_each_event_once() {
    let server = TestRedis::start().await;
    let () = server
        .send(&[
            "ACL",
            "SETUSER",
            "w",
            "on",
            ">secret",
            "~*",
            "+@all",
            "resetchannels",
        ])
        .await;
    let url = format!("redis://w:secret@127.0.0.1:{}", server.port());
    let broker = RedisBroker::new(RedisServer::new(&url).unwrap());
    enqueue(&server).await;
    let claim = receive(&broker, "a").await.claim;
    let nothing = EventContext::default();

    assert_eq!(broker.started(&claim, &nothing).await.unwrap(), Ownership::Held);
    let ended = broker.finish(&claim, &Outcome::Cancelled, &nothing).await;

    assert_eq!(ended.unwrap(), Ownership::Held);
    let kinds: Vec<_> = events(&server)
        .await
        .into_iter()
        .map(|event| event["type"].clone())
        .collect();
    assert_eq!(kinds, ["task.started", "task.completed"]);
    assert_eq!(pending(&server).await, []);
}

#[tokio::test]
async fn cancelled_task_is_reported_as_completed() {
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
async fn completed_task_indexes_its_artifacts() {
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
async fn expired_metadata_is_not_written_again() {
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
async fn task_stays_queued_until_its_event_is_written() {
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
async fn invalid_trace_context_is_left_out_of_events() {
    let server = TestRedis::start().await;
    let broker = broker(&server);
    let with_state = r#"{"traceparent": "x", "tracestate": "y=z"}"#;
    for (context, expected) in [("not JSON", None), (with_state, Some(value(with_state)))] {
        enqueue(&server).await;
        let claim = receive(&broker, "a").await.claim;
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
