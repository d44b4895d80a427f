//! An engine that understands tones: one of 300 Hz is the word `w3`.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use dalston_engine_sdk::audio::{AudioFormat, VoiceDetector};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError, TaskRequest,
    Transcript, Word,
};
use serde_json::{Map, Value};

pub(crate) const RATE: u32 = 16_000;

/// The engine. It may be told to wait before each task.
#[derive(Default)]
pub(crate) struct Tones {
    gate: Option<Mutex<Receiver<()>>>,
    seen: Seen,
    /// Audio with this word fails.
    unclear: Option<u32>,
}

/// The model and the configuration of each task.
pub(crate) type Seen = Arc<Mutex<Vec<(String, Map<String, Value>)>>>;

impl Tones {
    /// An engine that processes one task for each message of the sender.
    pub(crate) fn gated() -> (Self, SyncSender<()>) {
        let (open, gate) = sync_channel(100);
        let engine = Self {
            gate: Some(Mutex::new(gate)),
            ..Self::default()
        };
        (engine, open)
    }

    /// An engine that fails when it hears this word.
    pub(crate) fn failing_at(word: u32) -> Self {
        Self {
            unclear: Some(word),
            ..Self::default()
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        Arc::clone(&self.seen)
    }
}

impl Engine for Tones {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("tones", "1.0.0")
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .languages(["en", "de"])
            .word_timestamps(true)
            .realtime(true)
    }

    fn voice_detector(&self) -> Box<dyn VoiceDetector + Send> {
        Box::new(Loud)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        if let Some(gate) = &self.gate {
            // Fails when the test is over.
            let _ = gate.lock().unwrap().recv();
        }
        let seen = (cx.info().model.to_string(), task.config().clone());
        self.seen.lock().unwrap().push(seen);
        let audio = task.audio()?.read(..)?;
        let words = words(&audio);
        if let Some(unclear) = self.unclear.map(|word| format!("w{word}"))
            && words.iter().any(|word| word.text == unclear)
        {
            return Err(TaskError::permanent("unclear", "the audio is unclear"));
        }
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Ok(Transcript::new("", []));
        };
        let text: Vec<&str> = words.iter().map(|word| &*word.text).collect();
        let segment = Segment::new(first.start, last.end, text.join(" ")).confidence(0.9);
        Ok(Transcript::from_segments([segment.words(words.clone())]))
    }
}

/// Takes every sound for speech: tones are none.
pub(super) struct Loud;

impl VoiceDetector for Loud {
    fn sample_rate(&self) -> u32 {
        RATE
    }

    fn frame_len(&self) -> usize {
        RATE as usize / 50
    }

    fn probability(&mut self, frame: &[f32]) -> f32 {
        f32::from(u8::from(frame.iter().any(|sample| sample.abs() > 0.05)))
    }

    fn reset(&mut self) {}
}

/// The tones in the audio.
pub(super) fn words(audio: &[f32]) -> Vec<Word> {
    /// A tone is interrupted for less.
    const GAP: usize = RATE as usize / 40;
    let mut words = Vec::new();
    let mut tone: Option<(usize, usize)> = None;
    let mut end = |tone: (usize, usize)| {
        let (from, to) = tone;
        let samples = &audio[from..=to];
        let crossings = samples
            .windows(2)
            .filter(|pair| pair[0] <= 0.0 && pair[1] > 0.0)
            .count();
        let seconds = samples.len() as f64 / f64::from(RATE);
        if seconds >= 0.02 {
            let number = (crossings as f64 / seconds / 100.0).round();
            let at = |sample: usize| sample as f64 / f64::from(RATE);
            words.push(Word::new(at(from), at(to), format!("w{number}")).confidence(0.9));
        }
    };
    for (at, sample) in audio.iter().enumerate() {
        if sample.abs() < 0.05 {
            continue;
        }
        tone = match tone {
            Some((from, last)) if at - last < GAP => Some((from, at)),
            Some(before) => {
                end(before);
                Some((at, at))
            }
            None => Some((at, at)),
        };
    }
    if let Some(tone) = tone {
        end(tone);
    }
    words
}

/// Audio of these stretches: seconds, and the number of a word or 0 for silence.
pub(crate) fn audio(rate: u32, stretches: &[(f64, u32)]) -> Vec<f32> {
    let mut samples = Vec::new();
    for (seconds, word) in stretches {
        let frequency = f64::from(*word) * 100.0;
        let count = (seconds * f64::from(rate)).round() as usize;
        samples.extend((0..count).map(|at| {
            let time = at as f64 / f64::from(rate);
            (time * frequency * std::f64::consts::TAU).sin() as f32 * 0.5
        }));
    }
    samples
}
