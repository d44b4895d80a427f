//! Events in both directions.

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// An event of a client.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default, rename = "event_id")]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) session: Value,
    #[serde(default)]
    pub(super) audio: String,
}

impl Event {
    /// Reads an event. The error is the event for the client.
    pub(super) fn parse(text: &str) -> Result<Self, Value> {
        serde_json::from_str(text).map_err(|problem| {
            let problem = format!("the event is not valid: {problem}");
            error("invalid_request_error", "invalid_event", &problem, None)
        })
    }
}

/// The event `error`. `cause` is the id of the client's event.
pub(super) fn error(kind: &str, code: &str, message: &str, cause: Option<&str>) -> Value {
    json!({
        "type": "error",
        "error": {"type": kind, "code": code, "message": message, "param": null, "event_id": cause},
    })
}

/// Gives an event its id.
pub(super) fn with_id(mut event: Value) -> Value {
    event["event_id"] = id("event").into();
    event
}

pub(super) fn id(kind: &str) -> String {
    format!("{kind}_{}", &Uuid::new_v4().simple().to_string()[..20])
}
