//! The state that all routes share.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::services::engine::DirectMetrics;
use tokio::sync::Semaphore;

use super::fetch::Fetcher;
use crate::clock::ClockDifference;
use crate::config::DeploymentConfig;
use crate::protocol::Capabilities;
use crate::redis::RedisServer;
use crate::runner::{Direct, Runner, RunnerStatus};
use crate::task_option::TaskOption;

/// The refused requests whose rest is read at the same time. They hold connections, so their number
/// is below that of all connections.
const MAX_DRAINS: usize = 64;

/// The state that all routes share.
pub(crate) struct ServerState {
    pub(super) instance: String,
    pub(super) capabilities: Capabilities,
    /// The options of tasks that the engine adds.
    pub(super) options: Vec<TaskOption>,
    pub(super) status: RunnerStatus,
    pub(super) redis: RedisServer,
    pub(super) clock: ClockDifference,
    pub(super) telemetry: TelemetryHandle,
    pub(super) metrics: DirectMetrics,
    pub(super) direct: Direct,
    pub(super) fetcher: Fetcher,
    /// One permit for each recording that is received or processed.
    pub(super) permits: Arc<Semaphore>,
    /// One permit for each refused request whose rest is read.
    pub(super) drains: Semaphore,
    pub(super) max_requests: usize,
    pub(super) max_upload: u64,
    pub(super) queue_timeout: Duration,
    pub(super) metrics_enabled: bool,
    pub(super) cors_origins: Vec<HeaderValue>,
    /// The routes, each with its method. The router fills them in.
    pub(super) routes: Vec<String>,
}

impl ServerState {
    pub(crate) fn new(
        runner: &Runner,
        capabilities: Capabilities,
        options: Vec<TaskOption>,
        redis: RedisServer,
        clock: ClockDifference,
        telemetry: TelemetryHandle,
        deployment: &DeploymentConfig,
    ) -> Self {
        Self {
            metrics: DirectMetrics::register(telemetry.metrics(), runner.engine_id()),
            instance: runner.instance().to_owned(),
            capabilities,
            options,
            status: runner.status(),
            redis,
            clock,
            telemetry,
            direct: runner.direct(),
            fetcher: Fetcher::new(deployment.http_max_upload),
            permits: Arc::new(Semaphore::new(deployment.http_max_requests)),
            drains: Semaphore::new(MAX_DRAINS),
            max_requests: deployment.http_max_requests,
            max_upload: deployment.http_max_upload,
            queue_timeout: deployment.http_queue_timeout,
            metrics_enabled: deployment.metrics_enabled,
            cors_origins: origins(&deployment.http_cors_origins),
            routes: Vec::new(),
        }
    }

    /// The most recordings that are received or processed at the same time.
    pub(crate) fn max_requests(&self) -> usize {
        self.max_requests
    }

    /// The number of recordings that are received or processed.
    pub(super) fn requests(&self) -> usize {
        self.max_requests - self.permits.available_permits().min(self.max_requests)
    }
}

/// The origins as they stand in headers. `*` covers all others.
fn origins(origins: &[String]) -> Vec<HeaderValue> {
    let any = origins.iter().find(|origin| *origin == "*");
    let origins = any.map_or(origins, std::slice::from_ref);
    let origins = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok());
    origins.collect()
}
