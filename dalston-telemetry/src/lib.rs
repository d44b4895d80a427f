#![cfg_attr(feature = "ec2", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "ec2"),
    doc = "Traces, metrics and logs for the services of the Dalston transcription platform."
)]
//!
//! # Overview
//!
//! | To | use |
//! |---|---|
//! | set up a service | [`Telemetry::builder`], [`configure_tracing`], [`configure_metrics`] |
//! | set up without global state | [`TelemetryBuilder::into_layer`] |
//! | give a library access to telemetry | [`TelemetryHandle`] |
//! | record a span | [`tracing::info_span!`]; with times in the past: [`TelemetryHandle::record_span`] |
//! | set an attribute of a span later | [`OpenTelemetrySpanExt::set_attribute`] |
//! | carry a trace through HTTP headers, queue entries and JSON | [`propagate`]; as the parent of a span: [`propagate::continue_trace`] |
//! | give log lines the ids of the current task or request | [`context`] |
//! | record what was done with jobs and recordings | [`audit`] |
//! | count and measure | [`metrics`], and the metrics of each service in [`services`] |
//! | serve `/metrics` | [`Telemetry::serve_metrics`], or a route of your own: `axum` (feature `axum`) |
//! | name spans and attributes as the platform does | [`services`]: the constants of each service |
//! | send requests in a client span, with the context | [`client`] |
//! | instrument an HTTP server | `tower` (feature `tower`, or `axum`) |
//! | keep secrets out of texts | [`redact`] |
//! | detect the cloud instance | `cloud` (feature `ec2`) |
//! | keep spans in memory, draw a trace | [`SpanCollector`], [`Waterfall`] |
//! | assert on telemetry in tests | `testing` (feature `testing`) |
//! | use another exporter | [bring your own exporter](_documentation::bring_your_own_exporter) |
//!
//! # Tracing
//!
//! Tracing is off by default. There is then no exporter, no thread for one and no socket, and a
//! span is a disabled span of [`tracing`], which costs about a nanosecond (`cargo xtask bench
//! telemetry`). Log lines, propagation and metrics work nevertheless.
//!
//! With `OTEL_ENABLED=true`, a span that ends enters a bounded queue. One thread with a runtime of
//! its own sends the queue in batches. It works in a program with a multi-thread runtime, a
//! `current_thread` runtime, or none. The program never waits for the collector: when the queue is
//! full, spans are dropped. Every lost span is counted ([`TelemetryHandle::export_stats`],
//! `dalston_telemetry_spans_dropped_total`), and failures are logged at most once a minute, on the
//! target `dalston_telemetry::export`.
//!
//! Transient failures are retried until `OTEL_BSP_EXPORT_TIMEOUT`: no connection, no answer in
//! time, HTTP 429, 502, 503 and 504, and the gRPC statuses that the OTLP specification lists. A
//! retry never comes before the time that the collector asks for. [`Telemetry::shutdown`] sends the
//! rest within one bound, by default 5 s ([`TelemetryBuilder::shutdown_timeout`]), and gives up
//! earlier if the collector is unreachable.
//!
//! Attributes keep their types. OpenTelemetry's integers are `i64`: other integer types become
//! `i64`, and larger values the nearest one.
//!
//! Spans of level `INFO` and above are exported ([`TelemetryBuilder::span_level`]). The log filter
//! does not affect them.
//!
//! # Metrics
//!
//! [`Telemetry::metrics`] counts whether or not anything is exported. Prometheus scrapes them from
//! [`Telemetry::serve_metrics`] or from a route of your own. With `OTEL_METRICS_EXPORTER=otlp` a
//! second thread also pushes them, once a minute and once at the end: the same series with the same
//! names and values. An unreachable collector loses no values, because the next push contains them.
//!
//! # Log lines
//!
//! Standard output can block: its reader may stop, and other code may hold its lock. Log lines
//! enter a bounded queue, and a thread writes them ([`LogWriter`]). When the queue is full, lines
//! are dropped and counted in `dalston_log_lines_dropped_total`. [`Telemetry::shutdown`], dropping
//! [`Telemetry`] and the panic hook wait for the thread within their bounds. Call
//! [`TelemetryHandle::flush`] before `std::process::exit`.
//!
//! # Environment
//!
//! The page of [`settings`] has the table of all variables. An explicit call wins over the variable
//! for one signal, which wins over the variable for all signals, which wins over the default.
//! `OTEL_SERVICE_NAME` is the exception: it wins over the name that the program gives. An empty
//! value counts as unset. An invalid value is an error that names the variable, the value and the
//! accepted values. While a signal is off, its variables stop nothing.
//!
//! A value that OpenTelemetry defines and this crate does not support is ignored, because injectors
//! and shared environments set such values: propagators like `b3`, samplers like `xray`, exporters
//! like `zipkin`. Of a list, the other entries count. Each variable with such a value is one
//! warning, `setting_not_supported`. Set-up then logs one line, `telemetry_configured`, with the
//! destinations of traces and metrics and the form of log lines ([`Telemetry::log_settings`]).
//!
//! # Crate features
//!
//! - `otlp-grpc` (default) exports over OTLP/gRPC. TLS is rustls with ring.
//! - `otlp-http` (default) exports over OTLP/HTTP with protobuf.
//! - `axum` adds a route that serves metrics, and the feature `tower`.
//! - `reqwest` adds client spans for requests of reqwest.
//! - `tower` adds a layer for HTTP servers: spans, ids and metrics of requests.
//! - `ec2` adds `cloud`, which detects the EC2 instance of the process.
//! - `queue-exporter` adds metrics of the platform's queues and the program
//!   `dalston-queue-exporter`.
//! - `testing` adds telemetry for a single test, and span trees as literals.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod audit;
#[cfg(feature = "axum")]
pub mod axum;
pub mod client;
mod env;
mod error;
// With one transport left out, what only that one needs is left over.
#[cfg_attr(
    not(all(feature = "otlp-grpc", feature = "otlp-http")),
    allow(dead_code, unused_imports)
)]
mod export;
mod logs;
pub mod metrics;
mod parse_error;
pub mod redact;
mod resource;
pub mod services;
mod setup;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;
mod traces;

/// Guides.
pub mod _documentation {
    #[doc = include_str!("../docs/guides/bring-your-own-exporter.md")]
    pub mod bring_your_own_exporter {}

    #[cfg(all(feature = "axum", feature = "reqwest"))]
    #[doc = include_str!("../docs/guides/observe-a-service.md")]
    pub mod observe_a_service {}
}

pub use http;
pub use opentelemetry;
pub use opentelemetry_sdk;
pub use tracing;
pub use tracing_opentelemetry;
/// Attributes, parent and links of a span after its start.
#[doc(alias("set_span_attribute", "span_from_context", "record_exception"))]
#[doc(inline)]
pub use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use env::{Env, EnvError};
pub use error::{InitError, ShutdownError};
pub use export::{ExportStats, OtlpCompression, OtlpConfig, OtlpProtocol};
pub use logs::context;
pub use logs::{LogBuffer, LogFormat, LogWriter};
pub use parse_error::ParseError;
#[cfg(feature = "ec2")]
pub use resource::cloud;
#[cfg(feature = "queue-exporter")]
pub use services::queue::exporter as queue_exporter;
pub use setup::builder::TelemetryBuilder;
pub use setup::layers::TelemetryLayer;
pub use setup::settings;
pub use setup::telemetry::{Telemetry, TelemetryHandle, TimedSpan};
pub use traces::collector::{CollectedSpan, SpanCollector};
pub use traces::propagate;
pub use traces::waterfall::Waterfall;

/// Sets up telemetry for the whole process, as the environment says: traces, metrics and log lines.
///
/// The same as `Telemetry::builder(service).install()`.
///
/// # Errors
///
/// As [`TelemetryBuilder::install`].
///
/// ```no_run
/// # fn main() -> Result<(), dalston_telemetry::InitError> {
/// use dalston_telemetry::services::service_name;
///
/// let _telemetry = dalston_telemetry::configure_tracing(service_name::ORCHESTRATOR)?;
/// tracing::info!("ready");
/// # Ok(())
/// # }
/// ```
#[doc(alias("setup_service_observability", "setup_observability", "setup_tracing"))]
#[track_caller]
pub fn configure_tracing(service: impl Into<String>) -> Result<Telemetry, InitError> {
    Telemetry::builder(service).install()
}

/// Sets up metrics alone, as the environment says. Nothing global is touched: for a process whose
/// spans and log lines are set up elsewhere.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dalston_telemetry::services::service_name;
///
/// let telemetry = dalston_telemetry::configure_metrics(service_name::QUEUE_EXPORTER)?;
/// let _server = telemetry.serve_metrics("0.0.0.0:9100")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When a variable has a wrong value.
#[doc(alias = "setup_metrics")]
pub fn configure_metrics(service: impl Into<String>) -> Result<Telemetry, InitError> {
    let builder = Telemetry::builder(service).enabled(false).without_logs();
    let (_, telemetry) = builder.into_layer::<tracing_subscriber::Registry>()?;
    Ok(telemetry)
}
