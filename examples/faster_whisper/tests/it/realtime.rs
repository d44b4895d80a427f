//! Realtime sessions with the shipped recordings.

use dalston_engine_sdk::audio::{AudioFormat, decode_file};
use faster_whisper::Options;
use serde_json::{Value, json};
use testbed::WebSocketClient;

use crate::support::{nano, reference_options, root};
use crate::vad::speech;
use crate::worker::Worker;

/// Words without punctuation.
fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace()
        .map(plain)
        .filter(|word| !word.is_empty())
        .collect()
}

/// The transcript of a batch task with voice activity detection.
fn batch(samples: &[f32]) -> Vec<String> {
    let mut options: Options = reference_options();
    let parts = speech(samples, |vad| {
        vad.min_silence_duration_ms = 400;
        vad.speech_pad_ms = 200;
    });
    if parts.len() == 1 {
        options.vad_filter = true;
    } else {
        // The model has only heard short recordings. In a window with several of them it mistakes
        // words, here and in transformers: see the goldens of en_pauses_25s. So each is a window.
        let edges: Vec<f64> = parts.iter().flat_map(|(start, end)| [*start, *end]).collect();
        options.set("clip_timestamps", &json!(edges)).unwrap();
    }
    words(&nano().transcribe(samples, &options, &mut ()).unwrap().text())
}

async fn stream(port: u16, audio: Vec<u8>, speed: f64) -> Vec<String> {
    // Other tests use the processors meanwhile, and the text does not depend on the lag.
    let path = "/session?lag_hard_seconds=600&lag_hard_grace_seconds=60";
    let (client, _) = WebSocketClient::session(port, path).await;
    let messages = client.stream(&audio, speed).await;
    let (_, end) = messages.last().unwrap();
    assert_eq!(end["type"], "session.end", "{end}");
    words(end["transcript"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_at_both_speeds_have_the_batch_transcript() {
    let worker = Worker::start(&[]).await;
    let manifest = std::fs::read(root().join("audio/manifest.json")).unwrap();
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    let mut streams = Vec::new();
    for recording in manifest {
        let file = recording["file"].as_str().unwrap().to_owned();
        let path = root().join("audio").join(&file);
        let audio = decode_file(&path, AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap();
        let samples = audio.read(..).unwrap().into_owned();
        let sample = |sample: &f32| ((sample * 32_767.0) as i16).to_le_bytes();
        let bytes: Vec<u8> = samples.iter().flat_map(sample).collect();
        let text = words(recording["text"].as_str().unwrap());
        for speed in [1.0, 5.0] {
            let streamed = tokio::spawn(stream(worker.port, bytes.clone(), speed));
            streams.push((format!("{file} at {speed}"), text.clone(), streamed));
        }
        let whole = tokio::task::spawn_blocking(move || batch(&samples));
        streams.push((format!("{file} as a batch task"), text, whole));
    }
    for (name, text, found) in streams {
        assert_eq!(found.await.unwrap(), text, "{name}");
    }
}
