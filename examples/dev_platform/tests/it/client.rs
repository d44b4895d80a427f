//! Clients of the gateway's realtime sessions, and a worker that does what a test says.

use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use serde_json::{Value, json};
use testbed::{TestRedis, WebSocketClient};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use crate::rig::{Rig, hex};

/// The longest wait for a session.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PATH: &str = "/v1/audio/transcriptions/stream";

/// Opens a WebSocket of the gateway. No message is read yet.
pub(crate) async fn open(rig: &Rig, query: &str, headers: &[(&'static str, &str)]) -> WebSocketClient {
    WebSocketClient::open(rig.port(), &format!("{PATH}?{query}"), headers).await
}

/// Opens a session of the gateway, and returns the message `session.begin`.
pub(crate) async fn open_session(rig: &Rig, query: &str) -> (WebSocketClient, Value) {
    WebSocketClient::session(rig.port(), &format!("{PATH}?{query}")).await
}

/// A realtime worker in the registry whose sessions a test serves.
pub(crate) struct Worker {
    listener: TcpListener,
    instance: String,
}

/// A session at a [`Worker`].
pub(crate) struct WorkerSession {
    pub(crate) gateway: WebSocketClient<TcpStream>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) traceparent: Option<String>,
}

impl Worker {
    /// Registers a worker with these fields besides the usual ones.
    pub(crate) async fn register(redis: &TestRedis, instance: &str, more: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("ws://{}", listener.local_addr().unwrap());
        let worker = Self {
            listener,
            instance: instance.to_owned(),
        };
        let _: i64 = redis.send(&["SADD", "dalston:engine:instances", instance]).await;
        let usual = [
            ("instance", instance),
            ("engine_id", "scripted"),
            ("stage", "transcribe"),
            ("status", "ready"),
            ("interfaces", r#"["realtime"]"#),
            ("capacity", "2"),
            ("active_realtime", "0"),
            ("endpoint", &endpoint),
        ];
        worker.set(redis, &usual).await;
        worker.heartbeat(redis, more).await;
        worker
    }

    /// Sends a heartbeat with these fields.
    pub(crate) async fn heartbeat(&self, redis: &TestRedis, more: &[(&str, &str)]) {
        let now = Timestamp::now().to_string();
        self.set(redis, &[("last_heartbeat", &now)]).await;
        self.set(redis, more).await;
    }

    async fn set(&self, redis: &TestRedis, fields: &[(&str, &str)]) {
        let key = format!("dalston:engine:instance:{}", self.instance);
        for (name, value) in fields {
            let _: i64 = redis.send(&["HSET", &key, name, value]).await;
        }
    }

    /// The next session that the gateway opens. It has got no message yet.
    pub(crate) async fn next(&self) -> WorkerSession {
        let accepting = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let (mut query, mut traceparent) = (Vec::new(), None);
            #[expect(clippy::result_large_err, reason = "the type of the library")]
            let read = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
                let text = request.uri().query().unwrap_or_default();
                query = url::form_urlencoded::parse(text.as_bytes())
                    .into_owned()
                    .collect();
                let header = request.headers().get("traceparent");
                traceparent = header.map(|value| value.to_str().unwrap().to_owned());
                Ok(response)
            };
            let socket = accept_hdr_async(stream, read).await.unwrap();
            WorkerSession {
                gateway: WebSocketClient::new(socket),
                query,
                traceparent,
            }
        };
        timeout(PATIENCE, accepting).await.expect("no session in time")
    }

    /// The next session, which has begun.
    pub(crate) async fn begin(&self) -> WorkerSession {
        let mut session = self.next().await;
        session.gateway.send(json!({"type": "session.begin"})).await;
        session
    }

    /// Refuses the next session.
    pub(crate) async fn refuse(&self, code: &str, close: u16) {
        let mut session = self.next().await;
        let error = json!({"type": "error", "code": code, "message": "no", "recoverable": false});
        session.gateway.send(error).await;
        session.gateway.close(close).await;
    }
}

/// A recording of speech without its header: 16 kHz, one channel, 16 bits.
pub(crate) fn speech(name: &str) -> Vec<u8> {
    std::fs::read(speech_file(name)).unwrap().split_off(44)
}

/// Its path, without `..`: Chromium reads no other one.
pub(crate) fn speech_file(name: &str) -> String {
    let recordings = concat!(env!("CARGO_MANIFEST_DIR"), "/../faster_whisper/audio");
    let recordings = std::fs::canonicalize(recordings).unwrap();
    format!("{}/{name}.wav", recordings.display())
}

/// A trace context, and its trace id.
pub(crate) fn trace_context() -> (String, String) {
    let id = hex(uuid::Uuid::new_v4().as_bytes());
    (format!("00-{id}-00f067aa0ba902b7-01"), id)
}
