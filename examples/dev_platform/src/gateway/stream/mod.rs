//! `WS /v1/audio/transcriptions/stream`: a realtime session, passed on to a worker.
//!
//! A refused client first gets the reason as a message, and then a close frame. So the connection
//! is accepted in any case.
//!
//! | Module | What is in it |
//! |---|---|
//! | `worker` | the connection to a worker |
//! | `proxy` | a session between both |
//! | `side` | the client and the worker as one type |
//! | `tally` | audio, lag and end of a session |

mod proxy;
mod side;
mod tally;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use dalston_telemetry::context::WithLogContext;
use dalston_telemetry::tower::{UpgradeSpan, WebSocketSession};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, warn};
use url::form_urlencoded;

use self::proxy::{End, Proxy, Seen, lock};
use self::side::{Close, Frame, LONGEST_READ, Side};
use self::tally::Tally;
use self::worker::{Begun, NotBegun, connect};
use super::access::{Access, READ_ONLY, SECRETS, decide};
use super::error::ApiError;
use super::realtime::takes_token;
use super::{Gateway, Shared};
use crate::session_router::{NoPlace, Place, Session, SessionRouter};

pub(super) const PATH: &str = "/v1/audio/transcriptions/stream";

/// How long a client may be silent, also to a ping.
const CLIENT_SILENCE: Duration = Duration::from_secs(40);
/// How long a client may take to read a message.
const CLIENT_STALL: Duration = Duration::from_secs(30);
/// How long the search for a worker may take.
const ALLOCATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the session router is told about a session.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Parameters that the gateway sets itself.
const OWN_PARAMETERS: [&str; 3] = ["session_id", "model", "traceparent"];

/// The sessions of the gateway.
#[derive(Debug)]
pub(super) struct Sessions {
    router: SessionRouter,
    places: Arc<Semaphore>,
    running: TaskTracker,
    /// Becomes true when the gateway ends.
    closed: watch::Receiver<bool>,
    /// How long sessions may go on then.
    drain: Duration,
}

impl Sessions {
    pub(super) fn new(
        router: SessionRouter,
        most: usize,
        drain: Duration,
        closed: watch::Receiver<bool>,
    ) -> Self {
        Self {
            router,
            places: Arc::new(Semaphore::new(most)),
            running: TaskTracker::new(),
            closed,
            drain,
        }
    }

    /// Waits for the end of all sessions.
    pub(super) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }

    async fn drained(&self) {
        let mut closed = self.closed.clone();
        // An error means that the gateway is gone.
        let _ = closed.wait_for(|is_closed| *is_closed).await;
        sleep(self.drain).await;
    }
}

/// Why a client gets no session.
struct Refusal {
    message: Frame,
    close: Close,
}

impl Refusal {
    fn new(code: &str, message: &str, close: u16) -> Self {
        Self {
            message: error(code, message, close == NO_CAPACITY || close == TOO_MANY),
            close: Close::new(close, "session refused"),
        }
    }
}

/// Codes of close frames: section 10 of the protocol.
const NO_KEY: u16 = 4001;
const FORBIDDEN: u16 = 4003;
const TOO_MANY: u16 = 4429;
const NO_CAPACITY: u16 = 4503;
/// A worker's code for wrong parameters. Another worker would say the same.
const PROTOCOL_ERROR: u16 = 1002;

pub(super) async fn stream(
    State(gateway): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    span: UpgradeSpan,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let query = parse(&query.unwrap_or_default());
    let is_read_only = gateway.platform.page.is_read_only;
    let mut access = decide(gateway.api_key.as_deref(), is_read_only, &headers, &query);
    if access == Access::NoKey && takes_token(&gateway, &query).await {
        access = decide(None, is_read_only, &headers, &query);
    }
    let upgrade = match (upgrade, access) {
        (Ok(upgrade), _) => upgrade,
        (Err(_), Access::NoKey) => return Err(ApiError::unauthorized()),
        (Err(error), _) => return Err(ApiError::bad_request(format!("{PATH} is a WebSocket: {error}"))),
    };
    let running = gateway.sessions.running.token();
    let upgrade = upgrade
        .max_message_size(LONGEST_READ)
        .max_frame_size(LONGEST_READ);
    Ok(upgrade.on_upgrade(async move |socket| {
        let guard = span.open();
        let (span, log) = (guard.span(), guard.log_context());
        let serving = serve(&gateway, socket, guard, query, address, access);
        serving.instrument(span).with_log_context(log).await;
        drop(running);
    }))
}

async fn serve(
    gateway: &Gateway,
    socket: WebSocket,
    mut guard: WebSocketSession,
    query: Vec<(String, String)>,
    address: SocketAddr,
    access: Access,
) {
    let sessions = &gateway.sessions;
    let mut client = Side::of_client(socket, CLIENT_SILENCE, CLIENT_STALL);
    let values: HashMap<String, String> = query.iter().cloned().collect();
    let value = |name: &str| values.get(name).map_or("", String::as_str);
    let session = Session::new(value("model"), value("language"), address.ip().to_string());
    guard.id(&*session.id);
    let log = guard.log_context();
    let serving = async {
        let begun = match admit(sessions, access) {
            Ok(permit) => begin(sessions, &session, &query)
                .await
                .map(|begun| (permit, begun)),
            Err(refusal) => Err(refusal),
        };
        let (_permit, (place, begun)) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                info!(code = refusal.close.code, "session_refused");
                guard.closed(refusal.close.code);
                if client.outgoing.send(refusal.message).await.is_ok() {
                    client.close(refusal.close).await;
                }
                return;
            }
        };
        info!(instance = place.instance, "session_started");
        let tally = Tally::new(&values);
        let Begun { worker, begin } = begun;
        let proxy = Proxy {
            session_id: session.id.clone(),
            client,
            worker,
            seen: Arc::new(Mutex::new(Seen { guard, tally })),
        };
        run(sessions, &session, &place, proxy, begin).await;
    };
    serving.with_log_context(log).await;
}

/// A place of the gateway for a session.
fn admit(sessions: &Sessions, access: Access) -> Result<OwnedSemaphorePermit, Refusal> {
    match access {
        Access::Granted => {}
        Access::NoKey => {
            let text = "the API key is missing or wrong";
            return Err(Refusal::new("unauthorized", text, NO_KEY));
        }
        Access::OtherSite => {
            let text = "a page of another site has opened the session";
            return Err(Refusal::new("forbidden", text, FORBIDDEN));
        }
        Access::ReadOnly => return Err(Refusal::new("forbidden", READ_ONLY, FORBIDDEN)),
    }
    if *sessions.closed.borrow() {
        let text = "the gateway shuts down: try again";
        return Err(Refusal::new("no_capacity", text, NO_CAPACITY));
    }
    let permit = sessions.places.clone().try_acquire_owned();
    permit.map_err(|_| {
        let text = "the gateway has as many sessions as it may have: try again later";
        Refusal::new("rate_limit", text, TOO_MANY)
    })
}

/// Finds a worker that begins the session. A worker that does not is passed over.
async fn begin(
    sessions: &Sessions,
    session: &Session,
    query: &[(String, String)],
) -> Result<(Place, Begun), Refusal> {
    let router = &sessions.router;
    let deadline = Instant::now() + ALLOCATION_TIMEOUT;
    let mut except = BTreeSet::new();
    let mut refusal = None;
    loop {
        let (place, message) = match router.allocate(session, &except).await {
            Ok(allocated) => allocated,
            Err(reason) => {
                let code = match reason {
                    NoPlace::Redis(_) => "internal_error",
                    _ => "no_capacity",
                };
                let none = || Refusal::new(code, &reason.to_string(), NO_CAPACITY);
                return Err(refusal.unwrap_or_else(none));
            }
        };
        let query = query_for(session, &place, query);
        let connecting = timeout_at(deadline, connect(&place, &query, &message));
        let late = || Err(NotBegun::Unreachable("no worker in time".to_owned()));
        let not_begun = match connecting.await.unwrap_or_else(|_| late()) {
            Ok(begun) => return Ok((place, begun)),
            Err(not_begun) => not_begun,
        };
        router.release(session, &place).await;
        match not_begun {
            NotBegun::Unreachable(error) => {
                warn!(instance = place.instance, error, "realtime_worker_unreachable");
                router.lost(&place).await;
            }
            NotBegun::Refused { message, close } => {
                info!(instance = place.instance, "realtime_worker_refused");
                let is_final = close.as_ref().is_some_and(|close| close.code == PROTOCOL_ERROR);
                // A worker that is full says nothing about the session.
                if let (Some(message), Some(close)) = (message, close)
                    && message["code"] != "no_capacity"
                {
                    let message = Frame::Text(message.to_string());
                    refusal = Some(Refusal { message, close });
                }
                if is_final && let Some(refusal) = refusal.take() {
                    return Err(refusal);
                }
            }
        }
        except.insert(place.instance);
        if Instant::now() >= deadline {
            let text = "no realtime worker answers: try again later";
            let none = || Refusal::new("no_capacity", text, NO_CAPACITY);
            return Err(refusal.unwrap_or_else(none));
        }
    }
}

/// Passes messages on until the session ends.
async fn run(sessions: &Sessions, session: &Session, place: &Place, mut proxy: Proxy, begin: String) {
    let router = &sessions.router;
    let seen = proxy.seen.clone();
    let end = tokio::select! {
        end = proxy.run(begin, sessions.drained()) => end,
        never = keep_renewed(router, session, place, &seen) => match never {},
    };
    if end == End::WorkerLost {
        router.lost(place).await;
    }
    proxy.finish(end).await;
    let status = lock(&seen).tally.status();
    // Both connections and the span end here.
    drop(proxy);
    drop(seen);
    router.release(session, place).await;
    router.ended(status);
}

async fn keep_renewed(
    router: &SessionRouter,
    session: &Session,
    place: &Place,
    seen: &Mutex<Seen>,
) -> Infallible {
    loop {
        sleep(RENEW_INTERVAL).await;
        let facts = lock(seen).tally.fields();
        router.renew(session, place, facts).await;
    }
}

/// The parameters for the worker: those of the client without its key, and those that the gateway
/// sets.
fn query_for(session: &Session, place: &Place, query: &[(String, String)]) -> String {
    let own = |name: &str| OWN_PARAMETERS.contains(&name) || SECRETS.contains(&name);
    let mut serializer = form_urlencoded::Serializer::new(String::new());
    serializer.append_pair("session_id", &session.id);
    // The name of an engine is no model.
    if !session.model.is_empty() && session.model != place.engine_id {
        serializer.append_pair("model", &session.model);
    }
    for (name, value) in query.iter().filter(|(name, _)| !own(name)) {
        serializer.append_pair(name, value);
    }
    serializer.finish()
}

fn parse(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The message `error`.
fn error(code: &str, message: &str, recoverable: bool) -> Frame {
    let error = json!({"type": "error", "code": code, "message": message, "recoverable": recoverable});
    Frame::Text(error.to_string())
}

/// Takes the trace context from the query, for browsers. A header wins.
pub(super) async fn accept_trace_context(mut request: Request, next: Next) -> Response {
    const TRACEPARENT: &str = "traceparent";
    if request.uri().path() == PATH && !request.headers().contains_key(TRACEPARENT) {
        let query = parse(request.uri().query().unwrap_or_default());
        let found = query.iter().find(|(name, _)| name == TRACEPARENT);
        if let Some(value) = found.and_then(|(_, value)| HeaderValue::try_from(value).ok()) {
            request.headers_mut().insert(TRACEPARENT, value);
        }
    }
    next.run(request).await
}
