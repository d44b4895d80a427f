//! The worker's own HTTP server, section 7: `/health`, `/metrics`, `/v1/capabilities`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dalston_telemetry::metrics::Metrics;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};

use crate::broker::RedisServer;
use crate::protocol::Capabilities;
use crate::runner::{RunnerPhase, RunnerStatus};

/// Connections at the same time. Who comes later waits.
const CONNECTIONS: usize = 64;
/// How long a connection may stay, whatever it does: a few who send slowly must not keep the probes out.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// How long Redis may take to show that it is there.
const REDIS_PATIENCE: Duration = Duration::from_secs(2);
/// The loop shows itself twice a second.
const LOOP_PATIENCE: Duration = Duration::from_secs(15);

/// What the server tells.
pub(super) struct Server {
    pub(super) capabilities: Capabilities,
    pub(super) status: RunnerStatus,
    pub(super) redis: RedisServer,
    pub(super) metrics: Option<Metrics>,
}

/// The answer of `GET /health`. With status 200 the worker takes tasks, or is about to, or finishes its last ones; with 503
/// something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// The engine id.
    pub engine_id: String,
    /// `starting`, `running`, `draining` or `stopped`.
    pub phase: &'static str,
    /// Whether the control loop goes round.
    #[serde(rename = "loop")]
    pub control_loop: &'static str,
    /// Whether Redis answers.
    pub redis: &'static str,
    /// How many tasks the worker has in its hands.
    pub active_tasks: usize,
    /// The model that worked last.
    pub model: Option<String>,
}

/// A server that runs. It ends with this value.
#[derive(Debug)]
pub(super) struct Serving(JoinHandle<()>);

impl Serving {
    pub(super) fn start(listener: TcpListener, server: Arc<Server>) -> Self {
        let mut router = Router::new()
            .route("/health", get(health))
            .route("/v1/capabilities", get(capabilities));
        if let Some(metrics) = &server.metrics {
            router = router.route("/metrics", dalston_telemetry::axum::metrics(metrics.clone()));
        }
        let listener = Bounded {
            listener,
            free: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        let serving = axum::serve(listener, router.with_state(server));
        Self(tokio::spawn(async move {
            // It has no reason to end.
            let _ = serving.await;
        }))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let redis_answers = matches!(timeout(REDIS_PATIENCE, server.redis.ping()).await, Ok(Ok(())));
    let health = judge(&server.capabilities.engine_id, &server.status, redis_answers);
    let code = if health.status == "healthy" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, json(&health)).into_response()
}

async fn capabilities(State(server): State<Arc<Server>>) -> Response {
    json(&server.capabilities).into_response()
}

fn json<T: Serialize>(value: &T) -> impl IntoResponse + use<T> {
    let text = serde_json::to_string(value).expect("string keys and no `Serialize` that fails");
    ([(header::CONTENT_TYPE, "application/json")], text)
}

fn judge(engine_id: &str, status: &RunnerStatus, redis_answers: bool) -> Health {
    let phase = status.phase();
    let goes_round = match status.silent_for() {
        None => phase == RunnerPhase::Starting,
        Some(silent) => silent < LOOP_PATIENCE,
    };
    let healthy = redis_answers && goes_round && phase != RunnerPhase::Stopped;
    Health {
        status: if healthy { "healthy" } else { "unhealthy" },
        engine_id: engine_id.to_owned(),
        phase: match phase {
            RunnerPhase::Starting => "starting",
            RunnerPhase::Running => "running",
            RunnerPhase::Draining => "draining",
            RunnerPhase::Stopped => "stopped",
        },
        control_loop: if goes_round { "running" } else { "stuck" },
        redis: if redis_answers { "connected" } else { "unreachable" },
        active_tasks: status.active_tasks(),
        model: status.model().map(|model| model.to_string()),
    }
}

/// A listener with a bound on the number of connections and on their lives.
struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else {
                // Nobody closes the semaphore.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let end = Box::pin(sleep(CONNECTION_LIFE));
                    return (
                        Connection {
                            stream,
                            end,
                            _permit: permit,
                        },
                        peer,
                    );
                }
                // Too many open files, or the peer is gone again.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn unless_over<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        act(Pin::new(&mut self.stream), cx)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.unless_over(cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unless_over(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_over(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
