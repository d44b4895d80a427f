//! A realtime session in a test: [`RealtimeSession`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::realtime::{Gone, Peer, RealtimeServer, Received, parse_query};

/// A realtime session with a worker in a test, without a socket between. Made by
/// [`Worker::session`](super::Worker::session).
///
/// ```
/// use dalston_engine_sdk::testing::EngineHarness;
/// use dalston_engine_sdk::{
///     Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError, TaskRequest, Transcript,
/// };
///
/// struct Beeps;
///
/// impl Engine for Beeps {
///     type Model = ();
///     type Output = Transcript;
///
///     fn info(&self) -> EngineInfo {
///         EngineInfo::new("beeps", "1.0.0").stage(Stage::Transcribe).realtime(true)
///     }
///
///     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
///         Ok(())
///     }
///
///     fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Transcript, TaskError> {
///         let seconds = task.audio()?.duration().as_secs_f64();
///         Ok(Transcript::from_segments([Segment::new(0.0, seconds, "beep")]))
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let worker = EngineHarness::new(Beeps).start();
/// let mut session = worker.session("enable_vad=false&interim_results=false");
/// assert_eq!(session.next().await["type"], "session.begin");
/// session.send_audio(&[0.5; 16_000]).await;
/// let messages = session.finish().await;
/// assert_eq!(messages[0]["text"], "beep");
/// assert_eq!(messages[1]["total_audio_seconds"], 1.0);
/// worker.stop().await;
/// # });
/// ```
#[derive(Debug)]
pub struct RealtimeSession {
    to: mpsc::Sender<Received>,
    from: mpsc::UnboundedReceiver<Sent>,
    close_code: Option<u16>,
    answers_pings: Arc<AtomicBool>,
}

/// What the worker sends.
#[derive(Debug)]
enum Sent {
    Message(Value),
    Close(u16),
}

/// So many messages of the client wait at most.
const WAITING: usize = 16;

impl RealtimeSession {
    pub(super) fn open(sessions: RealtimeServer, query: &str, telemetry: &TestTelemetry) -> Self {
        let (to, incoming) = mpsc::channel(WAITING);
        let (outgoing, from) = mpsc::unbounded_channel();
        let answers_pings = Arc::new(AtomicBool::new(true));
        let mut peer = Channel {
            incoming,
            outgoing,
            is_pinged: false,
            answers_pings: Arc::clone(&answers_pings),
        };
        let query = parse_query(query);
        let serving = async move { sessions.serve(&mut peer, &query, None).await };
        tokio::spawn(telemetry.attach(serving));
        Self {
            to,
            from,
            close_code: None,
            answers_pings,
        }
    }

    /// Answers no further ping of the worker, as a client whose network is gone.
    pub fn ignore_pings(&self) {
        self.answers_pings.store(false, Ordering::Relaxed);
    }

    /// Sends these samples, between -1 and 1, as `pcm_s16le`. Waits while the worker reads nothing.
    pub async fn send_audio(&self, samples: &[f32]) {
        let bytes: Vec<u8> = samples
            .iter()
            .flat_map(|sample| ((sample * 32_767.0) as i16).to_le_bytes())
            .collect();
        self.send_bytes(bytes).await;
    }

    /// Sends a binary message.
    pub async fn send_bytes(&self, bytes: impl Into<Bytes>) {
        // The session may have ended.
        let _ = self.to.send(Received::Audio(bytes.into())).await;
    }

    /// Sends a text message.
    pub async fn send(&self, message: Value) {
        self.send_text(message.to_string()).await;
    }

    /// Sends a text message that need not be JSON.
    pub async fn send_text(&self, text: impl Into<String>) {
        let _ = self.to.send(Received::Text(text.into())).await;
    }

    /// The next message of the worker; `null` after the last one.
    pub async fn next(&mut self) -> Value {
        match self.from.recv().await {
            Some(Sent::Message(message)) => message,
            Some(Sent::Close(code)) => {
                self.close_code = Some(code);
                Value::Null
            }
            None => Value::Null,
        }
    }

    /// Sends `end`, and returns the messages until the session is closed.
    pub async fn finish(&mut self) -> Vec<Value> {
        self.send(json!({"type": "end"})).await;
        self.rest().await
    }

    /// The messages until the session is closed.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Value::Null => return messages,
                message => messages.push(message),
            }
        }
    }

    /// The code with which the worker has closed the session.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.close_code
    }
}

/// The side of the worker.
struct Channel {
    incoming: mpsc::Receiver<Received>,
    outgoing: mpsc::UnboundedSender<Sent>,
    is_pinged: bool,
    answers_pings: Arc<AtomicBool>,
}

impl Peer for Channel {
    async fn receive(&mut self) -> Received {
        if std::mem::take(&mut self.is_pinged) {
            return Received::Pong;
        }
        self.incoming.recv().await.unwrap_or(Received::Lost)
    }

    async fn send(&mut self, message: &Value) -> Result<(), Gone> {
        self.outgoing
            .send(Sent::Message(message.clone()))
            .map_err(|_| Gone)
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        self.is_pinged = self.answers_pings.load(Ordering::Relaxed);
        Ok(())
    }

    async fn close(&mut self, code: u16, _: &'static str) {
        let _ = self.outgoing.send(Sent::Close(code));
    }
}
