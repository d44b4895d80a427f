//! Jobs: list, status, cancel, retry, delete.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use dalston_engine_sdk::protocol::{EventKind, Timestamp};
use dalston_engine_sdk::store::key;
use dalston_telemetry::audit::{AuditAction, AuditEvent};
use dalston_telemetry::services::MessageContext;
use dalston_telemetry::services::gateway::CreatedJob;
use dalston_telemetry::tower::RequestIds;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::error::ApiError;
use super::{Caller, Gateway, Shared};
use crate::config::TENANT;
use crate::db::{Filter, Job, JobStatus, Task, TaskStatus};
use crate::wire::job_event;

/// The longest list.
const MAX_LIMIT: u32 = 200;
/// The longest transcript.
const MAX_TRANSCRIPT: usize = 256 << 20;

/// The filters of a list.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    status: Option<String>,
    limit: Option<u32>,
    offset: Option<u32>,
}

pub(super) async fn list(
    State(gateway): Shared,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let status = query.status.as_deref().map(|status| {
        JobStatus::of(status).ok_or_else(|| {
            ApiError::bad_request(format!(
                "status is {status:?}: expected pending, running, completed, failed, cancelling or cancelled"
            ))
        })
    });
    let filter = Filter {
        status: status.transpose()?,
        id_part: String::new(),
        limit: query.limit.unwrap_or(20).min(MAX_LIMIT),
        offset: query.offset.unwrap_or(0),
    };
    let (limit, offset) = (filter.limit, filter.offset);
    let (jobs, total) = gateway.platform.db.read(move |db| Job::list(db, &filter)).await?;
    let jobs: Vec<Value> = jobs.iter().map(summary).map(Value::Object).collect();
    Ok(Json(
        json!({"jobs": jobs, "total": total, "limit": limit, "offset": offset}),
    ))
}

pub(super) async fn status(
    State(gateway): Shared,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (job, tasks) = gateway.job(&id).await?;
    let mut body = summary(&job);
    let stages: Vec<Value> = tasks.iter().map(stage).collect();
    let waits = stages.iter().filter_map(|stage| stage["wait_ms"].as_u64());
    body.insert("total_wait_ms".to_owned(), waits.sum::<u64>().into());
    body.insert("stages".to_owned(), stages.into());
    if job.status == JobStatus::Completed {
        let transcript = gateway.transcript(&job, &caller).await?;
        for (name, pointer) in [
            ("text", "/text"),
            ("segments", "/segments"),
            ("speakers", "/speakers"),
            ("language_code", "/metadata/language"),
            ("duration_seconds", "/metadata/audio_duration"),
            ("warnings", "/metadata/pipeline_warnings"),
        ] {
            let value = transcript.pointer(pointer).cloned().unwrap_or_default();
            body.insert(name.to_owned(), value);
        }
        body.insert("words".to_owned(), words(&transcript));
    }
    Ok(Json(Value::Object(body)))
}

pub(super) async fn cancel(State(gateway): Shared, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let (job, _) = gateway.job(&id).await?;
    let cancelled = {
        let id = id.clone();
        let cancelled = gateway.platform.db.write(move |db| Job::request_cancel(db, &id));
        cancelled.await?
    };
    if !cancelled && job.status != JobStatus::Cancelling {
        return Err(ApiError::conflict(format!("the job is {}", job.status.as_str())));
    }
    let event = job_event(EventKind::JobCancelRequested, &id, &MessageContext::current());
    if let Err(error) = gateway.platform.wire.publish(&event).await {
        // The orchestrator finds the state in the database.
        warn!(%error, "job_event_not_published");
    }
    Ok(Json(json!({"id": id, "status": JobStatus::Cancelling.as_str()})))
}

/// Runs a job again that has failed or was cancelled. Its completed stages do not run again.
pub(super) async fn retry(
    State(gateway): Shared,
    ids: RequestIds,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (job, tasks) = gateway.job(&id).await?;
    if !job.status.is_retryable() {
        return Err(not_retryable(job.status));
    }
    let platform = &gateway.platform;
    // Before the change of the state: a process that is killed in between leaves a job that has
    // ended, with no task in a queue.
    let queued = tasks.iter().filter(|task| task.message_id.is_some());
    let obsolete = queued.filter(|task| task.status != TaskStatus::Completed);
    let obsolete: Vec<String> = obsolete.map(|task| task.id.clone()).collect();
    let blocked = platform.wire.block(&obsolete, "the job runs again").await;
    blocked.map_err(|error| ApiError::internal(&error))?;
    let (key, request_id) = (id.clone(), ids.request_id().to_owned());
    let retried = platform.db.write(move |db| Job::retry(db, &key, &request_id));
    if !retried.await? {
        // Another request was first.
        let (job, _) = gateway.job(&id).await?;
        return Err(not_retryable(job.status));
    }
    let record = AuditEvent::new(AuditAction::JobRetried, TENANT, &id);
    platform.audit.record(caller.sign(record));
    let created = CreatedJob::again(&id, &job.message());
    let publish = |message| gateway.announce(&id, message);
    if let Err(error) = created.publish_created_event(publish).await {
        // The orchestrator finds the state in the database.
        warn!(error = format!("{error:#}"), "job_event_not_published");
    }
    info!(job_id = id, retry = job.retries + 1, "job_retried");
    Ok(Json(json!({"id": id, "status": JobStatus::Pending.as_str()})))
}

fn not_retryable(status: JobStatus) -> ApiError {
    let status = status.as_str();
    ApiError::conflict(format!(
        "the job is {status}: only a failed or cancelled job can run again"
    ))
}

pub(super) async fn delete(
    State(gateway): Shared,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let (job, tasks) = gateway.job(&id).await?;
    if !job.status.is_terminal() {
        let detail = format!("the job is {}: cancel it first", job.status.as_str());
        return Err(ApiError::conflict(detail));
    }
    let platform = &gateway.platform;
    let removed = platform.store.remove_below(&format!("jobs/{id}")).await;
    removed.map_err(|error| ApiError::internal(&error))?;
    let task_ids: Vec<String> = tasks.into_iter().map(|task| task.id).collect();
    let forgotten = platform.wire.forget(&id, &task_ids).await;
    forgotten.map_err(|error| ApiError::internal(&error))?;
    let record = AuditEvent::new(AuditAction::JobDeleted, TENANT, &id);
    platform.audit.record(caller.sign(record));
    platform.db.write(move |db| Job::delete(db, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Gateway {
    /// A job with its tasks.
    pub(super) async fn job(&self, id: &str) -> Result<(Job, Vec<Task>), ApiError> {
        let key = id.to_owned();
        let found = self.platform.db.read(move |db| match Job::find(db, &key)? {
            None => Ok(None),
            Some(job) => Ok(Some((job, Task::of_job(db, &key)?))),
        });
        found.await?.ok_or_else(|| ApiError::no_job(id))
    }

    /// The transcript of a completed job. Its reading is recorded.
    pub(super) async fn transcript(&self, job: &Job, caller: &Caller) -> Result<Value, ApiError> {
        let locator = self.platform.store.locator(&key::transcript(&job.id));
        let bytes = self.platform.store.read(&locator, MAX_TRANSCRIPT).await;
        let bytes = bytes.map_err(|error| ApiError::internal(&error))?;
        let record = AuditEvent::new(
            AuditAction::ArtifactRead,
            TENANT,
            &format!("{}:transcript", job.id),
        );
        self.platform.audit.record(caller.sign(record.job_id(&job.id)));
        serde_json::from_slice(&bytes).map_err(|error| ApiError::internal(&error))
    }
}

fn summary(job: &Job) -> Map<String, Value> {
    let body = json!({
        "id": job.id,
        "status": job.status.as_str(),
        "display_name": job.display_name,
        "created_at": job.created_at,
        "completed_at": job.ended_at,
        "engine_id": job.engine_id,
        "model": job.parameters.model,
        "error": job.error,
        "retries": job.retries,
        "retried_at": job.retried_at,
    });
    match body {
        Value::Object(body) => body,
        _ => Map::new(),
    }
}

/// A task as a stage of its job.
pub(super) fn stage(task: &Task) -> Value {
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
        let seconds = to?.seconds_since(from?).max(0.0);
        Some((seconds * 1000.0).round() as u64)
    };
    json!({
        "stage": task.stage,
        "task_id": task.id,
        "engine_id": task.engine_id,
        "status": task.status.as_str(),
        "required": true,
        "ready_at": task.ready_at,
        "started_at": task.started_at,
        "completed_at": task.completed_at.filter(|_| task.status != TaskStatus::Running),
        "wait_ms": between(task.ready_at, task.started_at),
        "duration_ms": between(task.started_at, task.completed_at),
        "retries": task.retries,
        "error": task.error,
    })
}

fn words(transcript: &Value) -> Value {
    let segments = transcript["segments"].as_array().into_iter().flatten();
    let words = segments
        .filter_map(|segment| segment["words"].as_array())
        .flatten();
    words.cloned().collect::<Vec<_>>().into()
}
