//! `/v1/realtime/…`: the places of the workers, and tokens for browsers.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tracing::warn;
use uuid::Uuid;

use super::error::ApiError;
use super::{Gateway, Shared};
use crate::session_router::takes_sessions;
use crate::wire::TOKEN_SECONDS;

/// `POST /v1/realtime/token`: a token that opens one session within a minute. A browser sends the
/// password of the page with requests, but not with WebSockets.
pub(super) async fn token(State(gateway): Shared) -> Result<Json<Value>, ApiError> {
    let token = format!("rt_{}", Uuid::new_v4().simple());
    let kept = gateway.platform.wire.keep_token(&token).await;
    kept.map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({"token": token, "expires_in_seconds": TOKEN_SECONDS})))
}

/// `GET /v1/realtime/status`: the places of all workers.
pub(super) async fn status(State(gateway): Shared) -> Result<Json<Value>, ApiError> {
    let wire = &gateway.platform.wire;
    let workers = wire
        .realtime_workers()
        .await
        .map_err(|error| ApiError::internal(&error))?;
    let (mut capacity, mut active, mut ready) = (0, 0, 0);
    for worker in workers.iter().filter(|worker| takes_sessions(worker)) {
        let sessions = wire.sessions_of(worker.text("instance")).await;
        active += sessions.map_err(|error| ApiError::internal(&error))? as u64;
        capacity += worker.number("capacity");
        ready += 1;
    }
    let available = capacity.saturating_sub(active);
    let status = match (ready, available) {
        (0, _) => "unavailable",
        (_, 0) => "at_capacity",
        _ => "ready",
    };
    Ok(Json(json!({
        "status": status,
        "total_capacity": capacity,
        "active_sessions": active,
        "available_capacity": available,
        "worker_count": workers.len(),
        "ready_workers": ready,
    })))
}

/// Whether a token is among the parameters of a session. It is used up.
pub(super) async fn takes_token(gateway: &Gateway, query: &[(String, String)]) -> bool {
    let Some((_, token)) = query.iter().find(|(name, _)| name == "token") else {
        return false;
    };
    let taken = gateway.platform.wire.take_token(token).await;
    taken.unwrap_or_else(|error| {
        warn!(%error, "session_token_not_read");
        false
    })
}
