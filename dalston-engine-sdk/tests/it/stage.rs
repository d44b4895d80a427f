//! Requests and answers of the stages: here those of `transcribe`.

mod answers;
mod requests;

use dalston_engine_sdk::stage::{
    AlignmentMethod, Character, LanguageShare, LanguageSource, OutputDefaults, Phoneme, Segment, StageOutput,
    TimestampGranularity, TranscribeRequest, TranscribeTask, Transcript, Word,
};
use serde_json::{Value, json};

fn request(config: Value) -> TranscribeRequest {
    TranscribeRequest::from_config(config.as_object().unwrap()).unwrap()
}

fn refusal(config: Value) -> String {
    TranscribeRequest::from_config(config.as_object().unwrap())
        .unwrap_err()
        .to_string()
}

#[test]
fn an_empty_configuration_is_the_default_request() {
    let empty = request(json!({}));
    assert_eq!(empty, TranscribeRequest::default());
    assert_eq!(
        (
            empty.suppress_blank,
            empty.vad_filter,
            empty.include_transcription_logprobs
        ),
        (true, true, false)
    );
    assert_eq!(
        (empty.task, empty.temperature.as_slice()),
        (TranscribeTask::Transcribe, [0.0].as_slice())
    );
    assert!(empty.wants_words());
}

#[test]
fn every_key_of_the_stage_is_read() {
    let mut expected = TranscribeRequest::default();
    expected.loaded_model_id = Some("large-v3".to_owned());
    expected.channel = Some(1);
    expected.language = Some("de".to_owned());
    expected.task = TranscribeTask::Translate;
    expected.prompt = Some("Dalston".to_owned());
    expected.timestamp_granularity = TimestampGranularity::Segment;
    expected.word_timestamps = Some(true);
    expected.vocabulary = Some(vec!["tch".to_owned()]);
    expected.chunking_strategy = json!({"type": "server_vad"}).as_object().cloned();
    expected.include_transcription_logprobs = true;
    expected.suppress_tokens = Some(vec!["-1".to_owned()]);
    expected.suppress_blank = false;
    expected.vad_filter = false;
    expected.temperature = vec![0.0, 0.2, 1.0];
    expected.beam_size = Some(5);
    expected.vad_batch_size = Some(8);
    expected.best_of = Some(3);
    let config = json!({
        "loaded_model_id": "large-v3", "channel": 1, "language": "DE", "task": "translate", "prompt": "Dalston",
        "timestamp_granularity": "segment", "word_timestamps": true, "vocabulary": ["tch"],
        "chunking_strategy": {"type": "server_vad"}, "include_transcription_logprobs": true, "suppress_tokens": ["-1"],
        "suppress_blank": false, "vad_filter": false, "temperature": [0, 0.2, 1.0], "beam_size": 5.0, "vad_batch_size": 8,
        "best_of": 3, "_on_demand_wait": true,
    });
    assert_eq!(request(config), expected);
}

#[test]
fn every_open_language_means_detection() {
    for open in [
        json!("auto"),
        json!("AUTO"),
        json!(" Auto "),
        json!(""),
        Value::Null,
    ] {
        assert_eq!(request(json!({"language": open})).language, None);
    }
}

#[test]
fn word_times_are_wanted_by_default() {
    assert!(!request(json!({"word_timestamps": false})).wants_words());
    assert!(!request(json!({"timestamp_granularity": "segment"})).wants_words());
    assert!(request(json!({"timestamp_granularity": "segment", "word_timestamps": true})).wants_words());
    assert!(request(json!({"timestamp_granularity": "character"})).wants_words());
}

#[test]
fn a_wrong_value_names_the_key_and_the_accepted_values() {
    let words = vec!["w"; 101];
    for (config, message) in [
        (
            json!({"beam_size": "five"}),
            r#"beam_size is "five": expected an integer of at least 1"#,
        ),
        (
            json!({"beam_size": 0}),
            "beam_size is 0: expected an integer of at least 1",
        ),
        (
            json!({"beam_size": 2.5}),
            "beam_size is 2.5: expected an integer of at least 1",
        ),
        (
            json!({"best_of": -1}),
            "best_of is -1: expected an integer of at least 1",
        ),
        (
            json!({"channel": -1}),
            "channel is -1: expected an integer of at least 0",
        ),
        (
            json!({"temperature": 1.5}),
            "temperature is 1.5: expected a number from 0 to 1",
        ),
        (
            json!({"temperature": [0.0, "x"]}),
            r#"temperature[1] is "x": expected a number from 0 to 1"#,
        ),
        (
            json!({"temperature": []}),
            "temperature is an empty list: expected a number from 0 to 1, or a list of such numbers",
        ),
        (
            json!({"temperature": "0"}),
            r#"temperature is "0": expected a number from 0 to 1, or a list of such numbers"#,
        ),
        (json!({"language": 7}), "language is 7: expected a string"),
        (
            json!({"vad_filter": "yes"}),
            r#"vad_filter is "yes": expected true or false"#,
        ),
        (
            json!({"vocabulary": ["a", 1]}),
            "vocabulary[1] is 1: expected a string",
        ),
        (
            json!({"vocabulary": words}),
            "vocabulary has 101 entries: expected at most 100",
        ),
        (
            json!({"task": "sing"}),
            r#"task is "sing": expected one of transcribe, translate"#,
        ),
        (
            json!({"timestamp_granularity": true}),
            "timestamp_granularity is true: expected one of none, segment, word, character, phoneme",
        ),
        (
            json!({"chunking_strategy": "auto"}),
            r#"chunking_strategy is "auto": expected an object"#,
        ),
    ] {
        assert_eq!(refusal(config), format!("config key {message}"));
    }
}

#[test]
fn unknown_keys_cause_a_warning_unless_the_engine_reads_them() {
    let config = json!({"patience": 1.0, "colour": "red", "_on_demand_wait": true});
    let request = TranscribeRequest::from_config_with(config.as_object().unwrap(), &["patience"]).unwrap();
    assert_eq!(
        request.warnings,
        ["config key colour is not one of the transcribe stage and was ignored"]
    );

    let many: serde_json::Map<_, _> = (0..5000).map(|n| (format!("key{n}"), json!(n))).collect();
    let warnings = TranscribeRequest::from_config(&many).unwrap().warnings;
    assert_eq!(warnings.len(), 11);
    assert_eq!(warnings[10], "4990 more config keys were ignored");
}

fn full_transcript() -> Transcript {
    let word = Word::new(0.2, 0.71, "five")
        .confidence(0.98)
        .alignment_method(AlignmentMethod::Attention)
        .language("en")
        .characters([Character::new(0.2, 0.3, 'f').confidence(0.5)])
        .phonemes([Phoneme::new(0.2, 0.3, "f").stress(1).confidence(0.5)])
        .metadata("logprob", -0.02);
    let segment = Segment::new(0.2, 0.71, " five")
        .id("s0")
        .words([word])
        .confidence(0.9)
        .tokens(&[50364, 1732])
        .avg_logprob(-0.25)
        .compression_ratio(0.5)
        .no_speech_prob(0.02)
        .temperature(0.0);
    let mut transcript = Transcript::from_segments([segment, Segment::new(0.71, 0.9, " ")])
        .detected_language("EN", 0.93)
        .languages([LanguageShare::new("en", 0.93).primary()])
        .duration(0.96)
        .alignment_method(AlignmentMethod::Attention)
        .warning("quiet recording");
    let warnings = ["the file is cut off".to_owned(), "quiet recording".to_owned()];
    transcript.fill_in(&{
        let mut defaults = OutputDefaults::new("faster-whisper");
        defaults.channel = Some(0);
        defaults.duration = Some(1.0);
        defaults.model_id = Some("tiny");
        defaults.warnings = &warnings;
        defaults
    });
    transcript
}

#[test]
fn a_transcript_has_the_keys_of_the_protocol() {
    let expected = json!({
        "schema_version": "1",
        "text": "five",
        "segments": [
            {
                "id": "s0", "start": 0.2, "end": 0.71, "text": " five",
                "words": [{
                    "text": "five", "start": 0.2, "end": 0.71, "confidence": 0.98, "alignment_method": "attention",
                    "language": "en",
                    "characters": [{"char": "f", "start": 0.2, "end": 0.3, "confidence": 0.5, "phonemes": null}],
                    "phonemes": [{"phoneme": "f", "start": 0.2, "end": 0.3, "confidence": 0.5, "stress": 1}],
                    "metadata": {"logprob": -0.02},
                }],
                "language": null, "language_confidence": null, "confidence": 0.9, "is_final": null, "is_speech": null,
                "metadata": {
                    "tokens": [50364, 1732], "avg_logprob": -0.25, "compression_ratio": 0.5, "no_speech_prob": 0.02,
                    "temperature": 0.0, "confidence": 0.9,
                },
            },
            {
                "id": null, "start": 0.71, "end": 0.9, "text": " ", "words": null, "language": null,
                "language_confidence": null, "confidence": null, "is_final": null, "is_speech": null, "metadata": {},
            },
        ],
        "language": "en",
        "language_confidence": 0.93,
        "language_source": "detected",
        "languages": [{"code": "en", "confidence": 0.93, "is_primary": true}],
        "duration": 0.96,
        "timestamp_granularity": "word",
        "alignment_method": "attention",
        "engine_id": "faster-whisper",
        "channel": 0,
        "warnings": ["quiet recording", "the file is cut off"],
        "metadata": {"model_id": "tiny"},
    });
    assert_eq!(full_transcript().into_data(), Ok(expected));
}

#[test]
fn a_transcript_survives_being_written_and_read() {
    let mut transcript = full_transcript();
    let data = transcript.clone().into_data().unwrap();
    let read: Transcript = serde_json::from_value(data).unwrap();
    transcript.segments[0].metadata.insert("confidence", 0.9);
    assert_eq!(read, transcript);
}

#[test]
fn an_empty_transcript_in_an_unknown_language_is_valid() {
    let transcript = Transcript::from_segments([]);
    assert_eq!(
        (transcript.language.as_str(), StageOutput::language(&transcript)),
        ("und", None)
    );
    assert_eq!(transcript.language_source, None);
    assert_eq!(transcript.timestamp_granularity, TimestampGranularity::Segment);
    assert_eq!(transcript.validate(), Ok(()));

    let asked = Transcript::from_segments([]).requested_language("de");
    assert_eq!(asked.language_source, Some(LanguageSource::Requested));
    assert_eq!(StageOutput::language(&asked), Some("de"));
}

#[test]
fn values_of_the_engine_win_over_those_of_the_runner() {
    let mut transcript = Transcript::from_segments([])
        .channel(1)
        .duration(2.0)
        .metadata("model_id", "mine");
    transcript.engine_id = "me".to_owned();
    let said = transcript.clone();
    let mut defaults = OutputDefaults::new("other");
    defaults.channel = Some(0);
    defaults.duration = Some(9.0);
    defaults.model_id = Some("other");
    transcript.fill_in(&defaults);
    assert_eq!(transcript, said);
}

#[test]
fn an_invalid_field_of_a_transcript_is_named_by_its_path() {
    type Change = fn(&mut Transcript);
    let table: [(Change, &str); 24] = [
        (
            |t| t.segments[1].end = f64::NAN,
            "segments[1].end is NaN: expected a finite number of seconds, 0 or more",
        ),
        (
            |t| t.segments[0].start = -0.5,
            "segments[0].start is -0.5: expected a finite number of seconds, 0 or more",
        ),
        (
            |t| t.segments[0].end = f64::INFINITY,
            "segments[0].end is inf: expected a finite number of seconds, 0 or more",
        ),
        (
            |t| t.segments[1].end = 0.7,
            "segments[1].end is 0.7, before its start 0.71",
        ),
        (
            |t| t.segments[1].start = 0.1,
            "segments[1].start is 0.1, before the start of the previous one, 0.2: expected them in order",
        ),
        (
            |t| t.segments[0].confidence = Some(1.1),
            "segments[0].confidence is 1.1: expected a number from 0 to 1",
        ),
        (
            |t| t.segments[0].language_confidence = Some(-0.1),
            "segments[0].language_confidence is -0.1: expected a number from 0 to 1",
        ),
        (
            |t| t.segments[0].metadata.insert("avg_logprob", f64::NEG_INFINITY),
            "segments[0].metadata.avg_logprob is -inf, which JSON can't represent: expected a number or nothing",
        ),
        (
            |t| t.segments[0].metadata.insert("no_speech_prob", 1.5),
            "segments[0].metadata.no_speech_prob is 1.5: expected a number from 0 to 1",
        ),
        (
            |t| t.segments[0].words.as_mut().unwrap()[0].end = f64::NAN,
            "segments[0].words[0].end is NaN: expected a finite number of seconds, 0 or more",
        ),
        (
            |t| {
                t.segments[0]
                    .words
                    .as_mut()
                    .unwrap()
                    .push(Word::new(0.1, 0.2, "six"))
            },
            "segments[0].words[1].start is 0.1, before the start of the previous one, 0.2: expected them in order",
        ),
        (
            |t| t.segments[0].words.as_mut().unwrap()[0].confidence = Some(f64::NAN),
            "segments[0].words[0].confidence is NaN: expected a number from 0 to 1",
        ),
        (
            |t| {
                t.segments[0].words.as_mut().unwrap()[0]
                    .metadata
                    .insert("curve", [0.0, f64::NAN])
            },
            "segments[0].words[0].metadata.curve[1] is NaN, which JSON can't represent: expected a number or nothing",
        ),
        (
            |t| {
                t.segments[0].words.as_mut().unwrap()[0]
                    .characters
                    .as_mut()
                    .unwrap()[0]
                    .end = 0.0
            },
            "segments[0].words[0].characters[0].end is 0, before its start 0.2",
        ),
        (
            |t| {
                t.segments[0].words.as_mut().unwrap()[0]
                    .characters
                    .as_mut()
                    .unwrap()[0]
                    .confidence = Some(2.0)
            },
            "segments[0].words[0].characters[0].confidence is 2: expected a number from 0 to 1",
        ),
        (
            |t| {
                t.segments[0].words.as_mut().unwrap()[0]
                    .phonemes
                    .as_mut()
                    .unwrap()[0]
                    .stress = Some(3)
            },
            "segments[0].words[0].phonemes[0].stress is 3: expected 0, 1 or 2",
        ),
        (
            |t| t.language.clear(),
            "language is empty: expected an ISO 639-1 code, or und",
        ),
        (
            |t| t.language_confidence = Some(1.5),
            "language_confidence is 1.5: expected a number from 0 to 1",
        ),
        (
            |t| t.languages = Some(vec![LanguageShare::new("", 0.5)]),
            "languages[0].code is empty: expected an ISO 639-1 code",
        ),
        (
            |t| t.languages = Some(vec![LanguageShare::new("en", f64::NAN)]),
            "languages[0].confidence is NaN: expected a number from 0 to 1",
        ),
        (
            |t| {
                t.languages = Some(vec![
                    LanguageShare::new("en", 0.5).primary(),
                    LanguageShare::new("de", 0.5).primary(),
                ])
            },
            "languages has more than one primary language: expected one",
        ),
        (
            |t| t.duration = Some(-1.0),
            "duration is -1: expected a finite number of seconds, 0 or more",
        ),
        (
            |t| t.metadata.insert("rtf", f32::NAN),
            "metadata.rtf is NaN, which JSON can't represent: expected a number or nothing",
        ),
        (
            |t| t.metadata.insert("stats", json_like(f64::INFINITY)),
            "metadata.stats.deep[0] is inf, which JSON can't represent: expected a number or nothing",
        ),
    ];
    for (change, message) in table {
        let mut transcript = full_transcript();
        change(&mut transcript);
        assert_eq!(transcript.into_data().unwrap_err().to_string(), message);
    }
}

fn json_like(value: f64) -> impl serde::Serialize {
    std::collections::BTreeMap::from([("deep", vec![value])])
}

#[test]
fn overlapping_segments_and_equal_starts_are_in_order() {
    let transcript = Transcript::from_segments([
        Segment::new(0.0, 2.0, "one"),
        Segment::new(0.0, 1.0, "two"),
        Segment::new(0.5, 0.5, "three"),
    ]);
    assert_eq!(transcript.text, "one two three");
    assert_eq!(transcript.validate(), Ok(()));
}

#[test]
fn a_probability_slightly_out_of_range_is_clamped() {
    let segment = Segment::new(0.0, 1.0, "a")
        .confidence(f64::from(1.0_f32 + f32::EPSILON))
        .no_speech_prob(-1e-9);
    assert_eq!(segment.confidence, Some(1.0));
    assert_eq!(segment.metadata.get("no_speech_prob"), Some(&json!(0.0)));
    assert_eq!(Transcript::from_segments([segment]).validate(), Ok(()));
}

#[test]
fn other_stages_answer_with_an_own_type_or_with_json() {
    #[derive(serde::Serialize)]
    struct Turn {
        speaker: &'static str,
        start: f32,
    }
    #[derive(serde::Serialize)]
    struct Turns {
        turns: Vec<Turn>,
    }
    impl StageOutput for Turns {}

    let good = Turns {
        turns: vec![Turn {
            speaker: "SPEAKER_00",
            start: 0.5,
        }],
    };
    let data = json!({"turns": [{"speaker": "SPEAKER_00", "start": 0.5}]});
    assert_eq!(good.into_data(), Ok(data.clone()));
    assert_eq!(data.clone().into_data(), Ok(data));

    let bad = Turns {
        turns: vec![Turn {
            speaker: "SPEAKER_00",
            start: f32::NAN,
        }],
    };
    assert_eq!(bad.into_data().unwrap_err().path(), "turns[0].start");
}
