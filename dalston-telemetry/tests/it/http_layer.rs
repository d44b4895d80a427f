//! The layer for HTTP servers: spans, ids and metrics of requests, however they end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
#[cfg(feature = "reqwest")]
use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::http::{Request, StatusCode};
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::tower::{HttpLayer, RequestIds, UpgradeSpan};
use dalston_telemetry::{Env, OpenTelemetrySpanExt};
use http_body::{Body as _, Frame};
use opentelemetry::trace::Status;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower_service::Service;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, Span, info, info_span};

use crate::service::Service as OffService;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A router with one route of each kind, its telemetry, and the ends of its streams.
struct Server {
    router: Router,
    telemetry: TestTelemetry,
    chunks: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
}

/// A body that sends what the test gives it.
pub(crate) struct Stream(pub(crate) mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx)
    }
}

async fn job(Path(id): Path<String>) -> String {
    Span::current().set_attribute("dalston.job_id", id.clone());
    info!("job_read");
    async {}.instrument(info_span!("gateway.read_job")).await;
    id
}

async fn upload(body: Bytes) -> StatusCode {
    match body.len() {
        0 => StatusCode::BAD_REQUEST,
        _ => StatusCode::CREATED,
    }
}

async fn failing(ids: RequestIds) -> Response {
    let body = ids.error_body("the queue is full").to_string();
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn panicking() -> &'static str {
    panic!("no such file, password=hunter2")
}

impl Server {
    fn new() -> Self {
        Self::with(HttpLayer::new(), &[("OTEL_ENABLED", "true")])
    }

    fn with(layer: HttpLayer, env: &[(&'static str, &'static str)]) -> Self {
        let env = Env::from_pairs(env.iter().copied());
        let telemetry = TestTelemetry::with(|builder| builder.env(env));
        let metrics = GatewayMetrics::register(telemetry.metrics());
        let (chunks, receiver) = mpsc::channel(8);
        let receiver = std::sync::Arc::new(std::sync::Mutex::new(Some(receiver)));
        let stream = move || async move {
            let receiver = receiver.lock().unwrap().take().unwrap();
            Body::new(Stream(receiver))
        };
        let waiting = || async { std::future::pending::<&'static str>().await };
        let inner = Router::new().route("/{id}", get(job));
        let router = Router::new()
            .nest("/v1/jobs", inner)
            .route("/v1/audio/transcriptions", post(upload))
            .route("/stream", get(stream))
            .route("/waiting", get(waiting))
            .route("/failing", get(failing))
            .route("/panicking", get(panicking))
            .route("/health", get(|| async { "ok" }))
            .route("/realtime", get(upgrade))
            .fallback(|| async { (StatusCode::NOT_FOUND, "no such route") })
            .layer(layer.metrics(metrics).exclude(["/health", "/static/*"]));
        Self {
            router,
            telemetry,
            chunks,
        }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        let mut router = self.router.clone();
        self.telemetry.attach(router.call(request)).await.unwrap()
    }

    /// Sends a request and reads its response.
    async fn answer(&self, request: Request<Body>) -> (Response<()>, String) {
        let (parts, body) = self.send(request).await.into_parts();
        let bytes = self.telemetry.attach(axum::body::to_bytes(body, 1 << 20)).await;
        let text = String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        (Response::from_parts(parts, ()), text)
    }

    /// The value of `dalston_gateway_requests_total` for each endpoint and status, if not zero.
    fn counted(&self) -> Vec<String> {
        let moved = self.telemetry.moved();
        let lines = moved.iter().map(ToString::to_string);
        lines
            .filter(|line| line.starts_with("dalston_gateway_requests_total"))
            .collect()
    }

    fn active(&self) -> Option<f64> {
        let snapshot = self.telemetry.metrics().snapshot();
        snapshot.value("dalston_gateway_requests_active", &[])
    }

    fn error_type(&self, span: &str) -> Option<String> {
        self.telemetry
            .span(span)
            .attribute("error.type")
            .map(ToString::to_string)
    }
}

pub(crate) fn request(method: &str, uri: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(uri)
        .body(Body::empty())
        .unwrap()
}

fn header<'a>(response: &'a Response<()>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

fn total(endpoint: &str, method: &str, status: u16) -> String {
    format!(
        "dalston_gateway_requests_total{{endpoint=\"{endpoint}\",method=\"{method}\",status_code=\"{status}\"}}: 0 -> 1"
    )
}

#[tokio::test]
async fn request_continues_the_trace_and_carries_its_ids() {
    let server = Server::new();
    let mut asked = request("GET", "/v1/jobs/j-7?language=en&api_key=k3y");
    for (name, value) in [
        ("traceparent", CALLER),
        ("x-request-id", "Req.1"),
        ("host", "gateway:8000"),
        ("user-agent", "curl/8"),
        ("authorization", "Bearer s3cret"),
    ] {
        asked.headers_mut().insert(name, value.parse().unwrap());
    }
    let (response, body) = server.answer(asked).await;
    assert_eq!(body, "j-7");
    assert_eq!(header(&response, "x-request-id"), "Req.1");
    assert_eq!(header(&response, "x-trace-id"), TRACE);

    server.telemetry.tree().assert_eq(
        "
        \"GET /v1/jobs/{id}\" {http.request.method=GET, http.route=\"/v1/jobs/{id}\", http.response.status_code=200, \
            url.path=/v1/jobs/j-7, url.query=\"language=en&api_key=***\", url.scheme=http, \
            server.address=gateway, server.port=8000, user_agent.original=curl/8, network.protocol.version=\"1.1\", \
            dalston.request_id=Req.1, dalston.job_id=j-7, http.response.body.size=3}
          gateway.read_job
        ",
    );
    let span = server.telemetry.span("GET /v1/jobs/{id}");
    assert_eq!(span.trace_id.to_string(), TRACE);
    assert_eq!(span.kind, opentelemetry::trace::SpanKind::Server);
    assert_eq!(span.status, Status::Unset);
    let attributes = format!("{:?}", span.attributes);
    assert!(!attributes.contains("s3cret"), "{attributes}");
    assert!(!attributes.contains("http.method"), "{attributes}");

    let line = &server.telemetry.logs()[0];
    assert_eq!(line.field("event"), Some(&json!("job_read")));
    assert_eq!(line.field("request_id"), Some(&json!("Req.1")));
    assert_eq!(line.field("trace_id"), Some(&json!(TRACE)));
    assert_eq!(server.counted(), [total("/v1/jobs/{id}", "GET", 200)]);
    let (_, text) = server
        .telemetry
        .metrics()
        .encode_for(["application/openmetrics-text"].into_iter());
    let exemplar = format!("trace_id=\"{TRACE}\"");
    let has_exemplar =
        |line: &str| line.starts_with("dalston_gateway_request_dur") && line.contains(&exemplar);
    assert!(text.lines().any(has_exemplar), "{text}");
}

#[tokio::test]
async fn ids_are_there_while_tracing_is_off() {
    let server = Server::new();
    let off = OffService::start(Vec::new());
    let mut asked = request("GET", "/failing");
    asked.headers_mut().insert("traceparent", CALLER.parse().unwrap());
    let mut router = server.router.clone();
    let answering = router.call(asked).with_subscriber(off.dispatch.clone());
    let (parts, body) = answering.await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let response = Response::from_parts(parts, ());
    let id = header(&response, "x-request-id").to_owned();
    assert!(id.starts_with("req_"), "{id}");
    assert_eq!(header(&response, "x-trace-id"), TRACE);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        json!({"detail": "the queue is full", "request_id": id, "trace_id": TRACE})
    );
    assert_eq!(server.counted(), [total("/failing", "GET", 503)]);
}

#[tokio::test]
async fn request_without_a_route_shows_no_raw_path() {
    let server = Server::new();
    let (response, _) = server.answer(request("GET", "/wp-admin/setup.php")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let (response, _) = server.answer(request("BREW", "/v1/audio/transcriptions")).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    server.telemetry.tree().assert_eq(
        "
        GET {http.response.status_code=404}
        HTTP /v1/audio/transcriptions {http.request.method=_OTHER, http.request.method_original=BREW, http.response.status_code=405}
        ",
    );
    assert_eq!(
        server.counted(),
        [
            total("/v1/audio/transcriptions", "_OTHER", 405),
            total("__other__", "GET", 404)
        ]
    );
}

#[tokio::test]
async fn excluded_paths_have_no_span_no_id_and_no_metric() {
    let server = Server::new();
    for path in ["/health", "/static/app.js"] {
        let (response, _) = server.answer(request("GET", path)).await;
        assert!(!response.headers().contains_key("x-request-id"), "{path}");
    }
    assert!(server.telemetry.tree().is_empty());
    assert!(server.telemetry.moved().is_empty());
}

#[tokio::test]
async fn upload_is_counted_by_its_bytes() {
    let server = Server::new();
    let mut asked = request("POST", "/v1/audio/transcriptions");
    *asked.body_mut() = Body::new(http_body_util::Full::new(Bytes::from_static(&[0; 3_000])));
    asked
        .headers_mut()
        .insert("content-type", "audio/wav".parse().unwrap());
    let _ = server.answer(asked).await;
    let span = server.telemetry.span("POST /v1/audio/transcriptions");
    assert_eq!(span.attribute("http.request.body.size"), Some(&3_000_i64.into()));
    let moved: Vec<_> = server.telemetry.moved().iter().map(ToString::to_string).collect();
    assert!(
        moved.contains(&"dalston_gateway_upload_bytes_total: 0 -> 3000".to_owned()),
        "{moved:?}"
    );
}

#[tokio::test]
async fn span_ends_with_the_body_of_the_response() {
    let server = Server::new();
    let mut body = server.send(request("GET", "/stream")).await.into_body();
    for text in ["first ", "second"] {
        let frame = Frame::data(Bytes::from(text));
        server.chunks.send(Ok(frame)).await.unwrap();
        let read = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let _ = read.await.unwrap().unwrap();
    }
    assert!(server.telemetry.tree().is_empty());
    assert_eq!((server.active(), server.counted()), (Some(1.0), Vec::new()));

    let Server {
        telemetry, chunks, ..
    } = server;
    drop(chunks);
    let end = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    assert!(end.is_none());
    let span = telemetry.span("GET /stream");
    assert_eq!(span.attribute("http.response.body.size"), Some(&12_i64.into()));
    let events: Vec<_> = span.events.iter().map(|event| &*event.name).collect();
    assert_eq!(events, ["http.response.first_byte"]);
    assert_eq!(span.attribute("error.type"), None);
}

#[tokio::test]
async fn failing_body_is_an_error() {
    let server = Server::new();
    let mut body = server.send(request("GET", "/stream")).await.into_body();
    let error = std::io::Error::other("the disk is gone");
    server.chunks.send(Err(error)).await.unwrap();
    let read = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
    assert!(read.await.unwrap().is_err());
    assert_eq!(server.error_type("GET /stream").as_deref(), Some("response_body"));
    assert_eq!(server.counted(), [total("/stream", "GET", 500)]);
}

#[tokio::test]
async fn client_that_leaves_is_no_error_and_counts_as_499() {
    let server = Server::new();
    let mut router = server.router.clone();
    let waiting = server.telemetry.attach(router.call(request("GET", "/waiting")));
    let left = tokio::time::timeout(Duration::from_millis(20), waiting).await;
    assert!(left.is_err());
    drop(server.send(request("GET", "/stream")).await);

    for span in ["GET /waiting", "GET /stream"] {
        assert_eq!(server.telemetry.span(span).status, Status::Unset);
        assert_eq!(server.error_type(span).as_deref(), Some("client_disconnected"));
    }
    assert_eq!(
        server.counted(),
        [total("/stream", "GET", 499), total("/waiting", "GET", 499)]
    );
    assert_eq!(server.active(), Some(0.0));
    let (_, text) = server
        .telemetry
        .metrics()
        .encode_for(["application/openmetrics-text"].into_iter());
    let has_exemplar = |line: &str| line.contains("status_code=\"499\"") && line.contains("trace_id=");
    assert!(text.lines().any(has_exemplar), "{text}");
}

#[tokio::test]
async fn panic_is_answered_with_500_and_recorded() {
    let server = Server::new();
    let (response, body) = server.answer(request("GET", "/panicking")).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["detail"], "internal error");
    assert_eq!(body["trace_id"], header(&response, "x-trace-id"));

    let span = server.telemetry.span("GET /panicking");
    assert_eq!(span.status, Status::error("panic"));
    assert_eq!(span.attribute("error.type"), Some(&"panic".into()));
    let event = &span.events[0];
    assert_eq!(event.name, "exception");
    let message = event
        .attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == "exception.message");
    let message = message.unwrap().value.to_string();
    assert_eq!(message, "no such file, password=***");
    assert_eq!(server.counted(), [total("/panicking", "GET", 500)]);
}

#[tokio::test]
async fn caller_that_is_not_trusted_is_linked() {
    let server = Server::with(HttpLayer::new().link_callers(), &[("OTEL_ENABLED", "true")]);
    let mut asked = request("GET", "/v1/jobs/1");
    asked.headers_mut().insert("traceparent", CALLER.parse().unwrap());
    let (response, _) = server.answer(asked).await;
    let span = server.telemetry.span("GET /v1/jobs/{id}");
    assert_ne!(span.trace_id.to_string(), TRACE);
    assert_eq!(span.parent_span_id, None);
    assert_eq!(span.links[0].span_context.trace_id().to_string(), TRACE);
    assert_eq!(header(&response, "x-trace-id"), span.trace_id.to_string());
}

#[tokio::test]
async fn attributes_of_earlier_conventions_are_added_if_asked() {
    let env = [
        ("OTEL_ENABLED", "true"),
        ("OTEL_SEMCONV_STABILITY_OPT_IN", "database, http/dup"),
    ];
    let settings = TestTelemetry::with(|builder| builder.env(Env::from_pairs(env)));
    let server = Server::with(HttpLayer::of(&settings.handle()), &env);
    let _ = server.answer(request("GET", "/v1/jobs/1")).await;
    server.telemetry.tree().assert_eq(
        "
        \"GET /v1/jobs/{id}\" {http.method=GET, http.request.method=GET, http.status_code=200, http.response.status_code=200}
          gateway.read_job
        ",
    );
}

async fn upgrade(span: UpgradeSpan) -> StatusCode {
    SESSIONS.with(|sessions| sessions.borrow_mut().push(span));
    StatusCode::SWITCHING_PROTOCOLS
}

thread_local! {
    /// The upgraded connections of the test of this thread.
    static SESSIONS: std::cell::RefCell<Vec<UpgradeSpan>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn upgraded() -> UpgradeSpan {
    SESSIONS.with(|sessions| sessions.borrow_mut().pop().unwrap())
}

fn websocket() -> Request<Body> {
    let mut asked = request("GET", "/realtime");
    asked
        .headers_mut()
        .insert("upgrade", "websocket".parse().unwrap());
    asked
}

#[tokio::test]
async fn span_of_a_websocket_lives_as_long_as_its_session() {
    let server = Server::new();
    let _ = server.answer(websocket()).await;
    let sockets = || {
        let snapshot = server.telemetry.metrics().snapshot();
        snapshot.value("dalston_gateway_websocket_connections_active", &[])
    };
    assert!(server.telemetry.tree().is_empty());
    assert_eq!(sockets(), Some(1.0));
    assert_eq!(server.counted(), [total("/realtime", "GET", 101)]);

    let mut session = upgraded().open();
    session.id("sess_1");
    assert_eq!(session.log_context().get("session_id"), Some("sess_1"));
    session.received(3_200);
    session.received(3_200);
    session.sent(50);
    for _ in 0..100 {
        session.event("vad_endpoint", Vec::new());
    }
    session.closed(1000);
    drop(session);
    server.telemetry.tree().assert_eq(
        "
        \"GET /realtime\" {http.response.status_code=101, dalston.session_id=sess_1, http.request.body.size=6400, \
            http.response.body.size=50, dalston.websocket.messages_received=2, dalston.websocket.messages_sent=1, \
            dalston.websocket.close_code=1000}
        ",
    );
    let span = server.telemetry.span("GET /realtime");
    assert_eq!(span.attribute("error.type"), None);
    let endpoints = span.events.iter().filter(|event| event.name == "vad_endpoint");
    assert_eq!(endpoints.count(), 64);
    assert_eq!((sockets(), server.active()), (Some(0.0), Some(0.0)));
}

#[tokio::test]
async fn websocket_without_a_close_frame_ends_its_span() {
    let server = Server::new();
    for open in [true, false] {
        let _ = server.answer(websocket()).await;
        let upgrade = upgraded();
        if open {
            drop(upgrade.open());
        } else {
            drop(upgrade);
        }
    }
    let spans = server.telemetry.spans();
    assert_eq!(spans.len(), 2);
    for span in spans {
        assert_eq!(span.attribute("error.type"), Some(&"client_disconnected".into()));
    }
    let snapshot = server.telemetry.metrics().snapshot();
    assert_eq!(
        snapshot.value("dalston_gateway_websocket_connections_active", &[]),
        Some(0.0)
    );
}

#[cfg(feature = "reqwest")]
#[tokio::test]
async fn outgoing_request_carries_the_trace_and_the_request_id() {
    use dalston_telemetry::client::SendTraced;

    let callee = Server::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, dispatch) = (callee.router.clone(), callee.telemetry.dispatch().clone());
    // A server has a task of its own for each connection.
    let observed = tower::service_fn(move |request: Request<Body>| {
        router.clone().call(request).with_subscriber(dispatch.clone())
    });
    let serving = axum::serve(listener, Router::new().fallback_service(observed));
    tokio::spawn(serving.into_future());
    let _ = rustls::crypto::ring::default_provider().install_default();

    let caller = Server::new().telemetry;
    let work = async {
        let client = reqwest::Client::new();
        let get = |path: &str| client.get(format!("http://{address}{path}?token=hunter2"));
        let log = LogContext::new().request_id("req_1");
        let request = get("/v1/jobs/1").send_traced().with_log_context(log);
        let response = request.instrument(info_span!("webhook.deliver")).await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "req_1");
        assert_eq!(response.text().await.unwrap(), "1");
        let missing = get("/no/such/route").send_traced().await.unwrap();
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        let closed = client.get("http://127.0.0.1:1/").send_traced().await;
        assert!(closed.unwrap_err().is_connect());
    };
    caller.attach(work).await;
    caller.tree().assert_eq(
        "
        webhook.deliver
          GET {http.request.method=GET, http.response.status_code=200, server.address=127.0.0.1, server.port=*}
        GET {http.response.status_code=404, error.type=\"404\"} !
        GET {error.type=connect, server.port=1} !
        ",
    );
    let sent = caller
        .spans()
        .into_iter()
        .find(|span| span.parent_span_id.is_some())
        .unwrap();
    let url = sent.attribute("url.full").unwrap().to_string();
    assert!(url.ends_with("/v1/jobs/1?token=***"), "{url}");
    let received = callee.telemetry.span("GET /v1/jobs/{id}");
    assert_eq!(
        (received.trace_id, received.parent_span_id),
        (sent.trace_id, Some(sent.span_id))
    );
}
