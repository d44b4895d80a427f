//! JSON responses.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

pub(super) fn response(value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("the keys are strings and no field fails to serialize");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
