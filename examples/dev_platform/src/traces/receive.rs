//! Receivers of OTLP on this machine: `POST /v1/traces` in protobuf, and the gRPC service.

use std::io::Read;
use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flate2::read::MultiGzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};
use tracing::{info, warn};

use super::TraceStore;

/// The most bytes of a request, also after its decompression.
const MAX_REQUEST: usize = 16 << 20;
/// The most requests at once on a connection of gRPC.
const MAX_STREAMS: u32 = 16;
const PROTOBUF: &str = "application/x-protobuf";

/// Where spans are received, on the loopback interface. 0 is any free port, `None` none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) http: Option<u16>,
    pub(crate) grpc: Option<u16>,
}

/// Receives spans until the end of the runtime. A port that is taken is a warning: the work of the
/// platform goes on without its traces.
pub(crate) async fn receive(ports: Ports, store: &TraceStore) {
    if let Some(listener) = listen(ports.http, "HTTP").await {
        tokio::spawn(serve_http(listener, store.clone()));
    }
    if let Some(listener) = listen(ports.grpc, "gRPC").await {
        tokio::spawn(serve_grpc(listener, store.clone()));
    }
}

async fn listen(port: Option<u16>, protocol: &str) -> Option<TcpListener> {
    let port = port?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            info!(%address, protocol, "otlp_listening");
            Some(listener)
        }
        Err(error) => {
            let setting = format!("DALSTON_OTLP_{}_PORT", protocol.to_uppercase());
            let hint = format!("set {setting} to another port, or to \"off\"");
            warn!(port, protocol, %error, hint, "otlp_not_listening");
            None
        }
    }
}

async fn serve_http(listener: TcpListener, store: TraceStore) {
    let router = Router::new()
        .route("/v1/traces", post(over_http))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(store);
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "otlp_stopped");
    }
}

async fn serve_grpc(listener: TcpListener, store: TraceStore) {
    let service = TraceServiceServer::new(store)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_REQUEST);
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(service)
        .serve_with_incoming(TcpIncoming::from(listener));
    if let Err(error) = server.await {
        warn!(%error, "otlp_stopped");
    }
}

#[tonic::async_trait]
impl TraceService for TraceStore {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        // The library takes bytes, so that its interface has no types of generated code.
        match self.receive(&request.into_inner().encode_to_vec()) {
            Ok(()) => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }
}

async fn over_http(State(store): State<TraceStore>, headers: HeaderMap, body: Bytes) -> Response {
    let received = plain(&headers, &body).and_then(|body| {
        let refused = |error: dalston_telemetry::ParseError| (StatusCode::BAD_REQUEST, error.to_string());
        store.receive(&body).map_err(refused)
    });
    match received {
        // An empty message is the answer for complete success.
        Ok(()) => [(header::CONTENT_TYPE, PROTOBUF)].into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// The body in protobuf without compression.
fn plain(headers: &HeaderMap, body: &Bytes) -> Result<Bytes, (StatusCode, String)> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let refuse = |name: &str, found: &str, expected: &str| {
        let detail = format!("{name} is {found:?}: expected {expected}");
        Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
    };
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    if kind.split(';').next().is_none_or(|kind| kind.trim() != PROTOBUF) {
        let expected = "application/x-protobuf; set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf";
        return refuse("Content-Type", kind, expected);
    }
    match text(header::CONTENT_ENCODING) {
        None | Some("identity") => Ok(body.clone()),
        Some("gzip") => inflate(body),
        Some(other) => refuse("Content-Encoding", other, "gzip"),
    }
}

fn inflate(body: &[u8]) -> Result<Bytes, (StatusCode, String)> {
    let mut plain = Vec::new();
    let limit = MAX_REQUEST as u64 + 1;
    let read = MultiGzDecoder::new(body).take(limit).read_to_end(&mut plain);
    match read {
        Err(error) => Err((StatusCode::BAD_REQUEST, format!("the body is not gzip: {error}"))),
        Ok(_) if plain.len() > MAX_REQUEST => {
            let detail = format!("the request has more than {MAX_REQUEST} bytes: send smaller batches");
            Err((StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(_) => Ok(plain.into()),
    }
}
