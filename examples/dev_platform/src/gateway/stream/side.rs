//! The two sides of a session, the client and the worker, as one type: [`Side`].

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{self, WebSocket};
use futures_util::stream::BoxStream;
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Bytes};

/// After so much silence a side is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// The longest message of a client, as at the worker.
const LONGEST_MESSAGE: usize = 1024 * 1024;
/// The longest message that is read. Nothing is read after a longer one, and a connection that is
/// closed with unread data loses its last messages.
pub(super) const LONGEST_READ: usize = 4 * LONGEST_MESSAGE;
/// How long a side has for the answer to a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A message of a WebSocket.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    Text(String),
    Audio(Bytes),
    Ping,
    Pong,
    Close(Option<Close>),
}

/// The content of a close frame.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Close {
    pub(super) code: u16,
    pub(super) reason: String,
}

/// Why no message comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Broken {
    /// The message is longer than a message may be.
    TooBig,
    Lost,
}

/// One side of a session.
pub(super) struct Side {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
}

/// The messages of a side.
pub(super) struct Incoming {
    frames: BoxStream<'static, Result<Frame, Broken>>,
    outgoing: Outgoing,
    /// A side that is silent for longer is lost.
    patience: Duration,
}

/// Sends messages to a side. A message is sent when the one before it has left, so nothing piles
/// up.
#[derive(Clone)]
pub(super) struct Outgoing {
    frames: Arc<Mutex<Frames>>,
    /// A side that takes nothing for longer is lost.
    patience: Duration,
}

struct Frames(Pin<Box<dyn Sink<Frame, Error = Broken> + Send>>);

impl Frame {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Audio(audio) => audio.len(),
            Self::Ping | Self::Pong | Self::Close(_) => 0,
        }
    }
}

impl Side {
    pub(super) fn of_client(socket: WebSocket, silence: Duration, stall: Duration) -> Self {
        let (sink, stream) = socket.split();
        let sink = sink
            .with(|frame| ready(Ok::<_, axum::Error>(ws::Message::from(frame))))
            .sink_map_err(|_| Broken::Lost);
        let frames = stream.map(|message| match message.map(Frame::from) {
            Ok(frame) if frame.size() > LONGEST_MESSAGE => Err(Broken::TooBig),
            Ok(frame) => Ok(frame),
            Err(error) => Err(broken(error.into_inner().downcast_ref())),
        });
        Self::new(sink, frames.boxed(), silence, stall)
    }

    pub(super) fn of_worker<S>(socket: WebSocketStream<S>, silence: Duration, stall: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sink, stream) = socket.split();
        let sink = sink
            .with(|frame| ready(Ok::<_, tungstenite::Error>(tungstenite::Message::from(frame))))
            .sink_map_err(|_| Broken::Lost);
        let frames = stream.map(|message| match message {
            Ok(message) => Ok(message.into()),
            Err(error) => Err(broken(Some(&error))),
        });
        Self::new(sink, frames.boxed(), silence, stall)
    }

    fn new(
        sink: impl Sink<Frame, Error = Broken> + Send + 'static,
        frames: BoxStream<'static, Result<Frame, Broken>>,
        silence: Duration,
        stall: Duration,
    ) -> Self {
        let outgoing = Outgoing {
            frames: Arc::new(Mutex::new(Frames(Box::pin(sink)))),
            patience: stall,
        };
        Self {
            incoming: Incoming {
                frames,
                outgoing: outgoing.clone(),
                patience: silence,
            },
            outgoing,
        }
    }

    /// Closes the connection, and waits a moment for the other side to do the same. What it has
    /// sent before is read: a socket that is closed with unread data loses the close frame.
    pub(super) async fn close(&mut self, close: Close) {
        if self.outgoing.send(Frame::Close(Some(close))).await.is_err() {
            return;
        }
        let _ = timeout(CLOSE_TIMEOUT, async {
            while let Some(Ok(_)) = self.incoming.frames.next().await {}
        })
        .await;
    }
}

impl Incoming {
    /// Waits for a message that is no ping and no pong. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Result<Frame, Broken> {
        let mut silence = Duration::ZERO;
        loop {
            match timeout(PING_INTERVAL, self.frames.next()).await {
                Ok(Some(Ok(Frame::Ping | Frame::Pong))) => silence = Duration::ZERO,
                Ok(Some(frame)) => return frame,
                Ok(None) => return Err(Broken::Lost),
                Err(_) => {
                    silence += PING_INTERVAL;
                    if silence >= self.patience {
                        return Err(Broken::Lost);
                    }
                    self.outgoing.ping().await?;
                }
            }
        }
    }
}

impl Outgoing {
    /// Sends a message.
    pub(super) async fn send(&self, frame: Frame) -> Result<(), Broken> {
        let sending = async { self.frames.lock().await.0.send(frame).await };
        timeout(self.patience, sending).await.unwrap_or(Err(Broken::Lost))
    }

    /// Asks for a sign of life, unless a message is on its way.
    async fn ping(&self) -> Result<(), Broken> {
        match self.frames.try_lock() {
            Ok(mut frames) => {
                let sending = frames.0.send(Frame::Ping);
                timeout(self.patience, sending).await.unwrap_or(Err(Broken::Lost))
            }
            Err(_) => Ok(()),
        }
    }
}

impl Close {
    pub(super) fn new(code: u16, reason: &str) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
        }
    }
}

fn broken(error: Option<&tungstenite::Error>) -> Broken {
    match error {
        Some(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. })) => Broken::TooBig,
        _ => Broken::Lost,
    }
}

impl From<ws::Message> for Frame {
    fn from(message: ws::Message) -> Self {
        match message {
            ws::Message::Text(text) => Self::Text(text.as_str().to_owned()),
            ws::Message::Binary(audio) => Self::Audio(audio),
            ws::Message::Ping(_) => Self::Ping,
            ws::Message::Pong(_) => Self::Pong,
            ws::Message::Close(close) => Self::Close(close.map(|close| Close {
                code: close.code,
                reason: close.reason.as_str().to_owned(),
            })),
        }
    }
}

impl From<Frame> for ws::Message {
    fn from(frame: Frame) -> Self {
        match frame {
            Frame::Text(text) => Self::Text(text.into()),
            Frame::Audio(audio) => Self::Binary(audio),
            Frame::Ping => Self::Ping(Bytes::new()),
            Frame::Pong => Self::Pong(Bytes::new()),
            Frame::Close(close) => Self::Close(close.map(|close| ws::CloseFrame {
                code: close.code,
                reason: close.reason.into(),
            })),
        }
    }
}

impl From<tungstenite::Message> for Frame {
    fn from(message: tungstenite::Message) -> Self {
        use tungstenite::Message;
        match message {
            Message::Text(text) => Self::Text(text.as_str().to_owned()),
            Message::Binary(audio) => Self::Audio(audio),
            Message::Ping(_) => Self::Ping,
            // A raw frame is never read.
            Message::Pong(_) | Message::Frame(_) => Self::Pong,
            Message::Close(close) => Self::Close(close.map(|close| Close {
                code: close.code.into(),
                reason: close.reason.as_str().to_owned(),
            })),
        }
    }
}

impl From<Frame> for tungstenite::Message {
    fn from(frame: Frame) -> Self {
        match frame {
            Frame::Text(text) => Self::Text(text.into()),
            Frame::Audio(audio) => Self::Binary(audio),
            Frame::Ping => Self::Ping(Bytes::new()),
            Frame::Pong => Self::Pong(Bytes::new()),
            Frame::Close(close) => Self::Close(close.map(|close| CloseFrame {
                code: close.code.into(),
                reason: close.reason.into(),
            })),
        }
    }
}
