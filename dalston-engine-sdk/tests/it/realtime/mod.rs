//! Realtime sessions: over real WebSockets with a worker of a deployment, and without a socket
//! where time is paused.

mod deployment;
mod drain;
mod limits;
mod native;
mod openai;
mod platform;
mod protocol;
mod robust;
mod speech;
mod storage;
mod times;
pub(crate) mod tones;

use serde_json::Value;
use testbed::WebSocketClient as Client;

/// Opens a session, and reads `session.begin`.
pub(crate) async fn session(port: u16, query: &str) -> Client {
    Client::session(port, &format!("/session?{query}")).await.0
}

pub(crate) fn s16(samples: &[f32]) -> Vec<u8> {
    let sample = |sample: &f32| ((sample * 32_767.0) as i16).to_le_bytes();
    samples.iter().flat_map(sample).collect()
}

/// The messages of a type.
pub(crate) fn of_type<'a>(messages: &'a [Value], kind: &str) -> Vec<&'a Value> {
    messages
        .iter()
        .filter(|message| message["type"] == kind)
        .collect()
}
