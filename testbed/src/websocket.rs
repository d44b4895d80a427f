//! The client side of realtime sessions: [`WebSocketClient`].

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// The length of a piece of audio.
const PIECE: Duration = Duration::from_millis(100);
/// Its bytes, with 16,000 samples of 16 bits a second.
const PIECE_BYTES: usize = 3_200;
/// The longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(60);

/// A WebSocket with JSON messages, as the client of a server on this machine.
#[derive(Debug)]
pub struct WebSocketClient<S = MaybeTlsStream<TcpStream>> {
    socket: WebSocketStream<S>,
    /// The code of the close frame.
    pub closed: Option<u16>,
    /// The header of the response to the upgrade.
    pub headers: HeaderMap,
}

impl WebSocketClient {
    /// Opens a WebSocket. `path` may have a query. No message is read yet.
    ///
    /// # Panics
    ///
    /// If the server refuses it, or compresses messages. Compression costs processor time, and
    /// Python's client offers it.
    pub async fn open(port: u16, path: &str, headers: &[(&'static str, &str)]) -> Self {
        let url = format!("ws://127.0.0.1:{port}{path}");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, response) = connect_async(request).await.unwrap();
        assert!(!response.headers().contains_key("sec-websocket-extensions"));
        Self {
            headers: response.headers().clone(),
            ..Self::new(socket)
        }
    }

    /// Opens a session, and returns the message `session.begin`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn session(port: u16, path: &str) -> (Self, Value) {
        let mut client = Self::open(port, path, &[]).await;
        let begin = client.next().await;
        assert_eq!(begin["type"], "session.begin", "{begin}");
        (client, begin)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketClient<S> {
    /// The side of this socket.
    #[must_use]
    pub fn new(socket: WebSocketStream<S>) -> Self {
        Self {
            socket,
            closed: None,
            headers: HeaderMap::new(),
        }
    }

    /// Sends a message.
    ///
    /// # Panics
    ///
    /// If the connection is closed.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text message that need not be JSON.
    ///
    /// # Panics
    ///
    /// If the connection is closed.
    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::Text(text.into())).await.unwrap();
    }

    /// Sends bytes. Returns false if the other side has closed the connection.
    pub async fn send_bytes(&mut self, bytes: impl Into<Bytes>) -> bool {
        self.socket.send(Message::Binary(bytes.into())).await.is_ok()
    }

    /// Sends samples as 16 bits, in pieces of 100 ms at 16 kHz.
    ///
    /// # Panics
    ///
    /// If the connection is closed.
    pub async fn send_audio(&mut self, samples: &[f32]) {
        for piece in samples.chunks(1_600) {
            let sample = |sample: &f32| ((sample * 32_767.0) as i16).to_le_bytes();
            let bytes: Vec<u8> = piece.iter().flat_map(sample).collect();
            assert!(self.send_bytes(bytes).await);
        }
    }

    /// The next message; `null` when the connection is closed. Bytes are
    /// `{"audio": their number}`.
    ///
    /// # Panics
    ///
    /// If there is none in a minute.
    pub async fn next(&mut self) -> Value {
        let receiving = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                    Some(Ok(Message::Binary(audio))) => return json!({"audio": audio.len()}),
                    Some(Ok(Message::Close(frame))) => self.closed = frame.map(|frame| frame.code.into()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Value::Null,
                }
            }
        };
        timeout(PATIENCE, receiving)
            .await
            .expect("no message in a minute")
    }

    /// The messages until one of this type, which is the last.
    ///
    /// # Panics
    ///
    /// If there is none before the connection is closed.
    pub async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            assert!(!message.is_null(), "no {kind} after {messages:?}");
            let is_last = message["type"] == kind;
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }

    /// The messages until the connection is closed.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Value::Null => return messages,
                message => messages.push(message),
            }
        }
    }

    /// Sends `end`, and returns the messages until the connection is closed.
    ///
    /// # Panics
    ///
    /// If the connection is closed already.
    pub async fn finish(&mut self) -> Vec<Value> {
        self.send(json!({"type": "end"})).await;
        self.rest().await
    }

    /// Sends samples of 16 bits at 16 kHz as they are spoken, in pieces of 100 ms, and then `end`.
    /// `speed` is 1 for real time. Returns the messages until the connection is closed, each with
    /// the time since the start.
    ///
    /// # Panics
    ///
    /// If a message is not JSON.
    pub async fn stream(self, audio: &[u8], speed: f64) -> Vec<(Duration, Value)> {
        let (mut sending, mut receiving) = self.socket.split();
        let start = Instant::now();
        let send = async {
            for (at, piece) in audio.chunks(PIECE_BYTES).enumerate() {
                // A piece exists when its last sample was spoken.
                let spoken = PIECE.mul_f64((at + 1) as f64 / speed);
                sleep_until(start + spoken).await;
                let piece = Bytes::copy_from_slice(piece);
                if sending.send(Message::Binary(piece)).await.is_err() {
                    return;
                }
            }
            let _ = sending.send(Message::Text(r#"{"type":"end"}"#.into())).await;
        };
        let receive = async {
            let mut messages = Vec::new();
            while let Some(Ok(message)) = receiving.next().await {
                if let Message::Text(text) = message {
                    messages.push((start.elapsed(), serde_json::from_str(&text).unwrap()));
                }
            }
            messages
        };
        tokio::join!(send, receive).1
    }

    /// Closes the connection with a close frame.
    ///
    /// # Panics
    ///
    /// If the connection is closed already.
    pub async fn close(&mut self, code: u16) {
        let frame = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        self.socket.send(Message::Close(Some(frame))).await.unwrap();
    }
}
