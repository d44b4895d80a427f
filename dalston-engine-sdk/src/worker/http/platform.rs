//! `POST /v1/transcribe`: the platform's own form, section 7 of the protocol.

use axum::response::Response;
use dalston_telemetry::services::engine::DirectEndpoint;
use serde_json::{Value, json};

use super::api::{Api, TranscriptionRequest, model};
use super::form::Fields;
use super::json;
use super::refusal::Refusal;
use crate::protocol::Capabilities;

/// Responds with the transcript of the stage, and with errors as `{"detail": …}`.
#[derive(Debug)]
pub(super) struct Platform;

impl Api for Platform {
    const ENDPOINT: DirectEndpoint = DirectEndpoint::Transcribe;
    const URL_FIELD: Option<&'static str> = Some("audio_url");
    const FIELDS: &'static [&'static str] = &[
        "file",
        "audio_url",
        "model",
        "language",
        "word_timestamps",
        "vocabulary",
        "channel",
        "vad_batch_size",
        "beam_size",
    ];
    type ResponseOptions = ();

    fn read(fields: &Fields, engine: &Capabilities) -> Result<((), TranscriptionRequest), Refusal> {
        let mut request = TranscriptionRequest {
            model: model(fields, &engine.engine_id)?,
            ..TranscriptionRequest::default()
        };
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                request.config.insert(key.to_owned(), value);
            }
        };
        set("language", fields.text("language")?.map(Value::from));
        set(
            "word_timestamps",
            fields.flag("word_timestamps")?.map(Value::from),
        );
        let vocabulary = fields.text("vocabulary")?.map(|words| {
            let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
            Value::from(words.collect::<Vec<_>>())
        });
        set("vocabulary", vocabulary);
        let number = |name| fields.parse::<u32>(name, "a whole number");
        set("channel", number("channel")?.map(Value::from));
        for name in ["vad_batch_size", "beam_size"] {
            let value = number(name)?;
            if value == Some(0) {
                return Err(Refusal::field(name, "0: expected a whole number from 1"));
            }
            set(name, value.map(Value::from));
        }
        Ok(((), request))
    }

    fn respond((): (), engine_id: &str, mut data: Value) -> Result<Response, Refusal> {
        if let Value::Object(transcript) = &mut data
            && transcript.get("engine_id").is_none_or(|id| id == "")
        {
            transcript.insert("engine_id".to_owned(), engine_id.into());
        }
        Ok(json::response(&data))
    }

    fn refuse(refusal: &Refusal) -> Value {
        json!({ "detail": refusal.message })
    }
}
