//! Errors as JSON: `detail`, `request_id`, and `trace_id` if there is a trace.

use std::fmt::Display;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dalston_telemetry::tower::RequestIds;
use serde_json::{Value, json};
use tracing::error;

/// With it a browser asks for the key, as a password.
const CHALLENGE: &str = r#"Basic realm="dalston", charset="UTF-8""#;

/// An error of the API.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    detail: String,
    is_openai: bool,
}

impl ApiError {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status,
            detail,
            is_openai: false,
        }
    }

    /// Sets whether the body has the form of OpenAI's API.
    pub(super) fn in_openai_form(mut self, is_openai: bool) -> Self {
        self.is_openai = is_openai;
        self
    }

    fn body(&self, ids: Option<&RequestIds>) -> Value {
        let kind = match self.status.is_server_error() {
            true => "server_error",
            false => "invalid_request_error",
        };
        let mut body = match self.is_openai {
            true => json!({"error": {"message": self.detail, "type": kind, "param": null, "code": null}}),
            false => json!({"detail": self.detail}),
        };
        if let Some(ids) = ids {
            ids.add_to(&mut body);
        }
        body
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong")
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn no_job(id: &str) -> Self {
        Self::not_found(format!("there is no job {id}"))
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "the route has no such method")
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(super) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, detail)
    }

    /// The cause is for the operator, and not for the client.
    pub(super) fn internal(cause: &impl Display) -> Self {
        error!(error = %cause, "request_failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::internal(&format!("{error:#}"))
    }
}

impl Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives errors their body, which has the ids of the request.
pub(super) async fn with_ids(request: Request, next: Next) -> Response {
    let ids = request.extensions().get::<RequestIds>().cloned();
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<ApiError>() else {
        return response;
    };
    let mut answer = (error.status, Json(error.body(ids.as_ref()))).into_response();
    if error.status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static(CHALLENGE);
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    answer
}
