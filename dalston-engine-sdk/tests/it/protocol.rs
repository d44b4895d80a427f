//! The platform's documents, byte by byte as in the description of its protocol.

use std::time::Duration;

use dalston_engine_sdk::protocol::{
    ArtifactReference, ArtifactSelector, RequestBinding, TaskRequestData, TaskResponseData, Timestamp,
};
use serde_json::{Value, json};

/// Section 3.2, the example of a mono transcription.
const REQUEST: &str = r#"{
  "task_id": "T", "job_id": "J",
  "request_bindings": [{"slot": "audio", "selector": {"producer_stage": "prepare", "kind": "audio", "role": "prepared", "required": true}}],
  "resolved_artifact_ids": {"audio": "P:prepared_audio"},
  "artifact_index": {"P:prepared_audio": {"artifact_id": "P:prepared_audio", "kind": "audio",
    "storage_locator": "s3://dalston-artifacts/jobs/J/tasks/P/prepared_audio.wav",
    "checksum": "<sha256 hex>", "size": 78092, "media_type": "audio/wav", "channel": 0, "role": "prepared",
    "producer_task_id": "P", "producer_stage": "prepare"}},
  "previous_responses": {"prepare": {"channel_files": [{"artifact_id": "P:prepared_audio", "format": "wav", "duration": 2.437937,
    "sample_rate": 16000, "channels": 1, "bit_depth": 16}], "source_media": {"artifact_id": "J:source:audio", "format": "wav",
    "duration": 2.437917, "sample_rate": 24000, "channels": 1, "bit_depth": 16}, "split_channels": false, "speech_regions": null,
    "speech_ratio": null, "engine_id": "audio-prepare", "skipped": false, "skip_reason": null, "warnings": []}},
  "config": {"language": "en", "beam_size": 5, "vad_filter": true}
}"#;

fn prepared_audio() -> ArtifactReference {
    let locator = "s3://dalston-artifacts/jobs/J/tasks/P/prepared_audio.wav";
    let mut reference = ArtifactReference::new("P:prepared_audio", "audio", locator)
        .size(78092)
        .role("prepared")
        .producer("P", "prepare");
    reference.checksum = Some("<sha256 hex>".to_owned());
    reference.media_type = Some("audio/wav".to_owned());
    reference.channel = Some(0);
    reference
}

fn edited(pointer: &str, value: Value) -> Vec<u8> {
    let mut document: Value = serde_json::from_str(REQUEST).unwrap();
    *document.pointer_mut(pointer).unwrap() = value;
    serde_json::to_vec(&document).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    TaskRequestData::from_slice(bytes).unwrap_err().to_string()
}

#[test]
fn request_of_the_description_is_read_whole() {
    let request = TaskRequestData::from_slice(REQUEST.as_bytes()).unwrap();

    let mut selector = ArtifactSelector::new("prepare", "audio");
    selector.role = Some("prepared".to_owned());
    let mut expected = TaskRequestData::new("T", "J");
    expected
        .request_bindings
        .push(RequestBinding::new("audio", selector));
    expected
        .resolved_artifact_ids
        .insert("audio".to_owned(), "P:prepared_audio".to_owned());
    expected
        .artifact_index
        .insert("P:prepared_audio".to_owned(), prepared_audio());
    let previous: Value = serde_json::from_str::<Value>(REQUEST).unwrap()["previous_responses"].clone();
    expected.previous_responses = previous.as_object().unwrap().clone();
    expected.config = json!({"language": "en", "beam_size": 5, "vad_filter": true})
        .as_object()
        .unwrap()
        .clone();

    assert_eq!(request, expected);
    assert_eq!(
        request.previous_responses["prepare"]["skip_reason"],
        Value::Null,
        "nulls inside responses are kept"
    );
}

#[test]
fn request_survives_writing_and_reading() {
    let request = TaskRequestData::from_slice(REQUEST.as_bytes()).unwrap();
    let written = request.to_vec();
    assert_eq!(TaskRequestData::from_slice(&written).unwrap(), request);
    let (ours, theirs) = (
        serde_json::from_slice::<Value>(&written).unwrap(),
        serde_json::from_str::<Value>(REQUEST).unwrap(),
    );
    assert_eq!(ours, theirs);
}

#[test]
fn request_needs_only_its_ids() {
    let request = TaskRequestData::from_slice(br#"{"job_id":"J","task_id":"T"}"#).unwrap();
    assert_eq!(request, TaskRequestData::new("T", "J"));
}

#[test]
fn unknown_keys_and_nulls_in_request_are_ignored() {
    let bytes = br#"{"task_id":"T","job_id":"J","stage":"transcribe","upload_url":{"a":1},"config":null,"payload":null,
        "resolved_artifact_ids":{"optional":null},"request_bindings":[{"slot":"audio","note":1,
        "selector":{"producer_stage":"prepare","kind":"audio","channel":null,"new":[]}}]}"#;
    let mut expected = TaskRequestData::new("T", "J");
    expected.request_bindings.push(RequestBinding::new(
        "audio",
        ArtifactSelector::new("prepare", "audio"),
    ));
    assert_eq!(TaskRequestData::from_slice(bytes).unwrap(), expected);

    // A key that comes twice has its last value.
    let twice = REQUEST.replacen('{', r#"{"config": 7, "priority": [1, {}],"#, 1);
    assert_eq!(
        TaskRequestData::from_slice(twice.as_bytes()).unwrap(),
        TaskRequestData::from_slice(REQUEST.as_bytes()).unwrap()
    );
}

#[test]
fn malformed_request_is_refused() {
    for document in [
        r#"["T", "J", null, null, null, null, null, null]"#,
        r#"{"task_id": "", "job_id": "J"}"#,
        r#"{"task_id": "T", "job_id": "J", "unknown": 1e999}"#,
        r#"{"task_id": "T", "job_id": "J", "artifact_index": {"A": {"artifact_id": "A"}}}"#,
        r#"{"task_id": "T", "task_id": null, "job_id": "J"}"#,
        r#"{"task_id": "T", "job_id": "J"} {}"#,
    ] {
        assert!(
            TaskRequestData::from_slice(document.as_bytes()).is_err(),
            "{document}"
        );
    }
}

#[test]
fn integral_float_is_an_integer() {
    let request = edited("/artifact_index/P:prepared_audio/size", json!(7.0));
    let request = TaskRequestData::from_slice(&request).unwrap();
    assert_eq!(request.artifact_index["P:prepared_audio"].size, Some(7));
}

#[test]
fn error_names_the_path_in_the_request() {
    let table = [
        ("/task_id", json!(7), "task_id is 7: expected a non-empty string"),
        (
            "/job_id",
            json!(""),
            "job_id is \"\": expected a non-empty string",
        ),
        (
            "/config",
            json!([]),
            "config is an empty list: expected an object",
        ),
        (
            "/previous_responses",
            json!("x"),
            "previous_responses is \"x\": expected an object",
        ),
        (
            "/request_bindings",
            json!({}),
            "request_bindings is an object: expected a list",
        ),
        (
            "/request_bindings/0",
            json!(true),
            "request_bindings[0] is true: expected an object",
        ),
        (
            "/request_bindings/0/selector",
            Value::Null,
            "request_bindings[0].selector is missing: expected an object",
        ),
        (
            "/request_bindings/0/selector/required",
            json!("yes"),
            "request_bindings[0].selector.required is \"yes\": expected true or false",
        ),
        (
            "/resolved_artifact_ids/audio",
            json!(1.5),
            "resolved_artifact_ids.audio is 1.5: expected a string",
        ),
        (
            "/artifact_index/P:prepared_audio/storage_locator",
            json!(["s3://a/b"]),
            "artifact_index.P:prepared_audio.storage_locator is a list: expected a non-empty string",
        ),
        (
            "/artifact_index/P:prepared_audio/size",
            json!(-1),
            "artifact_index.P:prepared_audio.size is -1: expected an integer of at least 0",
        ),
        (
            "/artifact_index/P:prepared_audio/channel",
            json!(1e12),
            "artifact_index.P:prepared_audio.channel is 1000000000000.0: expected an integer of at least 0",
        ),
    ];
    for (pointer, value, problem) in table {
        assert_eq!(
            refusal(&edited(pointer, value)),
            format!("request.json: {problem}")
        );
    }
    assert_eq!(
        refusal(b"[]"),
        "request.json: document is an empty list: expected an object"
    );
    assert_eq!(
        refusal(b"{}"),
        "request.json: task_id is missing: expected a non-empty string"
    );
    let syntax = refusal(b"{\n \"task_id\": }");
    assert_eq!(
        syntax,
        "request.json is not valid JSON: expected value at line 2 column 13"
    );
    assert!(refusal(b"").starts_with("request.json is not valid JSON: EOF"));
}

#[test]
fn error_does_not_repeat_a_long_value() {
    let message = refusal(&edited("/config", json!("secret ".repeat(10_000))));
    assert_eq!(
        message,
        "request.json: config is a string of 70000 characters: expected an object"
    );
}

#[test]
fn deep_nesting_is_an_error() {
    let deep = format!("{{\"config\":{}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    assert!(refusal(deep.as_bytes()).contains("recursion limit exceeded"));
}

#[test]
fn artifact_reference_has_no_unknown_keys_and_no_nulls() {
    let reference = ArtifactReference::new("J:source:audio", "audio", "s3://b/k.mp3").size(9);
    let written =
        r#"{"artifact_id":"J:source:audio","kind":"audio","storage_locator":"s3://b/k.mp3","size":9}"#;
    assert_eq!(serde_json::to_string(&reference).unwrap(), written);

    let full = serde_json::to_string(&prepared_audio()).unwrap();
    assert_eq!(
        full,
        concat!(
            r#"{"artifact_id":"P:prepared_audio","kind":"audio","#,
            r#""storage_locator":"s3://dalston-artifacts/jobs/J/tasks/P/prepared_audio.wav","#,
            r#""checksum":"<sha256 hex>","size":78092,"media_type":"audio/wav","channel":0,"role":"prepared","#,
            r#""producer_task_id":"P","producer_stage":"prepare"}"#
        )
    );

    let unknown = edited(
        "/artifact_index/P:prepared_audio",
        json!({"artifact_id": "A", "kind": "audio", "storage_locator": "s3://b/k", "etag": 1}),
    );
    let message = refusal(&unknown);
    assert_eq!(
        message,
        "request.json: artifact_index.P:prepared_audio.etag is not a key of an artifact reference"
    );
}

#[test]
fn response_is_written_as_in_the_description() {
    let completed_at: Timestamp = "2026-01-31T12:00:00.25Z".parse().unwrap();
    let data = json!({"skip_reason": null, "text": "five"});
    let response = TaskResponseData::new("T", completed_at, Duration::from_micros(2_345_678), data);
    let expected = r#"{
  "task_id": "T",
  "completed_at": "2026-01-31T12:00:00.250000+00:00",
  "processing_time_seconds": 2.35,
  "data": {
    "skip_reason": null,
    "text": "five"
  },
  "produced_artifacts": [],
  "produced_artifact_ids": []
}"#;
    assert_eq!(String::from_utf8(response.to_vec()).unwrap(), expected);
    assert_eq!(
        TaskResponseData::from_slice(expected.as_bytes()).unwrap(),
        response
    );
}

#[test]
fn final_transcript_is_the_canonical_one() {
    let transcript =
        ArtifactReference::new("T:transcript", "transcript", "s3://b/jobs/J/transcript.json").role("final");
    let audio = ArtifactReference::new("T:prepared_audio", "audio", "s3://b/a.wav");
    let completed_at: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
    let response =
        TaskResponseData::new("T", completed_at, Duration::ZERO, json!({})).artifacts([audio, transcript]);
    let expected = r#"{
  "task_id": "T",
  "completed_at": "2026-01-31T12:00:00.000000+00:00",
  "processing_time_seconds": 0.0,
  "data": {},
  "produced_artifacts": [
    {
      "artifact_id": "T:prepared_audio",
      "kind": "audio",
      "storage_locator": "s3://b/a.wav"
    },
    {
      "artifact_id": "T:transcript",
      "kind": "transcript",
      "storage_locator": "s3://b/jobs/J/transcript.json",
      "role": "final"
    }
  ],
  "produced_artifact_ids": [
    "T:prepared_audio",
    "T:transcript"
  ],
  "canonical_transcript_uri": "s3://b/jobs/J/transcript.json"
}"#;
    assert_eq!(String::from_utf8(response.to_vec()).unwrap(), expected);
    assert_eq!(
        TaskResponseData::from_slice(expected.as_bytes()).unwrap(),
        response
    );
}

#[test]
fn invalid_response_is_refused_by_path() {
    let refusal = |text: &str| {
        TaskResponseData::from_slice(text.as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refusal(r#"{"task_id":"T","completed_at":"noon","data":{}}"#),
        "response.json: completed_at is \"noon\": expected a time such as 2026-01-31T12:00:00+00:00"
    );
    assert_eq!(
        refusal(r#"{"task_id":"T","completed_at":"2026-01-31T12:00:00Z"}"#),
        "response.json: data is missing: expected an object"
    );
}
