use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::metrics::Meter;
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanProcessor as _};

use crate::error::ShutdownError;
use crate::export::traces::SpanExporter;
use crate::export::{ExportStats, Exporters, REPORTS};
use crate::logs::{LogConfig, LogFilter, LogOutput};
use crate::metrics::{Metrics, MetricsServer};
use crate::parse_error::ParseError;
use crate::setup::report::SetupReport;
use crate::traces::processors::Processors;

/// The telemetry of a process. Keep it for as long as the process runs.
///
/// [`shutdown`](Self::shutdown) sends what waits to be sent and returns whether that worked.
/// Dropping it does the same within the same bound, and can only log a failure.
#[doc(alias("ObservabilityManager", "TracingManager"))]
#[derive(Debug)]
#[must_use = "telemetry ends when this is dropped: bind it to a variable that lives as long as the program"]
pub struct Telemetry {
    handle: TelemetryHandle,
    log_filter: Option<LogFilter>,
    report: SetupReport,
    shutdown_timeout: Duration,
    ended: bool,
}

impl Telemetry {
    pub(crate) fn new(
        tracing: Option<Tracing>,
        metrics: Metrics,
        exporters: Exporters,
        instance_type: Option<String>,
        logs: Option<&LogConfig>,
        report: SetupReport,
        shutdown_timeout: Duration,
    ) -> Self {
        Self {
            handle: TelemetryHandle {
                tracing: tracing.map(Arc::new),
                metrics,
                exporters,
                instance_type: instance_type.map(Arc::from),
                log_output: logs.map(|logs| logs.output.clone()),
            },
            log_filter: logs.map(|logs| logs.filter.clone()),
            report,
            shutdown_timeout,
            ended: false,
        }
    }

    pub(crate) fn tracing(&self) -> Option<&Tracing> {
        self.handle.tracing.as_deref()
    }

    /// A handle for the libraries of the program.
    #[must_use]
    pub fn handle(&self) -> TelemetryHandle {
        self.handle.clone()
    }

    /// The metrics of this process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.handle.metrics()
    }

    /// Serves `/metrics` on an address until the server is dropped; `None` if `METRICS_ENABLED` is
    /// `false`.
    ///
    /// # Errors
    ///
    /// When the address can't be bound.
    pub fn serve_metrics(&self, address: impl ToSocketAddrs) -> io::Result<Option<MetricsServer>> {
        match self.report.serves_metrics {
            true => MetricsServer::start(address, self.metrics().clone()).map(Some),
            false => Ok(None),
        }
    }

    /// A meter of OpenTelemetry, for further instruments: [`Metrics::meter`].
    #[doc(alias("get_meter", "create_counter", "create_histogram", "create_gauge"))]
    #[must_use]
    pub fn meter(&self, scope: &'static str) -> Meter {
        self.metrics().meter(scope)
    }

    /// Logs where each signal goes (`telemetry_configured`), and a warning for each setting that
    /// OpenTelemetry defines and this crate does not support (`setting_not_supported`).
    ///
    /// [`install`](crate::TelemetryBuilder::install) calls it. Call it after
    /// [`into_layer`](crate::TelemetryBuilder::into_layer), when the layer is in the subscriber.
    pub fn log_settings(&self) {
        self.report.log();
    }

    /// Changes which events become log lines. Spans are not affected.
    ///
    /// The directives are those of `RUST_LOG`: a list of levels for targets, and one for all
    /// others.
    ///
    /// ```no_run
    /// # fn example(telemetry: &dalston_telemetry::Telemetry) -> Result<(), dalston_telemetry::ParseError> {
    /// telemetry.set_log_filter("info,dalston_engine_sdk::runner=debug")
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When a directive can't be parsed; the filter then stays as it was. Nothing happens if this
    /// telemetry writes no log lines.
    pub fn set_log_filter(&self, directives: &str) -> Result<(), ParseError> {
        match &self.log_filter {
            Some(filter) => filter.set(directives),
            None => Ok(()),
        }
    }

    /// Sends all spans that have ended, and the current metrics if they are exported, writes the
    /// log lines that wait, and waits for that for at most `timeout`.
    ///
    /// Blocks the calling thread, whether or not it belongs to a runtime. This can't deadlock,
    /// because exporters and log lines have threads of their own.
    ///
    /// # Errors
    ///
    /// When the time was up before everything was sent and written, or when spans were lost since
    /// the last flush.
    pub fn flush(&self, timeout: Duration) -> Result<(), ShutdownError> {
        self.handle.flush(timeout)
    }

    /// Sends what waits to be sent, writes the log lines that wait, and ends telemetry, within
    /// [`TelemetryBuilder::shutdown_timeout`](crate::TelemetryBuilder::shutdown_timeout).
    ///
    /// Works on any runtime and never blocks its thread. Spans that end later keep their ids and
    /// are counted as dropped. Later log lines are still written while the process lives.
    ///
    /// # Errors
    ///
    /// When the time was up before everything was sent and written, or when spans were lost since
    /// the last flush.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        let started = Instant::now();
        self.handle.exporters.close(self.shutdown_timeout);
        let exported = self.handle.exporters.ended().await;
        // The exporters have ended. Only the program's own processors can take time here.
        let exported = exported.and(self.end(started));
        let time_left = self.time_left_for_lines(started);
        exported.and(self.handle.log_lines_written(time_left).await)
    }

    /// [`shutdown`](Self::shutdown) for code without a runtime; blocks for at most the same time.
    ///
    /// # Errors
    ///
    /// As [`shutdown`](Self::shutdown).
    pub fn shutdown_blocking(mut self) -> Result<(), ShutdownError> {
        let started = Instant::now();
        let exported = self.end(started);
        exported.and(self.handle.flush_log_lines(self.time_left_for_lines(started)))
    }

    /// Ends everything but the log lines. The time for that runs since `started`.
    fn end(&mut self, started: Instant) -> Result<(), ShutdownError> {
        self.ended = true;
        let exporters = &self.handle.exporters;
        exporters.close(self.time_left(started));
        let exported = exporters.ended_blocking(self.time_left(started));
        if let Some(tracing) = self.tracing() {
            // For the program's processors; the outcome of the exporters is known.
            let _ = tracing.processors.shutdown_with_timeout(self.time_left(started));
        }
        exported
    }

    /// The time for the log lines, which are written while the exporters end. The lines about their
    /// end are the last ones, and may come when no time is left.
    fn time_left_for_lines(&self, started: Instant) -> Duration {
        const LAST_LINES: Duration = Duration::from_millis(200);
        self.time_left(started).max(LAST_LINES)
    }

    fn time_left(&self, started: Instant) -> Duration {
        self.shutdown_timeout.saturating_sub(started.elapsed())
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let started = Instant::now();
        if let Err(error) = self.end(started) {
            tracing::warn!(target: REPORTS, %error, "telemetry_shutdown_failed");
        }
        // A failure can't be logged.
        let _ = self.handle.flush_log_lines(self.time_left_for_lines(started));
    }
}

/// The access of a library to telemetry. Cheap to clone; a [`disabled`](Self::disabled) one does
/// nothing.
#[derive(Clone, Default)]
pub struct TelemetryHandle {
    tracing: Option<Arc<Tracing>>,
    metrics: Metrics,
    exporters: Exporters,
    instance_type: Option<Arc<str>>,
    log_output: Option<LogOutput>,
}

impl TelemetryHandle {
    /// A handle that records nothing.
    #[must_use]
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Whether spans are recorded: exported, collected in memory, or only given ids.
    #[doc(alias = "is_tracing_enabled")]
    #[must_use]
    pub fn traces_enabled(&self) -> bool {
        self.tracing.is_some()
    }

    /// The metrics of this process. A disabled handle has a registry of its own.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The kind of machine, as in the attribute `host.type` of spans: `INSTANCE_TYPE`, else
    /// `host.type` of `OTEL_RESOURCE_ATTRIBUTES`, else the detected one. Log lines have `unknown`
    /// in place of `None`.
    #[must_use]
    pub fn instance_type(&self) -> Option<&str> {
        self.instance_type.as_deref()
    }

    /// Records a span with explicit times, which `tracing` can't express.
    ///
    /// Returns the context of the new span, for its children, or `None` if tracing is off. An end
    /// before the start is moved to the start.
    #[doc(alias("create_span", "get_tracer", "start_span"))]
    #[expect(clippy::must_use_candidate, reason = "most such spans have no children")]
    pub fn record_span(&self, span: TimedSpan<'_>) -> Option<SpanContext> {
        let tracer = &self.tracing.as_ref()?.tracer;
        let TimedSpan {
            name,
            parent,
            start,
            end,
            kind,
            attributes,
            links,
        } = span;
        let builder = SpanBuilder::from_name(name)
            .with_start_time(start)
            .with_kind(kind)
            .with_attributes(attributes)
            .with_links(links);
        let mut span = tracer.build_with_context(builder, parent);
        span.end_with_timestamp(end.max(start));
        Some(span.span_context().clone())
    }

    /// [`Telemetry::flush`] for code that has only the handle, such as a panic hook, and before
    /// `std::process::exit`.
    ///
    /// # Errors
    ///
    /// As [`Telemetry::flush`].
    pub fn flush(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let started = Instant::now();
        let exported = self.flush_exporters(timeout);
        // The lines are written meanwhile.
        exported.and(self.flush_log_lines(timeout.saturating_sub(started.elapsed())))
    }

    pub(crate) fn flush_exporters(&self, timeout: Duration) -> Result<(), ShutdownError> {
        self.exporters.flush(timeout)
    }

    /// The part of [`flush`](Self::flush) that needs no collector.
    pub(crate) fn flush_log_lines(&self, timeout: Duration) -> Result<(), ShutdownError> {
        let output = self.log_output.as_ref();
        output.map_or(Ok(()), |output| output.flush(timeout))
    }

    /// The same without blocking the thread.
    async fn log_lines_written(&self, timeout: Duration) -> Result<(), ShutdownError> {
        match &self.log_output {
            Some(output) => output.flushed(timeout).await,
            None => Ok(()),
        }
    }

    #[cfg(feature = "tower")]
    pub(crate) fn duplicates_http(&self) -> bool {
        let tracing = self.tracing.as_ref();
        tracing.is_some_and(|tracing| tracing.duplicates_http)
    }

    /// How many spans were exported and lost so far; all zero if nothing is exported.
    #[must_use]
    pub fn export_stats(&self) -> ExportStats {
        let exporter = self
            .tracing
            .as_ref()
            .and_then(|tracing| tracing.exporter.as_ref());
        exporter.map(SpanExporter::stats).unwrap_or_default()
    }
}

impl fmt::Debug for TelemetryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryHandle")
            .field("traces_enabled", &self.traces_enabled())
            .finish_non_exhaustive()
    }
}

/// A span whose start and end are known when it is recorded, such as the time that a task waited in
/// a queue.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use dalston_telemetry::{TelemetryHandle, TimedSpan};
/// use dalston_telemetry::opentelemetry::{Context, KeyValue};
///
/// let read_at = SystemTime::now();
/// let enqueued_at = read_at - Duration::from_secs(3);
/// let carried = Context::new();
/// let mut span = TimedSpan::new("engine.queue_wait", &carried, enqueued_at, read_at);
/// span.attributes.push(KeyValue::new("dalston.queue_wait_seconds", 3.0));
/// TelemetryHandle::disabled().record_span(span);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TimedSpan<'a> {
    /// The name of the span.
    pub name: Cow<'static, str>,
    /// The context of the parent. Without a span in it, this span is the root of a new trace.
    pub parent: &'a Context,
    /// When it started.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Its kind; `Internal` unless changed.
    pub kind: SpanKind,
    /// Its attributes.
    pub attributes: Vec<KeyValue>,
    /// Links to spans of other traces or of earlier attempts.
    pub links: Vec<Link>,
}

impl<'a> TimedSpan<'a> {
    /// An internal span without attributes and links.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        parent: &'a Context,
        start: SystemTime,
        end: SystemTime,
    ) -> Self {
        Self {
            name: name.into(),
            parent,
            start,
            end,
            kind: SpanKind::Internal,
            attributes: Vec::new(),
            links: Vec::new(),
        }
    }
}

/// The parts of OpenTelemetry; present while tracing is on.
#[derive(Debug)]
pub(crate) struct Tracing {
    pub(crate) provider: SdkTracerProvider,
    pub(crate) tracer: SdkTracer,
    pub(crate) processors: Processors,
    /// Sends spans, if they are exported.
    pub(crate) exporter: Option<SpanExporter>,
    /// Whether spans of HTTP requests also have the attributes of earlier conventions.
    #[cfg_attr(not(feature = "tower"), expect(dead_code, reason = "only servers ask"))]
    pub(crate) duplicates_http: bool,
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;
    use tracing::info_span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::Env;
    use crate::metrics::DropReason;

    #[test]
    fn spans_have_ids_and_are_counted_after_shutdown() {
        // Nothing listens on this port.
        let env = [
            ("OTEL_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ];
        let builder = Telemetry::builder("test")
            .env(Env::from_pairs(env))
            .without_logs();
        let (layer, telemetry) = builder.into_layer().unwrap();
        let handle = telemetry.handle();
        let has_id = || {
            let span = info_span!("work");
            span.context().span().span_context().is_valid()
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            // The exporter can end before telemetry does, by a panic.
            handle.exporters.close(Duration::ZERO);
            handle.exporters.ended_blocking(Duration::ZERO).unwrap();
            assert!(has_id());
            assert_eq!(handle.export_stats().dropped(DropReason::Shutdown), 1);
            telemetry.shutdown_blocking().unwrap_err();
            assert!(has_id());
            assert_eq!(handle.export_stats().dropped(DropReason::Shutdown), 2);
        });
    }
}
