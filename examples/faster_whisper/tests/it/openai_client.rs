//! OpenAI's realtime protocol, with OpenAI's own client.

use std::process::Stdio;

use serde_json::{Value, json};
use testbed::python;
use tokio::process::Command;

use crate::support::root;
use crate::worker::Worker;

const COMPLETED: &str = "conversation.item.input_audio_transcription.completed";
const DELTA: &str = "conversation.item.input_audio_transcription.delta";

/// What the client received, by session. It has compared each event with its own classes.
async fn received(port: u16, arguments: &[&str]) -> Option<Value> {
    let mut client = Command::new(python()?);
    client
        .arg(root().join("tests/openai_client.py"))
        .arg(format!("127.0.0.1:{port}"))
        .args(arguments)
        .current_dir(root().join("audio"))
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = client.output().await.unwrap();
    assert!(output.status.success(), "the client failed: its output is above");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn of_type<'a>(events: &'a Value, kind: &str) -> Vec<&'a Value> {
    let events = events.as_array().unwrap().iter();
    events.filter(|event| event["type"] == kind).collect()
}

fn manifest_text(file: &str) -> Vec<String> {
    let manifest = std::fs::read(root().join("audio/manifest.json")).unwrap();
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    let entry = manifest.iter().find(|entry| entry["file"] == file).unwrap();
    let segments = entry["segments"].as_array().unwrap().iter();
    segments
        .map(|segment| segment["text"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn openai_client_transcribes_with_and_without_vad() {
    if python().is_none() {
        return;
    }
    let worker = Worker::start(&[]).await;
    let arguments = ["6", "en_pauses_25s.wav", "en_three.wav", "en_one.wav"];
    let received = received(worker.port, &arguments).await.unwrap();

    let events = &received["server_vad"];
    let session = &of_type(events, "session.updated")[0]["session"];
    assert_eq!(
        session["audio"]["input"]["turn_detection"]["silence_duration_ms"],
        400
    );
    let completed = of_type(events, COMPLETED);
    let texts: Vec<&str> = completed
        .iter()
        .map(|event| event["transcript"].as_str().unwrap())
        .collect();
    assert_eq!(texts, manifest_text("en_pauses_25s.wav"));
    for event in &completed {
        let of_item = |kind: &str| {
            let mut events = of_type(events, kind);
            events.retain(|other| other["item_id"] == event["item_id"]);
            events
        };
        let deltas: String = of_item(DELTA)
            .iter()
            .map(|event| event["delta"].as_str().unwrap())
            .collect();
        assert_eq!(deltas, event["transcript"]);
        for kind in ["speech_started", "speech_stopped", "committed"] {
            assert_eq!(of_item(&format!("input_audio_buffer.{kind}")).len(), 1, "{kind}");
        }
    }

    let events = &received["manual"];
    let texts: Vec<&Value> = of_type(events, COMPLETED)
        .iter()
        .map(|event| &event["transcript"])
        .collect();
    assert_eq!(texts, ["seven three three", "five"]);
    assert_eq!(of_type(events, "input_audio_buffer.cleared").len(), 1);
    assert_eq!(of_type(events, "input_audio_buffer.speech_started").len(), 0);
    let errors = of_type(events, "error");
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["error"]["event_id"], json!("nothing_to_commit"));
    assert_eq!(errors[0]["error"]["type"], "invalid_request_error");
}
