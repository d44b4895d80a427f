//! Answers of the other stages.

use std::time::Duration;

use dalston_engine_sdk::broker::TaskMetadata;
use dalston_engine_sdk::stage::{
    Alignment, AlignmentMethod, AudioMedia, AudioRedactRequest, AudioRedaction, Character, Diarization,
    OutputDefaults, Phoneme, PiiCategory, PiiDetection, PiiEntity, Preparation, RedactedRange, Segment,
    SpeakerTurn, SpeechRegion, StageOutput, Transcript, Word,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::rig::{Closures, Rig, transcript};

fn preparation() -> Preparation {
    let media = |id, rate| AudioMedia::new(id, "wav", 2.5, rate, 1).bit_depth(16);
    Preparation::new([media("T:prepared_audio", 16_000)])
        .source_media(media("J:source:audio", 24_000))
        .speech_regions([SpeechRegion::new(0.5, 2.0).confidence(0.9)], 0.6)
        .warning("quiet recording")
}

fn alignment() -> Alignment {
    let transcript = Transcript::from_segments([Segment::new(0.2, 0.7, "five")]).requested_language("en");
    let word = Word::new(0.25, 0.7, "five")
        .confidence(0.98)
        .alignment_method(AlignmentMethod::Ctc)
        .language("en")
        .characters([Character::new(0.25, 0.3, 'f').confidence(0.5)])
        .phonemes([Phoneme::new(0.25, 0.3, "f").stress(1)])
        .metadata("logprob", -0.02);
    let segment = Segment::new(0.25, 0.7, "five")
        .id("s0")
        .words([word])
        .confidence(0.9)
        .language("en")
        .tokens(&[1732])
        .temperature(0.0)
        .avg_logprob(-0.25)
        .compression_ratio(0.5)
        .no_speech_prob(0.02)
        .decoder_type("ctc");
    Alignment::of(&transcript, [segment])
        .alignment_confidence(0.95)
        .unaligned(["uh"], 0.5)
}

fn diarization() -> Diarization {
    Diarization::new([
        SpeakerTurn::new("SPEAKER_01", 0.0, 4.0).confidence(0.75),
        SpeakerTurn::new("SPEAKER_00", 3.0, 5.0).overlapping_speakers(["SPEAKER_01"]),
    ])
}

fn pii_detection() -> PiiDetection {
    let name = PiiEntity::new("name", PiiCategory::Pii, "Ada")
        .offsets(11, 14)
        .times(0.9, 1.3)
        .confidence(0.97)
        .speaker("SPEAKER_00")
        .redacted_value("[NAME]");
    PiiDetection::new("My name is [NAME].", [name]).processing_time(Duration::from_millis(12))
}

fn redaction() -> AudioRedaction {
    let request = AudioRedactRequest::from_config(&Map::new()).unwrap();
    AudioRedaction::new("T:redacted_audio", &request)
        .entities_redacted(2)
        .redaction_map([RedactedRange::new(0.85, 1.35, ["name", "iban"])])
}

/// The answer as JSON, filled in as by the runner. Reading it gives the same answer.
fn data<A: StageOutput + DeserializeOwned + Clone + PartialEq + std::fmt::Debug>(mut answer: A) -> Value {
    answer.fill_in(&OutputDefaults::new("e"));
    let data = answer.clone().into_data().unwrap();
    let read: A = serde_json::from_value(data.clone()).unwrap();
    assert_eq!(read.into_data(), Ok(data.clone()));
    data
}

#[test]
fn typed_answers_have_the_keys_of_the_protocol() {
    let media = |id: &str, rate: u32| {
        json!({"artifact_id": id, "format": "wav", "duration": 2.5,
        "sample_rate": rate, "channels": 1, "bit_depth": 16})
    };
    assert_eq!(
        data(preparation()),
        json!({
            "channel_files": [media("T:prepared_audio", 16_000)], "source_media": media("J:source:audio", 24_000),
            "split_channels": false, "speech_regions": [{"start": 0.5, "end": 2.0, "confidence": 0.9}],
            "speech_ratio": 0.6, "engine_id": "e", "skipped": false, "skip_reason": null,
            "warnings": ["quiet recording"],
        })
    );
    assert_eq!(
        data(alignment()),
        json!({
            "segments": [{
                "id": "s0", "start": 0.25, "end": 0.7, "text": "five",
                "words": [{
                    "text": "five", "start": 0.25, "end": 0.7, "confidence": 0.98,
                    "characters": [{"char": "f", "start": 0.25, "end": 0.3, "confidence": 0.5, "phonemes": null}],
                    "phonemes": [{"phoneme": "f", "start": 0.25, "end": 0.3, "confidence": null, "stress": 1}],
                    "alignment_method": "ctc", "language": "en",
                }],
                "confidence": 0.9, "tokens": [1732], "temperature": 0.0, "avg_logprob": -0.25,
                "compression_ratio": 0.5, "no_speech_prob": 0.02, "language": "en", "is_speech": null,
                "is_final": null,
            }],
            "text": "five", "language": "en", "word_timestamps": true, "alignment_confidence": 0.95,
            "unaligned_words": ["uh"], "unaligned_ratio": 0.5, "granularity_achieved": "word",
            "engine_id": "e", "skipped": false, "skip_reason": null, "warnings": [],
        })
    );
    assert_eq!(
        data(diarization()),
        json!({
            "turns": [
                {"speaker": "SPEAKER_01", "start": 0.0, "end": 4.0, "confidence": 0.75, "overlapping_speakers": null},
                {"speaker": "SPEAKER_00", "start": 3.0, "end": 5.0, "confidence": null,
                    "overlapping_speakers": ["SPEAKER_01"]},
            ],
            "speakers": ["SPEAKER_00", "SPEAKER_01"], "num_speakers": 2, "overlap_duration": 1.0,
            "overlap_ratio": 0.2, "engine_id": "e", "skipped": false, "skip_reason": null, "warnings": [],
        })
    );
    assert_eq!(
        data(pii_detection()),
        json!({
            "entities": [{"entity_type": "name", "category": "pii", "start_offset": 11, "end_offset": 14,
                "start_time": 0.9, "end_time": 1.3, "confidence": 0.97, "speaker": "SPEAKER_00",
                "redacted_value": "[NAME]", "original_text": "Ada"}],
            "redacted_text": "My name is [NAME].", "entity_count_by_type": {"name": 1},
            "entity_count_by_category": {"pii": 1}, "processing_time_ms": 12, "engine_id": "e",
            "skipped": false, "skip_reason": null, "warnings": [],
        })
    );
    assert_eq!(
        data(redaction().skipped("nothing found")),
        json!({
            "redacted_audio_artifact_id": "T:redacted_audio", "redaction_mode": "silence", "buffer_ms": 50,
            "entities_redacted": 2,
            "redaction_map": [{"start_time": 0.85, "end_time": 1.35, "entity_types": ["name", "iban"]}],
            "engine_id": "e", "skipped": true, "skip_reason": "nothing found", "warnings": [],
        })
    );
}

#[test]
fn alignment_keeps_facts_of_segments_that_have_a_place() {
    let read: Alignment = serde_json::from_value(data(alignment())).unwrap();
    let metadata: Vec<_> = read.segments[0].metadata.iter().map(|(name, _)| name).collect();
    assert_eq!(
        metadata,
        [
            "avg_logprob",
            "compression_ratio",
            "no_speech_prob",
            "temperature",
            "tokens"
        ]
    );
    let no_method = json!({"segments": [{"start": 0, "end": 1, "text": "a",
        "words": [{"text": "a", "start": 0, "end": 1, "alignment_method": null}]}],
        "text": "a", "language": "und", "engine_id": "e"});
    let read: Alignment = serde_json::from_value(no_method).unwrap();
    assert_eq!(
        read.segments[0].words.as_ref().unwrap()[0].alignment_method,
        AlignmentMethod::Unknown
    );
    assert_eq!(StageOutput::language(&read), None);
}

#[test]
fn an_invalid_field_of_a_typed_answer_is_named() {
    fn problem<A: StageOutput>(mut answer: A, change: fn(&mut A)) -> String {
        change(&mut answer);
        answer.validate().unwrap_err().to_string()
    }
    for (found, expected) in [
        (
            problem(preparation(), |answer| answer.channel_files[0].duration = -1.0),
            "channel_files[0].duration is -1.0: expected a finite number of seconds, 0 or more",
        ),
        (
            problem(preparation(), |answer| answer.channel_files[0].channels = 0),
            "channel_files[0].channels is 0: expected an integer of at least 1",
        ),
        (
            problem(preparation(), |answer| answer.channel_files.clear()),
            "channel_files has 0 files: expected one, or split_channels",
        ),
        (
            problem(preparation(), |answer| answer.speech_ratio = Some(1.5)),
            "speech_ratio is 1.5: expected a number from 0 to 1",
        ),
        (
            problem(preparation(), |answer| {
                answer.speech_regions.as_mut().unwrap()[0].end = 0.1
            }),
            "speech_regions[0].end is 0.1, before its start 0.5",
        ),
        (
            problem(alignment(), |answer| {
                answer.segments[0].metadata.insert("avg_logprob", f64::NAN)
            }),
            "segments[0].metadata.avg_logprob is NaN, which JSON can't represent: expected a number or nothing",
        ),
        (
            problem(alignment(), |answer| {
                answer.segments[0].metadata.insert("tokens", "x")
            }),
            r#"segments[0].tokens is "x": expected a list"#,
        ),
        (
            problem(alignment(), |answer| answer.unaligned_ratio = f64::NAN),
            "unaligned_ratio is NaN, which JSON can't represent: expected a number or nothing",
        ),
        (
            problem(diarization(), |answer| answer.turns[0].start = f64::NAN),
            "turns[0].start is NaN, which JSON can't represent: expected a number or nothing",
        ),
        (
            problem(diarization(), |answer| answer.turns[1].end = 2.0),
            "turns[1].end is 2, before its start 3",
        ),
        (
            problem(diarization(), |answer| answer.num_speakers = 3),
            "num_speakers is 3: expected the number of speakers, which is 2",
        ),
        (
            problem(diarization(), |answer| answer.turns[1].speaker = "Ada".to_owned()),
            r#"turns[1].speaker is "Ada": expected one of speakers"#,
        ),
        (
            problem(pii_detection(), |answer| answer.entities[0].end_time = 0.1),
            "entities[0].end_time is 0.1, before its start_time 0.9",
        ),
        (
            problem(pii_detection(), |answer| answer.entities[0].end_offset = 3),
            "entities[0].end_offset is 3, before its start_offset 11",
        ),
        (
            problem(pii_detection(), |answer| answer.entities.clear()),
            "entity_count_by_type.name is 1: expected the number of such entities, which is 0",
        ),
        (
            problem(pii_detection(), |answer| {
                answer.entity_count_by_category = [("pci".to_owned(), 0)].into();
            }),
            "entity_count_by_category.pii is missing: expected the number of such entities, which is 1",
        ),
        (
            problem(redaction(), |answer| answer.entities_redacted = 0),
            "entities_redacted is 0: expected at least 1, because redaction_map has 1 entries",
        ),
        (
            problem(redaction(), |answer| answer.redaction_map[0].start_time = -0.5),
            "redaction_map[0].start_time is -0.5: expected a finite number of seconds, 0 or more",
        ),
        (
            problem(redaction(), |answer| answer.redacted_audio_artifact_id.clear()),
            r#"redacted_audio_artifact_id is "": expected a non-empty string"#,
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn overlap_of_three_turns_counts_once() {
    let turns = [(0.0, 4.0), (1.0, 3.0), (2.0, 3.0), (6.0, 6.0)];
    let turns = turns.map(|(start, end)| SpeakerTurn::new("SPEAKER_00", start, end));
    let diarization = Diarization::new(turns);
    assert_eq!(
        (diarization.overlap_duration, diarization.overlap_ratio),
        (2.0, 0.5)
    );
    let silence = Diarization::new([]);
    assert_eq!((silence.num_speakers, silence.overlap_ratio), (0, 0.0));
    assert_eq!(silence.validate(), Ok(()));
}

/// What the runner says about a plain JSON answer of a stage.
async fn verdict(stage: &str, answer: Value) -> Result<Value, String> {
    let rig = Rig::new();
    rig.submit_with("t1", |_, metadata, task| {
        *metadata = TaskMetadata::new(stage);
        task
    })
    .await;
    let engine = Closures::new(move |_, _| Ok(answer.clone()));
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    outcome.map_err(|(code, error)| {
        assert_eq!(code, "invalid_output");
        error.replace("the engine's answer: ", "")
    })
}

#[tokio::test]
async fn plain_json_that_the_platform_would_drop_is_refused() {
    let diarize = data(diarization());
    let with = |mut answer: Value, pointer: &str, value: Value| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        answer.pointer_mut(parent).unwrap()[key] = value;
        answer
    };
    let without = |mut answer: Value, key: &str| {
        answer.as_object_mut().unwrap().remove(key);
        answer
    };
    for (stage, answer, expected) in [
        (
            "diarize_ch0",
            with(diarize.clone(), "/exclusive_mode", json!(true)),
            "exclusive_mode is not a key that the platform accepts in an answer of diarize: expected only turns, \
             speakers, num_speakers, overlap_duration, overlap_ratio, engine_id, skipped, skip_reason, warnings",
        ),
        (
            "diarize",
            with(diarize.clone(), "/turns/0/label", json!("Ada")),
            "turns[0].label is not a key that the platform accepts in an answer of diarize: expected only speaker, \
             start, end, confidence, overlapping_speakers",
        ),
        (
            "diarize",
            without(diarize.clone(), "turns"),
            "turns is missing: expected a list",
        ),
        (
            "diarize",
            with(diarize.clone(), "/skipped", Value::Null),
            "skipped is null: expected true or false",
        ),
        (
            "diarize",
            json!([]),
            "answer is an empty list: expected an object",
        ),
        (
            "prepare",
            with(
                data(preparation()),
                "/channel_files/0/sample_rate",
                json!("16 kHz"),
            ),
            r#"channel_files[0].sample_rate is "16 kHz": expected an integer of at least 1"#,
        ),
        (
            "align",
            with(data(alignment()), "/segments/0/metadata", json!({})),
            "segments[0].metadata is not a key that the platform accepts in an answer of align: expected only id, \
             start, end, text, words, confidence, tokens, temperature, avg_logprob, compression_ratio, \
             no_speech_prob, language, is_speech, is_final",
        ),
        (
            "align",
            with(
                data(alignment()),
                "/segments/0/words/0/alignment_method",
                json!("guess"),
            ),
            r#"segments[0].words[0].alignment_method is "guess": expected one of attention, ctc, rnnt, tdt, phoneme_wav2vec, phoneme_mms, mfa, wfst, unknown"#,
        ),
        (
            "align",
            with(
                data(alignment()),
                "/segments/0/words/0/characters/0/char",
                json!("ab"),
            ),
            r#"segments[0].words[0].characters[0].char is "ab": expected a string of one character"#,
        ),
        (
            "align",
            with(
                data(alignment()),
                "/segments",
                json!([{"start": 0.5, "end": 1, "text": "a"}, {"start": 0, "end": 1, "text": "b"}]),
            ),
            "segments[1].start is 0, before the start of the previous one, 0.5: expected them in order",
        ),
        (
            "pii_detect",
            with(data(pii_detection()), "/entities/0/category", json!("mine")),
            r#"entities[0].category is "mine": expected one of pii, pci, phi"#,
        ),
        (
            "audio_redact",
            without(data(redaction()), "engine_id"),
            "engine_id is missing: expected a string",
        ),
    ] {
        assert_eq!(verdict(stage, answer).await, Err(expected.to_owned()));
    }
}

#[tokio::test]
async fn plain_json_that_the_platform_accepts_is_uploaded() {
    for (stage, answer) in [
        (
            "diarize",
            json!({"turns": [], "speakers": [], "num_speakers": 0.0, "engine_id": "e"}),
        ),
        (
            "align",
            json!({"segments": [{"start": 0, "end": 1, "text": "a", "words": null}], "text": "a", "language": "en",
                "engine_id": "e"}),
        ),
        (
            "pii_detect",
            json!({"entities": [], "redacted_text": "", "processing_time_ms": 1, "engine_id": "e"}),
        ),
        (
            "audio_redact",
            json!({"redacted_audio_artifact_id": "T:a", "redaction_mode": "beep", "buffer_ms": 0,
                "entities_redacted": 1, "redaction_map": [{"any": "key"}], "engine_id": "e"}),
        ),
        (
            "prepare",
            json!({"channel_files": [], "engine_id": "e", "skipped": true, "skip_reason": "no audio"}),
        ),
        ("summarise", json!({"summary": "any key"})),
    ] {
        assert_eq!(verdict(stage, answer.clone()).await, Ok(answer));
    }
}

/// A transcript with a value for every key.
fn full_transcript() -> Transcript {
    let word = alignment().segments[0].words.clone().unwrap_or_default();
    let segment = Segment::new(0.25, 0.7, "five")
        .id("s0")
        .words(word)
        .confidence(0.9)
        .language("en")
        .tokens(&[1732]);
    let mut transcript = Transcript::from_segments([segment]).requested_language("en");
    transcript.duration = Some(2.5);
    transcript.warnings.push("quiet recording".to_owned());
    transcript.fill_in(&OutputDefaults::new("test-asr"));
    transcript
}

#[tokio::test]
async fn plain_transcript_with_a_wrong_key_fails_its_task() {
    let full = serde_json::to_value(full_transcript()).unwrap();
    assert_eq!(verdict("transcribe", full.clone()).await, Ok(full.clone()));
    // Per-channel tasks have the same answers.
    assert_eq!(verdict("transcribe_ch1", full.clone()).await, Ok(full.clone()));
    for (place, value, problem) in [
        (
            "/texts",
            json!("five"),
            "texts is not a key that the platform accepts in an answer of transcribe",
        ),
        (
            "/language",
            json!(""),
            "language is \"\": expected a non-empty string",
        ),
        ("/engine_id", Value::Null, "engine_id is null: expected a string"),
        (
            "/timestamp_granularity",
            json!("words"),
            "timestamp_granularity is \"words\": expected one of none",
        ),
        (
            "/segments/0/speaker",
            json!("Ada"),
            "segments[0].speaker is not a key",
        ),
        (
            "/segments/0/start",
            json!(-1),
            "segments[0].start is -1: expected",
        ),
        (
            "/segments/0/end",
            json!(0.1),
            "segments[0].end is 0.1, before its start 0.25",
        ),
        (
            "/segments/0/words/0/word",
            json!("five"),
            "segments[0].words[0].word is not a key",
        ),
    ] {
        let mut answer = full.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        answer.pointer_mut(parent).unwrap()[key] = value;
        let error = verdict("transcribe", answer).await.unwrap_err();
        assert!(error.starts_with(problem), "{place}: {error}");
    }
}

#[tokio::test]
async fn answer_of_several_stages_is_checked_stage_by_stage() {
    let answer = |diarize: Value| {
        json!({"stages_completed": ["transcribe", "diarize"], "transcribe": transcript(json!({})), "diarize": diarize,
            "anything": 1})
    };
    let good = answer(data(diarization()));
    assert_eq!(verdict("diarize", good.clone()).await, Ok(good));
    let bad = verdict("diarize", answer(json!({"speaker": "Ada"})))
        .await
        .unwrap_err();
    assert!(bad.starts_with("diarize.speaker is not a key"), "{bad}");
}
