//! `GET /v1/traces/{trace_id}`: the spans of a trace that the receivers of OTLP got.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use dalston_telemetry::Waterfall;
use dalston_telemetry::opentelemetry::TraceId;
use serde::Deserialize;
use serde_json::Value;

use super::Shared;
use super::error::ApiError;
use crate::traces::{to_jaeger, to_otlp};

/// The width of the text form, in columns.
const WIDTH: usize = 120;

#[derive(Debug, Deserialize)]
pub(super) struct DownloadQuery {
    format: Option<String>,
}

pub(super) async fn download(
    State(gateway): Shared,
    Path(id): Path<String>,
    query: Result<Query<DownloadQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let spans = TraceId::from_hex(&id).map(|id| gateway.platform.traces.spans(id));
    let spans = spans.unwrap_or_default();
    if spans.is_empty() {
        return Err(ApiError::not_found(format!("there is no trace {id}")));
    }
    match query.format.as_deref() {
        None | Some("otlp") => Ok(file(&id, to_otlp(&spans))),
        Some("jaeger") => Ok(file(&id, to_jaeger(&spans))),
        Some("text") => Ok(Waterfall::new().width(WIDTH).render(&spans).into_response()),
        Some(other) => Err(ApiError::bad_request(format!(
            "format is {other:?}: expected otlp, jaeger or text"
        ))),
    }
}

fn file(id: &str, trace: Value) -> Response {
    let name = format!("attachment; filename=\"trace-{id}.json\"");
    let headers: [(HeaderName, String); 1] = [(header::CONTENT_DISPOSITION, name)];
    (headers, Json(trace)).into_response()
}
