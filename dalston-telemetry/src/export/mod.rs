//! Delivery of spans and metrics to a collector.
//!
//! # Why not `opentelemetry-otlp` behind the SDK's batch processor
//!
//! `tests/it/peer.rs` shows each reason. A reason whose test fails can go.
//!
//! - Every lost span is counted and reported. `opentelemetry-otlp` returns `Ok` for a partial
//!   success. The batch processor returns `Ok` after the queue was full and after a refused batch at
//!   shutdown, and a flush returns the result of its last batch only.
//! - One bound ends all signals. The SDK's metric reader ignores its timeout and waits for 5 s.
//! - Settings come from an [`Env`]. `opentelemetry-otlp` reads the variables of the process.
//! - No runtime is needed. Over gRPC, `opentelemetry-otlp` needs a Tokio runtime when it is built, and
//!   another thread of that runtime during shutdown.
//! - Bytes are bounded. A request stays below the 4 MiB that a gRPC server accepts, and the queue
//!   holds at most 64 MiB.
//!
//! Messages come from `opentelemetry-proto`, transports from tonic and reqwest.
//!
//! [`Env`]: crate::Env

pub(crate) mod config;
mod console;
mod control;
mod delivery;
#[cfg(feature = "otlp-grpc")]
mod grpc;
#[cfg(feature = "otlp-http")]
mod http;
mod push;
mod queue;
mod report;
mod retry;
mod settings;
mod stats;
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod tls;
mod transport;
mod worker;

use std::error::Error;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};

use opentelemetry::trace::{Event, Link, Status};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

pub use config::{OtlpCompression, OtlpConfig, OtlpProtocol};
pub(crate) use settings::{BatchSettings, Exporters, NO_LIMIT, OtlpSettings, PushSettings};
pub use stats::ExportStats;

use crate::error::{InitError, ShutdownError};
use crate::metrics::{Metrics, TelemetryMetrics};
use control::Control;
use queue::Queue;
use report::Reporter;
pub(crate) use report::{REPORTS, ReportTo};
use stats::Stats;
use worker::{Shared, Worker};

const USER_AGENT: &str = concat!(
    "dalston-telemetry/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust"
);

/// Answers are a few bytes unless a collector has much to say about what it did not take. What it took is not sent
/// again because of that; nor does it fill our memory.
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// The exporter, as the rest of the crate sees it. Clones are the same exporter.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    report_to: ReportTo,
}

impl Pipeline {
    /// Starts the exporting thread. Does not connect: a collector that is away is no reason not to start.
    pub(crate) fn start(
        otlp: Option<&OtlpSettings>,
        console: bool,
        batching: BatchSettings,
        resource: &Resource,
        metrics: TelemetryMetrics,
    ) -> Result<Self, InitError> {
        let shared = Arc::new(Shared {
            queue: Queue::new(batching.max_queue_size, batching.max_batch_size),
            stats: Stats::new(metrics),
            control: Control::new(),
        });
        let endpoint = otlp.map_or_else(|| "console".to_owned(), |otlp| otlp.endpoint.to_string());
        let headers = otlp.map(|otlp| otlp.headers.clone()).unwrap_or_default();
        let report_to = ReportTo::default();
        let reporter = Reporter::new(endpoint, &headers, ReportTo::clone(&report_to));
        let timeout = otlp.map_or(batching.export_timeout, |otlp| otlp.timeout);
        let connect = otlp.map(prepare).transpose()?;
        let (in_thread, resource) = (Arc::clone(&shared), resource.clone());
        spawn("dalston-otlp", EndOnDrop(Arc::clone(&shared)), async move {
            let transport = connect.map(|connect| transport::SpansOtlp::new(&resource, connect()));
            Worker::new(in_thread, batching, timeout, transport, console, reporter)
                .run()
                .await;
        })
        .map_err(InitError::Thread)?;
        Ok(Self { shared, report_to })
    }

    pub(crate) fn processor(&self) -> impl SpanProcessor + 'static {
        ExportProcessor(self.clone())
    }

    /// Takes a span that is sampled and has ended.
    fn take(&self, span: SpanData) {
        report::learn(&self.report_to);
        let Shared { queue, stats, .. } = &*self.shared;
        if let Err(reason) = queue.push(span, estimated_size) {
            stats.dropped(reason, 1);
        }
    }

    pub(crate) fn stats(&self) -> ExportStats {
        self.shared.stats.read(self.shared.queue.len())
    }

    /// Whom the exporter's own log lines go to.
    pub(crate) fn report_to(&self) -> ReportTo {
        ReportTo::clone(&self.report_to)
    }

    /// Asks for a flush, for [`flushed`](Self::flushed) to wait for.
    pub(crate) fn ask_for_flush(&self) -> u64 {
        self.shared.control.ask(&self.shared.queue.wake)
    }

    pub(crate) fn flushed(&self, ticket: u64, timeout: Duration) -> Result<(), ShutdownError> {
        let done = self.shared.control.wait(ticket, timeout);
        self.outcome(done)
    }

    /// Ends the exporter within `timeout`, without blocking.
    pub(crate) async fn shutdown(&self, timeout: Duration) -> Result<(), ShutdownError> {
        self.close(timeout);
        self.shared.control.until_end().await;
        self.outcome(true)
    }

    pub(crate) fn shutdown_blocking(&self, timeout: Duration) -> Result<(), ShutdownError> {
        self.close(timeout);
        let ended = self.shared.control.wait_for_end(timeout.min(NO_LIMIT) + GRACE);
        self.outcome(ended)
    }

    fn close(&self, timeout: Duration) {
        self.shared
            .control
            .close(&self.shared.queue.wake, deadline(timeout));
    }

    fn outcome(&self, in_time: bool) -> Result<(), ShutdownError> {
        let stats = self.stats();
        let lost = self.shared.control.newly_lost(stats.dropped_total());
        if !in_time {
            return Err(ShutdownError::Timeout {
                pending: stats.waiting(),
            });
        }
        if lost > 0 {
            let last_failure = self.shared.stats.last_failure();
            let last_failure =
                last_failure.unwrap_or_else(|| report::why(&ExportStats::default(), &stats).to_owned());
            return Err(ShutdownError::Lost { lost, last_failure });
        }
        Ok(())
    }
}

/// What pushes metrics, as the rest of the crate sees it. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    shared: Arc<push::Shared>,
}

impl Push {
    /// Starts the pushing thread. Does not connect: a collector that is away is no reason not to start.
    pub(crate) fn start(
        otlp: &OtlpSettings,
        settings: PushSettings,
        resource: &Resource,
        metrics: &Metrics,
        report_to: ReportTo,
    ) -> Result<Self, InitError> {
        let shared = Arc::new(push::Shared::new(TelemetryMetrics::register(metrics)));
        let reporter = Reporter::new(otlp.endpoint.to_string(), &otlp.headers, report_to).for_metrics();
        let connect = prepare(otlp)?;
        start_push(
            &shared,
            otlp.timeout,
            settings,
            resource,
            metrics,
            reporter,
            connect,
        )
        .map_err(InitError::Thread)?;
        Ok(Self { shared })
    }

    pub(crate) fn ask_for_flush(&self) -> u64 {
        self.shared.control.ask(&self.shared.wake)
    }

    pub(crate) fn flushed(&self, ticket: u64, timeout: Duration) -> Result<(), ShutdownError> {
        let done = self.shared.control.wait(ticket, timeout);
        self.shared.outcome(done)
    }

    /// Tells it to push for the last time, within `timeout`.
    pub(crate) fn close(&self, timeout: Duration) {
        self.shared.control.close(&self.shared.wake, deadline(timeout));
    }

    /// Waits for the end that [`close`](Self::close) has set, without blocking.
    pub(crate) async fn ended(&self) -> Result<(), ShutdownError> {
        self.shared.control.until_end().await;
        self.shared.outcome(true)
    }

    pub(crate) fn ended_blocking(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let ended = self.shared.control.wait_for_end(timeout.min(NO_LIMIT) + GRACE);
        self.shared.outcome(ended)
    }
}

/// For an exporter to notice that its time is up.
const GRACE: Duration = Duration::from_millis(200);

fn deadline(timeout: Duration) -> tokio::time::Instant {
    // Of the standard clock: the caller's runtime may have one of its own, in tests.
    (std::time::Instant::now() + timeout.min(NO_LIMIT)).into()
}

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
fn start_push(
    shared: &Arc<push::Shared>,
    timeout: Duration,
    settings: PushSettings,
    resource: &Resource,
    metrics: &Metrics,
    reporter: Reporter,
    connect: Connect,
) -> io::Result<()> {
    let points = push::Points::new(metrics.clone(), resource, settings.delta);
    let in_thread = Arc::clone(shared);
    spawn("dalston-push", EndPush(Arc::clone(shared)), async move {
        let transport = transport::MetricsOtlp(connect());
        push::Pusher::new(in_thread, settings, timeout, transport, points, reporter)
            .run()
            .await;
    })
}

/// Runs the exporter on a thread and a runtime of its own, so that it works the same for a program with many
/// threads, with one, or without a runtime, and so that no one's blocking can stop it.
fn spawn(
    name: &str,
    end_on_drop: impl Send + 'static,
    exporter: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (started, start) = mpsc::sync_channel(1);
    let thread = move || {
        // Also when the exporter panics: nobody may wait for one that is gone.
        let _end = end_on_drop;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        drop(started.send(Ok(())));
        // The libraries that carry our spans must not make spans of that.
        let _suppressed = Context::enter_telemetry_suppressed_scope();
        runtime.block_on(exporter);
        runtime.shutdown_background();
    };
    thread::Builder::new().name(name.into()).spawn(thread)?;
    start
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))
}

struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abandon();
        self.0.control.end();
    }
}

struct EndPush(Arc<push::Shared>);

impl Drop for EndPush {
    fn drop(&mut self) {
        if thread::panicking() {
            // Metrics may call the program, as instruments that are observed do.
            self.0.set_undelivered(Some("the pushing thread panicked".into()));
        }
        self.0.control.end();
    }
}

/// Connects, in the exporter's runtime.
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
type Connect = Box<dyn FnOnce() -> transport::Wire + Send>;

/// Checks the settings now.
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
fn prepare(otlp: &OtlpSettings) -> Result<Connect, InitError> {
    match otlp.protocol {
        #[cfg(feature = "otlp-grpc")]
        OtlpProtocol::Grpc => {
            let endpoint = grpc::Grpc::prepare(otlp)?;
            Ok(Box::new(move || transport::Wire::Grpc(endpoint.connect())))
        }
        #[cfg(feature = "otlp-http")]
        OtlpProtocol::HttpProtobuf => {
            let http = http::Http::new(otlp)?;
            Ok(Box::new(move || transport::Wire::Http(http)))
        }
        #[cfg(not(all(feature = "otlp-grpc", feature = "otlp-http")))]
        _ => Err(missing(otlp.protocol)),
    }
}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
type Connect = Box<dyn FnOnce() -> transport::Nothing + Send>;

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
fn prepare(otlp: &OtlpSettings) -> Result<Connect, InitError> {
    Err(missing(otlp.protocol))
}

/// Never called: [`prepare`] has refused.
#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
fn start_push(
    _: &Arc<push::Shared>,
    _: Duration,
    _: PushSettings,
    _: &Resource,
    _: &Metrics,
    _: Reporter,
    _: Connect,
) -> io::Result<()> {
    Ok(())
}

#[cfg(not(all(feature = "otlp-grpc", feature = "otlp-http")))]
fn missing(protocol: OtlpProtocol) -> InitError {
    match protocol {
        OtlpProtocol::Grpc => InitError::MissingFeature {
            setting: crate::settings::otlp::PROTOCOL.general_name(),
            transport: "OTLP over gRPC",
            feature: "otlp-grpc",
        },
        OtlpProtocol::HttpProtobuf => InitError::MissingFeature {
            setting: crate::settings::otlp::PROTOCOL.general_name(),
            transport: "OTLP over HTTP",
            feature: "otlp-http",
        },
    }
}

/// Puts spans into the queue.
#[derive(Debug)]
struct ExportProcessor(Pipeline);

impl SpanProcessor for ExportProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.take(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        let result = self.0.flushed(self.0.ask_for_flush(), Duration::from_secs(5));
        result.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let result = self.0.shutdown_blocking(timeout);
        result.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }
}

/// The memory that a span takes, estimated.
fn estimated_size(span: &SpanData) -> usize {
    let events = span
        .events
        .iter()
        .map(|event| size_of::<Event>() + event.name.len() + size_of_attributes(&event.attributes));
    let links = span
        .links
        .iter()
        .map(|link| size_of::<Link>() + size_of_attributes(&link.attributes));
    let description = match &span.status {
        Status::Error { description } => description.len(),
        _ => 0,
    };
    size_of::<SpanData>()
        + span.name.len()
        + size_of_attributes(&span.attributes)
        + events.sum::<usize>()
        + links.sum::<usize>()
        + description
}

fn size_of_attributes(attributes: &[KeyValue]) -> usize {
    let sizes = attributes.iter().map(|attribute| {
        let value = match &attribute.value {
            Value::String(text) => text.as_str().len(),
            Value::Array(Array::String(texts)) => texts
                .iter()
                .map(|text| size_of::<StringValue>() + text.as_str().len())
                .sum(),
            Value::Array(Array::I64(values)) => size_of_val(&values[..]),
            Value::Array(Array::F64(values)) => size_of_val(&values[..]),
            Value::Array(Array::Bool(values)) => size_of_val(&values[..]),
            _ => 0,
        };
        size_of::<KeyValue>() + attribute.key.as_str().len() + value
    });
    sizes.sum()
}

/// An error with its causes, which is where HTTP libraries say what happened.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
