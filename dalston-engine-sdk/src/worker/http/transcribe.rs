//! The handler of requests for a transcript, independent of their form.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::opentelemetry::trace::Status;
use dalston_telemetry::propagate;
use dalston_telemetry::services::engine::spans::attr;
use dalston_telemetry::tower::RequestIds;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::api::{Api, TranscriptionRequest};
use super::body::RequestBody;
use super::form::{Form, Recording, quoted};
use super::json;
use super::refusal::{RETRY_AFTER, Refusal};
use super::state::ServerState;
use super::warnings;
use crate::runner::{DIRECT_JOB, DirectTask, RunnerPhase};
use crate::spans;
use crate::stage::Stage;
use crate::task_dir::TaskFiles;

/// The limit for a recording to arrive.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

pub(super) async fn handle<A: Api>(
    State(server): State<Arc<ServerState>>,
    request_ids: RequestIds,
    request: Request,
) -> Response {
    let engine_id = server.capabilities.engine_id.as_str();
    // The span that the layer opened, or with tracing off the context of the client.
    let parent = propagate::current_context();
    let ids = Ids {
        task: Uuid::new_v4().to_string(),
        request: request_ids,
    };
    let request_id = ids.request.request_id();
    let attributes = [
        (attr::STAGE, Stage::Transcribe.to_string()),
        (attr::TASK_ID, ids.task.clone()),
        (attr::JOB_ID, DIRECT_JOB.to_owned()),
        (attr::REQUEST_ID, request_id.to_owned()),
        (attr::HTTP_ROUTE, A::ENDPOINT.as_str().to_owned()),
    ];
    let span = spans::http_request(&server.telemetry, &parent, engine_id, attributes);
    let log = LogContext::new()
        .request_id(request_id)
        .task_id(&*ids.task)
        .job_id(DIRECT_JOB)
        .engine_id(engine_id)
        .carrier(parent.clone());
    let work = async {
        let mut record = RequestRecord {
            begun: Instant::now(),
            status: None,
        };
        let result = transcribe::<A>(&server, request, &ids, &parent).await;
        let response = result.unwrap_or_else(|refusal| refuse::<A>(&refusal, &ids.request));
        record.status = Some(response.status());
        response
    };
    work.instrument(span).with_log_context(log).await
}

struct Ids {
    task: String,
    request: RequestIds,
}

async fn transcribe<A: Api>(
    server: &ServerState,
    request: Request,
    ids: &Ids,
    parent: &Context,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    // Such a client waits for a status before it sends the body, so there is nothing to drain.
    let waits = parts.headers.contains_key(header::EXPECT);
    let body = RequestBody::new(body);
    let permit = match admit(server, &parts.headers) {
        Ok(permit) => permit,
        Err(refusal) => {
            if !waits {
                drain(server, body).await;
            }
            return Err(refusal);
        }
    };
    let Received {
        options,
        request: TranscriptionRequest { model, config },
        unknown,
        recording,
        files,
    } = match receive::<A>(server, parts, &body).await {
        Ok(received) => received,
        Err(refusal) => {
            drop(permit);
            drain(server, body).await;
            return Err(refusal);
        }
    };
    let model_named = model.is_some();
    let mut task = DirectTask::for_file(recording.path)
        .named(recording.name)
        .with_files(files)
        .stage(Stage::Transcribe)
        .task_id(&*ids.task)
        .request_id(ids.request.request_id())
        .configs(config)
        .parent(task_parent(parent));
    if let Some(model) = model {
        task = task.model(model);
    }
    let mut data = server
        .direct
        .submit(task, server.queue_timeout)
        .await
        .map_err(|error| Refusal::from_direct_error(&error, model_named))?;
    let warnings = warnings::add(&mut data, &unknown);
    let mut response = A::respond(options, &server.capabilities.engine_id, data)?;
    if let Some(warnings) = warnings {
        response.headers_mut().insert(warnings::HEADER, warnings);
    }
    Ok(response)
}

/// Reads the rest of a refused request, so that its client sees the response.
async fn drain(server: &ServerState, body: RequestBody) {
    if let Ok(_permit) = server.drains.try_acquire() {
        body.drain().await;
    }
}

/// Takes a permit for the request, or refuses it by its header alone.
fn admit(server: &ServerState, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Refusal> {
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
    Arc::clone(&server.permits)
        .try_acquire_owned()
        .map_err(|_| Refusal::busy())
}

struct Received<O> {
    options: O,
    request: TranscriptionRequest,
    /// The quoted names of fields that the route does not know.
    unknown: Vec<String>,
    recording: Recording,
    files: Arc<TaskFiles>,
}

async fn receive<A: Api>(
    server: &ServerState,
    parts: Parts,
    body: &RequestBody,
) -> Result<Received<A::ResponseOptions>, Refusal> {
    let files = Arc::new(server.direct.workspace());
    let receiving = async {
        let form = Form::read(parts, body, files.path()?, server.max_upload).await?;
        // Before the download, so that an invalid field costs none.
        let (options, mut request) = A::read(&form.fields, &server.capabilities)?;
        let own = server
            .options
            .iter()
            .filter(|option| !A::FIELDS.contains(&option.name));
        let mut known = A::FIELDS.to_vec();
        for option in own {
            known.push(option.name);
            if let Some(text) = form.fields.text(option.name)? {
                let refuse =
                    |problem| Refusal::field(option.name, format_args!("{}: {problem}", quoted(text)));
                request
                    .config
                    .insert(option.name.to_owned(), option.read(text).map_err(refuse)?);
            }
        }
        let unknown = form.fields.unknown(&known);
        let url = match A::URL_FIELD {
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
                let mut problem = A::URL_FIELD.map_or_else(
                    || "missing: expected a recording".to_owned(),
                    |name| format!("missing: expected a recording, or {name}"),
                );
                if !unknown.is_empty() {
                    let _ = write!(problem, "; not known: {}", unknown.join(", "));
                }
                return Err(Refusal::field("file", problem));
            }
        };
        Ok((options, request, unknown, recording))
    };
    let span = spans::receive_input();
    let received = timeout(RECEIVE_TIMEOUT, receiving).instrument(span).await;
    let (options, request, unknown, recording) = received.map_err(|_| Refusal::too_slow())??;
    Ok(Received {
        options,
        request,
        unknown,
        recording,
        files,
    })
}

/// The parent context of the task: the span of the request, or with tracing off the context of the
/// client.
fn task_parent(parent: &Context) -> Context {
    let span = Span::current();
    if span.is_disabled() {
        parent.clone()
    } else {
        span.context()
    }
}

/// The response for a refusal. A server error is recorded on the span.
fn refuse<A: Api>(refusal: &Refusal, ids: &RequestIds) -> Response {
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
    let mut body = A::refuse(refusal);
    ids.add_to(&mut body);
    let mut response = json::response(&body);
    *response.status_mut() = refusal.status;
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

/// Records the end of a request. It is dropped without a status if the client closes the
/// connection.
struct RequestRecord {
    begun: Instant,
    status: Option<StatusCode>,
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let span = Span::current();
        match self.status {
            Some(status) => {
                span.set_attribute(attr::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16()));
                if status.is_success() {
                    let seconds = self.begun.elapsed().as_secs_f64();
                    tracing::info!(seconds, "direct_request_answered");
                }
            }
            None => {
                span.set_attribute(attr::ERROR_TYPE, "client_gone");
                span.set_status(Status::error("the client closed the connection"));
                tracing::info!("direct_request_abandoned");
            }
        }
    }
}
