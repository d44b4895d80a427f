//! The audio of a task.

use dalston_engine_sdk::audio::AudioFormat;
use dalston_engine_sdk::testing::EngineHarness;
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest, Transcript,
};

use super::{WavFile, data, write};

/// Answers with the number of its samples.
struct Counter;

impl Engine for Counter {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("counter", "1.0.0")
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Transcript, TaskError> {
        Ok(Transcript::new(task.audio()?.len().to_string(), []))
    }
}

#[test]
fn an_engine_gets_audio_in_its_declared_format() {
    let report = EngineHarness::new(Counter)
        .input_file(data("one_44k_stereo.mp3"))
        .run_blocking();
    let transcript = report.transcript();
    assert_eq!(transcript.text, "15360");
    assert_eq!(transcript.duration, Some(0.96));
    assert_eq!(transcript.warnings, &[] as &[String]);
}

#[test]
fn a_file_without_audio_fails_its_task_permanently() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "notes.wav", b"These are only my notes.");
    let report = EngineHarness::new(Counter).input_file(&path).run_blocking();
    let known = "expected WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, WebM or Matroska";
    let message = format!(
        "{} is not an audio file of a known format: {known}",
        path.display()
    );
    assert_eq!(report.error(), message);
    assert_eq!(report.error_code(), "unreadable_audio");
}

#[test]
fn problems_of_a_recording_become_transcript_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = WavFile::pcm16(16_000, 1, &[1; 16_000]);
    file.declared = Some(64_000);
    let report = EngineHarness::new(Counter)
        .input_file(file.write(&folder))
        .run_blocking();
    let transcript = report.transcript();
    assert_eq!(transcript.text, "16000");
    let warning = "the file is cut off: it has 1.000 s of the 2.000 s that its header declares";
    assert_eq!(transcript.warnings, [warning]);
}
