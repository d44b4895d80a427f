//! The tasks of a job, and their documents.

use axum::Json;
use axum::extract::{Path, State};
use dalston_engine_sdk::store::key;
use dalston_telemetry::audit::{AuditAction, AuditEvent};
use serde_json::{Value, json};

use super::error::ApiError;
use super::jobs::stage;
use super::{Caller, Gateway, Shared};
use crate::config::TENANT;
use crate::db::TaskStatus;

/// The longest document of a task.
const MAX_DOCUMENT: usize = 256 << 20;

pub(super) async fn list(State(gateway): Shared, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let (_, tasks) = gateway.job(&id).await?;
    let tasks: Vec<Value> = tasks
        .iter()
        .map(|task| {
            let mut body = stage(task);
            body["depends_on"] = task.depends_on.clone().into();
            body["config"] = Value::Object(task.config.clone());
            body
        })
        .collect();
    Ok(Json(json!({"job_id": id, "tasks": tasks})))
}

/// The raw `request` and `response` of a task.
pub(super) async fn artifacts(
    State(gateway): Shared,
    caller: Caller,
    Path((id, task_id)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (_, tasks) = gateway.job(&id).await?;
    let task = tasks.into_iter().find(|task| task.id == task_id);
    let task = task.ok_or_else(|| ApiError::not_found(format!("the job has no task {task_id}")))?;
    if task.status == TaskStatus::Pending {
        return Err(ApiError::bad_request(
            "the task is pending: it has no documents yet",
        ));
    }
    let request = gateway.document(&key::task_request(&id, &task_id)).await?;
    let response = match task.status {
        TaskStatus::Completed => gateway.document(&key::task_response(&id, &task_id)).await?,
        _ => Value::Null,
    };
    let record = AuditEvent::new(AuditAction::ArtifactRead, TENANT, &format!("{task_id}:response"));
    gateway.platform.audit.record(caller.sign(record.job_id(&id)));
    Ok(Json(json!({
        "task_id": task_id, "job_id": id, "stage": task.stage, "request": request, "response": response,
    })))
}

impl Gateway {
    async fn document(&self, key: &str) -> Result<Value, ApiError> {
        let locator = self.platform.store.locator(key);
        let bytes = self.platform.store.read(&locator, MAX_DOCUMENT).await;
        let bytes = bytes.map_err(|error| ApiError::internal(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::internal(&error))
    }
}
