//! Every transcription ends: on random weights, on random audio and options, and on recordings that
//! lead to repetitions.

use faster_whisper::{Options, TextOrTokens, Transcription};
use serde_json::json;

use crate::generated_models::{extreme, load};
use crate::support::{nano, samples};

const RATE: usize = 16_000;

#[test]
fn random_model_audio_and_options_end() {
    for seed in 0..10 {
        let mut random = Random(seed + 1);
        let (_dir, mut whisper) = load(&extreme(seed));
        let recording = random.recording();
        let options = random.options();
        let found = whisper.transcribe(&recording[..], &options, &mut ()).unwrap();
        check(&found, recording.len(), &format!("seed {seed}: {options:?}"));
    }
}

#[test]
fn five_minutes_of_one_word_end() {
    let word = samples("en_one.wav");
    let recording: Vec<f32> = word.iter().copied().cycle().take(300 * RATE).collect();
    let mut options = Options::default();
    options.language = Some("en".to_owned());
    let found = nano().transcribe(&recording[..], &options, &mut ()).unwrap();
    check(&found, recording.len(), "one word");
    // What is still repetitive at the last temperature is short.
    let longest = found.segments.iter().map(|segment| segment.tokens.len()).max();
    assert!(longest <= Some(224), "{longest:?}");
}

#[test]
fn five_minutes_of_silence_and_noise_have_no_text() {
    let noise = samples("noise_only_6s.wav");
    let noise: Vec<f32> = noise.iter().copied().cycle().take(300 * RATE).collect();
    for recording in [vec![0.0; 300 * RATE], noise] {
        let mut options = Options::default();
        options.language = Some("en".to_owned());
        let found = nano().transcribe(&recording[..], &options, &mut ()).unwrap();
        check(&found, recording.len(), "no speech");
        assert_eq!((found.text().as_str(), found.windows), ("", 10));
    }
}

fn check(found: &Transcription, samples: usize, what: &str) {
    let seconds = samples as f64 / RATE as f64;
    // At most three slow windows of a few frames come before each step of a second or more.
    assert!(
        (found.windows as f64) < 4.0 * seconds + 8.0,
        "{} windows: {what}",
        found.windows
    );
    for segment in &found.segments {
        assert!(
            segment.start < segment.end && segment.end <= seconds + 0.01,
            "{segment:?}: {what}"
        );
        assert!(segment.avg_logprob.is_finite(), "{segment:?}: {what}");
        for word in segment.words.iter().flatten() {
            assert!(
                word.start <= word.end && word.end <= seconds + 0.01,
                "{word:?}: {what}"
            );
            assert!((0.0..=1.0).contains(&word.probability), "{word:?}: {what}");
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Noise, tones and silence in turn, 1 to 40 s.
    fn recording(&mut self) -> Vec<f32> {
        let mut samples = Vec::new();
        let len = RATE + self.below(39 * RATE as u64) as usize;
        while samples.len() < len {
            let part = self.below(3 * RATE as u64) as usize;
            let (kind, pitch) = (self.below(3), 0.001 + self.below(1000) as f32 / 1000.0);
            for at in 0..part {
                samples.push(match kind {
                    0 => 0.0,
                    1 => self.below(2000) as f32 / 1000.0 - 1.0,
                    _ => (at as f32 * pitch).sin(),
                });
            }
        }
        samples.truncate(len);
        samples
    }

    fn options(&mut self) -> Options {
        let mut options = Options::default();
        options.beam_size = 1 + self.below(4) as usize;
        options.best_of = 1 + self.below(3) as usize;
        options.temperature = vec![0.0, 0.6];
        options.max_new_tokens = Some(1 + self.below(16) as usize);
        options.word_timestamps = self.yes();
        options.hallucination_silence_threshold = self.yes().then_some(0.5);
        options.without_timestamps = self.yes();
        options.condition_on_previous_text = self.yes();
        options.no_repeat_ngram_size = self.below(3) as usize;
        options.repetition_penalty = 1.0 + self.below(3) as f64 / 2.0;
        options.length_penalty = self.below(3) as f64;
        options.multilingual = self.yes();
        options.language_detection_segments = 1 + self.below(3) as usize;
        options.prefix = self.yes().then(|| "begin".to_owned());
        options.hotwords = self.yes().then(|| "some words ".repeat(100));
        options.initial_prompt = TextOrTokens::Tokens((0..self.below(300) as i64).collect());
        options.patience = 0.5 + self.below(3) as f64;
        options.max_initial_timestamp = self.below(31) as f64;
        options.suppress_blank = self.yes();
        let clips = [json!([0]), json!([1.5, 2, 2, 3.01, 60]), json!("50,70")];
        let clips = &clips[self.below(3) as usize];
        options.set("clip_timestamps", clips).unwrap();
        options.chunk_length = self.yes().then_some(7);
        if self.yes() {
            options.no_speech_threshold = None;
        }
        if self.yes() {
            options.batch_size = Some(1 + self.below(4) as usize);
            options.vad_filter = self.yes();
            if !options.vad_filter {
                options.set("clip_timestamps", &json!([0, 9, 11])).unwrap();
            }
        }
        options
    }
}
