//! The worker's own HTTP server, section 7 of the protocol: how the worker is, and transcription on the spot.
//!
//! | Route | Answer |
//! |---|---|
//! | `GET /health` | [`Health`] |
//! | `GET /metrics` | the metrics, for Prometheus |
//! | `GET /v1/capabilities` | what the engine can do |
//! | `GET /debug/status` | the process and the tasks that it has in its hands |
//! | `POST /v1/transcribe` | the transcript of a recording |
//! | `POST /v1/audio/transcriptions` | the same in the form of OpenAI's API |
//!
//! A recording takes the way of all tasks ([`Direct`]); only its input comes with the request and its answer goes back with
//! it. Its spans belong to the trace of the request's `traceparent`. If the client closes the connection, the task is
//! cancelled.
//!
//! # What is bounded
//!
//! Connections in number, and their lives: after a minute the request at hand is the last one. A header has to be there in
//! 10 s, and an answer that nobody reads is given up after 30 s. Recordings in number
//! (`DALSTON_HTTP_MAX_REQUESTS`; the others are for probes, so that uploads never keep those out), in size
//! (`DALSTON_HTTP_MAX_UPLOAD_MB`), in the time that they take to arrive (30 minutes, and never 30 s without a byte), in the
//! time that they wait for their turn (`DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS`) and in the time of the task
//! (`DALSTON_DEFAULT_TASK_TIMEOUT_S`). Uploads go to a file piece by piece and are never in memory as a whole.

mod fetch;
mod form;
mod openai;
mod platform;
mod refusal;
mod server;
mod status;
mod transcribe;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::services::engine::{DirectEndpoint, DirectMetrics};
use tokio::sync::Semaphore;

use self::fetch::Fetcher;
pub(super) use self::server::Serving;
pub use self::status::Health;
use crate::config::DeploymentConfig;
use crate::protocol::Capabilities;
use crate::redis::RedisServer;
use crate::runner::{Direct, Runner, RunnerStatus};

/// What the routes know.
pub(super) struct Server {
    instance: String,
    capabilities: Capabilities,
    status: RunnerStatus,
    redis: RedisServer,
    telemetry: TelemetryHandle,
    metrics: DirectMetrics,
    direct: Direct,
    fetcher: Fetcher,
    /// One permit for each recording that may come in, or be worked on.
    places: Arc<Semaphore>,
    max_requests: usize,
    max_upload: u64,
    patience: Duration,
    metrics_enabled: bool,
}

impl Server {
    pub(super) fn new(
        runner: &Runner,
        capabilities: Capabilities,
        redis: RedisServer,
        telemetry: TelemetryHandle,
        deployment: &DeploymentConfig,
    ) -> Self {
        Self {
            metrics: DirectMetrics::register(telemetry.metrics(), runner.engine_id()),
            instance: runner.instance().to_owned(),
            capabilities,
            status: runner.status(),
            redis,
            telemetry,
            direct: runner.direct(),
            fetcher: Fetcher::new(deployment.http_max_upload),
            places: Arc::new(Semaphore::new(deployment.http_max_requests)),
            max_requests: deployment.http_max_requests,
            max_upload: deployment.http_max_upload,
            patience: deployment.http_queue_timeout,
            metrics_enabled: deployment.metrics_enabled,
        }
    }

    fn router(self) -> Router {
        let mut router = Router::new()
            .route("/health", get(status::health))
            .route("/v1/capabilities", get(status::capabilities))
            .route("/debug/status", get(status::debug));
        if self.max_requests > 0 {
            let (platform, openai) = (
                DirectEndpoint::Transcribe.as_str(),
                DirectEndpoint::OpenAi.as_str(),
            );
            router = router
                .route(platform, post(transcribe::handle::<platform::Platform>))
                .route(openai, post(transcribe::handle::<openai::OpenAi>))
                // The routes have a limit of their own, which knows of the files.
                .layer(DefaultBodyLimit::disable());
        }
        if self.metrics_enabled {
            let metrics = self.telemetry.metrics().clone();
            router = router.route("/metrics", dalston_telemetry::axum::metrics(metrics));
        }
        router.with_state(Arc::new(self))
    }
}
