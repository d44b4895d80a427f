//! `WS /v1/audio/transcriptions/stream`, and `WS /v1/realtime` of OpenAI's API: a realtime session,
//! passed on to a worker.
//!
//! A refused client first gets the reason as a message, and then a close frame. So the connection
//! is accepted in any case.
//!
//! | Module | What is in it |
//! |---|---|
//! | `worker` | the connection to a worker |
//! | `protocol` | what differs between both protocols |
//! | `proxy` | a session between both |
//! | `side` | the client and the worker as one type |
//! | `tally` | audio, lag and end of a session |

mod protocol;
mod proxy;
mod side;
mod tally;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use dalston_telemetry::context::WithLogContext;
use dalston_telemetry::tower::{UpgradeSpan, WebSocketSession};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, warn};
use url::form_urlencoded;

use self::protocol::{Protocol, code_of};
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
pub(super) const OPENAI_PATH: &str = "/v1/realtime";

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
    fn new(protocol: Protocol, code: &str, message: &str, close: u16) -> Self {
        let recoverable = close == NO_CAPACITY || close == TOO_MANY;
        Self {
            message: protocol.error(code, message, recoverable),
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
    uri: Uri,
    headers: HeaderMap,
    span: UpgradeSpan,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let protocol = Protocol::of(uri.path()).unwrap_or(Protocol::Platform);
    let mut query = parse(uri.query().unwrap_or_default());
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL);
    if let Some(key) = offered.and_then(|offered| protocol.key(offered.to_str().ok()?)) {
        query.push(("token".to_owned(), key.to_owned()));
    }
    let is_read_only = gateway.platform.page.is_read_only;
    let mut access = decide(gateway.api_key.as_deref(), is_read_only, &headers, &query);
    if access == Access::NoKey && takes_token(&gateway, &query).await {
        access = decide(None, is_read_only, &headers, &query);
    }
    let upgrade = match (upgrade, access) {
        (Ok(upgrade), _) => upgrade,
        (Err(_), Access::NoKey) => return Err(ApiError::unauthorized()),
        (Err(error), _) => {
            let path = protocol.path();
            return Err(ApiError::bad_request(format!("{path} is a WebSocket: {error}")));
        }
    };
    let running = gateway.sessions.running.token();
    let upgrade = upgrade
        .protocols(protocol.sub_protocols().iter().copied())
        .max_message_size(LONGEST_READ)
        .max_frame_size(LONGEST_READ);
    Ok(upgrade.on_upgrade(async move |socket| {
        let guard = span.open();
        let (span, log) = (guard.span(), guard.log_context());
        let client = Side::of_client(socket, CLIENT_SILENCE, CLIENT_STALL);
        let asked = Asked {
            protocol,
            query,
            address,
            access,
        };
        let serving = serve(&gateway, client, guard, asked);
        serving.instrument(span).with_log_context(log).await;
        drop(running);
    }))
}

/// What a client asks for.
struct Asked {
    protocol: Protocol,
    query: Vec<(String, String)>,
    address: SocketAddr,
    access: Access,
}

async fn serve(gateway: &Gateway, mut client: Side, mut guard: WebSocketSession, asked: Asked) {
    let sessions = &gateway.sessions;
    let Asked {
        protocol,
        query,
        address,
        access,
    } = asked;
    let values: HashMap<String, String> = query.iter().cloned().collect();
    let value = |name: &str| values.get(name).map_or("", String::as_str);
    let model = protocol.model(value("model"));
    let session = Session::new(model, value("language"), address.ip().to_string());
    guard.id(&*session.id);
    let log = guard.log_context();
    let serving = async {
        let begun = match admit(sessions, protocol, access) {
            Ok(permit) => begin(sessions, protocol, &session, &query)
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
        let tally = Tally::new(protocol, &values);
        let Begun { worker, begin } = begun;
        let proxy = Proxy {
            protocol,
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
fn admit(sessions: &Sessions, protocol: Protocol, access: Access) -> Result<OwnedSemaphorePermit, Refusal> {
    let refusal = |code, text, close| Refusal::new(protocol, code, text, close);
    match access {
        Access::Granted => {}
        Access::NoKey => {
            let text = "the API key is missing or wrong";
            return Err(refusal("unauthorized", text, NO_KEY));
        }
        Access::OtherSite => {
            let text = "a page of another site has opened the session";
            return Err(refusal("forbidden", text, FORBIDDEN));
        }
        Access::ReadOnly => return Err(refusal("forbidden", READ_ONLY, FORBIDDEN)),
    }
    if *sessions.closed.borrow() {
        let text = "the gateway shuts down: try again";
        return Err(refusal("no_capacity", text, NO_CAPACITY));
    }
    let permit = sessions.places.clone().try_acquire_owned();
    permit.map_err(|_| {
        let text = "the gateway has as many sessions as it may have: try again later";
        refusal("rate_limit", text, TOO_MANY)
    })
}

/// Finds a worker that begins the session. A worker that does not is passed over.
async fn begin(
    sessions: &Sessions,
    protocol: Protocol,
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
                let none = || Refusal::new(protocol, code, &reason.to_string(), NO_CAPACITY);
                return Err(refusal.unwrap_or_else(none));
            }
        };
        let query = query_for(session, &place, query);
        let connecting = timeout_at(deadline, connect(protocol, &place, &query, &message));
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
                    && code_of(&message) != Some("no_capacity")
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
            let none = || Refusal::new(protocol, "no_capacity", text, NO_CAPACITY);
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
    // In this order, so that a free place says that its session is counted.
    router.ended(status);
    router.release(session, place).await;
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

/// Takes the trace context from the query, for browsers. A header wins.
pub(super) async fn accept_trace_context(mut request: Request, next: Next) -> Response {
    const TRACEPARENT: &str = "traceparent";
    if Protocol::of(request.uri().path()).is_some() && !request.headers().contains_key(TRACEPARENT) {
        let query = parse(request.uri().query().unwrap_or_default());
        let found = query.iter().find(|(name, _)| name == TRACEPARENT);
        if let Some(value) = found.and_then(|(_, value)| HeaderValue::try_from(value).ok()) {
            request.headers_mut().insert(TRACEPARENT, value);
        }
    }
    next.run(request).await
}
