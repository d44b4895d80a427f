//! The other side of a session: the trait [`Peer`], and the WebSocket of axum.

use std::future::Future;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;

use super::messages::ConfigChange;

/// The other side of a session.
pub(crate) trait Peer: Send {
    /// Waits for the next message. May be dropped while it waits.
    fn receive(&mut self) -> impl Future<Output = Received> + Send;

    /// Sends a message.
    fn send(&mut self, message: &Value) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Asks for a sign of life, which is received as [`Received::Pong`].
    fn ping(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Closes the connection, and waits a moment for the other side to do the same.
    fn close(&mut self, code: u16, reason: &'static str) -> impl Future<Output = ()> + Send;
}

/// A message of the other side.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Received {
    Audio(Bytes),
    Text(String),
    /// A change of the configuration beyond what the text message can say.
    Config(Box<ConfigChange>),
    /// What the other side gets in return for its message.
    Reply(Value),
    Pong,
    Closed,
    /// The message is longer than a message may be.
    TooBig,
    Lost,
}

/// The connection was lost.
#[derive(Debug)]
pub(crate) struct Gone;

/// How long the other side gets to answer a close frame. Data that it has sent before is read
/// meanwhile: a socket that is closed with unread data loses the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Peer for WebSocket {
    async fn receive(&mut self) -> Received {
        match self.recv().await {
            Some(Ok(Message::Binary(audio))) => Received::Audio(audio),
            Some(Ok(Message::Text(text))) => Received::Text(text.to_string()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Received::Pong,
            Some(Ok(Message::Close(_))) => Received::Closed,
            Some(Err(error)) if error.to_string().contains("too long") => Received::TooBig,
            Some(Err(_)) | None => Received::Lost,
        }
    }

    async fn send(&mut self, message: &Value) -> Result<(), Gone> {
        let message = Message::Text(message.to_string().into());
        Self::send(self, message).await.map_err(|_| Gone)
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        Self::send(self, Message::Ping(Bytes::new()))
            .await
            .map_err(|_| Gone)
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        if Self::send(self, Message::Close(Some(frame))).await.is_err() {
            return;
        }
        let _ = timeout(CLOSE_TIMEOUT, async {
            while let Some(Ok(_)) = self.recv().await {}
        })
        .await;
    }
}
