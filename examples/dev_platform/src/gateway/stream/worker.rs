//! The connection to a realtime worker: [`connect`].

use std::time::Duration;

use dalston_telemetry::propagate;
use dalston_telemetry::services::MessageContext;
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::protocol::Protocol;
use super::side::{Broken, Close, Frame, Side};
use crate::session_router::Place;

/// How long a worker has to accept a connection, and to begin a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message of a worker: the last one has the text of the whole session.
const LONGEST_MESSAGE: usize = 16 * 1024 * 1024;
/// A worker may read nothing and say nothing while it transcribes, for 120 s at most.
const PATIENCE: Duration = Duration::from_secs(160);

/// A worker that has begun a session.
pub(super) struct Begun {
    pub(super) worker: Side,
    /// Its first message.
    pub(super) begin: String,
}

/// Why a worker does not begin a session.
#[derive(Debug)]
pub(super) enum NotBegun {
    /// It does not answer.
    Unreachable(String),
    /// It has refused the session, with a message unless it is one of the platform's own.
    Refused {
        message: Option<Value>,
        close: Option<Close>,
    },
}

/// Opens a session with this query at a worker.
pub(super) async fn connect(
    protocol: Protocol,
    place: &Place,
    query: &str,
    message: &MessageContext,
) -> Result<Begun, NotBegun> {
    let opening = open(protocol, place, query, message);
    let mut worker = match timeout(OPEN_TIMEOUT, opening).await {
        Ok(Ok(worker)) => worker,
        Ok(Err(error)) => return Err(NotBegun::Unreachable(error.to_string())),
        Err(_) => return Err(NotBegun::Unreachable("no answer in time".to_owned())),
    };
    let first = timeout(OPEN_TIMEOUT, worker.incoming.next()).await;
    match first.unwrap_or(Err(Broken::Lost)) {
        Ok(Frame::Text(begin)) if !is_error(&begin) => Ok(Begun { worker, begin }),
        Ok(Frame::Text(error)) => {
            let close = timeout(OPEN_TIMEOUT, worker.incoming.next()).await;
            let close = match close {
                Ok(Ok(Frame::Close(close))) => close,
                _ => None,
            };
            Err(NotBegun::Refused {
                message: serde_json::from_str(&error).ok(),
                close,
            })
        }
        Ok(Frame::Close(close)) => Err(NotBegun::Refused { message: None, close }),
        Ok(_) | Err(_) => Err(NotBegun::Unreachable("the connection was lost".to_owned())),
    }
}

async fn open(
    protocol: Protocol,
    place: &Place,
    query: &str,
    message: &MessageContext,
) -> Result<Side, tungstenite::Error> {
    let (endpoint, path) = (place.endpoint.trim_end_matches('/'), protocol.worker_path());
    let url = format!("{endpoint}{path}?{query}");
    let mut request = url.into_client_request()?;
    propagate::inject_headers(&message.context(), request.headers_mut());
    let config = WebSocketConfig::default()
        .max_message_size(Some(LONGEST_MESSAGE))
        .max_frame_size(Some(LONGEST_MESSAGE));
    // Small messages must not wait for more.
    let no_delay = true;
    let (socket, _) = connect_async_with_config(request, Some(config), no_delay).await?;
    Ok(Side::of_worker(socket, PATIENCE, PATIENCE))
}

fn is_error(message: &str) -> bool {
    let message: Value = serde_json::from_str(message).unwrap_or_default();
    message["type"] == "error"
}
