//! Looking up the metadata of a task.

use std::collections::BTreeMap;

use dalston_engine_sdk::broker::{Broker, EventContext, Lookup, Outcome, Ownership};
use dalston_telemetry::testing::TestTelemetry;
use testbed::TestRedis;

use super::{JOB, METADATA, STREAM, TASK, TRACE, enqueue, events, message, patient, pending, receive, take};

#[tokio::test]
async fn lookup_reads_metadata_and_removes_wait_markers() {
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
    let broker = patient(&server);
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
async fn blocked_task_is_left_alone() {
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
    let broker = patient(&server);
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
async fn invalid_metadata_is_malformed() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
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
async fn invalid_optional_fields_are_left_out() {
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
    let broker = patient(&server);
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
async fn unreadable_time_is_logged_with_its_task() {
    let server = TestRedis::start().await;
    let telemetry = TestTelemetry::new();
    let broker = patient(&server);
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
async fn tasks_looked_up_together_are_judged_one_by_one() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
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
            "Cancelled { is_running: false }",
            "Blocked(\"waited too long\")",
            "Missing",
            "malformed",
            "malformed",
            "Lost",
            "Cancelled { is_running: false }",
            "transcribe_ch7"
        ]
    );
    assert_eq!(events(&server).await.len(), 0);
}
