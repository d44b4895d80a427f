//! An OTLP collector in this process, over gRPC or HTTP, with injected faults.
//!
//! A front owns the port and forwards to a real OTLP server. The front can refuse, hang or cut
//! connections and use TLS. The server can send every answer that the protocol allows.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::IntoResponse;
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Response, Status};

/// The answer to one request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Accepts the request.
    Accept,
    /// Reads the request and never answers.
    Hang,
    /// Answers 400, or `INVALID_ARGUMENT`.
    Refuse,
    /// Answers 503, or `UNAVAILABLE`, with this retry delay, if any.
    Unavailable(Option<Duration>),
    /// Answers 429, or `RESOURCE_EXHAUSTED`, with a retry delay.
    TooMany(Duration),
    /// Accepts the request, and over HTTP sends an answer without end.
    Endless,
    /// Accepts the request and rejects some of its spans or points.
    Partial(i64, &'static str),
}

/// The action of the front on one connection.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Forwards it to the server.
    Serve,
    /// Accepts it and does nothing.
    Hang,
    /// Reads the start of the request and closes it.
    Cut,
}

/// A transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// A request that reached the server.
#[derive(Debug)]
pub struct Received {
    /// The time of its arrival.
    pub at: Instant,
    /// The message.
    pub request: ExportTraceServiceRequest,
    /// The headers, or the metadata of gRPC.
    pub headers: HeaderMap,
    /// Path of the URL.
    pub path: String,
}

/// A request with metrics that reached the server.
#[derive(Debug)]
pub struct ReceivedMetrics {
    /// The message.
    pub request: ExportMetricsServiceRequest,
    /// The headers, or the metadata of gRPC.
    pub headers: HeaderMap,
    /// Path of the URL.
    pub path: String,
}

impl Received {
    /// The names of its spans.
    #[must_use]
    pub fn span_names(&self) -> Vec<String> {
        let spans = self
            .request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans);
        spans
            .flat_map(|scope| &scope.spans)
            .map(|span| span.name.clone())
            .collect()
    }

    /// An attribute of the sender's resource.
    #[must_use]
    pub fn resource(&self, key: &str) -> Option<String> {
        let resource = self.request.resource_spans.first()?.resource.as_ref()?;
        let attribute = resource
            .attributes
            .iter()
            .find(|attribute| attribute.key == key)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(text) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A collector on its own thread. It ends when this value is dropped.
#[derive(Debug)]
pub struct Collector {
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub address: SocketAddr,
    received: Receiver<Received>,
    received_metrics: Receiver<ReceivedMetrics>,
    script: Script,
    _stop: tokio::sync::oneshot::Sender<()>,
}

#[derive(Clone, Debug, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    connections: Arc<Mutex<VecDeque<Connection>>>,
}

impl Collector {
    /// Accepts every request.
    #[must_use]
    pub fn start(protocol: Protocol) -> Self {
        Self::start_with(protocol, [], [], None)
    }

    /// Gives these answers to the first requests, and accepts the others.
    #[must_use]
    pub fn answering<const N: usize>(protocol: Protocol, answers: [Answer; N]) -> Self {
        Self::start_with(protocol, answers, [], None)
    }

    /// Applies these actions to the first connections, and serves the others.
    #[must_use]
    pub fn connecting<const N: usize>(protocol: Protocol, connections: [Connection; N]) -> Self {
        Self::start_with(protocol, [], connections, None)
    }

    /// Uses TLS.
    #[must_use]
    pub fn with_tls(protocol: Protocol, tls: TlsAcceptor) -> Self {
        Self::start_with(protocol, [], [], Some(tls))
    }

    fn start_with(
        protocol: Protocol,
        answers: impl Into<VecDeque<Answer>>,
        connections: impl Into<VecDeque<Connection>>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let script = Script {
            answers: Arc::new(Mutex::new(answers.into())),
            connections: Arc::new(Mutex::new(connections.into())),
        };
        let (sender, received) = mpsc::channel();
        let (metrics_sender, received_metrics) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (address_sender, address) = mpsc::channel();
        let server = Server {
            script: script.clone(),
            received: sender,
            received_metrics: metrics_sender,
        };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let back = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let back_address = back.local_addr().unwrap();
                let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address_sender.send(front.local_addr().unwrap()).unwrap();
                let connections = Arc::clone(&server.script.connections);
                tokio::spawn(server.serve(protocol, back));
                tokio::select! {
                    () = stand_in_front(front, back_address, connections, tls) => {}
                    // An error means that the collector was dropped.
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let address = address.recv().unwrap();
        Self {
            protocol,
            address,
            received,
            received_metrics,
            script,
            _stop: stop,
        }
    }

    /// The variables with which a service exports to this collector, without delay.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        env(self.protocol, &format!("http://{}", self.address))
    }

    /// The next request.
    ///
    /// # Panics
    ///
    /// If none arrives within half a minute.
    #[track_caller]
    #[must_use]
    pub fn next(&self) -> Received {
        self.received
            .recv_timeout(Duration::from_secs(30))
            .expect("a request arrives in time")
    }

    /// The next request with metrics. Requests with spans are separate, and both use the same list
    /// of answers.
    ///
    /// # Panics
    ///
    /// If none arrives within half a minute.
    #[track_caller]
    #[must_use]
    pub fn next_metrics(&self) -> ReceivedMetrics {
        self.received_metrics
            .recv_timeout(Duration::from_secs(30))
            .expect("a request with metrics arrives in time")
    }

    /// The requests that have arrived since the last call.
    #[must_use]
    pub fn rest(&self) -> Vec<Received> {
        self.received.try_iter().collect()
    }

    /// The requests with metrics that have arrived since the last call.
    #[must_use]
    pub fn rest_of_metrics(&self) -> Vec<ReceivedMetrics> {
        self.received_metrics.try_iter().collect()
    }

    /// The number of listed answers that are left.
    #[must_use]
    pub fn answers_left(&self) -> usize {
        self.script.answers.lock().unwrap().len()
    }
}

/// The variables with which a service exports to an endpoint.
#[must_use]
pub fn env(protocol: Protocol, endpoint: &str) -> Vec<(String, String)> {
    let protocol = match protocol {
        Protocol::Grpc => "grpc",
        Protocol::Http => "http/protobuf",
    };
    let pairs = [
        ("OTEL_ENABLED", "true"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// An address without a listener.
#[must_use]
pub fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn stand_in_front(
    listener: TcpListener,
    server: SocketAddr,
    connections: Arc<Mutex<VecDeque<Connection>>>,
    tls: Option<TlsAcceptor>,
) {
    let mut hanging = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let what = connections
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Connection::Serve);
        match what {
            Connection::Hang => hanging.push(stream),
            Connection::Cut => {
                // Unread data makes the kernel send a reset.
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.set_zero_linger();
            }
            Connection::Serve => {
                let tls = tls.clone();
                tokio::spawn(async move {
                    let mut back = TcpStream::connect(server).await.unwrap();
                    match tls {
                        None => drop(tokio::io::copy_bidirectional(&mut stream, &mut back).await),
                        Some(tls) => {
                            if let Ok(mut stream) = tls.accept(stream).await {
                                drop(tokio::io::copy_bidirectional(&mut stream, &mut back).await);
                                let _ = stream.shutdown().await;
                            }
                        }
                    }
                });
            }
        }
    }
}

#[derive(Clone)]
struct Server {
    script: Script,
    received: Sender<Received>,
    received_metrics: Sender<ReceivedMetrics>,
}

impl Server {
    async fn serve(self, protocol: Protocol, listener: TcpListener) {
        match protocol {
            Protocol::Grpc => {
                let traces =
                    TraceServiceServer::new(self.clone()).accept_compressed(CompressionEncoding::Gzip);
                let metrics = MetricsServiceServer::new(self).accept_compressed(CompressionEncoding::Gzip);
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                tonic::transport::Server::builder()
                    .add_service(traces)
                    .add_service(metrics)
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            }
            Protocol::Http => {
                let router = axum::Router::new().fallback(over_http).with_state(self);
                axum::serve(listener, router).await.unwrap();
            }
        }
    }

    fn answer(&self, report: impl FnOnce(&Self)) -> Answer {
        // Before the request is reported, so that a test that sees it also sees the remaining
        // answers.
        let answer = self
            .script
            .answers
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Answer::Accept);
        report(self);
        answer
    }

    fn spans(&self, request: ExportTraceServiceRequest, headers: HeaderMap, path: &str) -> Answer {
        let received = Received {
            at: Instant::now(),
            request,
            headers,
            path: path.to_owned(),
        };
        self.answer(|server| drop(server.received.send(received)))
    }

    fn metrics(&self, request: ExportMetricsServiceRequest, headers: HeaderMap, path: &str) -> Answer {
        let received = ReceivedMetrics {
            request,
            headers,
            path: path.to_owned(),
        };
        self.answer(|server| drop(server.received_metrics.send(received)))
    }
}

fn partial_spans(rejected: i64, message: &str) -> ExportTraceServiceResponse {
    let partial = ExportTracePartialSuccess {
        rejected_spans: rejected,
        error_message: message.into(),
    };
    ExportTraceServiceResponse {
        partial_success: Some(partial),
    }
}

fn partial_metrics(rejected: i64, message: &str) -> ExportMetricsServiceResponse {
    let partial = ExportMetricsPartialSuccess {
        rejected_data_points: rejected,
        error_message: message.into(),
    };
    ExportMetricsServiceResponse {
        partial_success: Some(partial),
    }
}

#[tonic::async_trait]
impl TraceService for Server {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        over_grpc(self.spans(request, metadata.into_headers(), ""), partial_spans).await
    }
}

#[tonic::async_trait]
impl MetricsService for Server {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        over_grpc(
            self.metrics(request, metadata.into_headers(), ""),
            partial_metrics,
        )
        .await
    }
}

async fn over_grpc<A: Default>(answer: Answer, partial: fn(i64, &str) -> A) -> Result<Response<A>, Status> {
    let hint = |code, delay: Option<Duration>| match delay {
        None => Status::new(code, "come back"),
        Some(delay) => Status::with_details(code, "come back", retry_info(delay).into()),
    };
    match answer {
        Answer::Accept | Answer::Endless => Ok(Response::new(A::default())),
        Answer::Hang => std::future::pending().await,
        Answer::Refuse => Err(Status::invalid_argument("no")),
        Answer::Unavailable(delay) => Err(hint(Code::Unavailable, delay)),
        Answer::TooMany(delay) => Err(hint(Code::ResourceExhausted, Some(delay))),
        Answer::Partial(rejected, message) => Ok(Response::new(partial(rejected, message))),
    }
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo`, byte by byte.
fn retry_info(delay: Duration) -> Vec<u8> {
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, value.len() as u8];
        bytes.extend_from_slice(value);
        bytes
    }
    fn varint(number: u8, mut value: u64) -> Vec<u8> {
        let mut bytes = vec![number << 3];
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    let duration = [varint(1, delay.as_secs()), varint(2, delay.subsec_nanos().into())].concat();
    let info = field(1, &duration);
    let any = [
        field(1, b"type.googleapis.com/google.rpc.RetryInfo"),
        field(2, &info),
    ]
    .concat();
    field(3, &any)
}

async fn over_http(
    State(server): State<Server>,
    uri: http::Uri,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> axum::response::Response {
    let body = match headers.get("content-encoding").map(|value| value.as_bytes()) {
        Some(b"gzip") => {
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
            plain
        }
        _ => body.to_vec(),
    };
    let path = uri.path();
    if path.ends_with("/v1/metrics") {
        let request = ExportMetricsServiceRequest::decode(&body[..]).unwrap();
        answered(server.metrics(request, headers, path), partial_metrics).await
    } else {
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        answered(server.spans(request, headers, path), partial_spans).await
    }
}

async fn answered<A: Message + Default>(
    answer: Answer,
    partial: fn(i64, &str) -> A,
) -> axum::response::Response {
    let protobuf = |response: &A| {
        (
            [("content-type", "application/x-protobuf")],
            response.encode_to_vec(),
        )
            .into_response()
    };
    let later = |status: StatusCode, delay: Option<Duration>| match delay {
        None => status.into_response(),
        Some(delay) => (status, [("retry-after", delay.as_secs().to_string())]).into_response(),
    };
    match answer {
        Answer::Accept => protobuf(&A::default()),
        Answer::Endless => {
            let never = tonic::codegen::tokio_stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
            axum::body::Body::from_stream(never).into_response()
        }
        Answer::Hang => std::future::pending().await,
        Answer::Refuse => (StatusCode::BAD_REQUEST, "no").into_response(),
        Answer::Unavailable(delay) => later(StatusCode::SERVICE_UNAVAILABLE, delay),
        Answer::TooMany(delay) => later(StatusCode::TOO_MANY_REQUESTS, Some(delay)),
        Answer::Partial(rejected, message) => protobuf(&partial(rejected, message)),
    }
}
