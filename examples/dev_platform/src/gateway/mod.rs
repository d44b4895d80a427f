//! The gateway: the HTTP API of the platform (section 11 of the protocol).
//!
//! | Module | What is in it |
//! |---|---|
//! | `submit` | `POST /v1/audio/transcriptions` |
//! | `form` | its form |
//! | `openai` | the synchronous answer for clients of OpenAI's API |
//! | `jobs` | list, status, cancel, delete |
//! | `tasks` | the tasks of a job, and their documents |
//! | `engines` | the registry |
//! | `error` | errors as JSON with the ids of the request |

mod engines;
mod error;
mod form;
mod jobs;
mod openai;
mod submit;
mod tasks;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use dalston_telemetry::audit::AuditEvent;
use dalston_telemetry::axum::metrics;
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::tower::HttpLayer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::info;

use self::error::ApiError;
use crate::config::Config;
use crate::service::Platform;

/// What the handlers share.
#[derive(Debug)]
struct Gateway {
    platform: Platform,
    metrics: GatewayMetrics,
    api_key: Option<String>,
}

type Shared = State<Arc<Gateway>>;

/// Serves until `shutdown` completes, and then until the last response has ended.
pub(crate) async fn serve(
    config: &Config,
    platform: Platform,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let address = SocketAddr::from(([0, 0, 0, 0], config.port));
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on port {}", config.port))?;
    info!(address = %listener.local_addr()?, "gateway_listening");
    let gateway = Gateway {
        metrics: GatewayMetrics::register(&platform.metrics),
        api_key: config.api_key.clone(),
        platform,
    };
    let service = router(Arc::new(gateway)).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(shutdown)
        .await?;
    Ok(())
}

fn router(gateway: Arc<Gateway>) -> Router {
    let layer = HttpLayer::new()
        .metrics(gateway.metrics.clone())
        .exclude(["/health", "/metrics"]);
    let api = Router::new()
        .route("/v1/audio/transcriptions", post(submit::submit).get(jobs::list))
        .route(
            "/v1/audio/transcriptions/{id}",
            get(jobs::status).delete(jobs::delete),
        )
        .route("/v1/audio/transcriptions/{id}/cancel", post(jobs::cancel))
        .route("/v1/audio/transcriptions/{id}/tasks", get(tasks::list))
        .route(
            "/v1/audio/transcriptions/{id}/tasks/{task_id}/artifacts",
            get(tasks::artifacts),
        )
        .route("/v1/engines", get(engines::list))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&gateway), authorize));
    Router::new()
        .merge(api)
        .route("/health", get(health))
        .route("/metrics", metrics(gateway.platform.metrics.clone()))
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(from_fn(error::with_ids))
        .layer(layer)
        .with_state(gateway)
}

async fn health(State(gateway): Shared) -> Json<Value> {
    let redis = match gateway.platform.wire.ping().await {
        Ok(()) => "connected",
        // Healthy nevertheless: a restart would not bring Redis back.
        Err(_) => "unreachable",
    };
    Json(json!({"status": "healthy", "redis": redis}))
}

async fn authorize(State(gateway): Shared, request: Request, next: Next) -> Result<Response, ApiError> {
    if let Some(key) = &gateway.api_key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if given != Some(key) {
            return Err(ApiError::unauthorized());
        }
    }
    Ok(next.run(request).await)
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
