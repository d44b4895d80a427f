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
//! - The size of a recording (`DALSTON_HTTP_MAX_UPLOAD_MB`), and the time for its upload: 30
//!   minutes, and 8 KiB/s over 30 s. An upload goes to a file chunk by chunk and is never in memory
//!   as a whole.
//! - The time that a task waits for a permit (`DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS`), and the time
//!   of the task (`DALSTON_DEFAULT_TASK_TIMEOUT_S`).

mod api;
mod body;
mod connections;
mod fetch;
mod form;
mod json;
mod openai;
mod platform;
mod refusal;
mod server;
mod state;
mod status;
mod transcribe;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use dalston_telemetry::services::engine::DirectEndpoint;

pub(super) use self::server::Serving;
pub(super) use self::state::ServerState;

pub(super) fn router(state: ServerState) -> Router {
    let mut router = Router::new()
        .route("/health", get(status::health))
        .route("/v1/capabilities", get(status::capabilities))
        .route("/debug/status", get(status::debug));
    if state.max_requests > 0 {
        let (platform, openai) = (
            DirectEndpoint::Transcribe.as_str(),
            DirectEndpoint::OpenAi.as_str(),
        );
        router = router
            .route(platform, post(transcribe::handle::<platform::Platform>))
            .route(openai, post(transcribe::handle::<openai::OpenAi>))
            // The handlers have their own limit, which counts files.
            .layer(DefaultBodyLimit::disable());
    }
    if state.metrics_enabled {
        let metrics = state.telemetry.metrics().clone();
        router = router.route("/metrics", dalston_telemetry::axum::metrics(metrics));
    }
    router.with_state(Arc::new(state))
}
