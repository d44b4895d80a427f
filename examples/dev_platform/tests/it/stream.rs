//! Realtime sessions through the gateway, without faults.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::{PATH, Worker, open, speech, trace_context};
use crate::rig::{Rig, changes};
use crate::tree::tree;

/// The spans of a session with one utterance.
const SESSION: &str = "
GET /v1/audio/transcriptions/stream {http.response.status_code=101}
  session_router.allocate {dalston.engine_id=mock-asr}
    realtime.session {dalston.engine_id=mock-asr}
      realtime.session.begin
      process_audio_chunk
      vad_endpoint
      generate_transcript
        engine.process
      session_close
";

/// What the session router counts. The gauges of workers change at any time.
const ROUTER: [&str; 2] = [
    "dalston_session_router_allocation",
    "dalston_session_router_sessions_total",
];

/// A gateway and a worker with two places.
pub(crate) async fn platform() -> Rig {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(2).await;
    rig
}

#[tokio::test]
async fn session_is_one_trace_through_gateway_router_and_worker() {
    let mut rig = Rig::new().await;
    // Only the first chunk, and those that are late.
    rig.variables
        .push(("DALSTON_RT_SPAN_SAMPLE_RATE", "1000000".to_owned()));
    rig.run("gateway", &[]);
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(2).await;
    let before = rig.series("gateway").await;
    let (context, trace) = trace_context();
    let query = format!("interim_results=false&language=en&traceparent={context}");
    let mut client = open(&rig, &query, &[]).await;
    let begin = client.next().await;
    assert_eq!(begin["config"]["language"], "en", "{begin}");
    assert_eq!(client.headers["x-trace-id"].to_str().unwrap(), trace);
    assert!(client.send_bytes(speech("en_one")).await);
    let messages = client.finish().await;
    let kinds: Vec<&str> = messages
        .iter()
        .map(|message| message["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "vad.speech_start",
            "vad.speech_end",
            "transcript.final",
            "session.end"
        ]
    );
    assert_eq!(client.closed, Some(1000));
    rig.until("free place", async || {
        (rig.places().await == (2, 0)).then_some(())
    })
    .await;
    let after = rig.series("gateway").await;
    assert_eq!(
        changes(&before, &after, &ROUTER),
        [
            "dalston_session_router_allocation_duration_seconds_count +1",
            r#"dalston_session_router_sessions_total{status="completed"} +1"#,
        ]
    );

    let mut spans = rig.stop(&trace);
    let id = begin["session_id"].as_str().unwrap();
    let lines = rig.log_lines();
    let of_session: BTreeSet<&str> = lines
        .iter()
        .filter(|line| line["session_id"] == id && line["trace_id"] == trace)
        .filter_map(|line| line["service"].as_str())
        .collect();
    assert_eq!(of_session.len(), 2, "{of_session:?}");
    // A chunk that took longer than its audio has a span, too.
    let mut is_first = true;
    spans.retain(|(_, span)| span.name != "process_audio_chunk" || std::mem::take(&mut is_first));
    assert_eq!(tree(&spans), SESSION.parse().unwrap());
    // The span of the gateway lasts as long as the session.
    let end = |name: &str| {
        let found = spans.iter().find(|(_, span)| span.name.contains(name));
        found.unwrap().1.end_time_unix_nano
    };
    assert!(end("/stream") > end("generate_transcript"));
}

#[tokio::test]
async fn query_goes_to_the_worker_without_the_key() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.run("gateway", &[]);
    rig.answers().await;
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[]).await;
    let (context, trace) = trace_context();
    let query = "api_key=secret&session_id=mine&model=scripted&language=auto&vocabulary=%5B%22a+b%22%5D&x=1";
    let headers = [("traceparent", &*context)];
    let (mut client, session) = tokio::join!(open(&rig, query, &headers), worker.begin());
    let begin = client.next().await;
    assert_eq!(begin["type"], "session.begin");
    let (name, id) = &session.query[0];
    assert!(
        name == "session_id" && id.starts_with("sess_") && id.len() == 21,
        "{id}"
    );
    let rest: Vec<(&str, &str)> = session.query[1..]
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    // The model is the name of an engine, which is no model.
    assert_eq!(
        rest,
        [("language", "auto"), ("vocabulary", r#"["a b"]"#), ("x", "1")]
    );
    let traceparent = session.traceparent.unwrap();
    assert!(
        traceparent.contains(&trace) && traceparent != context,
        "{traceparent}"
    );
}

#[tokio::test]
async fn refused_client_gets_the_reason_before_the_close() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.variables
        .push(("DALSTON_GATEWAY_MAX_SESSIONS", "1".to_owned()));
    rig.run("gateway", &[]);
    rig.answers().await;
    let refused = async |query: &str, headers: &[(&'static str, &str)]| {
        let mut client = open(&rig, query, headers).await;
        let messages = client.rest().await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        let code = messages[0]["code"].as_str().unwrap().to_owned();
        (code, client.closed.unwrap())
    };
    let told = |code: &str, close| (code.to_owned(), close);
    assert_eq!(refused("", &[]).await, told("unauthorized", 4001));
    assert_eq!(refused("token=wrong", &[]).await, told("unauthorized", 4001));
    let other = [("origin", "http://elsewhere")];
    assert_eq!(refused("token=secret", &other).await, told("forbidden", 4003));
    // No worker, then none with the model.
    assert_eq!(refused("token=secret", &[]).await, told("no_capacity", 4503));
    let variants = [("capabilities", r#"{"model_variants":["tiny"]}"#)];
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &variants).await;
    assert_eq!(
        refused("token=secret&model=large", &[]).await,
        told("no_capacity", 4503)
    );
    let bearer = [("authorization", "Bearer secret")];
    let (_client, _session) = tokio::join!(open(&rig, "", &bearer), worker.begin());
    assert_eq!(refused("token=secret", &[]).await, told("rate_limit", 4429));

    // A token is good for one session, and the key is needed to get it.
    let ask = || rig.request(Method::POST, "/v1/realtime/token");
    assert_eq!(ask().send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let with_token = async || {
        let response = ask().bearer_auth("secret").send().await.unwrap();
        let token: Value = response.json().await.unwrap();
        format!("token={}", token["token"].as_str().unwrap())
    };
    let query = with_token().await;
    assert_eq!(refused(&query, &other).await, told("forbidden", 4003));
    assert_eq!(refused(&query, &[]).await, told("unauthorized", 4001));
    let query = with_token().await;
    assert_eq!(refused(&query, &[]).await, told("rate_limit", 4429));

    let plain = rig.request(Method::GET, PATH).send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UNAUTHORIZED);
    let plain = rig
        .request(Method::GET, PATH)
        .bearer_auth("secret")
        .send()
        .await
        .unwrap();
    assert_eq!(plain.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn worker_that_refuses_is_passed_over() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let streams = [("capabilities", r#"{"supports_native_streaming":true}"#)];
    let first = Worker::register(&rig.redis, "first-rt-1", &streams).await;
    let second = Worker::register(&rig.redis, "second-rt-1", &[]).await;
    for code in ["no_capacity", "language_unsupported"] {
        let (mut client, (), mut session) = tokio::join!(
            open(&rig, "language=de", &[]),
            first.refuse(code, 1013),
            second.begin()
        );
        assert_eq!(client.next().await["type"], "session.begin");
        session.gateway.send(json!({"type": "session.end"})).await;
        session.gateway.close(1000).await;
        assert_eq!(client.rest().await.len(), 1);
    }
    // A reason that holds for all workers reaches the client, with the code of the worker.
    let (mut client, (), ()) = tokio::join!(
        open(&rig, "language=xx", &[]),
        first.refuse("language_unsupported", 4400),
        second.refuse("no_capacity", 1013)
    );
    assert_eq!(client.rest().await[0]["code"], "language_unsupported");
    assert_eq!(client.closed, Some(4400));
    // Wrong parameters are wrong for all: the second worker is not asked.
    let (mut client, ()) = tokio::join!(
        open(&rig, "channels=9", &[]),
        first.refuse("invalid_message", 1002)
    );
    assert_eq!(client.rest().await[0]["code"], "invalid_message");
    assert_eq!(client.closed, Some(1002));
    rig.until("free places", async || {
        (rig.places().await == (4, 0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn free_worker_comes_first_and_draining_ones_get_nothing() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let small = Worker::register(&rig.redis, "a-small-rt-1", &[("capacity", "1")]).await;
    let large = Worker::register(&rig.redis, "b-large-rt-1", &[("capacity", "2")]).await;
    let _draining = Worker::register(
        &rig.redis,
        "ends-rt-1",
        &[("status", "draining"), ("capacity", "9")],
    )
    .await;
    let _silent = Worker::register(
        &rig.redis,
        "silent-rt-1",
        &[
            ("capacity", "9"),
            ("last_heartbeat", "2026-01-01T00:00:00.000000+00:00"),
        ],
    )
    .await;
    // 2 and 1, then 1 and 1, then 1 and 0 or the other way round.
    let (_a, _one) = tokio::join!(open(&rig, "", &[]), large.begin());
    let (_b, _c, _two, _three) = tokio::join!(
        open(&rig, "", &[]),
        open(&rig, "", &[]),
        large.begin(),
        small.begin()
    );
    let mut refused = open(&rig, "", &[]).await;
    assert_eq!(refused.rest().await[0]["code"], "no_capacity");
    assert_eq!(refused.closed, Some(4503));
    // A scrape may come between two of these gauges.
    rig.until("gauges", async || {
        let series = rig.series("gateway").await;
        let gauge = |name: &str| series.get(&format!("dalston_session_router_{name}")).copied();
        let numbers = [
            gauge(r#"sessions_active{worker_id="b-large-rt-1"}"#)?,
            gauge("workers_registered")?,
            gauge("workers_healthy")?,
        ];
        (numbers == [2.0, 4.0, 3.0]).then_some(())
    })
    .await;
    // Other readers of the registry see it, too.
    let key = "dalston:engine:instance:silent-rt-1";
    let status: String = rig.redis.send(&["HGET", key, "status"]).await;
    assert_eq!(status, "offline");
}

#[tokio::test]
async fn slow_worker_slows_its_client_down_and_no_other() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[]).await;
    let (mut fast, mut session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    let (mut client, _reads_nothing) = tokio::join!(open(&rig, "", &[]), worker.begin());
    client.next().await;
    // 64 MiB would be 35 minutes of audio.
    let mut sent = 0;
    let piece = vec![0_u8; 256 * 1024];
    while sent < 256 {
        let sending = client.send_bytes(piece.clone());
        match timeout(Duration::from_secs(2), sending).await {
            Ok(is_sent) => assert!(is_sent),
            Err(_) => break,
        }
        sent += 1;
    }
    assert!(sent < 100, "{sent} messages of 256 KiB are somewhere");
    fast.next().await;
    let began = Instant::now();
    assert!(fast.send_bytes(vec![0; 3_200]).await);
    assert_eq!(session.gateway.next().await["audio"], 3_200);
    // The other worker reads nothing for 160 s before its session ends.
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn status_counts_places_and_sessions() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let get = async || rig.get("/v1/realtime/status").await;
    let of = |status: &str, places: [u64; 3], workers: [u64; 2]| -> Value {
        json!({
            "status": status, "total_capacity": places[0], "active_sessions": places[1],
            "available_capacity": places[2], "worker_count": workers[0], "ready_workers": workers[1],
        })
    };
    assert_eq!(get().await, of("unavailable", [0, 0, 0], [0, 0]));
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[("capacity", "1")]).await;
    assert_eq!(get().await, of("ready", [1, 0, 1], [1, 1]));
    let (client, _session) = tokio::join!(open(&rig, "", &[]), worker.begin());
    assert_eq!(get().await, of("at_capacity", [1, 1, 0], [1, 1]));
    drop(client);
    rig.until("free place", async || {
        (rig.places().await == (1, 0)).then_some(())
    })
    .await;
    worker.heartbeat(&rig.redis, &[("status", "draining")]).await;
    assert_eq!(get().await, of("unavailable", [0, 0, 0], [1, 0]));
}
