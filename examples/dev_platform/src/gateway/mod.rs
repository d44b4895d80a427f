//! The gateway: the HTTP API of the platform (section 11 of the protocol), and the page.
//!
//! | Module | What is in it |
//! |---|---|
//! | `submit` | `POST /v1/audio/transcriptions` |
//! | `form` | its form |
//! | `openai` | the synchronous answer for clients of OpenAI's API |
//! | `jobs` | list, status, cancel, retry, delete |
//! | `tasks` | the tasks of a job, and their documents |
//! | `engines` | the registry |
//! | `realtime` | places for sessions, and tokens for browsers |
//! | `stream` | realtime sessions, which it passes on to workers |
//! | `traces` | a trace as a file |
//! | `access` | the key, and changes that pages may not make |
//! | `error` | errors as JSON with the ids of the request |

mod access;
mod engines;
mod error;
mod form;
mod jobs;
mod openai;
mod realtime;
mod stream;
mod submit;
mod tasks;
mod traces;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use axum::{Json, Router};
use dalston_telemetry::audit::AuditEvent;
use dalston_telemetry::axum::metrics;
use dalston_telemetry::services::gateway::{GatewayMetrics, HttpMethod};
use dalston_telemetry::tower::HttpLayer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use self::access::{authorize, refuse_pages};
use self::error::ApiError;
use self::stream::Sessions;
use crate::config::Config;
use crate::page;
use crate::platform::Platform;
use crate::session_router::SessionRouter;

/// What the handlers share.
#[derive(Debug)]
struct Gateway {
    platform: Platform,
    metrics: GatewayMetrics,
    api_key: Option<String>,
    sessions: Sessions,
}

type Shared = State<Arc<Gateway>>;

/// Routes whose metrics begin at zero, so that queries see the first request and the first failure.
const COUNTED: [(HttpMethod, &str); 12] = [
    (HttpMethod::Post, "/v1/audio/transcriptions"),
    (HttpMethod::Get, "/v1/audio/transcriptions"),
    (HttpMethod::Get, "/v1/audio/transcriptions/{id}"),
    (HttpMethod::Delete, "/v1/audio/transcriptions/{id}"),
    (HttpMethod::Post, "/v1/audio/transcriptions/{id}/cancel"),
    (HttpMethod::Post, "/v1/audio/transcriptions/{id}/retry"),
    (HttpMethod::Get, "/v1/audio/transcriptions/{id}/tasks"),
    (HttpMethod::Get, stream::PATH),
    (HttpMethod::Get, stream::OPENAI_PATH),
    (HttpMethod::Get, "/v1/engines"),
    (HttpMethod::Get, "/v1/realtime/status"),
    (HttpMethod::Post, "/v1/realtime/token"),
];

/// Serves until `shutdown` completes, and then until the last response and the last session have
/// ended.
pub(crate) async fn serve(
    config: &Config,
    platform: Platform,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let address = SocketAddr::from(([0, 0, 0, 0], config.port));
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on port {}", config.port))?;
    info!(address = %listener.local_addr()?, "gateway_listening");
    // The streams of the page would never end by themselves, and sessions only after hours.
    let (close, closed) = watch::channel(false);
    let router = SessionRouter::new(platform.wire.clone(), platform.telemetry.metrics());
    let metrics = GatewayMetrics::register(platform.telemetry.metrics());
    for (method, route) in COUNTED {
        let _ = metrics.route(method, route);
    }
    let gateway = Arc::new(Gateway {
        metrics,
        api_key: config.api_key.clone(),
        sessions: Sessions::new(
            router.clone(),
            config.max_sessions,
            config.session_drain,
            closed.clone(),
        ),
        platform,
    });
    let shutdown = async move {
        shutdown.await;
        close.send_replace(true);
    };
    let service = routes(Arc::clone(&gateway), closed).into_make_service_with_connect_info::<SocketAddr>();
    let serving = async {
        axum::serve(listener, service)
            .with_graceful_shutdown(shutdown)
            .await?;
        // The server does not wait for WebSockets.
        gateway.sessions.ended().await;
        Ok(())
    };
    tokio::select! {
        ended = serving => ended,
        never = router.watch() => match never {},
    }
}

fn routes(gateway: Arc<Gateway>, closed: watch::Receiver<bool>) -> Router {
    let layer = HttpLayer::of(&gateway.platform.telemetry)
        .metrics(gateway.metrics.clone())
        .exclude(["/health", "/metrics"])
        .exclude(page::UNOBSERVED);
    let api = Router::new()
        .route("/v1/audio/transcriptions", post(submit::submit).get(jobs::list))
        .route(
            "/v1/audio/transcriptions/{id}",
            get(jobs::status).delete(jobs::delete),
        )
        .route("/v1/audio/transcriptions/{id}/cancel", post(jobs::cancel))
        .route("/v1/audio/transcriptions/{id}/retry", post(jobs::retry))
        .route("/v1/audio/transcriptions/{id}/tasks", get(tasks::list))
        .route(
            "/v1/audio/transcriptions/{id}/tasks/{task_id}/artifacts",
            get(tasks::artifacts),
        )
        .route("/v1/engines", get(engines::list))
        .route("/v1/realtime/status", get(realtime::status))
        .route("/v1/realtime/token", post(realtime::token))
        .route("/v1/traces/{trace_id}", get(traces::download))
        .merge(page::router(gateway.platform.clone(), closed))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&gateway), refuse_pages))
        .layer(from_fn_with_state(Arc::clone(&gateway), authorize));
    Router::new()
        .merge(api)
        // They ask for the key themselves: a WebSocket is refused with a message.
        .route(stream::PATH, get(stream::stream))
        .route(stream::OPENAI_PATH, get(stream::stream))
        .route("/health", get(health))
        .route("/metrics", metrics(gateway.platform.telemetry.metrics().clone()))
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(from_fn(error::with_ids))
        .layer(layer)
        .layer(from_fn(stream::accept_trace_context))
        .with_state(gateway)
}

async fn health(State(gateway): Shared) -> Json<Value> {
    let redis = match gateway.platform.wire.ping().await {
        Ok(()) => "connected",
        // Healthy nevertheless: a restart would not bring Redis back.
        Err(_) => "unreachable",
    };
    let dropped_spans = gateway.platform.traces.dropped();
    Json(json!({"status": "healthy", "redis": redis, "dropped_spans": dropped_spans}))
}

/// The sender of a request, for audit records.
#[derive(Clone, Debug)]
struct Caller {
    address: SocketAddr,
    agent: String,
    has_key: bool,
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let ConnectInfo(address) = ConnectInfo::<SocketAddr>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::internal(&error))?;
        let text = |headers: &HeaderMap, name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Ok(Self {
            address,
            agent: text(&parts.headers, header::USER_AGENT).unwrap_or_default(),
            has_key: parts.headers.contains_key(header::AUTHORIZATION),
        })
    }
}

impl Caller {
    fn sign(&self, event: AuditEvent) -> AuditEvent {
        let kind = if self.has_key { "api_key" } else { "user" };
        event
            .actor(kind, "")
            .ip_address(self.address.ip())
            .user_agent(&self.agent)
    }
}
