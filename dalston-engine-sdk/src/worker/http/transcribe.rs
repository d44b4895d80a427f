//! The way of a request for a transcript, whatever form it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::opentelemetry::trace::Status;
use dalston_telemetry::propagate;
use dalston_telemetry::services::engine::spans::attr;
use dalston_telemetry::services::engine::{DirectEndpoint, DirectMetrics, DirectStatus};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::Server;
use super::form::{Fields, Form, Incoming, Recording};
use super::refusal::{RETRY_AFTER, Refusal};
use crate::runner::{DirectTask, RunnerPhase};
use crate::spans;
use crate::stage::Stage;

/// How long a recording may take to arrive.
const RECEIVE_TIME: Duration = Duration::from_secs(30 * 60);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What makes one route different from another.
pub(super) trait Contract: Send + Sync + 'static {
    const ENDPOINT: DirectEndpoint;
    /// The field that may name a recording instead of bringing it.
    const URL: Option<&'static str>;
    /// What the answer depends on.
    type Wishes: Send;

    /// Reads what is wished for.
    fn read(fields: &Fields, engine_id: &str) -> Result<(Self::Wishes, Order), Refusal>;
    /// Puts the `data` of the task's answer in the form of the route.
    fn answer(wishes: Self::Wishes, engine_id: &str, data: Value) -> Result<Response, Refusal>;
    fn refuse(refusal: &Refusal) -> Response;
}

/// What the engine is asked to do.
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) model: Option<String>,
    pub(super) config: Map<String, Value>,
}

pub(super) async fn handle<C: Contract>(State(server): State<Arc<Server>>, request: Request) -> Response {
    let engine_id = server.capabilities.engine_id.as_str();
    let carried = propagate::extract_headers(request.headers());
    let ids = Ids {
        task: Uuid::new_v4().to_string(),
        request: request_id(request.headers()),
    };
    let attributes = [
        (attr::STAGE, Stage::Transcribe.to_string()),
        (attr::TASK_ID, ids.task.clone()),
        (attr::JOB_ID, crate::runner::DIRECT_JOB.to_owned()),
        (attr::REQUEST_ID, ids.request.clone()),
        (attr::HTTP_ROUTE, C::ENDPOINT.as_str().to_owned()),
    ];
    let span = spans::http_request(&server.telemetry, &carried, engine_id, attributes);
    let log = LogContext::new()
        .request_id(&*ids.request)
        .task_id(&*ids.task)
        .job_id(crate::runner::DIRECT_JOB)
        .engine_id(engine_id)
        .carrier(carried.clone());
    let work = async {
        let unfinished = Unfinished {
            begun: Instant::now(),
            metrics: &server.metrics,
            endpoint: C::ENDPOINT,
        };
        let answer = transcribe::<C>(&server, request, &ids, &carried).await;
        let response = answer.unwrap_or_else(|refusal| refused::<C>(&refusal));
        unfinished.finish(response.status());
        response
    };
    let mut response = work.instrument(span).with_log_context(log).await;
    if let Ok(id) = HeaderValue::from_str(&ids.request) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

struct Ids {
    task: String,
    request: String,
}

async fn transcribe<C: Contract>(
    server: &Server,
    request: Request,
    ids: &Ids,
    carried: &Context,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    // Who waits to be told that we want its body needs no draining.
    let sending = !parts.headers.contains_key(header::EXPECT);
    let incoming = Incoming::new(body);
    let received = match admit(server, &parts.headers) {
        Ok(place) => receive::<C>(server, parts, &incoming)
            .await
            .map(|received| (place, received))
            .map_err(|refusal| (refusal, true)),
        Err(refusal) => Err((refusal, sending)),
    };
    let (_place, received) = match received {
        Ok(received) => received,
        Err((refusal, drain)) => {
            if drain {
                incoming.drain().await;
            }
            return Err(refusal);
        }
    };
    let Received {
        wishes,
        order: Order { model, config },
        recording,
        files,
    } = received;
    let model_named = model.is_some();
    let mut task = DirectTask::for_file(recording.path)
        .named(recording.name)
        .keeping(files)
        .stage(Stage::Transcribe)
        .task_id(&*ids.task)
        .request_id(&*ids.request)
        .configs(config)
        .parent(here(carried));
    if let Some(model) = model {
        task = task.model(model);
    }
    let data = server
        .direct
        .submit(task, server.patience)
        .await
        .map_err(|error| Refusal::of_task(&error, model_named))?;
    C::answer(wishes, &server.capabilities.engine_id, data)
}

/// Finds a place for the request, or why there is none, from what is known before its body is.
fn admit(server: &Server, headers: &HeaderMap) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
    if !server.capabilities.stages.contains(&Stage::Transcribe) {
        let message = format!("the engine {} does not transcribe", server.capabilities.engine_id);
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", message));
    }
    if matches!(
        server.status.phase(),
        RunnerPhase::Draining | RunnerPhase::Stopped
    ) {
        return Err(Refusal::stopping());
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    // A form is a little larger than its file.
    if length.is_some_and(|length| length > server.max_upload.saturating_add(1 << 20)) {
        return Err(Refusal::too_large(server.max_upload));
    }
    Arc::clone(&server.places)
        .try_acquire_owned()
        .map_err(|_| Refusal::busy())
}

struct Received<W> {
    wishes: W,
    order: Order,
    recording: Recording,
    files: Arc<crate::task_dir::TaskFiles>,
}

async fn receive<C: Contract>(
    server: &Server,
    parts: axum::http::request::Parts,
    incoming: &Incoming,
) -> Result<Received<C::Wishes>, Refusal> {
    let files = Arc::new(server.direct.workspace());
    let arriving = async {
        let form = Form::read(parts, incoming, files.path()?, server.max_upload).await?;
        // What is wrong with the fields is told before anything is fetched for them.
        let (wishes, order) = C::read(&form.fields, &server.capabilities.engine_id)?;
        let url = match C::URL {
            Some(name) => form.fields.text(name)?.map(|url| (name, url)),
            None => None,
        };
        let recording = match (form.file, url) {
            (Some(file), None) => file,
            (None, Some((_, url))) => {
                let store = server.direct.store();
                server.fetcher.fetch(url, files.path()?, store).await?
            }
            (Some(_), Some((name, _))) => {
                return Err(Refusal::field(name, "given beside file: expected one of them"));
            }
            (None, None) => {
                let problem = C::URL.map_or_else(
                    || "missing: expected a recording".to_owned(),
                    |name| format!("missing: expected a recording, or {name}"),
                );
                return Err(Refusal::field("file", problem));
            }
        };
        Ok((wishes, order, recording))
    };
    let span = spans::receive_input();
    let received = timeout(RECEIVE_TIME, arriving).instrument(span).await;
    let (wishes, order, recording) = received.map_err(|_| Refusal::too_slow())??;
    Ok(Received {
        wishes,
        order,
        recording,
        files,
    })
}

/// The context that the task belongs to: the span of the request, or with tracing off whatever the caller sent.
fn here(carried: &Context) -> Context {
    let span = Span::current();
    if span.is_disabled() {
        carried.clone()
    } else {
        span.context()
    }
}

/// What clients sent so that they find their request again, or one of ours.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let given = given.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(plain));
    given.map_or_else(|| format!("req_{}", Uuid::new_v4().simple()), str::to_owned)
}

/// The answer without a transcript, and on the span why there is none.
fn refused<C: Contract>(refusal: &Refusal) -> Response {
    let span = Span::current();
    if refusal.status.is_server_error() {
        span.set_attribute(attr::ERROR_TYPE, refusal.code);
        span.set_status(Status::error(refusal.message.clone()));
    }
    tracing::info!(
        status = refusal.status.as_u16(),
        code = refusal.code,
        error = refusal.message,
        "direct_request_refused"
    );
    let mut response = C::refuse(refusal);
    *response.status_mut() = refusal.status;
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

/// A request that has no answer yet. It is dropped when the client closes the connection.
struct Unfinished<'a> {
    begun: Instant,
    metrics: &'a DirectMetrics,
    endpoint: DirectEndpoint,
}

impl Unfinished<'_> {
    fn finish(self, status: StatusCode) {
        let span = Span::current();
        span.set_attribute(attr::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16()));
        let took = self.begun.elapsed();
        if status.is_success() {
            tracing::info!(seconds = took.as_secs_f64(), "direct_request_answered");
        }
        let status = DirectStatus::of(status.as_u16());
        self.metrics.request(self.endpoint, status, took);
        std::mem::forget(self);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let span = Span::current();
        span.set_attribute(attr::ERROR_TYPE, "client_gone");
        span.set_status(Status::error("the client closed the connection"));
        tracing::info!("direct_request_abandoned");
        let took = self.begun.elapsed();
        self.metrics
            .request(self.endpoint, DirectStatus::ClientGone, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_harmless_request_id_is_taken_over() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            request_id(&headers)
        };
        assert_eq!(with("req_5f-A.b"), "req_5f-A.b");
        for id in ["", "a b", "a\"b", "ä", &"a".repeat(129)] {
            let made = with(id);
            assert!(made.starts_with("req_") && made.len() == 36, "{id}: {made}");
        }
    }
}
