//! Spans.

use std::time::Duration;

use opentelemetry::trace::{Event, Link, Status};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::delivery::{BatchExporter, Console, Exporters, Item, ReportTo, Reporter};
use super::exporter_config::{BatchConfig, ExporterConfig};
use crate::error::InitError;
use crate::metrics::{DropReason, Signal, TelemetryMetrics};

mod console;
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod otlp;

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
use otlp::connect;

/// The exporter of spans.
pub(crate) type SpanExporter = BatchExporter<SpanData>;

/// Starts the exporter of spans, to a collector, to the console, or to both. Opens no connection,
/// so that a collector that is away does not keep a service from starting.
pub(crate) fn start(
    otlp: Option<&ExporterConfig>,
    console: Option<Console>,
    config: BatchConfig,
    resource: &Resource,
    metrics: TelemetryMetrics,
    report_to: ReportTo,
) -> Result<SpanExporter, InitError> {
    let endpoint = otlp.map_or_else(|| "console".to_owned(), |otlp| otlp.endpoint.to_string());
    let headers = otlp.map(|otlp| otlp.headers.clone()).unwrap_or_default();
    let reporter = Reporter::new(SpanData::NAME, endpoint, &headers, ReportTo::clone(&report_to));
    let timeout = otlp.map_or(config.export_timeout, |otlp| otlp.timeout);
    let connect = otlp.map(|otlp| connect(otlp, resource)).transpose()?;
    BatchExporter::start(config, timeout, connect, console, metrics, reporter, report_to)
}

impl Item for SpanData {
    const SIGNAL: Signal = Signal::Traces;
    const NAME: &'static str = "spans";

    fn count_dropped(metrics: &TelemetryMetrics, reason: DropReason, count: u64) {
        metrics.spans_dropped(reason, count);
    }

    fn size(&self) -> usize {
        let events = self
            .events
            .iter()
            .map(|event| size_of::<Event>() + event.name.len() + size_of_attributes(&event.attributes));
        let links = self
            .links
            .iter()
            .map(|link| size_of::<Link>() + size_of_attributes(&link.attributes));
        let description = match &self.status {
            Status::Error { description } => description.len(),
            _ => 0,
        };
        size_of::<Self>()
            + self.name.len()
            + size_of_attributes(&self.attributes)
            + events.sum::<usize>()
            + links.sum::<usize>()
            + description
    }

    fn line(&self) -> String {
        console::line(self)
    }
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

/// Hands spans that end to their exporter.
#[derive(Debug)]
pub(crate) struct ExportProcessor {
    spans: SpanExporter,
    exporters: Exporters,
}

impl ExportProcessor {
    pub(crate) fn new(spans: SpanExporter) -> Self {
        Self {
            exporters: Exporters::new(vec![spans.exporter()]),
            spans,
        }
    }
}

impl SpanProcessor for ExportProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.spans.take(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        let flushed = self.exporters.flush(Duration::from_secs(5));
        flushed.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporters.close(timeout);
        let ended = self.exporters.ended_blocking(timeout);
        ended.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }
}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
use no_otlp::connect;

/// A build without a transport.
#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
mod no_otlp {
    use super::*;
    use crate::export::delivery::{Accepted, BatchTransport, Failure, Transport};

    pub(super) enum NoTransport {}

    pub(super) fn connect(otlp: &ExporterConfig, _: &Resource) -> Result<fn() -> NoTransport, InitError> {
        Err(otlp.protocol.missing_feature())
    }

    impl BatchTransport<SpanData> for NoTransport {
        type Record = Self;

        fn room(&self) -> usize {
            match *self {}
        }

        fn convert(&self, _: SpanData) -> (Self, usize) {
            match *self {}
        }

        fn request(&self, _: Vec<Self>) {
            match *self {}
        }
    }

    impl Transport for NoTransport {
        type Request = ();

        async fn send(&self, (): &()) -> Result<Accepted, Failure> {
            match *self {}
        }
    }
}
