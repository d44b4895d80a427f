//! `POST /v1/transcribe`: the platform's own form, section 7 of the protocol.

use axum::response::{IntoResponse, Response};
use dalston_telemetry::services::engine::DirectEndpoint;
use serde_json::{Value, json};

use super::form::{Fields, shown};
use super::refusal::Refusal;
use super::status;
use super::transcribe::{Contract, Order};

/// Fields in, the transcript of the stage out, errors as `{"detail": …}`.
#[derive(Debug)]
pub(super) struct Platform;

impl Contract for Platform {
    const ENDPOINT: DirectEndpoint = DirectEndpoint::Transcribe;
    const URL: Option<&'static str> = Some("audio_url");
    type Wishes = ();

    fn read(fields: &Fields, engine_id: &str) -> Result<((), Order), Refusal> {
        let mut order = Order {
            model: model(fields, engine_id)?,
            ..Order::default()
        };
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                order.config.insert(key.to_owned(), value);
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
        Ok(((), order))
    }

    fn answer((): (), engine_id: &str, mut data: Value) -> Result<Response, Refusal> {
        if let Value::Object(transcript) = &mut data
            && transcript.get("engine_id").is_none_or(|id| id == "")
        {
            transcript.insert("engine_id".to_owned(), engine_id.into());
        }
        Ok(status::json(&data).into_response())
    }

    fn refuse(refusal: &Refusal) -> Response {
        status::json(&json!({ "detail": refusal.message })).into_response()
    }
}

/// The model that the request names, if it names one. Names become paths in many engines, so they lead nowhere but down.
pub(super) fn model(fields: &Fields, engine_id: &str) -> Result<Option<String>, Refusal> {
    const LONGEST: usize = 256;
    let Some(name) = fields.text("model")? else {
        return Ok(None);
    };
    if name == "auto" || name == engine_id {
        return Ok(None);
    }
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'/' | b':' | b'@');
    let down = |part: &str| !part.is_empty() && !part.bytes().all(|byte| byte == b'.');
    if name.len() > LONGEST || !name.bytes().all(plain) || !name.split('/').all(down) {
        let problem = format!("{}: that can't be the name of a model", shown(name));
        return Err(Refusal::field("model", problem));
    }
    Ok(Some(name.to_owned()))
}
