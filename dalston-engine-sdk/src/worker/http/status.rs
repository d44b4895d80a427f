//! How the worker is: `/health`, `/v1/capabilities`, `/debug/status`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;

use super::Server;
use crate::runner::RunnerPhase;

/// How long Redis may take to show that it is there.
const REDIS_PATIENCE: Duration = Duration::from_secs(2);
/// The loop shows itself twice a second.
const LOOP_PATIENCE: Duration = Duration::from_secs(15);

/// The answer of `GET /health`. With status 200 the worker takes tasks, or is about to, or finishes its last ones; with 503
/// something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// The engine id.
    pub engine_id: String,
    /// The process that answers, as the registry calls it.
    pub instance: String,
    /// `starting`, `running`, `draining` or `stopped`.
    pub phase: &'static str,
    /// Whether the control loop goes round.
    #[serde(rename = "loop")]
    pub control_loop: &'static str,
    /// Whether Redis answers.
    pub redis: &'static str,
    /// How many tasks the worker has in its hands, those that came over HTTP included.
    pub active_tasks: usize,
    /// The model that worked last, or another one that is in memory.
    pub model: Option<String>,
    /// All models in memory.
    pub models: Vec<String>,
    /// The models that are being loaded.
    pub loading: Vec<String>,
}

pub(super) async fn health(State(server): State<Arc<Server>>) -> Response {
    let redis_answers = matches!(timeout(REDIS_PATIENCE, server.redis.ping()).await, Ok(Ok(())));
    let health = judge(&server, redis_answers);
    let code = if health.status == "healthy" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, json(&health)).into_response()
}

pub(super) async fn capabilities(State(server): State<Arc<Server>>) -> Response {
    json(&server.capabilities).into_response()
}

pub(super) async fn debug(State(server): State<Arc<Server>>) -> Response {
    let process = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let gpu = server.status.gpu_memory();
    let tasks = server.status.tasks().into_iter().map(|task| TaskInHand {
        task_id: task.task_id.to_string(),
        phase: task.phase.as_str(),
        age_seconds: (task.age.as_secs_f64() * 1000.0).round() / 1000.0,
    });
    let answer = Debugging {
        thread_count: number_in(&process, "Threads:"),
        rss_mb: number_in(&process, "VmRSS:").map(|kibibytes| kibibytes / 1024),
        gpu_used_mb: gpu.map(|gpu| gpu.used >> 20),
        gpu_total_mb: gpu.map(|gpu| gpu.total >> 20),
        phase: name_of(server.status.phase()),
        http_requests: server.max_requests - server.places.available_permits().min(server.max_requests),
        tasks: tasks.collect(),
    };
    json(&answer).into_response()
}

/// A JSON document as an answer.
pub(super) fn json<T: Serialize>(value: &T) -> impl IntoResponse + use<T> {
    let text = serde_json::to_string(value).expect("string keys and no `Serialize` that fails");
    ([(header::CONTENT_TYPE, "application/json")], text)
}

#[derive(Serialize)]
struct Debugging {
    thread_count: Option<u64>,
    rss_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_used_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_total_mb: Option<u64>,
    phase: &'static str,
    /// Recordings that come in, or are worked on.
    http_requests: usize,
    /// Oldest first.
    tasks: Vec<TaskInHand>,
}

#[derive(Serialize)]
struct TaskInHand {
    task_id: String,
    phase: &'static str,
    age_seconds: f64,
}

fn number_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn judge(server: &Server, redis_answers: bool) -> Health {
    let status = &server.status;
    let phase = status.phase();
    let goes_round = match status.silent_for() {
        None => phase == RunnerPhase::Starting,
        Some(silent) => silent < LOOP_PATIENCE,
    };
    let healthy = redis_answers && goes_round && phase != RunnerPhase::Stopped;
    let names = |models: Vec<crate::ModelId>| models.iter().map(ToString::to_string).collect();
    Health {
        status: if healthy { "healthy" } else { "unhealthy" },
        engine_id: server.capabilities.engine_id.clone(),
        instance: server.instance.clone(),
        phase: name_of(phase),
        control_loop: if goes_round { "running" } else { "stuck" },
        redis: if redis_answers { "connected" } else { "unreachable" },
        active_tasks: status.active_tasks(),
        model: status.model().map(|model| model.to_string()),
        models: names(status.models()),
        loading: names(status.loading()),
    }
}

fn name_of(phase: RunnerPhase) -> &'static str {
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
    fn the_kernels_numbers_are_found() {
        let text = "Name:\tx\nVmRSS:\t   5120 kB\nThreads:\t7\n";
        assert_eq!(number_in(text, "VmRSS:"), Some(5120));
        assert_eq!(number_in(text, "Threads:"), Some(7));
        assert_eq!(number_in(text, "VmPeak:"), None);
    }
}
