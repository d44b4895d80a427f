//! Requests of the other stages.

use dalston_engine_sdk::TaskError;
use dalston_engine_sdk::TaskRequest;
use dalston_engine_sdk::stage::{
    AlignRequest, AudioRedactRequest, Diarization, DiarizeRequest, PiiDetectRequest, PrepareRequest,
    RedactionMode, TimestampGranularity, Transcript,
};
use serde_json::{Map, Value, json};

use crate::rig::{Closures, Rig};

/// Runs `look` on a task with this request in place of an engine.
async fn on_task(
    request: Value,
    look: impl Fn(&TaskRequest) -> Result<Value, TaskError> + Send + Sync + 'static,
) -> Result<Value, (String, String)> {
    let rig = Rig::new();
    let part = |key: &str| request.get(key).and_then(Value::as_object).cloned();
    rig.submit_with("t1", |data, _, task| {
        data.config = part("config").unwrap_or_default();
        data.previous_responses = part("previous_responses").unwrap_or_default();
        data.payload = part("payload");
        task
    })
    .await;
    let engine = Closures::new(move |task, _| look(task));
    rig.run(rig.runner(engine), rig.outcome("t1")).await.0
}

fn config(config: Value) -> Map<String, Value> {
    config.as_object().unwrap().clone()
}

#[test]
fn empty_configurations_have_the_defaults_of_the_protocol() {
    let none = Map::new();
    let prepare = PrepareRequest::from_config(&none).unwrap();
    assert_eq!((prepare.target_sample_rate, prepare.target_channels), (16_000, 1));
    assert_eq!(prepare.target_encoding, "pcm_s16le");
    assert_eq!(
        (
            prepare.normalize_volume,
            prepare.detect_speech_regions,
            prepare.split_channels
        ),
        (true, false, false)
    );
    let align = AlignRequest::from_config(&none).unwrap();
    assert_eq!(align.target_granularity, TimestampGranularity::Word);
    assert!(!align.return_char_alignments && !align.return_phoneme_alignments);
    let diarize = DiarizeRequest::from_config(&none).unwrap();
    assert_eq!((diarize.num_speakers, diarize.max_chunk_s), (None, None));
    assert!(diarize.detect_overlap && !diarize.exclusive);
    let pii = PiiDetectRequest::from_config(&none).unwrap();
    assert_eq!((pii.entity_types, pii.confidence_threshold), (None, 0.5));
    let redact = AudioRedactRequest::from_config(&none).unwrap();
    assert_eq!(
        (redact.redaction_mode, redact.buffer_ms, redact.channel),
        (RedactionMode::Silence, 50, None)
    );
}

#[test]
fn every_key_is_read_and_unknown_ones_are_ignored() {
    let prepare =
        PrepareRequest::from_config(&config(json!({"target_sample_rate": 8000, "target_channels": 2,
        "target_encoding": "pcm_f32le", "normalize_volume": false, "detect_speech_regions": true,
        "split_channels": true, "colour": "red"})))
        .unwrap();
    assert_eq!((prepare.target_sample_rate, prepare.target_channels), (8000, 2));
    assert_eq!(prepare.target_encoding, "pcm_f32le");
    assert!(!prepare.normalize_volume && prepare.detect_speech_regions && prepare.split_channels);
    let align = AlignRequest::from_config(&config(
        json!({"loaded_model_id": "w2v", "target_granularity": "phoneme",
        "realign_if_quality_below": 0.5, "return_char_alignments": true, "return_phoneme_alignments": true,
        "word_timestamps": true, "channel": 0}),
    ))
    .unwrap();
    assert_eq!(align.loaded_model_id.as_deref(), Some("w2v"));
    assert_eq!(align.target_granularity, TimestampGranularity::Phoneme);
    assert_eq!(align.realign_if_quality_below, Some(0.5));
    assert!(align.return_char_alignments && align.return_phoneme_alignments);
    let diarize = DiarizeRequest::from_config(&config(json!({"loaded_model_id": "", "num_speakers": 3,
        "min_speakers": 2, "max_speakers": 4, "detect_overlap": false, "exclusive": true, "max_chunk_s": 30})))
    .unwrap();
    assert_eq!(diarize.loaded_model_id, None);
    assert_eq!(
        (diarize.num_speakers, diarize.min_speakers, diarize.max_speakers),
        (Some(3), Some(2), Some(4))
    );
    assert_eq!(diarize.max_chunk_s, Some(30.0));
    assert!(!diarize.detect_overlap && diarize.exclusive);
    let redact = AudioRedactRequest::from_config(&config(
        json!({"redaction_mode": "beep", "buffer_ms": 0, "channel": 1}),
    ));
    let redact = redact.unwrap();
    assert_eq!(
        (redact.redaction_mode, redact.buffer_ms, redact.channel),
        (RedactionMode::Beep, 0, Some(1))
    );
}

#[test]
fn wrong_values_name_the_key_and_the_accepted_ones() {
    type Read = fn(&Map<String, Value>) -> Option<String>;
    macro_rules! error {
        ($request:ident) => {
            |config| {
                $request::from_config(config)
                    .err()
                    .map(|error| error.to_string())
            }
        };
    }
    let table: [(Read, Value, &str); 10] = [
        (
            error!(PrepareRequest),
            json!({"target_sample_rate": 0}),
            "target_sample_rate is 0: expected an integer of at least 1",
        ),
        (
            error!(PrepareRequest),
            json!({"normalize_volume": "no"}),
            r#"normalize_volume is "no": expected true or false"#,
        ),
        (
            error!(AlignRequest),
            json!({"target_granularity": "line"}),
            r#"target_granularity is "line": expected one of none, segment, word, character, phoneme"#,
        ),
        (
            error!(AlignRequest),
            json!({"realign_if_quality_below": 2}),
            "realign_if_quality_below is 2: expected a number from 0 to 1",
        ),
        (
            error!(DiarizeRequest),
            json!({"num_speakers": 0}),
            "num_speakers is 0: expected an integer of at least 1",
        ),
        (
            error!(DiarizeRequest),
            json!({"min_speakers": 3, "max_speakers": 2}),
            "max_speakers is 2: expected at least min_speakers, which is 3",
        ),
        (
            error!(DiarizeRequest),
            json!({"max_chunk_s": 29.5}),
            "max_chunk_s is 29.5: expected a number of at least 30",
        ),
        (
            error!(PiiDetectRequest),
            json!({"entity_types": ["iban", 7]}),
            "entity_types[1] is 7: expected a string",
        ),
        (
            error!(PiiDetectRequest),
            json!({"confidence_threshold": "high"}),
            r#"confidence_threshold is "high": expected a number from 0 to 1"#,
        ),
        (
            error!(AudioRedactRequest),
            json!({"redaction_mode": "bark"}),
            r#"redaction_mode is "bark": expected one of silence, beep"#,
        ),
    ];
    for (read, given, message) in table {
        assert_eq!(read(&config(given)), Some(format!("config key {message}")));
    }
}

#[tokio::test]
async fn invalid_config_of_each_stage_is_permanent() {
    let request = json!({"config": {"target_channels": "x", "beam_size": "x", "loaded_model_id": 1,
        "exclusive": "x", "entity_types": 1, "buffer_ms": "x"}});
    let codes = on_task(request, |task| {
        let errors = [
            task.prepare().unwrap_err(),
            task.transcribe().unwrap_err(),
            task.align().unwrap_err(),
            task.diarize().unwrap_err(),
            task.pii_detect().unwrap_err(),
            task.audio_redact().unwrap_err(),
        ];
        Ok(errors
            .map(|error| format!("{} {:?}", error.code(), error.kind()))
            .into())
    });
    assert_eq!(codes.await, Ok(["invalid_config Permanent"; 6].as_slice().into()));
}

#[tokio::test]
async fn earlier_answers_are_read_as_types() {
    let transcript = json!({"text": "five", "segments": [], "language": "en", "engine_id": "e"});
    let request =
        json!({"previous_responses": {"transcribe": transcript, "diarize": {"turns": 7}, "align": null}});
    let seen = on_task(request, |task| {
        let transcript: Transcript = task.require_previous("transcribe")?;
        assert!(task.previous_as::<Diarization>("align")?.is_none());
        let absent = task.require_previous::<Transcript>("prepare").unwrap_err();
        let wrong = task.previous_as::<Diarization>("diarize").unwrap_err();
        Ok(json!([
            transcript.text,
            absent.to_string(),
            absent.code(),
            wrong.to_string(),
            wrong.code()
        ]))
    });
    assert_eq!(
        seen.await,
        Ok(json!([
            "five",
            r#"the task has no answer of the earlier stage "prepare", only of ["align", "diarize", "transcribe"]"#,
            "missing_input",
            "the answer of the earlier stage diarize: invalid type: integer `7`, expected a sequence",
            "invalid_previous",
        ]))
    );
}

#[tokio::test]
async fn recording_of_prepare_comes_from_the_payload() {
    let look = |task: &TaskRequest| {
        Ok(match task.media() {
            Ok(media) => json!([media.format, media.sample_rate]),
            Err(error) => json!([error.code(), error.to_string()]),
        })
    };
    let media = json!({"artifact_id": "J:source:audio", "format": "mp3", "duration": 2.5, "sample_rate": 44100,
        "channels": 2});
    let request = json!({"payload": {"media": media}});
    assert_eq!(on_task(request, look).await, Ok(json!(["mp3", 44100])));
    let problem = "the task's payload has no media: only tasks of the stage prepare have it";
    assert_eq!(
        on_task(json!({}), look).await,
        Ok(json!(["missing_input", problem]))
    );
    let problem = "media of the task's payload: missing field `artifact_id`";
    assert_eq!(
        on_task(json!({"payload": {"media": {}}}), look).await,
        Ok(json!(["invalid_payload", problem]))
    );
}
