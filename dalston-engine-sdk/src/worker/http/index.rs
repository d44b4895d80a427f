//! The routes about the server itself: `/`, `/v1/models`, and the response for unknown routes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json;
use super::page;
use super::refusal::Refusal;
use super::state::ServerState;

/// `GET /`: the engine, and the routes of the server. A browser gets the status page.
pub(super) async fn index(State(server): State<Arc<ServerState>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|types| types.to_str().ok());
    if accept.is_some_and(|types| types.contains("text/html")) {
        return page::response(&server);
    }
    let capabilities = &server.capabilities;
    json::response(&json!({
        "engine_id": capabilities.engine_id,
        "version": capabilities.version,
        "instance": server.instance,
        "stages": capabilities.stages,
        "routes": server.routes,
    }))
}

/// `GET /v1/models`, in the form of OpenAI's API: the engine, whose name stands for its default
/// model, its variants, and the models in memory.
pub(super) async fn models(State(server): State<Arc<ServerState>>) -> Response {
    let capabilities = &server.capabilities;
    let mut names = vec![capabilities.engine_id.clone()];
    let variants = capabilities.model_variants.iter().flatten().cloned();
    let loaded = server.status.models().into_iter().map(|model| model.to_string());
    for name in variants.chain(loaded) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    let models = names
        .iter()
        .map(|name| json!({"id": name, "object": "model", "created": 0, "owned_by": "dalston"}));
    let models: Vec<_> = models.collect();
    json::response(&json!({"object": "list", "data": models}))
}

pub(super) async fn unknown_route(
    State(server): State<Arc<ServerState>>,
    method: Method,
    uri: Uri,
) -> Response {
    let (path, routes) = (name_of(&uri), server.routes.join(", "));
    let message = format!("{method} {path}: there is no such route: expected one of {routes}");
    refuse(&Refusal::new(StatusCode::NOT_FOUND, "not_found", message))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{method} {}: the route has other methods", name_of(&uri));
    refuse(&Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    ))
}

/// The path of a request, in a message.
fn name_of(uri: &Uri) -> String {
    const LONGEST: usize = 100;
    uri.path().chars().take(LONGEST).collect()
}

/// A response with the keys of both forms, because the form of the client is not known.
fn refuse(refusal: &Refusal) -> Response {
    let body = json!({"detail": refusal.message, "error": refusal.openai_error()});
    (refusal.status, json::response(&body)).into_response()
}
