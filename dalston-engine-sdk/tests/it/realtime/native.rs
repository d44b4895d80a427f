//! Sessions of an engine whose model transcribes audio while it comes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalston_engine_sdk::audio::{AudioFormat, VoiceDetector};
use dalston_engine_sdk::testing::{EngineHarness, RealtimeSession};
use dalston_engine_sdk::{
    Engine, EngineInfo, Hypothesis, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError,
    TaskRequest, Transcript, TranscriptStream,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::of_type;
use super::tones::{Loud, RATE, audio, words};

/// The longest wait for the engine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine for tones that keeps the audio of an utterance in its state.
#[derive(Default)]
struct Streamed {
    calls: Arc<Mutex<Calls>>,
}

#[derive(Default)]
struct Calls {
    streams: usize,
    /// The samples of each push.
    pushed: Vec<usize>,
    /// The push with this number fails.
    fails: Option<usize>,
}

struct Heard {
    calls: Arc<Mutex<Calls>>,
    samples: Vec<f32>,
    text: String,
}

impl Engine for Streamed {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("streamed", "1.0.0")
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .realtime(true)
            .native_streaming(true)
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), _: &TaskRequest, _: &TaskContext) -> Result<Transcript, TaskError> {
        panic!("sessions are streamed");
    }

    fn stream(
        &self,
        (): &mut (),
        session: &TaskRequest,
        _: &TaskContext,
    ) -> Result<Box<dyn TranscriptStream<()>>, TaskError> {
        assert_eq!(session.config()["language"], "en");
        self.calls.lock().unwrap().streams += 1;
        Ok(Box::new(Heard {
            calls: Arc::clone(&self.calls),
            samples: Vec::new(),
            text: String::new(),
        }))
    }

    fn voice_detector(&self) -> Box<dyn VoiceDetector + Send> {
        Box::new(Loud)
    }
}

impl TranscriptStream<()> for Heard {
    fn push(
        &mut self,
        (): &mut (),
        samples: &[f32],
        _: &TaskContext,
    ) -> Result<Option<Hypothesis>, TaskError> {
        let mut calls = self.calls.lock().unwrap();
        calls.pushed.push(samples.len());
        if calls.fails == Some(calls.pushed.len()) {
            return Err(TaskError::retryable("lost", "the state is lost"));
        }
        self.samples.extend_from_slice(samples);
        let found: Vec<String> = words(&self.samples).into_iter().map(|word| word.text).collect();
        let text = found.join(" ");
        if text == self.text {
            return Ok(None);
        }
        // All words but the last one stay.
        let stable = text.rfind(' ').unwrap_or(0);
        self.text.clone_from(&text);
        Ok(Some(Hypothesis::new(text).stable(stable)))
    }

    fn finish(&mut self, (): &mut (), _: &TaskContext) -> Result<Transcript, TaskError> {
        let words = words(&std::mem::take(&mut self.samples));
        self.text.clear();
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Ok(Transcript::new("", []));
        };
        let text: Vec<&str> = words.iter().map(|word| &*word.text).collect();
        let segment = Segment::new(first.start, last.end, text.join(" "));
        Ok(Transcript::from_segments([segment.words(words.clone())]))
    }
}

/// Two utterances: of three words, and of one.
fn recording() -> Vec<f32> {
    audio(
        RATE,
        &[
            (1.0, 0),
            (0.3, 3),
            (0.2, 0),
            (0.3, 4),
            (0.2, 0),
            (0.3, 5),
            (0.8, 0),
            (0.4, 6),
            (0.6, 0),
        ],
    )
}

fn texts(messages: &[Value]) -> Vec<&str> {
    let finals = of_type(messages, "transcript.final");
    finals
        .iter()
        .map(|message| message["text"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn audio_is_pushed_once_and_partials_come_from_the_stream() {
    let engine = Streamed::default();
    assert!(engine.info().capabilities().supports_native_streaming);
    let calls = Arc::clone(&engine.calls);
    let worker = EngineHarness::new(engine).start();
    let mut session = worker.session("language=en&word_timestamps=true");
    let (recording, mut messages, mut sent) = (recording(), Vec::new(), 0);
    // Each word of the first utterance has its partial before the next word comes.
    for (end, text) in [(24_000, "w3"), (32_000, "w3 w4"), (40_000, "w3 w4 w5")] {
        for piece in recording[sent..end].chunks(800) {
            session.send_audio(piece).await;
        }
        sent = end;
        messages.extend(until_partial(&mut session, text).await);
    }
    for piece in recording[sent..].chunks(800) {
        session.send_audio(piece).await;
    }
    messages.extend(session.finish().await);
    assert_eq!(texts(&messages), ["w3 w4 w5", "w6"]);
    let finals = of_type(&messages, "transcript.final");
    let start = |message: &Value| message["start"].as_f64().unwrap();
    assert!((start(&finals[0]["words"][1]) - 1.5).abs() < 0.05, "{finals:?}");
    assert!((start(&finals[1]["words"][0]) - 3.1).abs() < 0.05, "{finals:?}");
    let partials = of_type(&messages, "transcript.partial");
    assert!(partials.len() >= 3, "{partials:?}");
    let last = partials
        .iter()
        .rfind(|partial| partial["text"] == "w3 w4 w5")
        .unwrap();
    assert_eq!(last["stable_until"], 5);
    {
        let calls = calls.lock().unwrap();
        assert_eq!(calls.streams, 1);
        // The utterances with 300 ms before and the silence that ends them, not all 4.1 s.
        let pushed = calls.pushed.iter().sum::<usize>() as f64 / f64::from(RATE);
        assert!((2.6..3.0).contains(&pushed), "{pushed}");
    }
    worker.stop().await;
}

/// The messages until a partial transcript with this text.
async fn until_partial(session: &mut RealtimeSession, text: &str) -> Vec<Value> {
    let mut messages = Vec::new();
    let found = async {
        loop {
            let message = session.next().await;
            assert!(!message.is_null(), "the session has ended");
            let is_found = message["type"] == "transcript.partial" && message["text"] == text;
            messages.push(message);
            if is_found {
                return;
            }
        }
    };
    let found = timeout(PATIENCE, found).await;
    assert!(found.is_ok(), "no {text:?} in {messages:?}");
    messages
}

#[tokio::test]
async fn lost_state_costs_no_word() {
    for fails in [1, 2, 5] {
        let engine = Streamed::default();
        engine.calls.lock().unwrap().fails = Some(fails);
        let calls = Arc::clone(&engine.calls);
        let worker = EngineHarness::new(engine).start();
        let mut session = worker.session("language=en");
        for (at, piece) in recording().chunks(1_600).enumerate() {
            session.send_audio(piece).await;
            // The second word ends with the piece 17. From then on, each piece is pushed before the
            // next one comes, until a push fails.
            let pushes = at.saturating_sub(16).min(fails);
            let pushed = async {
                while calls.lock().unwrap().pushed.len() < pushes {
                    sleep(Duration::from_millis(2)).await;
                }
            };
            timeout(PATIENCE, pushed).await.unwrap();
        }
        let messages = session.finish().await;
        assert_eq!(texts(&messages), ["w3 w4 w5", "w6"], "{fails}");
        assert_eq!(of_type(&messages, "error"), Vec::<&Value>::new());
        assert!(calls.lock().unwrap().streams >= 2, "{fails}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn states_of_sessions_on_one_thread_are_apart() {
    let worker = EngineHarness::new(Streamed::default()).start();
    let mut sessions: Vec<_> = (0..2)
        .map(|_| worker.session("language=en&enable_vad=false&interim_results=false"))
        .collect();
    for word in 0..4 {
        for (number, session) in sessions.iter().enumerate() {
            let word = 2 + number as u32 + word;
            session.send_audio(&audio(RATE, &[(0.3, word), (0.1, 0)])).await;
        }
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        session.send(json!({"type": "flush"})).await;
        let messages = session.finish().await;
        let expected: Vec<String> = (2 + number..6 + number).map(|word| format!("w{word}")).collect();
        assert_eq!(texts(&messages), [expected.join(" ")]);
        assert_eq!(of_type(&messages, "transcript.partial"), Vec::<&Value>::new());
    }
    worker.stop().await;
}

#[tokio::test]
async fn long_utterance_is_cut_where_the_stream_is() {
    let engine = Streamed::default();
    let calls = Arc::clone(&engine.calls);
    let worker = EngineHarness::new(engine).start();
    let mut session = worker.session("language=en&max_utterance_duration=2&prefix_padding_ms=0");
    let speech: Vec<(f64, u32)> = (0..12).flat_map(|word| [(0.3, 2 + word % 7), (0.1, 0)]).collect();
    session.send_audio(&audio(RATE, &speech)).await;
    let messages = session.finish().await;
    let said = texts(&messages).join(" ");
    let expected: Vec<String> = (0..12).map(|word| format!("w{}", 2 + word % 7)).collect();
    assert_eq!(said, expected.join(" "));
    let pushed = calls.lock().unwrap().pushed.iter().sum::<usize>();
    assert!(pushed <= 12 * 6_400, "{pushed}");
    worker.stop().await;
}
