//! An engine for tests of the platform: its transcripts say how long the audio is.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use dalston_engine_sdk::audio::AudioFormat;
use dalston_engine_sdk::{
    Batching, Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError, TaskRequest,
    Transcript, Word,
};

use super::Hold;

/// An engine that measures the audio instead of recognising speech, without a model.
#[derive(Debug)]
pub(crate) struct Mock<M = ()> {
    delay: Duration,
    hold: Hold,
    is_realtime: bool,
    model: PhantomData<fn() -> M>,
}

/// A model that takes a moment to load.
#[derive(Debug, Default)]
pub(crate) struct Model;

impl<M> Mock<M> {
    /// A task takes at least `delay`, and that of the second channel twice as long: two engines end
    /// them in this order, too.
    pub(super) fn new(delay: Duration, hold: Hold, is_realtime: bool) -> Self {
        Self {
            delay,
            hold,
            is_realtime,
            model: PhantomData,
        }
    }

    fn common_info(&self) -> EngineInfo {
        EngineInfo::new("mock-asr", env!("CARGO_PKG_VERSION"))
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .word_timestamps(true)
            .realtime(self.is_realtime)
    }

    fn measure(&self, task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        self.hold.wait(cx)?;
        let end = Instant::now() + self.delay * (1 + task.channel().unwrap_or_default());
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
        cx.set_speech_segments(1);
        let words = text.split(' ').map(|word| Word::new(0.0, seconds, word));
        let segment = Segment::new(0.0, seconds, &*text).words(words.collect::<Vec<_>>());
        Ok(Transcript::from_segments([segment]).requested_language("en"))
    }
}

impl Engine for Mock {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        self.common_info()
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        self.measure(task, cx)
    }
}

/// It takes batches, too.
impl Engine for Mock<Model> {
    type Model = Model;
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        self.common_info()
            .default_model("mock")
            .batching(Batching::up_to(2))
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<Model, TaskError> {
        std::thread::sleep(self.delay);
        Ok(Model)
    }

    fn process(&self, _: &mut Model, task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        self.measure(task, cx)
    }
}
