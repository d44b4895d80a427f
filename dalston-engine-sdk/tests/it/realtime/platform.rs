//! The platform's gateway and its Python client: the messages that they send, in their order and
//! form, and what they read of the answers. Each of the gateway's three routes translates another
//! protocol.

use serde_json::{Value, json};

use super::deployment::{Deployment, Worker};
use super::tones::{RATE, Tones, audio};
use super::{Client, of_type, s16};

/// The headers of Python's `websockets`, which offers compression.
const PYTHON: [(&str, &str); 2] = [
    ("user-agent", "Python/3.12 websockets/15.0.1"),
    (
        "sec-websocket-extensions",
        "permessage-deflate; client_max_window_bits",
    ),
];

/// Opens the session of a client for the gateway.
async fn opened(worker: &Worker, query: &str) -> Client {
    let path = format!("/session?session_id=sess_0123456789abcdef&{query}");
    let mut gateway = Client::open(worker.port, &path, &PYTHON).await;
    let begin = gateway.next().await;
    assert_eq!(read(&begin), "session.begin");
    assert_eq!(begin["session_id"], "sess_0123456789abcdef");
    gateway
}

/// Reads a message as the Python client does. It takes a message of another type for an error, and
/// fails without a key of a word. Gateway and client take other keys that are missing for zero.
fn read(message: &Value) -> &str {
    let kind = message["type"].as_str().unwrap();
    let (texts, numbers): (&[&str], &[&str]) = match kind {
        "session.begin" => (&["session_id"], &[]),
        "vad.speech_start" | "vad.speech_end" => (&[], &["timestamp"]),
        "transcript.partial" => (&["text"], &["start", "end"]),
        "transcript.final" => (&["text"], &["start", "end", "confidence"]),
        "session.end" => (&["session_id", "transcript"], &["total_audio_seconds"]),
        _ => panic!("the client does not know {message}"),
    };
    let check = |message: &Value, texts: &[&str], numbers: &[&str]| {
        assert!(texts.iter().all(|key| message[*key].is_string()), "{message}");
        assert!(numbers.iter().all(|key| message[*key].is_number()), "{message}");
    };
    check(message, texts, numbers);
    for word in message["words"].as_array().into_iter().flatten() {
        // The gateway reads one of the keys, and the client the other one.
        check(word, &["word", "text"], &["start", "end", "confidence"]);
    }
    for segment in message["segments"].as_array().into_iter().flatten() {
        check(segment, &["text"], &["start", "end"]);
    }
    kind
}

/// Sends audio as the client of the command line does: 100 ms in a message.
async fn speak(gateway: &mut Client, rate: u32, stretches: &[(f64, u32)]) {
    for piece in s16(&audio(rate, stretches)).chunks(rate as usize / 5) {
        assert!(gateway.send_bytes(piece.to_vec()).await);
    }
}

/// The last messages of a session. The gateway reads nothing after `session.end`.
async fn ended(gateway: &mut Client) -> Vec<Value> {
    gateway.send_text(r#"{"type": "end"}"#).await;
    let messages = gateway.until("session.end").await;
    gateway.close(1000).await;
    assert_eq!(gateway.rest().await, Vec::<Value>::new());
    messages
}

/// The types of messages without partial transcripts, whose number depends on the machine.
fn types(messages: &[Value]) -> Vec<&str> {
    let types = messages.iter().map(read);
    types.filter(|kind| *kind != "transcript.partial").collect()
}

const UTTERANCE: [&str; 3] = ["vad.speech_start", "vad.speech_end", "transcript.final"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_gets_what_it_reads() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "native", &[], None).await;
    let query = "language=auto&model=&encoding=pcm_s16le&sample_rate=16000&enable_vad=true\
                 &interim_results=true&word_timestamps=true&store_audio=true&store_transcript=true\
                 &vocabulary=%5B%22w3%22%2C+%22w4%22%5D";
    let mut gateway = opened(&worker, query).await;
    speak(
        &mut gateway,
        RATE,
        &[(1.0, 0), (0.5, 3), (0.2, 0), (0.4, 4), (0.6, 0)],
    )
    .await;
    let mut messages = gateway.until("transcript.final").await;
    speak(&mut gateway, RATE, &[(0.5, 5)]).await;
    gateway.send_text(r#"{"type": "flush"}"#).await;
    messages.extend(gateway.until("transcript.final").await);
    speak(&mut gateway, RATE, &[(0.3, 0), (0.3, 6)]).await;
    messages.extend(ended(&mut gateway).await);

    let mut expected = UTTERANCE.repeat(3);
    expected.push("session.end");
    assert_eq!(types(&messages), expected);
    let finals = of_type(&messages, "transcript.final");
    let words = finals[0]["words"].as_array().unwrap();
    assert_eq!(
        (&words[0]["text"], &words[1]["word"]),
        (&"w3".into(), &"w4".into())
    );
    let end = messages.last().unwrap();
    assert_eq!(end["transcript"], "w3 w4 w5 w6");
    assert_eq!(end["total_audio_seconds"], 3.8);
    assert_eq!(end["segments"].as_array().unwrap().len(), 3);
    for (key, file) in [("audio_uri", "audio.wav"), ("transcript_uri", "transcript.json")] {
        let uri = end[key].as_str().unwrap();
        assert!(
            uri.ends_with(&format!("/sessions/sess_0123456789abcdef/{file}")),
            "{uri}"
        );
    }
    assert_eq!(gateway.closed, Some(1000));
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elevenlabs_route_gets_a_final_for_each_commit() {
    let deployment = Deployment::start().await;
    let engine = Tones::default();
    let seen = engine.seen();
    let worker = deployment.worker(engine, "elevenlabs", &[], None).await;
    // By hand, which is the default of that protocol, and by voice activity.
    for is_by_hand in [true, false] {
        let vad = match is_by_hand {
            true => "",
            false => {
                "&vad_threshold=0.4&min_speech_duration_ms=100&min_silence_duration_ms=1500&prefix_padding_ms=300"
            }
        };
        let query = format!(
            "language=en&model=&encoding=pcm_s16le&sample_rate=8000&enable_vad={}&interim_results=true\
             &word_timestamps=true&include_language_detection=true&prompt=numbers{vad}",
            !is_by_hand
        );
        let mut gateway = opened(&worker, &query).await;
        let mut messages = Vec::new();
        for word in [3, 4] {
            speak(&mut gateway, 8_000, &[(0.3, 0), (0.5, word), (0.3, 0)]).await;
            gateway.send_text(r#"{"type": "commit"}"#).await;
            let answer = gateway.until("transcript.final").await;
            assert_eq!(answer.last().unwrap()["words"][0]["word"], format!("w{word}"));
            messages.extend(answer);
        }
        // There is no audio since.
        gateway.send_text(r#"{"type": "commit"}"#).await;
        messages.extend(gateway.until("transcript.final").await);
        messages.extend(ended(&mut gateway).await);
        let mut expected = match is_by_hand {
            true => vec!["transcript.final"; 2],
            false => UTTERANCE.repeat(2),
        };
        expected.extend(["transcript.final", "session.end"]);
        assert_eq!(types(&messages), expected);
        assert_eq!(messages.last().unwrap()["total_audio_seconds"], 2.2);
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, config)| config["prompt"] == "numbers"));
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_route_sends_24_khz_and_changes_the_language() {
    const OPENAI_RATE: u32 = 24_000;
    let deployment = Deployment::start().await;
    let engine = Tones::default();
    let seen = engine.seen();
    let worker = deployment.worker(engine, "openai-route", &[], None).await;
    let query = "language=auto&model=&encoding=pcm_s16le&sample_rate=16000&client_sample_rate=24000\
                 &enable_vad=true&interim_results=true&word_timestamps=false&vad_threshold=0.5\
                 &min_silence_duration_ms=500&prefix_padding_ms=300";
    let mut gateway = opened(&worker, query).await;
    let config = json!({
        "type": "config", "language": "de", "vad_threshold": 0.5,
        "min_silence_duration_ms": 500, "prefix_padding_ms": 300,
    });
    gateway.send(config).await;
    speak(&mut gateway, OPENAI_RATE, &[(0.2, 0), (0.5, 3), (0.7, 0)]).await;
    let mut messages = gateway.until("transcript.final").await;
    // Commit, and then audio that is cleared.
    speak(&mut gateway, OPENAI_RATE, &[(0.5, 4)]).await;
    gateway.send_text(r#"{"type": "flush"}"#).await;
    messages.extend(gateway.until("transcript.final").await);
    speak(&mut gateway, OPENAI_RATE, &[(0.5, 5)]).await;
    gateway.send_text(r#"{"type": "clear"}"#).await;
    messages.extend(ended(&mut gateway).await);
    let mut expected = UTTERANCE.repeat(2);
    expected.extend(["vad.speech_start", "vad.speech_end", "session.end"]);
    assert_eq!(types(&messages), expected);
    let end = messages.last().unwrap();
    assert_eq!(end["transcript"], "w3 w4");
    assert_eq!(end["total_audio_seconds"], 2.4);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, config)| config["language"] == "de"));
    worker.finish().await;
}
