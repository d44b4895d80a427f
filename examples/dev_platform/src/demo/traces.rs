//! A collector of spans for the demo: `POST /v1/traces` of OTLP over HTTP.

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use dalston_telemetry::opentelemetry::TraceId;
use dalston_telemetry::{CollectedSpan, SpanCollector, Waterfall};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// The most bytes of a request.
const MAX_REQUEST: usize = 16 << 20;
/// How long the last spans of a trace may be on their way.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// A trace is complete if it did not grow for this time, in which every process exports.
const QUIET: Duration = Duration::from_millis(600);

/// The collector, which serves until the end of the process.
#[derive(Debug)]
pub(super) struct Traces {
    spans: SpanCollector,
    url: String,
}

impl Traces {
    pub(super) async fn start() -> Result<Self> {
        let spans = SpanCollector::new();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/v1/traces", post(receive))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(spans.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { spans, url })
    }

    /// The variables with which a process exports to it.
    pub(super) fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("OTEL_ENABLED", "true".to_owned()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.url.clone()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ]
    }

    /// The waterfall of a trace, once it is complete.
    pub(super) async fn waterfall(&self, trace_id: &str) -> String {
        let trace_id = TraceId::from_hex(trace_id).unwrap_or(TraceId::INVALID);
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut spans: Vec<CollectedSpan> = Vec::new();
        loop {
            sleep(QUIET).await;
            let now = self.spans.trace(trace_id);
            let has_grown = now.len() > spans.len();
            spans = now;
            if !has_grown || Instant::now() > deadline {
                return Waterfall::new().width(120).render(&spans);
            }
        }
    }
}

async fn receive(State(spans): State<SpanCollector>, body: Bytes) -> Response {
    match spans.receive_otlp(&body) {
        // An empty message of protobuf is the answer for complete success.
        Ok(_) => [(header::CONTENT_TYPE, "application/x-protobuf")].into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}
