//! Realtime sessions whose clients, workers and gateways go away.

use serde_json::json;

use crate::client::{Worker, open, open_session, speech};
use crate::rig::{Rig, changes};
use crate::stream::platform;

/// Without voice activity detection an utterance ends with `flush`.
const BY_HAND: &str = "enable_vad=false&interim_results=false";

#[tokio::test]
async fn killed_worker_is_an_error_for_its_client_and_gets_no_session() {
    let mut rig = platform().await;
    let before = rig.series("gateway").await;
    let (mut client, begin) = open_session(&rig, BY_HAND).await;
    assert!(client.send_bytes(vec![0; 32_000]).await);
    let key = format!(
        "dalston:realtime:session:{}",
        begin["session_id"].as_str().unwrap()
    );
    let lost: String = rig.redis.send(&["HGET", &key, "instance"]).await;
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(4).await;
    // The first one.
    rig.kill("mock-engine");
    let messages = client.rest().await;
    let error = messages.last().unwrap();
    assert_eq!(error["code"], "internal_error", "{messages:?}");
    assert_eq!(client.closed, Some(1011));

    // Its heartbeat is seconds old, and its place is free.
    let sessions = format!("dalston:realtime:instance:{lost}:sessions");
    rig.until("free place", async || {
        let count: i64 = rig.redis.send(&["SCARD", &sessions]).await;
        (count == 0).then_some(())
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (client, begin) = open_session(&rig, BY_HAND).await;
        open.push(client);
        let key = format!(
            "dalston:realtime:session:{}",
            begin["session_id"].as_str().unwrap()
        );
        let instance: String = rig.redis.send(&["HGET", &key, "instance"]).await;
        assert_ne!(instance, lost);
    }
    let after = rig.series("gateway").await;
    let counted = changes(&before, &after, &["dalston_session_router_allocation"]);
    // No session was tried at the dead worker.
    assert_eq!(
        counted,
        ["dalston_session_router_allocation_duration_seconds_count +3"]
    );
}

#[tokio::test]
async fn worker_that_does_not_answer_is_passed_over() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let streams = [("capabilities", r#"{"supports_native_streaming":true}"#)];
    drop(Worker::register(&rig.redis, "dead-rt-1", &streams).await);
    let worker = Worker::register(&rig.redis, "alive-rt-1", &[]).await;
    for _ in 0..2 {
        let (mut client, mut session) = tokio::join!(open(&rig, "", &[]), worker.begin());
        assert_eq!(client.next().await["type"], "session.begin");
        // The other way round, this worker would be lost, too.
        drop(client);
        session.gateway.rest().await;
    }
    rig.end_all();
    let lines = rig.log_lines();
    let tries = lines
        .iter()
        .filter(|line| line["event"] == "realtime_worker_unreachable");
    assert_eq!(tries.count(), 1);
}

#[tokio::test]
async fn clients_that_drop_at_any_point_leave_nothing_behind() {
    let rig = platform().await;
    let before = rig.series("gateway").await;
    for round in 0..12 {
        let mut client = open(&rig, BY_HAND, &[]).await;
        if round % 4 > 0 {
            client.next().await;
        }
        if round % 4 > 1 {
            assert!(client.send_bytes(vec![0; 32_000]).await);
        }
        if round % 4 > 2 {
            client.send(json!({"type": "end"})).await;
        }
        drop(client);
        rig.until("free places", async || {
            (rig.places().await == (2, 0)).then_some(())
        })
        .await;
    }
    // A client that has dropped at once may have its session only now.
    let statuses = ["completed", "error", "timeout"];
    let names =
        statuses.map(|status| format!("dalston_session_router_sessions_total{{status=\"{status}\"}}"));
    rig.until("end of all sessions", async || {
        let series = rig.series("gateway").await;
        let ended: f64 = names.iter().map(|name| series[name] - before[name]).sum();
        let open = series["dalston_gateway_websocket_connections_active"];
        (ended == 12.0 && open == 0.0).then_some(())
    })
    .await;
    for key in ["dalston:realtime:sessions:active", "dalston:realtime:session:*"] {
        rig.until("end of the last session", async || {
            let found: Vec<String> = rig.redis.send(&["KEYS", key]).await;
            found.is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn client_that_leaves_in_order_ends_its_session_at_the_worker() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[]).await;
    let before = rig.series("gateway").await;
    let (mut client, mut session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    client.next().await;
    client.close(1001).await;
    assert_eq!(session.gateway.next().await, json!({"type": "end"}));
    // The place is taken until the worker has ended the session.
    assert_eq!(rig.places().await, (2, 1));
    session.gateway.send(json!({"type": "session.end"})).await;
    session.gateway.rest().await;
    assert_eq!(session.gateway.closed, Some(1000));
    rig.until("free place", async || {
        (rig.places().await == (2, 0)).then_some(())
    })
    .await;
    let after = rig.series("gateway").await;
    assert_eq!(
        changes(&before, &after, &["dalston_session_router_sessions_total"]),
        [r#"dalston_session_router_sessions_total{status="completed"} +1"#]
    );
}

#[tokio::test]
async fn too_long_message_ends_the_session_with_its_transcript() {
    let rig = platform().await;
    let (mut client, _) = open_session(&rig, BY_HAND).await;
    assert!(client.send_bytes(vec![0; 32_000]).await);
    client.send_bytes(vec![0; 1024 * 1024 + 1]).await;
    let messages = client.rest().await;
    assert_eq!(messages[0]["code"], "invalid_message", "{messages:?}");
    let last = messages.last().unwrap();
    assert_eq!(last["transcript"], "mono 1.0s", "{messages:?}");
    assert_eq!(client.closed, Some(1009));
}

#[tokio::test]
async fn session_goes_on_at_another_gateway_after_a_drain() {
    let mut rig = Rig::new().await;
    rig.variables
        .push(("DALSTON_SESSION_DRAIN_SECONDS", "1".to_owned()));
    rig.run("gateway", &[]);
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(2).await;
    let (mut client, begin) = open_session(&rig, "interim_results=false").await;
    let id = begin["session_id"].as_str().unwrap();
    assert!(client.send_bytes(speech("en_one")).await);
    client.send(json!({"type": "flush"})).await;
    let last = client.until("transcript.final").await;
    let end = last.last().unwrap()["end"].as_f64().unwrap();
    let ending = rig.begin_end("gateway");
    // A session goes on for a while.
    client.send(json!({"type": "keepalive"})).await;
    let messages = client.rest().await;
    let terminated = messages.last().unwrap();
    assert_eq!(terminated["type"], "session.terminated", "{messages:?}");
    assert_eq!(terminated["recoverable"], true);
    let offset = terminated["last_transcript_offset_ms"].as_f64().unwrap() / 1e3;
    assert!((offset - end).abs() < 0.002, "{terminated} {end}");
    assert_eq!(client.closed, Some(1012));
    rig.ended(ending);

    rig.run("gateway", &[]);
    rig.has_places(2).await;
    let (mut client, begin) = open_session(&rig, &format!("{BY_HAND}&resume_session_id={id}")).await;
    assert_eq!(begin["resumed_from"], id);
    assert!(client.send_bytes(vec![0; 32_000]).await);
    let messages = client.finish().await;
    let goes_on = messages
        .iter()
        .find(|message| message["type"] == "transcript.final");
    let start = goes_on.unwrap()["start"].as_f64().unwrap();
    assert!((start - end).abs() < 0.1, "{start} {end}");
}

#[tokio::test]
async fn places_of_a_killed_gateway_are_free_after_a_heartbeat() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[("capacity", "1")]).await;
    let (_client, session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    rig.kill("gateway");
    rig.run("gateway", &[]);
    rig.answers().await;
    let mut refused = open(&rig, "", &[]).await;
    refused.rest().await;
    assert_eq!(refused.closed, Some(4503));
    drop(session);
    worker.heartbeat(&rig.redis, &[("active_realtime", "0")]).await;
    let (mut client, _session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    assert_eq!(client.next().await["type"], "session.begin");
    // The key of a session that no gateway renews goes away by itself.
    let keys: Vec<String> = rig.redis.send(&["KEYS", "dalston:realtime:session:*"]).await;
    for key in keys {
        let seconds: i64 = rig.redis.send(&["TTL", &key]).await;
        assert!((1..=300).contains(&seconds), "{seconds}");
    }
}

#[tokio::test]
async fn worker_that_vanishes_is_forgotten_with_its_sessions() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[]).await;
    let (client, session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    rig.kill("gateway");
    drop((client, session));
    let _: i64 = rig
        .redis
        .send(&["DEL", "dalston:engine:instance:scripted-rt-1"])
        .await;
    rig.run("gateway", &[]);
    rig.until("forgotten worker", async || {
        let keys: Vec<String> = rig.redis.send(&["KEYS", "dalston:realtime:*"]).await;
        keys.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn session_survives_redis_that_loses_its_data() {
    let rig = platform().await;
    let (mut client, begin) = open_session(&rig, BY_HAND).await;
    let () = rig.redis.send(&["FLUSHALL"]).await;
    assert!(client.send_bytes(vec![0; 32_000]).await);
    // The session is known again.
    let key = format!(
        "dalston:realtime:session:{}",
        begin["session_id"].as_str().unwrap()
    );
    let audio = rig.until("session", async || {
        let audio: Option<String> = rig.redis.send(&["HGET", &key, "audio_seconds"]).await;
        audio.filter(|seconds| seconds == "1.0")
    });
    audio.await;
    let messages = client.finish().await;
    assert_eq!(messages.last().unwrap()["transcript"], "mono 1.0s");
}
