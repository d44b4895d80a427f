//! `GET /v1/engines`: the engine processes that are alive.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Shared;
use super::error::ApiError;
use crate::wire::EngineRecord;

pub(super) async fn list(State(gateway): Shared) -> Result<Json<Value>, ApiError> {
    let engines = gateway.platform.wire.engines().await;
    let engines = engines.map_err(|error| ApiError::internal(&error))?;
    let engines: Vec<Value> = engines.iter().map(describe).collect();
    Ok(Json(json!({"engines": engines, "total": engines.len()})))
}

fn describe(engine: &EngineRecord) -> Value {
    json!({
        "id": engine.engine_id(),
        "instance": engine.text("instance"),
        "stage": engine.text("stage"),
        "status": engine.text("status"),
        "loaded_model": engine.text("loaded_model"),
        "capacity": engine.number("capacity"),
        "active_tasks": engine.number("active_batch"),
        "last_heartbeat": engine.text("last_heartbeat"),
        "capabilities": engine.capabilities(),
    })
}
