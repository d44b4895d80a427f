//! Voice activity detection before the decoding.

use dalston_engine_sdk::audio::{Earshot, SpeechFinder, VadOptions, VoiceDetector};
use faster_whisper::{Options, Transcription};
use serde_json::json;

use crate::support::{nano, reference_options, samples};

/// Seconds of the parts of speech.
pub(crate) fn speech(recording: &[f32], change: impl FnOnce(&mut VadOptions)) -> Vec<(f64, f64)> {
    let mut options = VadOptions::default();
    change(&mut options);
    let mut detector = Earshot::new();
    let mut finder = SpeechFinder::new(&detector, options);
    for frame in recording.chunks(detector.frame_len()) {
        finder.push(detector.probability(frame));
    }
    let parts = finder.finish(recording.len()).into_iter();
    parts
        .map(|part| (part.start as f64 / 16_000.0, part.end as f64 / 16_000.0))
        .collect()
}

fn transcribe(recording: &[f32], change: impl FnOnce(&mut Options)) -> Transcription {
    let mut options = reference_options();
    options.language = Some("en".to_owned());
    options.vad_filter = true;
    change(&mut options);
    nano().transcribe(recording, &options, &mut ()).unwrap()
}

#[test]
fn utterances_between_pauses_are_found() {
    // The goldens have six, with these starts.
    let starts = [0.5, 3.48, 6.34, 9.54, 12.64, 14.94];
    let found = speech(&samples("en_pauses_25s.wav"), |options| {
        options.min_silence_duration_ms = 400;
        options.speech_pad_ms = 0;
    });
    assert_eq!(found.len(), starts.len(), "{found:?}");
    for ((start, _), expected) in found.iter().zip(starts) {
        assert!((start - expected).abs() < 0.2, "{found:?}");
    }
}

#[test]
fn silence_and_noise_are_no_speech_and_have_no_text() {
    let mut random = Random(3);
    let white: Vec<f32> = (0..80_000).map(|_| 0.1 * random.next()).collect();
    let mut low = 0.0;
    let brown: Vec<f32> = white
        .iter()
        .map(|sample| {
            low = 0.98 * low + sample;
            0.2 * low
        })
        .collect();
    let hum: Vec<f32> = (0..80_000).map(|n| 0.2 * (n as f32 * 0.0196).sin()).collect();
    for (name, recording) in [
        ("digital silence", vec![0.0; 80_000]),
        ("white noise", white),
        ("brown noise", brown),
        ("hum of 50 Hz", hum),
        ("noise_only_6s", samples("noise_only_6s.wav")),
    ] {
        // Without the thresholds, the model would write text.
        let found = transcribe(&recording, |options| {
            options.no_speech_threshold = None;
            options.log_prob_threshold = None;
        });
        assert_eq!(found.speech, Some(Vec::new()), "{name}");
        assert_eq!((found.text().as_str(), found.windows), ("", 0), "{name}");
        assert_eq!(found.duration, recording.len() as f64 / 16_000.0, "{name}");
    }
}

#[test]
fn times_behind_silence_are_those_of_the_recording() {
    let speech = samples("en_eight.wav");
    let mut recording = vec![0.0; 40 * 16_000];
    recording.extend(&speech);
    recording.extend(vec![0.0; 20 * 16_000]);
    for words in [false, true] {
        let found = transcribe(&recording, |options| options.word_timestamps = words);
        assert_eq!(found.text(), "zero seven two eight zero four six nine");
        let parts = found.speech.as_ref().unwrap();
        assert_eq!((parts.len(), found.windows), (1, 1), "{parts:?}");
        let (start, end) = (found.segments[0].start, found.segments[0].end);
        assert!(start > 39.4 && end < 43.5 && start < end, "{start} {end}");
        let words = found.segments[0].words.iter().flatten();
        assert!(words.clone().all(|word| word.start >= start && word.end <= end));
    }
}

#[test]
fn clips_are_speech_already() {
    let found = transcribe(&samples("en_pauses_25s.wav"), |options| {
        options.set("clip_timestamps", &json!("9,12")).unwrap();
    });
    assert!(found.text().starts_with("two"), "{}", found.text());
    assert_eq!(found.speech, None);
    assert!(found.segments[0].start >= 9.0 && found.segments[0].end <= 12.0);
    let why = "vad_filter has no effect: the task names the parts of the recording";
    assert_eq!(found.warnings, [why]);
}

struct Random(u64);

impl Random {
    /// From -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
