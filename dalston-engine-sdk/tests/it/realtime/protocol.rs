//! The messages of section 10 of the protocol.

use std::collections::BTreeSet;

use dalston_telemetry::Env;
use dalston_telemetry::opentelemetry::trace::TraceId;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};

use super::deployment::Deployment;
use super::tones::{RATE, Tones, audio};
use super::{Client, of_type, s16, session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begin_repeats_the_request() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "begin", &[], None).await;
    let path =
        "/session?session_id=sess_7&sample_rate=24000&encoding=pcm_f32le&channels=2&language=de-AT&prompt=x";
    let mut client = Client::open(worker.port, path, &[]).await;
    assert_eq!(
        client.next().await,
        json!({
            "type": "session.begin",
            "session_id": "sess_7",
            "config": {
                "sample_rate": 24_000, "encoding": "pcm_f32le", "channels": 2, "language": "de-AT", "model": null,
            },
        })
    );
    assert_eq!(
        client.finish().await,
        [json!({
            "type": "session.end", "session_id": "sess_7", "total_audio_seconds": 0.0,
            "total_speech_duration": 0.0, "transcript": "", "segments": [],
        })]
    );
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partials_precede_the_final_and_no_other_types_come() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "types", &[], None).await;
    let mut client = session(worker.port, "").await;
    let stretches: Vec<(f64, u32)> = (0..8).flat_map(|word| [(0.3, 2 + word), (0.1, 0)]).collect();
    let samples = audio(RATE, &stretches);
    let mut messages = Vec::new();
    let mut parts = samples.chunks(RATE as usize * 12 / 10);
    for part in parts.by_ref().take(2) {
        client.send_audio(part).await;
        messages.extend(client.until("transcript.partial").await);
    }
    client.send_audio(parts.next().unwrap()).await;
    messages.extend(client.finish().await);
    let types: BTreeSet<&str> = messages
        .iter()
        .map(|message| message["type"].as_str().unwrap())
        .collect();
    let known = [
        "session.end",
        "transcript.final",
        "transcript.partial",
        "vad.speech_end",
        "vad.speech_start",
    ];
    assert_eq!(types, BTreeSet::from(known));
    let partials = of_type(&messages, "transcript.partial");
    let stable = |partial: &Value| {
        let count = partial["stable_until"].as_u64().unwrap() as usize;
        partial["text"]
            .as_str()
            .unwrap()
            .chars()
            .take(count)
            .collect::<String>()
    };
    let last = of_type(&messages, "transcript.final")[0]["text"]
        .as_str()
        .unwrap();
    assert_eq!(last, "w2 w3 w4 w5 w6 w7 w8 w9");
    assert!(partials.len() >= 2, "{partials:?}");
    for pair in partials.windows(2) {
        assert!(stable(pair[1]).starts_with(&stable(pair[0])), "{pair:?}");
    }
    assert!(
        stable(partials[partials.len() - 1]).starts_with("w2"),
        "{partials:?}"
    );
    let place = |kind: &str| {
        messages
            .iter()
            .position(|message| message["type"] == kind)
            .unwrap()
    };
    assert!(place("transcript.partial") < place("vad.speech_end"));
    assert!(place("vad.speech_end") < place("transcript.final"));
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_and_commit_answer_with_and_without_vad() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "flush", &[], None).await;
    for query in ["interim_results=false", "interim_results=false&enable_vad=false"] {
        let mut client = session(worker.port, query).await;
        for (command, word) in [("flush", 3), ("commit", 4)] {
            client.send_audio(&audio(RATE, &[(0.6, word)])).await;
            client.send(json!({"type": command})).await;
            let answer = client.until("transcript.final").await.pop().unwrap();
            assert_eq!(answer["text"], format!("w{word}"), "{query}");
            assert_eq!(answer["from_flush"], true, "{query}");
        }
        // There is nothing to transcribe.
        client.send(json!({"type": "flush"})).await;
        let answer = client.until("transcript.final").await.pop().unwrap();
        assert_eq!(
            (&answer["text"], &answer["start"]),
            (&json!(""), &json!(1.2)),
            "{query}"
        );
        let end = client.finish().await.pop().unwrap();
        assert_eq!(end["transcript"], "w3 w4", "{query}");
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_utterance_is_an_error_with_its_times() {
    let deployment = Deployment::start().await;
    let worker = deployment
        .worker(Tones::failing_at(5), "unclear", &[], None)
        .await;
    let mut client = session(worker.port, "interim_results=false&enable_vad=false").await;
    for (word, kind) in [(3, "transcript.final"), (5, "error"), (4, "transcript.final")] {
        client.send_audio(&audio(RATE, &[(0.6, word)])).await;
        client.send(json!({"type": "flush"})).await;
        let answer = client.next().await;
        assert_eq!(
            (&answer["type"], &answer["from_flush"]),
            (&json!(kind), &json!(true))
        );
        if kind == "error" {
            assert_eq!(
                answer,
                json!({
                    "type": "error", "code": "internal_error", "recoverable": true,
                    "message": "an utterance was not transcribed: unclear",
                    "start": 0.6, "end": 1.2, "from_flush": true,
                })
            );
        }
    }
    assert_eq!(client.finish().await.last().unwrap()["transcript"], "w3 w4");
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_drops_the_utterance_and_keeps_the_clock() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "clear", &[], None).await;
    for query in ["interim_results=false", "interim_results=false&enable_vad=false"] {
        let mut client = session(worker.port, query).await;
        client.send_audio(&audio(RATE, &[(1.0, 3)])).await;
        client.send(json!({"type": "clear"})).await;
        client.send_audio(&audio(RATE, &[(0.2, 0), (0.8, 5)])).await;
        let messages = client.finish().await;
        let finals = of_type(&messages, "transcript.final");
        assert_eq!(finals.len(), 1, "{messages:?}");
        assert_eq!(finals[0]["text"], "w5");
        assert!(finals[0]["start"].as_f64().unwrap() >= 1.0, "{query}: {finals:?}");
        let count = |kind: &str| of_type(&messages, kind).len();
        assert_eq!(count("vad.speech_start"), count("vad.speech_end"), "{messages:?}");
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_do_not_end_the_session() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "bad", &[], None).await;
    let mut client = session(worker.port, "encoding=pcm_f32le&interim_results=false").await;
    for text in [
        r#"{"type":"config","vad_threshold":"high"}"#,
        r#"{"type":"dance"}"#,
        "\u{1F399}",
        "[",
    ] {
        client.send_text(text).await;
        let error = client.next().await;
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("invalid_message")),
            "{text}"
        );
        assert_eq!(error["recoverable"], true);
    }
    let mut bytes: Vec<u8> = [f32::NAN; 4]
        .iter()
        .flat_map(|sample| sample.to_le_bytes())
        .collect();
    bytes.extend(
        audio(RATE, &[(0.5, 4)])
            .iter()
            .flat_map(|sample| sample.to_le_bytes()),
    );
    // Single bytes, then all the others.
    for piece in [&bytes[..1], &bytes[1..2], &bytes[2..]] {
        assert!(client.send_bytes(piece.to_vec()).await);
    }
    client.send(json!({"type": "keepalive"})).await;
    client.send(json!({"type": "config", "language": "de"})).await;
    let messages = client.finish().await;
    assert_eq!(of_type(&messages, "error")[0]["code"], "invalid_audio");
    assert_eq!(messages.last().unwrap()["transcript"], "w4");
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_reaches_the_engine() {
    let deployment = Deployment::start().await;
    let engine = Tones::default();
    let seen = engine.seen();
    let worker = deployment.worker(engine, "request", &[], None).await;
    let query =
        "model=tiny&language=en&prompt=numbers&vocabulary=%5B%22w3%22%5D&word_timestamps=1&interim_results=0";
    let mut client = session(worker.port, query).await;
    client.send_audio(&audio(RATE, &[(0.5, 3), (0.6, 0)])).await;
    client.until("transcript.final").await;
    client.send(json!({"type": "config", "language": "de"})).await;
    client.send_audio(&audio(RATE, &[(0.5, 3), (0.6, 0)])).await;
    client.finish().await;
    let seen = seen.lock().unwrap().clone();
    let config = |language: &str| {
        let config = json!({
            "language": language, "prompt": "numbers", "vocabulary": ["w3"], "word_timestamps": true,
        });
        ("tiny".to_owned(), config.as_object().unwrap().clone())
    };
    assert_eq!(seen, [config("en"), config("de")]);
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_requests_get_a_message_and_a_code() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "invalid", &[], None).await;
    for (path, code, close) in [
        ("/session?sample_rate=1", "invalid_message", 1002),
        ("/session?language=fr", "language_unsupported", 4400),
    ] {
        let mut client = Client::open(worker.port, path, &[]).await;
        let messages = client.rest().await;
        assert_eq!(messages[0]["code"], code, "{messages:?}");
        assert_eq!(messages[0]["recoverable"], false);
        assert_eq!(client.closed, Some(close), "{path}");
    }
    let mut client = Client::open(worker.port, "/other", &[]).await;
    assert_eq!(client.rest().await, Vec::<Value>::new());
    assert_eq!(client.closed, Some(1008));
    let mut client = Client::open(worker.port, "/health", &[]).await;
    let health = client.next().await;
    assert_eq!(
        (&health["status"], &health["engine_id"]),
        (&json!("healthy"), &json!("tones"))
    );
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_above_one_mebibyte_ends_the_session() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "big", &[], None).await;
    let mut client = session(worker.port, "").await;
    client.send_bytes(vec![0; (1 << 20) + 1]).await;
    let messages = client.rest().await;
    assert_eq!(client.closed, Some(1009), "{messages:?}");
    assert_eq!(messages.last().unwrap()["type"], "session.end");
    let mut client = session(worker.port, "").await;
    assert!(client.send_bytes(vec![0; 1 << 20]).await);
    let end = client.finish().await.pop().unwrap();
    assert_eq!(end["total_audio_seconds"], 32.768);
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_is_in_the_trace_of_its_client() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let telemetry = TestTelemetry::with(|builder| builder.env(Env::from_pairs([("OTEL_ENABLED", "true")])));
    let deployment = Deployment::start().await;
    let worker = deployment
        .worker(Tones::default(), "trace", &[], Some(&telemetry))
        .await;
    let path = "/session?interim_results=false&session_id=sess_1&language=en";
    let with_parameter = format!("{path}&traceparent={parent}");
    let other = with_parameter.replace(TRACE, &TRACE.replace('4', "5"));
    let header = [("traceparent", &*parent)];
    // The header wins.
    for (path, header) in [(path, &header[..]), (&*with_parameter, &[]), (&*other, &header)] {
        let mut client = Client::open(worker.port, path, header).await;
        client.next().await;
        let samples = audio(RATE, &[(0.1, 0), (0.5, 3), (0.6, 0)]);
        assert!(client.send_bytes(s16(&samples)).await);
        client.finish().await;
    }
    worker.finish().await;
    let spans = telemetry.collector().trace(TraceId::from_hex(TRACE).unwrap());
    let sessions = spans
        .iter()
        .filter(|span| span.name == "realtime.session")
        .count();
    assert_eq!(
        sessions,
        3,
        "{:?}",
        spans.iter().map(|span| &span.name).collect::<Vec<_>>()
    );
    let names: BTreeSet<&str> = spans.iter().map(|span| &*span.name).collect();
    for name in [
        "engine.process",
        "generate_transcript",
        "process_audio_chunk",
        "realtime.session.begin",
        "session_close",
        "vad_endpoint",
    ] {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    let of = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let inference = of("engine.process").parent_span_id;
    assert!(
        spans
            .iter()
            .any(|span| span.name == "generate_transcript" && Some(span.span_id) == inference),
        "the spans of the engine are below its transcript"
    );
    let line = telemetry
        .logs()
        .into_iter()
        .find(|line| line.event() == "session_started")
        .unwrap();
    assert_eq!(line.field("session_id"), Some(&json!("sess_1")));
    assert_eq!(line.field("trace_id"), Some(&json!(TRACE)));
}
