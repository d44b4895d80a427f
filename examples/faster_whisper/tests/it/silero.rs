//! Silero's network on libtorch, compared with Python's packages.

use std::path::PathBuf;

use dalston_engine_sdk::audio::{SpeechFinder, VadOptions, VoiceDetector};
use dalston_engine_sdk::testing::EngineHarness;
use dalston_engine_sdk::torch::SileroFile;
use dalston_engine_sdk::{DeviceChoice, EngineConfig};
use faster_whisper::FasterWhisper;
use serde_json::Value;
use testbed::python;

use crate::support::{root, samples};

/// The largest difference between libtorch and onnxruntime. 0.00003 was seen.
const TOLERANCE: f32 = 0.001;

/// The TorchScript file of the package. `None` with a warning where it is not installed.
fn file() -> Option<PathBuf> {
    python()?;
    let libraries = root().join("../../.tools/python/lib");
    let python = std::fs::read_dir(libraries).unwrap().next().unwrap().unwrap();
    Some(python.path().join("site-packages/silero_vad/data/silero_vad.jit"))
}

fn goldens() -> Vec<Value> {
    let goldens = std::fs::read(root().join("tests/goldens/silero.json")).unwrap();
    let goldens: Value = serde_json::from_slice(&goldens).unwrap();
    goldens["files"].as_array().unwrap().clone()
}

#[test]
fn silero_finds_the_same_speech_as_in_python() {
    let Some(file) = file() else { return };
    let file = SileroFile::read(file).unwrap();
    for golden in goldens() {
        let name = golden["file"].as_str().unwrap();
        let recording = samples(name);
        let mut detector = file.detector().unwrap();
        let heard = recording.chunks(detector.frame_len());
        let heard: Vec<f32> = heard.map(|frame| detector.probability(frame)).collect();
        let expected: Vec<f32> = serde_json::from_value(golden["probabilities"].clone()).unwrap();
        assert_eq!(heard.len(), expected.len(), "{name}");
        let off = heard.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max);
        assert!(off < TOLERANCE, "{name}: {off}");
        for (silence, parts) in golden["speech"].as_object().unwrap() {
            let mut options = VadOptions::default();
            options.min_silence_duration_ms = silence.parse().unwrap();
            let mut finder = SpeechFinder::new(&detector, options);
            for probability in &heard {
                finder.push(*probability);
            }
            let found = finder.finish(recording.len());
            let expected: Vec<(usize, usize)> = serde_json::from_value(parts.clone()).unwrap();
            let found: Vec<(usize, usize)> = found.iter().map(|part| (part.start, part.end)).collect();
            assert_eq!(found, expected, "{name} with {silence} ms");
        }
    }
}

#[tokio::test]
async fn sessions_and_files_use_silero_where_it_is_given() {
    let Some(file) = file() else { return };
    let config = EngineConfig::new()
        .device(DeviceChoice::Cpu)
        .model("whisper-nano-digits")
        .vad_model(file);
    let recording = samples("en_pauses_25s.wav");
    let harness = EngineHarness::new(FasterWhisper)
        .engine_config(config)
        .audio(16_000, &recording);
    let worker = harness.config("vad_filter", true).start();
    let report = worker.run(worker.task()).await;
    assert!(
        report.output()["text"]
            .as_str()
            .unwrap()
            .starts_with("six seven four six")
    );

    let mut session = worker.session("interim_results=false&store_audio=no&store_transcript=no");
    session.send_audio(&recording).await;
    let messages = session.finish().await;
    let manifest = std::fs::read(root().join("audio/manifest.json")).unwrap();
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    let entry = manifest
        .iter()
        .find(|entry| entry["file"] == "en_pauses_25s.wav")
        .unwrap();
    assert_eq!(messages.last().unwrap()["transcript"], entry["text"]);
    for (kind, key) in [("vad.speech_start", "start"), ("vad.speech_end", "end")] {
        let marks = messages.iter().filter(|message| message["type"] == kind);
        let found: Vec<f64> = marks.map(|mark| mark["timestamp"].as_f64().unwrap()).collect();
        let expected = entry["segments"].as_array().unwrap().iter();
        let expected: Vec<f64> = expected.map(|segment| segment[key].as_f64().unwrap()).collect();
        assert_eq!(found.len(), expected.len(), "{kind}: {found:?}");
        let is_near = found
            .iter()
            .zip(&expected)
            .all(|(found, expected)| (found - expected).abs() < 0.1);
        assert!(is_near, "{kind}: {found:?} instead of {expected:?}");
    }
    worker.stop().await;
}
