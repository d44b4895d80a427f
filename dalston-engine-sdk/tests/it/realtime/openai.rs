//! The realtime transcription protocol of OpenAI.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::deployment::Deployment;
use super::times::companded;
use super::tones::{Tones, audio};
use super::{Client, s16};

const PATH: &str = "/v1/realtime?intent=transcription";
const RATE: u32 = 24_000;
const COMPLETED: &str = "conversation.item.input_audio_transcription.completed";
const FAILED: &str = "conversation.item.input_audio_transcription.failed";

async fn opened(port: u16) -> Client {
    let mut client = Client::open(port, PATH, &[("authorization", "Bearer sk-1")]).await;
    let created = client.next().await;
    assert_eq!(created["type"], "session.created");
    let input = &created["session"]["audio"]["input"];
    assert_eq!(created["session"]["type"], "transcription");
    assert_eq!(input["format"], json!({"type": "audio/pcm", "rate": RATE}));
    assert_eq!(input["turn_detection"]["silence_duration_ms"], 500);
    client
}

async fn append(client: &mut Client, bytes: &[u8]) {
    // Pieces that end in the middle of samples.
    for piece in bytes.chunks(4_801) {
        let audio = BASE64_STANDARD.encode(piece);
        client
            .send(json!({"type": "input_audio_buffer.append", "audio": audio}))
            .await;
    }
}

async fn update(client: &mut Client, session: Value) -> Value {
    client
        .send(json!({"type": "session.update", "session": session}))
        .await;
    let updated = client.next().await;
    assert_eq!(updated["type"], "session.updated", "{updated}");
    updated["session"]["audio"]["input"].clone()
}

/// The types of events, without what all have in common.
fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().unwrap();
        assert!(event["event_id"].as_str().unwrap().starts_with("event_"));
        types.push(kind.rsplit('.').next().unwrap());
    }
    types
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_finds_utterances_and_their_items_complete() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "openai", &[], None).await;
    let mut client = opened(worker.port).await;
    append(
        &mut client,
        &s16(&audio(RATE, &[(1.0, 0), (0.5, 3), (0.2, 0), (0.4, 4), (0.8, 0)])),
    )
    .await;
    let mut events = client.until(COMPLETED).await;
    append(&mut client, &s16(&audio(RATE, &[(0.5, 5), (0.8, 0)]))).await;
    events.extend(client.until(COMPLETED).await);

    let utterances: Vec<&[Value]> = events
        .split_inclusive(|event| event["type"] == COMPLETED)
        .collect();
    for (number, (text, start, end)) in [("w3 w4", 1_000, 2_100), ("w5", 2_900, 3_400)]
        .into_iter()
        .enumerate()
    {
        let events = utterances[number];
        let mut kinds = types(events);
        kinds.dedup();
        // Deltas before the end of the speech depend on the speed of the machine.
        kinds.retain(|kind| *kind != "delta");
        assert_eq!(
            kinds,
            [
                "speech_started",
                "speech_stopped",
                "committed",
                "added",
                "completed"
            ]
        );
        let of = |kind: &str| {
            events
                .iter()
                .find(|event| event["type"].as_str().unwrap().ends_with(kind))
                .unwrap()
        };
        let near = |value: &Value, expected: i64| (value.as_i64().unwrap() - expected).abs() < 50;
        assert!(near(&of("speech_started")["audio_start_ms"], start), "{events:?}");
        assert!(near(&of("speech_stopped")["audio_end_ms"], end), "{events:?}");
        assert_eq!(of("completed")["transcript"], text);
        let deltas: String = events
            .iter()
            .filter_map(|event| event["delta"].as_str())
            .collect();
        assert_eq!(deltas, text);
        let item = &of("committed")["item_id"];
        assert!(
            events
                .iter()
                .all(|event| event["item_id"] == *item || event["item"]["id"] == *item)
        );
    }
    let committed: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "input_audio_buffer.committed")
        .collect();
    assert_eq!(committed[0]["previous_item_id"], Value::Null);
    assert_eq!(committed[1]["previous_item_id"], committed[0]["item_id"]);
    drop(client);
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_commits_and_clears_without_turn_detection() {
    let deployment = Deployment::start().await;
    let engine = Tones::default();
    let seen = engine.seen();
    let worker = deployment.worker(engine, "manual", &[], None).await;
    let mut client = opened(worker.port).await;
    let input = json!({
        "format": {"type": "audio/pcmu"},
        "transcription": {"model": "whisper-1", "language": "de", "prompt": "numbers"},
        "turn_detection": null,
    });
    let updated = update(
        &mut client,
        json!({"type": "transcription", "audio": {"input": input}}),
    )
    .await;
    assert_eq!(updated["turn_detection"], Value::Null);
    assert_eq!(updated["transcription"]["language"], "de");

    append(&mut client, &companded(&audio(8_000, &[(0.5, 9)]), true)).await;
    client.send(json!({"type": "input_audio_buffer.clear"})).await;
    assert_eq!(client.until("input_audio_buffer.cleared").await.len(), 1);
    for word in [3, 4] {
        append(
            &mut client,
            &companded(&audio(8_000, &[(0.2, 0), (0.3, word), (0.9, 0)]), true),
        )
        .await;
        client.send(json!({"type": "input_audio_buffer.commit"})).await;
        let events = client.until(COMPLETED).await;
        let mut kinds = types(&events);
        // There may be deltas before the commit.
        kinds.retain(|kind| *kind != "delta");
        assert_eq!(kinds, ["committed", "added", "completed"]);
        let completed = events.last().unwrap();
        assert_eq!(completed["transcript"], format!("w{word}"));
        assert_eq!(completed["usage"], json!({"type": "duration", "seconds": 1.4}));
    }
    // The configuration reaches the engine.
    let (model, config) = seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (&*model, &config["language"], &config["prompt"]),
        ("", &json!("de"), &json!("numbers"))
    );

    // Turn detection can be turned on again.
    update(
        &mut client,
        json!({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}),
    )
    .await;
    append(
        &mut client,
        &companded(&audio(8_000, &[(0.3, 5), (0.9, 0)]), true),
    )
    .await;
    let events = client.until(COMPLETED).await;
    assert_eq!(events[0]["type"], "input_audio_buffer.speech_started");
    assert_eq!(events.last().unwrap()["transcript"], "w5");
    drop(client);
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_of_the_address_reaches_the_engine() {
    let deployment = Deployment::start().await;
    let engine = Tones::default();
    let seen = engine.seen();
    let worker = deployment.worker(engine, "model", &[], None).await;
    for (asked, model) in [("tiny", json!("tiny")), ("gpt-4o-transcribe", Value::Null)] {
        let mut client = Client::open(worker.port, &format!("{PATH}&model={asked}"), &[]).await;
        let created = client.next().await;
        assert_eq!(
            created["session"]["audio"]["input"]["transcription"]["model"],
            model
        );
        append(&mut client, &s16(&audio(RATE, &[(0.5, 3), (0.8, 0)]))).await;
        client.until(COMPLETED).await;
        let last = seen.lock().unwrap().last().unwrap().0.clone();
        assert_eq!(last, model.as_str().unwrap_or_default());
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_utterance_fails_its_item_and_the_next_completes() {
    let deployment = Deployment::start().await;
    let worker = deployment
        .worker(Tones::failing_at(5), "failing", &[], None)
        .await;
    let speech = async |client: &mut Client, word| {
        append(client, &s16(&audio(RATE, &[(0.3, word), (0.8, 0)]))).await;
    };
    for by_hand in [false, true] {
        let mut client = opened(worker.port).await;
        if by_hand {
            update(&mut client, json!({"audio": {"input": {"turn_detection": null}}})).await;
        }
        let mut items = Vec::new();
        for (word, ending) in [(3, COMPLETED), (5, FAILED), (4, COMPLETED)] {
            speech(&mut client, word).await;
            if by_hand {
                client.send(json!({"type": "input_audio_buffer.commit"})).await;
            }
            let events = client.until(ending).await;
            assert!(!types(&events).contains(&"error"), "{events:?}");
            let committed = events
                .iter()
                .find(|event| event["type"] == "input_audio_buffer.committed");
            let last = events.last().unwrap();
            assert_eq!(last["item_id"], committed.unwrap()["item_id"]);
            assert_eq!(last["content_index"], 0);
            items.push(last.clone());
        }
        let error = json!({
            "type": "transcription_error", "code": "internal_error",
            "message": "an utterance was not transcribed: unclear", "param": null,
        });
        assert_eq!(items[1]["error"], error);
        assert_eq!(items[2]["transcript"], "w4");
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_events_have_an_error_that_names_them() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_MAX_SESSIONS", "1")];
    let worker = deployment.worker(Tones::default(), "wrong", &env, None).await;
    let mut client = opened(worker.port).await;
    for (event, problem) in [
        (
            json!({"type": "response.create", "event_id": "e1"}),
            "type is \"response.create\"",
        ),
        (
            json!({"type": "input_audio_buffer.append", "event_id": "e1", "audio": "%"}),
            "audio is not base64",
        ),
        (
            json!({"type": "input_audio_buffer.commit", "event_id": "e1"}),
            "there is no audio to commit",
        ),
        (
            json!({"type": "session.update", "event_id": "e1", "session": {"type": "realtime"}}),
            "session.type is",
        ),
    ] {
        client.send(event).await;
        let answer = client.next().await;
        assert_eq!(answer["type"], "error");
        let error = &answer["error"];
        assert_eq!(
            (&error["type"], &error["event_id"]),
            (&json!("invalid_request_error"), &json!("e1"))
        );
        assert!(error["message"].as_str().unwrap().starts_with(problem), "{error}");
    }
    client.send_text("{").await;
    assert_eq!(client.next().await["error"]["code"], "invalid_event");
    assert!(client.send_bytes(vec![0; 10]).await);
    assert_eq!(client.next().await["error"]["code"], "invalid_value");
    // The session goes on, and no other one begins.
    let mut second = Client::open(worker.port, PATH, &[]).await;
    let refused = second.next().await;
    assert_eq!(
        (&refused["type"], &refused["error"]["code"]),
        (&json!("error"), &json!("no_capacity"))
    );
    second.rest().await;
    assert_eq!(second.closed, Some(1013));
    append(&mut client, &s16(&audio(RATE, &[(0.5, 3), (0.8, 0)]))).await;
    assert_eq!(client.until(COMPLETED).await.last().unwrap()["transcript"], "w3");
    drop(client);
    worker.finish().await;
}
