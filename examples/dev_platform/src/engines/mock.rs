//! An engine without a model, for tests of the platform: its transcripts say how long the audio is.

use std::time::{Duration, Instant};

use dalston_engine_sdk::audio::AudioFormat;
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError, TaskRequest,
    Transcript, Word,
};

/// An engine that measures the audio instead of recognising speech.
#[derive(Debug)]
pub(crate) struct Mock {
    delay: Duration,
}

impl Mock {
    /// Each task takes at least `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay }
    }
}

impl Engine for Mock {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("mock-asr", env!("CARGO_PKG_VERSION"))
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .word_timestamps(true)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        let end = Instant::now() + self.delay;
        while Instant::now() < end {
            cx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        if task.config().get("prompt").is_some_and(|prompt| prompt == "fail") {
            return Err(TaskError::permanent("intended", "the prompt asks for a failure"));
        }
        let seconds = task.audio()?.duration().as_secs_f64();
        let text = match task.channel() {
            Some(channel) => format!("channel {channel} {seconds:.1}s"),
            None => format!("mono {seconds:.1}s"),
        };
        let words = text.split(' ').map(|word| Word::new(0.0, seconds, word));
        let segment = Segment::new(0.0, seconds, &*text).words(words.collect::<Vec<_>>());
        Ok(Transcript::from_segments([segment]).requested_language("en"))
    }
}
