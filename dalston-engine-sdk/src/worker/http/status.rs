//! The status of the worker: `/health`, `/v1/capabilities`, `/debug/status`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;

use super::json;
use super::state::ServerState;
use crate::clock;
use crate::runner::RunnerPhase;

/// The limit for an answer of Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);
/// The control loop reports itself twice a second.
const LOOP_TIMEOUT: Duration = Duration::from_secs(15);

/// The response of `GET /health`, with status 200 if `status` is `healthy`, else 503.
///
/// A healthy worker takes tasks, is about to, or finishes its last ones.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// `healthy` or `unhealthy`.
    status: &'static str,
    engine_id: String,
    /// The name of the process in the registry.
    instance: String,
    /// `starting`, `running`, `draining` or `stopped`.
    phase: &'static str,
    /// `running` or `stuck`.
    #[serde(rename = "loop")]
    control_loop: &'static str,
    /// `connected` or `unreachable`.
    redis: &'static str,
    /// The number of tasks that the worker has, including those over HTTP.
    active_tasks: usize,
    /// The model that was used last, or another one in memory.
    model: Option<String>,
    /// All models in memory.
    models: Vec<String>,
    /// The models that are being loaded.
    loading: Vec<String>,
    /// Why the worker takes no tasks although it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// How far the clock of this machine is ahead of that of Redis, in seconds. Absent until the
    /// two were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_ahead_seconds: Option<f64>,
    /// What is wrong although the worker takes tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

pub(super) async fn health(State(server): State<Arc<ServerState>>) -> Response {
    let redis_answers = matches!(timeout(REDIS_TIMEOUT, server.redis.ping()).await, Ok(Ok(())));
    let status = &server.status;
    let phase = status.phase();
    let loop_runs = match status.silent_for() {
        None => phase == RunnerPhase::Starting,
        Some(silent) => silent < LOOP_TIMEOUT,
    };
    let problem = status.problem();
    let healthy = redis_answers && loop_runs && phase != RunnerPhase::Stopped && problem.is_none();
    let clock = server.clock.seconds();
    let names = |models: Vec<crate::ModelId>| models.iter().map(ToString::to_string).collect();
    let health = Health {
        status: if healthy { "healthy" } else { "unhealthy" },
        engine_id: server.capabilities.engine_id.clone(),
        instance: server.instance.clone(),
        phase: name_of(phase),
        control_loop: if loop_runs { "running" } else { "stuck" },
        redis: if redis_answers { "connected" } else { "unreachable" },
        active_tasks: status.active_tasks(),
        model: status.model().map(|model| model.to_string()),
        models: names(status.models()),
        loading: names(status.loading()),
        problem,
        clock_ahead_seconds: clock.map(round),
        warning: clock.and_then(|seconds| clock::problem(seconds, &server.redis)),
    };
    let code = match healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, json::response(&health)).into_response()
}

pub(super) async fn capabilities(State(server): State<Arc<ServerState>>) -> Response {
    json::response(&server.capabilities)
}

pub(super) async fn debug(State(server): State<Arc<ServerState>>) -> Response {
    let process = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let gpu = server.status.gpu_memory();
    let tasks = server.status.tasks().into_iter().map(|task| DebugTask {
        task_id: task.task_id.to_string(),
        phase: task.phase.as_str(),
        age_seconds: round(task.age.as_secs_f64()),
    });
    json::response(&DebugStatus {
        thread_count: number_in(&process, "Threads:"),
        rss_mb: number_in(&process, "VmRSS:").map(|kibibytes| kibibytes / 1024),
        gpu_used_mb: gpu.map(|gpu| gpu.used >> 20),
        gpu_total_mb: gpu.map(|gpu| gpu.total >> 20),
        phase: name_of(server.status.phase()),
        http_requests: server.requests(),
        tasks: tasks.collect(),
    })
}

#[derive(Serialize)]
struct DebugStatus {
    thread_count: Option<u64>,
    rss_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_used_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_total_mb: Option<u64>,
    phase: &'static str,
    /// Recordings that are received or processed.
    http_requests: usize,
    /// Oldest first.
    tasks: Vec<DebugTask>,
}

#[derive(Serialize)]
struct DebugTask {
    task_id: String,
    phase: &'static str,
    age_seconds: f64,
}

/// To milliseconds.
fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn number_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(super) fn name_of(phase: RunnerPhase) -> &'static str {
    match phase {
        RunnerPhase::Starting => "starting",
        RunnerPhase::Running => "running",
        RunnerPhase::Draining => "draining",
        RunnerPhase::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_kernel_are_read() {
        let text = "Name:\tx\nVmRSS:\t   5120 kB\nThreads:\t7\n";
        assert_eq!(number_in(text, "VmRSS:"), Some(5120));
        assert_eq!(number_in(text, "Threads:"), Some(7));
        assert_eq!(number_in(text, "VmPeak:"), None);
    }
}
