//! The worker's own HTTP server, section 7 of the protocol: status of the worker, and direct
//! transcription.
//!
//! | Route | Response |
//! |---|---|
//! | `GET /health` | [`status::Health`] |
//! | `GET /metrics` | the metrics, for Prometheus |
//! | `GET /v1/capabilities` | the capabilities of the engine |
//! | `GET /debug/status` | the process and its tasks |
//! | `POST /v1/transcribe` | the transcript of a recording |
//! | `POST /v1/audio/transcriptions` | the same in the form of OpenAI's API |
//! | `POST /v1/audio/translations` | its English translation, in the same form |
//! | `GET /v1/models` | the names of models, in the same form |
//! | `GET /` | the engine and these routes; for a browser a page with tasks, models and failures |
//!
//! A recording becomes a task like any other ([`Direct`](crate::runner::Direct)); only its input
//! comes with the request and its result goes into the response. Its spans belong to the trace of
//! the request's `traceparent`. If the client closes the connection, the task is cancelled.
//!
//! # Limits
//!
//! - The number of connections: 256, and as many as there may be recordings. For a further one,
//!   the connection that has waited longest for its client is closed. So clients that send no
//!   complete header, or read no response, keep out nothing.
//! - The age of a connection: after a minute the current request is the last one.
//! - The time for a header (10 s), and the time in which nothing of a response is read (30 s).
//! - The number of recordings (`DALSTON_HTTP_MAX_REQUESTS`). Probes have connections of their own.
//!   With 0, only `/health`, `/metrics`, `/v1/capabilities` and `/debug/status` are left. A client
//!   that must not transcribe must not read the errors of tasks either.
//! - The size of a recording (`DALSTON_HTTP_MAX_UPLOAD_MB`), and the time for its upload: 30
//!   minutes, and 8 KiB/s over 30 s. An upload goes to a file chunk by chunk and is never in memory
//!   as a whole.
//! - The time that a task waits for a permit (`DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS`), and the time
//!   of the task (`DALSTON_DEFAULT_TASK_TIMEOUT_S`).

mod api;
mod body;
mod connections;
mod events;
mod fetch;
mod form;
mod index;
mod json;
mod openai;
mod page;
mod platform;
mod refusal;
mod server;
mod state;
mod status;
mod transcribe;
mod warnings;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::routing::{MethodRouter, get, post};
use dalston_telemetry::services::engine::DirectEndpoint;
use dalston_telemetry::services::http::{REQUEST_ID_HEADER, TRACE_ID_HEADER};
use dalston_telemetry::tower::HttpLayer;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

pub(super) use self::server::Serving;
pub(super) use self::state::ServerState;

pub(super) fn router(mut state: ServerState) -> Router {
    let mut router = Router::new();
    let mut routes = Vec::new();
    let mut add = |method: &str, path: &'static str, route: MethodRouter<Arc<ServerState>>| {
        routes.push(format!("{method} {path}"));
        router = std::mem::take(&mut router).route(path, route);
    };
    let observed = HttpLayer::of(&state.telemetry).metrics(state.metrics.clone());
    let serves_users = state.max_requests > 0;
    if serves_users {
        add("GET", "/", get(index::index));
    }
    add("GET", "/health", get(status::health));
    add("GET", "/v1/capabilities", get(status::capabilities));
    add("GET", "/debug/status", get(status::debug));
    if state.metrics_enabled {
        let metrics = state.telemetry.metrics().clone();
        add("GET", "/metrics", dalston_telemetry::axum::metrics(metrics));
    }
    if serves_users {
        add("GET", "/v1/models", get(index::models));
        let mut add = |endpoint: DirectEndpoint, route: MethodRouter<Arc<ServerState>>| {
            add("POST", endpoint.as_str(), route.layer(observed.clone()));
        };
        add(
            DirectEndpoint::Transcribe,
            post(transcribe::handle::<platform::Platform>),
        );
        add(
            DirectEndpoint::OpenAi,
            post(transcribe::handle::<openai::Transcriptions>),
        );
        add(
            DirectEndpoint::OpenAiTranslations,
            post(transcribe::handle::<openai::Translations>),
        );
    }
    let mut router = router
        .fallback(index::unknown_route)
        .method_not_allowed_fallback(index::wrong_method)
        // The handlers have their own limit, which counts files.
        .layer(DefaultBodyLimit::disable());
    if let Some(cors) = cors(&state.cors_origins) {
        router = router.layer(cors);
    }
    state.routes = routes;
    router.with_state(Arc::new(state))
}

/// Lets the pages of these origins read the responses. `None` if there are none.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    const EXPOSED: [HeaderName; 4] = [
        REQUEST_ID_HEADER,
        TRACE_ID_HEADER,
        warnings::HEADER,
        header::RETRY_AFTER,
    ];
    let allowed = match origins {
        [] => return None,
        [any] if any == "*" => AllowOrigin::any(),
        _ => AllowOrigin::list(origins.iter().cloned()),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(Any)
        .expose_headers(EXPOSED);
    Some(layer)
}
