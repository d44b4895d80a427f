//! The sessions of a worker: admission, routes and heartbeat.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, RawQuery, Request, State};
use axum::http::request::Parts as RequestParts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dalston_telemetry::context::WithLogContext;
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::services::realtime::{
    RealtimeMetrics, RealtimeSteps, Rejection, SessionEnd, StartedSession,
};
use dalston_telemetry::{TelemetryHandle, propagate};
use serde_json::{Value, json};
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, dispatcher, info};

use super::connection::{self, Parts};
use super::messages::{self, ErrorCode, close};
use super::openai::{self, OpenAi};
use super::parameters::Parameters;
use super::peer::Peer;
use super::resume::Resumptions;
use super::session::Session;
use super::storage::Storage;
use crate::config::RealtimeConfig;
use crate::engine::EngineInfo;
use crate::protocol::{Heartbeat, InstanceStatus};
use crate::redis::RedisServer;
use crate::runner::{Live, Runner, RunnerPhase};

/// The longest message of a client.
const LONGEST_MESSAGE: usize = 1024 * 1024;

/// The realtime sessions of a worker. Clones share them.
#[derive(Clone)]
pub(crate) struct RealtimeServer {
    shared: Arc<Shared>,
}

struct Shared {
    live: Live,
    config: RealtimeConfig,
    languages: Option<Vec<String>>,
    models: Option<Vec<String>>,
    has_words: bool,
    streams_natively: bool,
    steps: RealtimeSteps,
    resumptions: Resumptions,
    storage: Storage,
    sessions: AtomicUsize,
}

/// The place of a session, until it is dropped.
struct Place {
    server: RealtimeServer,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.shared.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a session does not begin.
struct Refusal {
    reason: Rejection,
    code: ErrorCode,
    message: String,
    recoverable: bool,
    close: u16,
}

impl RealtimeServer {
    /// The sessions of this runner. `redis` keeps where sessions go on that were cut off.
    pub(crate) fn new(
        runner: &Runner,
        info: &EngineInfo,
        config: RealtimeConfig,
        telemetry: TelemetryHandle,
        redis: Option<RedisServer>,
    ) -> Self {
        let live = runner.live();
        let metrics = RealtimeMetrics::register(live.metrics(), live.engine_id(), instance(&live));
        // The counters of the usual model exist before its first session.
        let _ = metrics.model(live.default_model().map_or("", |model| model.as_str()));
        let storage = Storage::new(&live, metrics.clone());
        let steps = RealtimeSteps::new(telemetry, metrics)
            .one_span_in(config.span_sample_rate)
            .names(config.span_names);
        Self {
            shared: Arc::new(Shared {
                live,
                config,
                languages: info.languages.clone(),
                models: info.model_variants.clone(),
                has_words: info.word_timestamps,
                streams_natively: info.native_streaming,
                steps,
                resumptions: Resumptions::new(redis),
                storage,
                sessions: AtomicUsize::new(0),
            }),
        }
    }

    /// The name of the realtime half of the process in the registry.
    pub(crate) fn instance(&self) -> String {
        instance(&self.shared.live)
    }

    /// The number of sessions.
    pub(crate) fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::Acquire)
    }

    /// The heartbeat for the registry. A worker whose models are loading has no free place.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (sessions, capacity) = (self.sessions(), self.shared.config.max_sessions);
        let status = self.shared.live.status();
        let (state, active) = match status.phase() {
            _ if self.is_draining() => (InstanceStatus::Draining, sessions),
            RunnerPhase::Starting => (InstanceStatus::Loading, capacity),
            RunnerPhase::Running if sessions >= capacity => (InstanceStatus::Busy, sessions),
            RunnerPhase::Running => (InstanceStatus::Ready, sessions),
            RunnerPhase::Draining | RunnerPhase::Stopped => (InstanceStatus::Draining, sessions),
        };
        let mut heartbeat = Heartbeat::new(state, count(active));
        let models = status.models();
        heartbeat.models_loaded = models.iter().map(ToString::to_string).collect();
        heartbeat.loaded_model = status.model().map(|model| model.to_string());
        heartbeat.gpu_memory_used_mib = status.gpu_memory().map(|memory| memory.used >> 20);
        heartbeat.gpu_memory_total_mib = status.gpu_memory().map(|memory| memory.total >> 20);
        heartbeat
    }

    /// The routes of the port for sessions.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/session", get(session))
            .route("/v1/realtime", get(openai_session))
            .route("/health", get(health))
            .fallback(unknown_path)
            .with_state(self.clone())
    }

    /// Serves one session, whose place is taken already, or refuses it.
    pub(crate) async fn serve<P: Peer>(
        &self,
        peer: &mut P,
        query: &HashMap<String, String>,
        parent: Option<Context>,
    ) {
        let parameters = match Parameters::parse(query, &self.shared.config) {
            Ok(parameters) => parameters,
            Err(message) => {
                let refusal = Refusal {
                    reason: Rejection::InvalidRequest,
                    code: ErrorCode::InvalidMessage,
                    message,
                    recoverable: false,
                    close: close::PROTOCOL_ERROR,
                };
                return self.refuse(peer, &refusal).await;
            }
        };
        let place = self.check(&parameters).and_then(|()| self.place());
        let place = match place {
            Ok(place) => place,
            Err(refusal) => return self.refuse(peer, &refusal).await,
        };
        let _drain = self.shared.live.track();
        self.run(peer, parameters, parent, place).await;
    }

    async fn run<P: Peer>(
        &self,
        peer: &mut P,
        parameters: Parameters,
        parent: Option<Context>,
        place: Place,
    ) {
        let Shared {
            live,
            config,
            has_words,
            streams_natively,
            steps,
            resumptions,
            storage,
            ..
        } = &*self.shared;
        let resumed = match &parameters.resumes {
            Some(id) => resumptions.take(id).await.map(|offset| (id.clone(), offset)),
            None => None,
        };
        let origin = resumed.as_ref().map_or(Duration::ZERO, |(_, offset)| *offset);
        let session_id = parameters.session_id.clone();
        let parent = parent.unwrap_or_else(|| {
            let carried = parameters.traceparent.clone();
            let carrier = carried.map(|traceparent| ("traceparent".to_owned(), traceparent));
            propagate::extract_map(&carrier.into_iter().collect())
        });
        let default_model = live.default_model().map_or("", |model| model.as_str());
        let telemetry = steps.begin(&StartedSession {
            session_id: &session_id,
            model: parameters.model.as_deref().unwrap_or(default_model),
            language: parameters.language.as_deref().unwrap_or_default(),
            parent,
        });
        let log = telemetry.log_context();
        let span = telemetry.span().clone();
        let parts = Parts {
            live,
            config,
            has_words: *has_words,
            storage,
        };
        let serving = async {
            let mut session = match Session::new(parameters, live.format().sample_rate, origin, || {
                live.voice_detector()
            }) {
                Ok(session) => session,
                Err(error) => {
                    let error = messages::error(ErrorCode::InternalError, &error.to_string(), false);
                    let last_words = async {
                        let _ = peer.send(&error).await;
                        peer.close(close::INVALID_REQUEST, "internal error").await;
                    };
                    return telemetry.close(SessionEnd::Error, last_words).await;
                }
            };
            if *streams_natively {
                session.stream_natively();
            }
            if session.parameters().store_audio {
                session.record(storage.record(&session_id, session.audio_format()));
            }
            info!("session_started");
            let begin = session.begin(resumed.as_ref().map(|(id, _)| id.as_str()));
            if peer.send(&begin).await.is_err() {
                telemetry
                    .close(SessionEnd::Disconnected, std::future::ready(()))
                    .await;
                drop(place);
                // The client does not know that its session has gone on.
                if let Some((id, offset)) = resumed {
                    resumptions.keep(&id, offset).await;
                }
                return;
            }
            let ended = connection::serve(peer, session, telemetry, parts).await;
            // The server that keeps the session may be slow.
            drop(place);
            let is_cut_off = matches!(
                ended.reason,
                SessionEnd::Lag | SessionEnd::Shutdown | SessionEnd::Disconnected
            );
            if is_cut_off {
                resumptions.keep(&session_id, ended.last_transcript).await;
            }
        };
        serving.instrument(span).with_log_context(log).await;
    }

    /// Whether the engine can do what the client asks for.
    fn check(&self, parameters: &Parameters) -> Result<(), Refusal> {
        let main_part = |tag: &str| {
            let part = tag.split(['-', '_']).next().unwrap_or_default();
            part.to_ascii_lowercase()
        };
        if let (Some(languages), Some(language)) = (&self.shared.languages, &parameters.language)
            && !languages
                .iter()
                .any(|known| main_part(known) == main_part(language))
        {
            return Err(Refusal {
                reason: Rejection::Language,
                code: ErrorCode::LanguageUnsupported,
                message: format!(
                    "language {language:?} is not supported: expected {}",
                    languages.join(", ")
                ),
                recoverable: false,
                close: close::INVALID_REQUEST,
            });
        }
        if let (Some(models), Some(model)) = (&self.shared.models, &parameters.model)
            && !models.contains(model)
        {
            return Err(Refusal {
                reason: Rejection::InvalidRequest,
                code: ErrorCode::InvalidMessage,
                message: format!("model {model:?} is not known: expected {}", models.join(", ")),
                recoverable: false,
                close: close::NOT_FOUND,
            });
        }
        Ok(())
    }

    /// A place for a session.
    fn place(&self) -> Result<Place, Refusal> {
        let no_capacity = |reason, message: &str| Refusal {
            reason,
            code: ErrorCode::NoCapacity,
            message: message.to_owned(),
            recoverable: true,
            close: close::TRY_AGAIN,
        };
        if self.is_draining() {
            return Err(no_capacity(
                Rejection::Draining,
                "the worker shuts down: try another one",
            ));
        }
        let most = self.shared.config.max_sessions;
        let more = |sessions: usize| (sessions < most).then_some(sessions + 1);
        match self
            .shared
            .sessions
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
        {
            Ok(_) => Ok(Place { server: self.clone() }),
            Err(_) => Err(no_capacity(
                Rejection::NoCapacity,
                "the worker has no free place: try another one",
            )),
        }
    }

    async fn refuse<P: Peer>(&self, peer: &mut P, refusal: &Refusal) {
        self.shared.steps.metrics().session_rejected(refusal.reason);
        info!(reason = refusal.reason.as_str(), "session_refused");
        let error = messages::error(refusal.code, &refusal.message, refusal.recoverable);
        if peer.send(&error).await.is_ok() {
            peer.close(refusal.close, "session refused").await;
        }
    }

    fn is_draining(&self) -> bool {
        self.shared.live.draining().is_cancelled()
    }

    fn health(&self) -> Value {
        json!({
            "status": if self.is_draining() { "draining" } else { "healthy" },
            "engine_id": self.shared.live.engine_id(),
            "instance": self.instance(),
            "active_sessions": self.sessions(),
            "capacity": self.shared.config.max_sessions,
        })
    }
}

impl fmt::Debug for RealtimeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealtimeServer")
            .field("live", &self.shared.live)
            .field("sessions", &self.sessions())
            .finish_non_exhaustive()
    }
}

/// As the platform names it: `-rt-` before the suffix.
fn instance(live: &Live) -> String {
    let suffix = live.instance().strip_prefix(live.engine_id());
    match suffix.and_then(|suffix| suffix.strip_prefix('-')) {
        Some(suffix) => format!("{}-rt-{suffix}", live.engine_id()),
        None => format!("{}-rt", live.instance()),
    }
}

async fn session(
    State(server): State<RealtimeServer>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let query = parse_query(&query.unwrap_or_default());
    // The header wins over the parameter, which is for browsers.
    let parent = headers
        .contains_key("traceparent")
        .then(|| propagate::extract_headers(&headers));
    open(upgrade, async move |mut socket| {
        server.serve(&mut socket, &query, parent).await
    })
}

/// A session in the protocol of OpenAI. Its key is not looked at.
async fn openai_session(
    State(server): State<RealtimeServer>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let query = openai::query(&parse_query(&query.unwrap_or_default()));
    let parent = headers
        .contains_key("traceparent")
        .then(|| propagate::extract_headers(&headers));
    // Browsers name it, and expect it back.
    open(upgrade.protocols(["realtime"]), async move |mut socket| {
        server.serve(&mut OpenAi::new(&mut socket), &query, parent).await
    })
}

pub(crate) fn parse_query(query: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

async fn health(State(server): State<RealtimeServer>, MaybeUpgrade(upgrade): MaybeUpgrade) -> Response {
    let health = server.health();
    match upgrade {
        None => ([(header::CONTENT_TYPE, "application/json")], health.to_string()).into_response(),
        Some(upgrade) => open(upgrade, async move |mut socket| {
            if Peer::send(&mut socket, &health).await.is_ok() {
                socket.close(close::NORMAL, "healthy").await;
            }
        }),
    }
}

async fn unknown_path(MaybeUpgrade(upgrade): MaybeUpgrade, request: Request) -> Response {
    match upgrade {
        None => {
            let text = format!(
                "there is no {}: expected /session or /health\n",
                request.uri().path()
            );
            (StatusCode::NOT_FOUND, text).into_response()
        }
        Some(upgrade) => open(upgrade, async |mut socket| {
            socket
                .close(close::POLICY, "unknown path: expected /session")
                .await;
        }),
    }
}

/// A request that may ask for a WebSocket.
struct MaybeUpgrade(Option<WebSocketUpgrade>);

impl<S: Send + Sync> FromRequestParts<S> for MaybeUpgrade {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut RequestParts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(
            WebSocketUpgrade::from_request_parts(parts, state).await.ok(),
        ))
    }
}

/// Serves a connection that becomes a WebSocket, with the subscriber of the worker.
fn open<F>(upgrade: WebSocketUpgrade, serve: impl FnOnce(WebSocket) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let dispatch = dispatcher::get_default(Clone::clone);
    upgrade
        .max_message_size(LONGEST_MESSAGE)
        .max_frame_size(LONGEST_MESSAGE)
        .on_upgrade(move |socket| serve(socket).with_subscriber(dispatch))
}
