//! The difference between the routes for transcripts.

use axum::response::Response;
use dalston_telemetry::services::engine::DirectEndpoint;
use serde_json::{Map, Value};

use super::form::{Fields, quoted};
use super::refusal::Refusal;
use crate::protocol::Capabilities;

/// One form of requests and responses.
pub(super) trait Api: Send + Sync + 'static {
    const ENDPOINT: DirectEndpoint;
    /// The field that may hold the URL of a recording in place of a file.
    const URL_FIELD: Option<&'static str>;
    /// The fields of a form. Others are ignored with a warning.
    const FIELDS: &'static [&'static str];
    /// The options of a request that change only its response.
    type ResponseOptions: Send;

    fn read(
        fields: &Fields,
        engine: &Capabilities,
    ) -> Result<(Self::ResponseOptions, TranscriptionRequest), Refusal>;
    /// The response for the `data` of the task's response.
    fn respond(options: Self::ResponseOptions, engine_id: &str, data: Value) -> Result<Response, Refusal>;
    /// The body of a response without a transcript.
    fn refuse(refusal: &Refusal) -> Value;
}

/// The options of a request for the engine.
#[derive(Debug, Default)]
pub(super) struct TranscriptionRequest {
    pub(super) model: Option<String>,
    pub(super) config: Map<String, Value>,
}

/// The model that the request names, if any.
///
/// Many engines use the name as a path, so every part of it must lead downwards.
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
    let leads_down = |part: &str| !part.is_empty() && !part.bytes().all(|byte| byte == b'.');
    if name.len() > LONGEST || !name.bytes().all(plain) || !name.split('/').all(leads_down) {
        let problem = format!("{}: that can't be the name of a model", quoted(name));
        return Err(Refusal::field("model", problem));
    }
    Ok(Some(name.to_owned()))
}
