//! The marks of speech on the shipped recordings, with the detector that sessions have by default.

use dalston_engine_sdk::audio::{AudioFormat, decode_file};
use dalston_engine_sdk::testing::EngineHarness;
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError, TaskRequest, Transcript,
};
use serde_json::Value;

use super::of_type;
use crate::audio::sample;

/// Writes one word for each utterance.
struct Word;

impl Engine for Word {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("word", "1.0.0")
            .stage(Stage::Transcribe)
            .realtime(true)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Transcript, TaskError> {
        let seconds = task.audio()?.duration().as_secs_f64();
        Ok(Transcript::from_segments([Segment::new(0.0, seconds, "word")]))
    }
}

/// The recordings, with start and end of each utterance.
fn recordings() -> Vec<(String, Vec<(f64, f64)>)> {
    let manifest: Vec<Value> =
        serde_json::from_slice(&std::fs::read(sample("manifest.json")).unwrap()).unwrap();
    let seconds = |value: &Value| value.as_f64().unwrap();
    let recording = |entry: &Value| {
        let utterances = entry["segments"].as_array().unwrap().iter();
        let times = utterances.map(|utterance| (seconds(&utterance["start"]), seconds(&utterance["end"])));
        (entry["file"].as_str().unwrap().to_owned(), times.collect())
    };
    manifest.iter().map(recording).collect()
}

#[tokio::test]
async fn marks_agree_with_the_recordings() {
    let worker = EngineHarness::new(Word).start();
    for (file, expected) in recordings() {
        let audio = decode_file(sample(&file), AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap();
        let samples = audio.read(..).unwrap();
        let mut session = worker.session("interim_results=false");
        for piece in samples.chunks(1_600) {
            session.send_audio(piece).await;
        }
        let messages = session.finish().await;
        let times = |kind: &str, key: &str| -> Vec<f64> {
            of_type(&messages, kind)
                .iter()
                .map(|message| message[key].as_f64().unwrap())
                .collect()
        };
        let starts = times("vad.speech_start", "timestamp");
        let ends = times("vad.speech_end", "timestamp");
        let count = [
            starts.len(),
            ends.len(),
            of_type(&messages, "transcript.final").len(),
        ];
        assert_eq!(count, [expected.len(); 3], "{file}");
        for (found, expected) in starts.iter().zip(&ends).zip(&expected) {
            let off = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
            assert!(off < 0.1, "{file}: {found:?} instead of {expected:?}");
        }
    }
    worker.stop().await;
}

#[tokio::test]
async fn utterance_does_not_change_the_speed_of_tasks() {
    let worker = EngineHarness::new(Word).start();
    let audio = decode_file(sample("en_one.wav"), AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap();
    let mut session = worker.session("");
    session.send_audio(&audio.read(..).unwrap()).await;
    let messages = session.finish().await;
    assert_eq!(of_type(&messages, "transcript.final").len(), 1, "{messages:?}");
    let snapshot = worker.telemetry().metrics().snapshot();
    let sum = |name| snapshot.sum(name, &[]);
    assert!(sum("dalston_realtime_audio_processed_seconds_total") > 0.0);
    let speed = [
        "dalston_engine_audio_duration_seconds_sum",
        "dalston_engine_inference_seconds_total",
    ];
    assert_eq!(speed.map(sum), [0.0, 0.0]);
    worker.stop().await;
}
