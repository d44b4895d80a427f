//! Realtime sessions in OpenAI's protocol through the gateway.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use testbed::WebSocketClient;

use crate::client::{Worker, speech, trace_context};
use crate::rig::{Rig, changes};
use crate::tree::{attribute, tree};

const PATH: &str = "/v1/realtime?intent=transcription";
const COMPLETED: &str = "conversation.item.input_audio_transcription.completed";

/// The spans of a session with one utterance.
const SESSION: &str = "
GET /v1/realtime {http.response.status_code=101}
  session_router.allocate {dalston.engine_id=mock-asr}
    realtime.session {dalston.engine_id=mock-asr}
      realtime.session.begin
      process_audio_chunk
      generate_transcript
        engine.process
      session_close
";

/// Opens a session as a browser does, which can't set headers.
async fn open(rig: &Rig, more: &str, key: &str) -> WebSocketClient {
    let protocols = format!("realtime, openai-insecure-api-key.{key}");
    let header = [("sec-websocket-protocol", &*protocols)];
    WebSocketClient::open(rig.port(), &format!("{PATH}{more}"), &header).await
}

#[tokio::test]
async fn openai_session_is_one_trace_and_counts_as_complete() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.variables
        .push(("DALSTON_RT_SPAN_SAMPLE_RATE", "1000000".to_owned()));
    rig.run("gateway", &[]);
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(2).await;
    let before = rig.series("gateway").await;
    let (context, trace) = trace_context();
    let more = format!("&model=gpt-4o-transcribe&traceparent={context}");
    let mut client = open(&rig, &more, "secret").await;
    // Not the key.
    assert_eq!(client.headers["sec-websocket-protocol"], "realtime");
    assert_eq!(client.headers["x-trace-id"].to_str().unwrap(), trace);
    let created = client.next().await;
    assert_eq!(created["type"], "session.created", "{created}");
    let input = json!({"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": null});
    client
        .send(json!({"type": "session.update", "session": {"audio": {"input": input}}}))
        .await;
    let audio = speech("en_one");
    for piece in audio.chunks(3_200) {
        let audio = BASE64_STANDARD.encode(piece);
        client
            .send(json!({"type": "input_audio_buffer.append", "audio": audio}))
            .await;
    }
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    let events = client.until(COMPLETED).await;
    assert_eq!(events[0]["type"], "session.updated", "{events:?}");
    let transcript = events.last().unwrap()["transcript"].as_str().unwrap();
    assert!(transcript.starts_with("mono "), "{transcript}");

    // The session router knows the length of the audio by its declared format.
    let key = format!(
        "dalston:realtime:session:{}",
        created["session"]["id"].as_str().unwrap()
    );
    let expected = format!("{:.1}", audio.len() as f64 / 32_000.0);
    rig.until("audio", async || {
        let seconds: Option<String> = rig.redis.send(&["HGET", &key, "audio_seconds"]).await;
        seconds.filter(|seconds| *seconds == expected)
    })
    .await;
    client.close(1000).await;
    assert_eq!(client.rest().await, Vec::<Value>::new());
    rig.until("free place", async || {
        (rig.places().await == (2, 0)).then_some(())
    })
    .await;
    let after = rig.series("gateway").await;
    assert_eq!(
        changes(&before, &after, &["dalston_session_router_sessions_total"]),
        [r#"dalston_session_router_sessions_total{status="completed"} +1"#]
    );
    let mut spans = rig.stop(&trace);
    // How many partial transcripts there are depends on the machine.
    let kind = "dalston.transcript.type";
    let partials: Vec<_> = spans
        .iter()
        .filter(|(_, span)| attribute(span, kind).is_some_and(|kind| kind.ends_with("=partial")))
        .map(|(_, span)| span.span_id.clone())
        .collect();
    spans.retain(|(_, span)| !partials.contains(&span.span_id) && !partials.contains(&span.parent_span_id));
    let mut is_first = true;
    spans.retain(|(_, span)| span.name != "process_audio_chunk" || std::mem::take(&mut is_first));
    assert_eq!(tree(&spans), SESSION.parse().unwrap());
}

#[tokio::test]
async fn refused_openai_client_gets_an_event_before_the_close() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.run("gateway", &[]);
    rig.answers().await;
    for (key, kind, code, close) in [
        ("wrong", "invalid_request_error", "unauthorized", 4001),
        ("secret", "server_error", "no_capacity", 4503),
    ] {
        let mut client = open(&rig, "", key).await;
        let events = client.rest().await;
        let error = &events[0]["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
        assert_eq!(client.closed, Some(close));
    }
    // A worker that is lost is an event, too.
    let worker = Worker::register(&rig.redis, "scripted-rt-1", &[]).await;
    let (mut client, mut session) = tokio::join!(open(&rig, "&model=whisper-1", "secret"), worker.next());
    assert!(
        session
            .query
            .iter()
            .all(|(name, _)| name != "model" && name != "token")
    );
    session.gateway.send(json!({"type": "session.created"})).await;
    client.until("session.created").await;
    drop(session);
    let events = client.rest().await;
    assert_eq!(events[0]["error"]["code"], "internal_error", "{events:?}");
    assert_eq!(client.closed, Some(1011));
}
