//! Transcription of recordings: their edges, options, and cancellation.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use faster_whisper::{Error, Observer, Options, Samples, Segment, Task, TextOrTokens, TokenChoice};

use crate::support::{nano, reference_options, samples};

const WINDOW: usize = 480_000;

#[test]
fn recording_below_one_frame_has_no_segments() {
    for length in [0, 1, 159] {
        let found = nano()
            .transcribe(&vec![0.1; length][..], &reference_options(), &mut ())
            .unwrap();
        assert_eq!(
            (found.segments.len(), found.windows, found.language),
            (0, 0, None),
            "{length} samples"
        );
        assert_eq!(found.duration, length as f64 / 16_000.0);
    }
}

#[test]
fn windows_end_with_the_recording() {
    for (length, windows) in [(160, 1), (WINDOW, 1), (WINDOW + 1, 1), (WINDOW + 160, 2)] {
        // The model detects digital silence, so every window is skipped.
        let recording = Recording::new(vec![0.0; length]);
        let found = nano()
            .transcribe(&recording, &reference_options(), &mut ())
            .unwrap();
        assert_eq!(
            (found.segments.len(), found.windows),
            (0, windows),
            "{length} samples"
        );
        assert_eq!(recording.read_to(), length / 160 * 160);
    }
}

#[test]
fn silence_and_noise_have_no_segments() {
    let noise = samples("noise_only_6s.wav");
    let found = nano().transcribe(&noise[..], &english(), &mut ()).unwrap();
    assert_eq!(found.segments, Vec::<Segment>::new());
    assert_eq!(found.text(), "");
}

#[test]
fn only_one_window_is_read_at_a_time() {
    let recording = Recording::new(samples("en_long_75s.wav"));
    nano().transcribe(&recording, &english(), &mut ()).unwrap();
    let ranges = recording.ranges.borrow();
    assert!(ranges.len() >= 3);
    assert!(ranges.iter().all(|range| range.len() <= WINDOW));
}

#[test]
fn window_starts_after_the_last_complete_segment() {
    let recording = Recording::new(samples("en_long_75s.wav"));
    let found = nano().transcribe(&recording, &english(), &mut ()).unwrap();
    for range in recording.ranges.borrow().iter().skip(1) {
        let start = range.start as f64 / 16_000.0;
        let is_end = found
            .segments
            .iter()
            .any(|segment| (segment.end - start).abs() < 0.011);
        assert!(
            is_end || range.start % WINDOW == 0,
            "{start} s is no segment's end"
        );
    }
}

#[test]
fn language_is_detected_if_none_is_given() {
    for (file, language) in [("en_eight.wav", "en"), ("de_seven.wav", "de")] {
        let found = nano()
            .transcribe(&samples(file)[..], &reference_options(), &mut ())
            .unwrap();
        assert_eq!(found.language.as_deref(), Some(language), "{file}");
        assert!(found.language_probability.unwrap() > 0.9, "{file}");
    }
}

#[test]
fn language_is_detected_after_silence() {
    let mut recording = vec![0.0; WINDOW];
    let found = nano()
        .transcribe(&recording[..], &reference_options(), &mut ())
        .unwrap();
    assert_eq!((found.language, found.language_probability), (None, None));
    recording.extend(samples("de_seven.wav"));
    let found = nano()
        .transcribe(&recording[..], &reference_options(), &mut ())
        .unwrap();
    assert_eq!(found.language.as_deref(), Some("de"));
    assert!(
        found.segments.iter().all(|segment| segment.start >= 30.0),
        "{found:?}"
    );
}

#[test]
fn case_and_region_of_a_language_are_ignored() {
    for name in ["de", "DE", "de-AT", "De_de"] {
        let mut config = reference_options();
        config.language = Some(name.to_owned());
        let found = nano()
            .transcribe(&samples("de_four.wav")[..], &config, &mut ())
            .unwrap();
        assert_eq!(
            (found.language.as_deref(), found.language_probability),
            (Some("de"), None),
            "{name}"
        );
    }
}

#[test]
fn unknown_language_error_lists_the_known_ones() {
    let mut config = reference_options();
    config.language = Some("tlh".to_owned());
    let error = nano().transcribe(&[][..], &config, &mut ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this model does not know the language \"tlh\": expected de, en"
    );
}

#[test]
fn window_without_timestamps_is_one_segment() {
    let mut config = english();
    config.without_timestamps = true;
    let found = nano()
        .transcribe(&samples("en_three.wav")[..], &config, &mut ())
        .unwrap();
    let times: Vec<_> = found.segments.iter().map(|s| (s.start, s.end)).collect();
    assert_eq!(times, [(0.0, 1.75)]);
    assert_eq!(found.segments[0].text, found.text());
}

#[test]
fn german_digits_are_translated_to_english() {
    let mut config = reference_options();
    config.language = Some("de".to_owned());
    config.task = Task::Translate;
    let text = nano()
        .transcribe(&samples("de_four.wav")[..], &config, &mut ())
        .unwrap()
        .text();
    let english = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    ];
    assert!(
        !text.is_empty() && text.split(' ').all(|word| english.contains(&word)),
        "{text}"
    );
}

#[test]
fn suppressed_tokens_never_appear() {
    let mut config = english();
    let usual = nano()
        .transcribe(&samples("en_one.wav")[..], &config, &mut ())
        .unwrap();
    assert_eq!(usual.text(), "five");
    let ids = nano().vocabulary().encode(" five").unwrap();
    config.suppress_tokens = ids.iter().map(|&id| TokenChoice::Id(id)).collect();
    let found = nano()
        .transcribe(&samples("en_one.wav")[..], &config, &mut ())
        .unwrap();
    assert!(
        found
            .segments
            .iter()
            .flat_map(|s| &s.tokens)
            .all(|id| !ids.contains(id)),
        "{found:?}"
    );
}

#[test]
fn poor_result_is_decoded_at_the_next_temperature() {
    let mut config = english();
    config.temperature = vec![0.0, 0.4];
    let recording = samples("en_one.wav");
    let good = nano().transcribe(&recording[..], &config, &mut ()).unwrap();
    assert_eq!(good.segments[0].temperature, 0.0);
    // No result is that likely.
    config.log_prob_threshold = Some(1.0);
    config.no_speech_threshold = None;
    let poor = nano().transcribe(&recording[..], &config, &mut ()).unwrap();
    assert!(
        poor.segments.iter().all(|segment| segment.temperature == 0.4),
        "{poor:?}"
    );
    // Silence is detected at every temperature.
    config.no_speech_threshold = Some(0.6);
    let decoded = RefCell::new(0);
    let silence = vec![0.0; 16_000];
    nano()
        .transcribe(&silence[..], &config, &mut Counter(&decoded))
        .unwrap();
    let twice = decoded.replace(0);
    config.temperature = vec![0.0];
    nano()
        .transcribe(&silence[..], &config, &mut Counter(&decoded))
        .unwrap();
    assert_eq!(twice, decoded.take());
}

#[test]
fn earlier_text_can_be_the_prompt() {
    let mut config = english();
    config.initial_prompt = TextOrTokens::Text("one two three <|nospeech|> <|0.00|>".to_owned());
    config.condition_on_previous_text = true;
    let found = nano()
        .transcribe(&samples("en_long_75s.wav")[..], &config, &mut ())
        .unwrap();
    assert!(found.windows >= 3 && !found.segments.is_empty());
}

#[test]
fn limit_of_tokens_without_room_is_a_warning() {
    let mut config = english();
    config.max_new_tokens = Some(400);
    let found = |config: &Options| {
        nano()
            .transcribe(&samples("en_one.wav")[..], config, &mut ())
            .unwrap()
    };
    assert_eq!(found(&config).warnings, Vec::<String>::new());
    config.hotwords = Some("one ".repeat(300));
    // 111 hotwords, <|startofprev|> and the usual three tokens.
    let why = "max_new_tokens was lowered to 333, the room behind the longest prompt";
    let warnings = found(&config).warnings;
    assert!(warnings.iter().any(|warning| warning == why), "{warnings:?}");
}

#[test]
fn special_tokens_in_a_prompt_are_plain_text() {
    let whisper = nano();
    let ids = whisper
        .vocabulary()
        .encode("<|nospeech|><|endoftext|><|1.00|>")
        .unwrap();
    assert!(
        ids.iter().all(|&id| id < whisper.vocabulary().end_of_text()),
        "{ids:?}"
    );
}

#[test]
fn observer_receives_progress_up_to_1() {
    struct Steps(Vec<f32>);
    impl Observer for Steps {
        fn advanced(&mut self, fraction: f32) {
            self.0.push(fraction);
        }
    }
    let mut steps = Steps(Vec::new());
    nano()
        .transcribe(&samples("en_long_75s.wav")[..], &english(), &mut steps)
        .unwrap();
    assert!(steps.0.len() >= 3 && steps.0.is_sorted(), "{:?}", steps.0);
    assert_eq!(steps.0.last(), Some(&1.0));
}

#[test]
fn observer_stops_in_the_middle_of_a_window() {
    struct After(u32);
    impl Observer for After {
        fn keep_going(&mut self) -> bool {
            self.0 = self.0.saturating_sub(1);
            self.0 > 0
        }
    }
    for questions in [1, 2, 3] {
        let error = nano()
            .transcribe(&samples("en_eight.wav")[..], &english(), &mut After(questions))
            .unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error}");
    }
    // The model remains usable.
    let found = nano()
        .transcribe(&samples("en_one.wav")[..], &english(), &mut ())
        .unwrap();
    assert_eq!(found.text(), "five");
}

#[test]
fn nan_samples_are_an_error_with_their_position() {
    let mut recording = samples("en_long_75s.wav");
    let last = recording.len() - 1;
    recording[last - 8000] = f32::NAN;
    let error = nano()
        .transcribe(&recording[..], &english(), &mut ())
        .unwrap_err();
    assert!(
        matches!(error, Error::NotANumber { offset } if offset > 30.0),
        "{error}"
    );
    let error = nano()
        .transcribe(&[f32::INFINITY; 1600][..], &reference_options(), &mut ())
        .unwrap_err();
    assert!(matches!(error, Error::NotANumber { offset: 0.0 }), "{error}");
}

#[test]
fn read_errors_of_samples_are_returned() {
    struct Broken;
    impl Samples for Broken {
        fn len(&self) -> usize {
            16_000
        }
        fn read(&self, _: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn std::error::Error + Send + Sync>> {
            Err("the disk is on fire".into())
        }
    }
    let error = nano().transcribe(&Broken, &english(), &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the samples: the disk is on fire");
}

fn english() -> Options {
    let mut config = reference_options();
    config.language = Some("en".to_owned());
    config
}

/// Counts the calls of `keep_going`: one per window and one per token.
struct Counter<'a>(&'a RefCell<u32>);

impl Observer for Counter<'_> {
    fn keep_going(&mut self) -> bool {
        *self.0.borrow_mut() += 1;
        true
    }
}

/// Records the ranges that are read.
struct Recording {
    samples: Vec<f32>,
    ranges: RefCell<Vec<Range<usize>>>,
}

impl Recording {
    fn new(samples: Vec<f32>) -> Self {
        Self {
            samples,
            ranges: RefCell::default(),
        }
    }

    fn read_to(&self) -> usize {
        self.ranges
            .borrow()
            .iter()
            .map(|range| range.end)
            .max()
            .unwrap_or(0)
    }
}

impl Samples for Recording {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn std::error::Error + Send + Sync>> {
        self.ranges.borrow_mut().push(range.clone());
        self.samples[..].read(range)
    }
}
