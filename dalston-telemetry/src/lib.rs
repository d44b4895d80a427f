//! Traces, metrics and logs for the services of the Dalston transcription platform.
//!
//! One call sets up what a service needs, as its environment says: spans go to an OpenTelemetry collector, log lines
//! carry the ids of the span and of the task, and contexts travel from service to service. Code is instrumented with
//! [`tracing`]; OpenTelemetry is attached as a layer and can be left out.
//!
//! ```no_run
//! use dalston_telemetry::configure_tracing;
//! use dalston_telemetry::tracing::{info, info_span};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let telemetry = configure_tracing("orchestrator")?;
//!
//!     info_span!("orchestrator.handle_job", dalston.job_id = "j-1").in_scope(|| info!("job created"));
//!
//!     // Sends what is waiting. In asynchronous code: `telemetry.shutdown().await`.
//!     telemetry.shutdown_blocking()?;
//!     Ok(())
//! }
//! ```
//!
//! - [`Telemetry::builder`] for a service that decides some things itself, and [`TelemetryBuilder::into_layer`] for a
//!   program that owns its subscriber: nothing global is touched.
//! - [`TelemetryHandle`] is what a library is given. It is cheap to clone, and a disabled one does nothing.
//! - [`propagate`] carries a trace through HTTP headers, string maps and JSON; [`context`] gives log lines the fields
//!   of the current task; [`metrics`] holds the metrics; [`redact`] keeps secrets out of texts.
//! - [`SpanCollector`] keeps spans in memory and [`Waterfall`] draws them.
//!
//! # Off
//!
//! Off is the default. No exporter is made, no thread started and no socket opened, and nobody is interested in spans,
//! so that one costs what a disabled span of `tracing` costs: about a nanosecond (`cargo xtask bench telemetry`). Log
//! lines, propagation and metrics work all the same.
//!
//! # On
//!
//! A span that ends is put into a bounded queue. One thread, with a runtime of its own, sends the queue in batches; it
//! works the same for a program with a multi-thread runtime, a `current_thread` runtime, or none. Whatever the
//! collector does, the program does not wait for it: when the queue is full, spans are dropped. Every span that does
//! not arrive is counted ([`TelemetryHandle::export_stats`], `dalston_telemetry_spans_dropped_total`), and failures
//! are logged at most once a minute, on the target `dalston_telemetry::export`.
//!
//! What may pass is tried again until `OTEL_BSP_EXPORT_TIMEOUT` is over: no connection, no answer in time, HTTP 429,
//! 502, 503 and 504, and the gRPC statuses that the OTLP specification lists. When the collector says when to come
//! back, we do not come back before. [`Telemetry::shutdown`] sends what is left within one bound, 5 s unless
//! [set otherwise](TelemetryBuilder::shutdown_timeout), and gives up sooner on a collector that is away.
//!
//! Spans of level `INFO` and above are exported ([`TelemetryBuilder::span_level`]); the log filter has no say in that.
//!
//! # Metrics
//!
//! [`Telemetry::metrics`] are counted whatever is on or off. Serve them with [`Telemetry::serve_metrics`] or a route of
//! your own, and Prometheus scrapes them. With `OTEL_METRICS_EXPORTER=otlp` a second thread also pushes them, once a minute
//! and once more at the end: the same series, under the same names and with the same values, so that old dashboards keep
//! working while new ones are built. A collector that is away costs as little as it does with spans, and no values: the next
//! push tells what the last one could not. [`configure_metrics`] sets up metrics alone.
//!
//! # Environment
//!
//! For every setting an explicit call wins over the variable for traces, that over the variable for all signals, and
//! that over the default. `OTEL_SERVICE_NAME` alone wins over the name that the program gives. Empty counts as unset.
//! A value that can't be is an error that names the variable, the value and what is accepted. While tracing is off,
//! the variables of traces are not looked at.
//!
//! | Variable | Default | |
//! |---|---|---|
//! | `OTEL_ENABLED` | `false` | whether spans are exported |
//! | `OTEL_SDK_DISABLED` | `false` | `true` wins over everything |
//! | `OTEL_TRACES_EXPORTER` | `otlp` | `otlp`, `console` (JSON on standard output), both, or `none`: spans then only have ids |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL`, `…_TRACES_PROTOCOL` | `grpc` | `grpc` or `http/protobuf` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | `http://localhost:4317`, for HTTP `http://localhost:4318` | URL or `host:port`; for HTTP, `/v1/traces` is appended |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | | the same, used as it is |
//! | `OTEL_EXPORTER_OTLP_INSECURE`, `…_TRACES_INSECURE`, `OTEL_INSECURE` | `true` | whether an endpoint without a scheme is spoken to in plain text |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `…_TRACES_HEADERS` | | `name=value` pairs with commas between, percent-encoded; never logged |
//! | `OTEL_EXPORTER_OTLP_TIMEOUT`, `…_TRACES_TIMEOUT` | `10000` | milliseconds for one request; 0 for no limit of its own |
//! | `OTEL_EXPORTER_OTLP_COMPRESSION`, `…_TRACES_COMPRESSION` | `none` | `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE`, `…_TRACES_CERTIFICATE` | the system's | PEM file with the certificates to trust |
//! | `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, `…_CLIENT_KEY`, `…_TRACES_CLIENT_CERTIFICATE`, `…_TRACES_CLIENT_KEY` | | PEM files by which we identify ourselves |
//! | `HTTPS_PROXY`, `https_proxy`, `http_proxy`, `all_proxy`, `NO_PROXY`, … | | proxy for OTLP over HTTP; not for this machine |
//! | `OTEL_BSP_SCHEDULE_DELAY` | `5000` | milliseconds that a span waits for others to go with it |
//! | `OTEL_BSP_MAX_QUEUE_SIZE` | `2048` | spans that may wait, of 64 MiB at most |
//! | `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | `512` | spans in one request, of 4 MiB at most |
//! | `OTEL_BSP_EXPORT_TIMEOUT` | `30000` | milliseconds for one batch with all its retries |
//! | `OTEL_TRACES_SAMPLER` | `parentbased_always_on` | `always_on`, `always_off`, `traceidratio`, or one of these with `parentbased_` |
//! | `OTEL_TRACES_SAMPLER_ARG` | `1` | the ratio, from 0 to 1 |
//! | `OTEL_PROPAGATORS` | `tracecontext,baggage` | any of these, or `none`; counts also while tracing is off |
//! | `OTEL_SERVICE_NAME` | the program's | `service.name` |
//! | `OTEL_RESOURCE_ATTRIBUTES` | | `key=value` pairs with commas between, percent-encoded |
//! | `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`, `OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT`, `OTEL_LINK_ATTRIBUTE_COUNT_LIMIT`, `OTEL_ATTRIBUTE_COUNT_LIMIT` | `128` | attributes of one span, event, link |
//! | `OTEL_SPAN_EVENT_COUNT_LIMIT`, `OTEL_SPAN_LINK_COUNT_LIMIT` | `128` | events and links of one span |
//! | `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT`, `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT` | none | characters after which a text is cut |
//! | `DALSTON_METRICS_ENABLED`, `METRICS_ENABLED` | `true` | whether metrics are served and pushed; the first that is set counts |
//! | `DALSTON_METRICS_LABEL_VALUES` | `100` | values that an open label of the platform's metrics takes, at most 10000; further ones share `__other__` |
//! | `OTEL_METRICS_EXPORTER` | `none` | `otlp`: metrics are also pushed, unless `OTEL_ENABLED` is set to `false`; `prometheus`: they are scraped, as always; `console` is refused: `/metrics` is text |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | `60000` | milliseconds between two pushes |
//! | `OTEL_METRIC_EXPORT_TIMEOUT` | `30000` | milliseconds for one push with all its retries |
//! | `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` | `cumulative` | `delta` or `lowmemory`: counters and histograms tell what was added since the collector last heard of them |
//! | `OTEL_EXPORTER_OTLP_METRICS_…` | those for all signals | as the variables with `TRACES`; over HTTP, `/v1/metrics` is appended to an endpoint for all |
//! | `INSTANCE_TYPE` | what was detected | `host.type`, and `instance_type` of log lines |
//! | `RUST_LOG`, `LOG_LEVEL`, `DALSTON_LOG_LEVEL`, `DALSTON_LOG_FORMAT` | `info`, by terminal | which lines are logged, and how |
//!
//! # Features
//!
//! - `otlp-grpc` and `otlp-http` (both on): the transports. TLS is rustls with ring.
//! - `axum`: a route that serves metrics.
//! - `ec2`: [`cloud`], which finds out on which EC2 instance the process runs.
//! - `queue-exporter`: figures of the platform's queues, and the program `dalston-queue-exporter` that serves them.
//! - `testing`: telemetry that a test keeps to itself, and span trees as literals.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
pub mod axum;
mod env;
mod error;
// With one transport left out, what only that one needs is left over.
#[cfg_attr(not(all(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
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
mod traces;
pub mod variables;

pub use opentelemetry;
pub use opentelemetry_sdk;
pub use tracing;

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
pub use traces::ids::ReservedSpan;
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
/// let _telemetry = dalston_telemetry::configure_tracing("orchestrator")?;
/// tracing::info!("ready");
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn configure_tracing(service: impl Into<String>) -> Result<Telemetry, InitError> {
    Telemetry::builder(service).install()
}

/// Sets up metrics alone, as the environment says. Nothing global is touched: for a process whose spans and log lines are
/// somebody else's business.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let telemetry = dalston_telemetry::configure_metrics("queue-exporter")?;
/// let _server = telemetry.serve_metrics("0.0.0.0:9100")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When a variable has a wrong value.
pub fn configure_metrics(service: impl Into<String>) -> Result<Telemetry, InitError> {
    let builder = Telemetry::builder(service).enabled(false).without_logs();
    let (_, telemetry) = builder.into_layer::<tracing_subscriber::Registry>()?;
    Ok(telemetry)
}
