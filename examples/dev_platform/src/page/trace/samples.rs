//! Spans for tests.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use dalston_telemetry::opentelemetry::trace::{
    Span as _, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
};
use dalston_telemetry::opentelemetry::{Context, KeyValue};
use dalston_telemetry::opentelemetry_sdk::trace::SdkTracerProvider;
use dalston_telemetry::{CollectedSpan, SpanCollector};

/// A name, the name of the parent, and start and end in milliseconds.
pub(super) type Sample<'a> = (&'a str, Option<&'a str>, u64, u64);

pub(super) const START: SystemTime = SystemTime::UNIX_EPOCH;

/// Spans of one trace. A parent may be unknown.
pub(super) fn spans(samples: &[Sample<'_>]) -> Vec<CollectedSpan> {
    let collector = SpanCollector::with_capacity(samples.len());
    let provider = SdkTracerProvider::builder()
        .with_span_processor(collector.clone())
        .build();
    let tracer = provider.tracer("samples");
    let at = |milliseconds| START + Duration::from_millis(milliseconds);
    for (name, _, start, end) in samples {
        let mut span = tracer
            .span_builder((*name).to_owned())
            .with_start_time(at(*start))
            .start_with_context(&tracer, &remote());
        span.set_attribute(KeyValue::new("service.name", "service of <b>"));
        span.end_with_timestamp(at(*end));
    }
    let mut spans = collector.spans();
    let ids: HashMap<&str, SpanId> = samples
        .iter()
        .map(|sample| sample.0)
        .zip(spans.iter().map(|span| span.span_id))
        .collect();
    let unknown = SpanId::from(1);
    for (span, (_, parent, ..)) in spans.iter_mut().zip(samples) {
        span.parent_span_id = parent.map(|name| ids.get(name).copied().unwrap_or(unknown));
    }
    spans
}

/// All spans get this trace.
fn remote() -> Context {
    let (trace, span) = (TraceId::from(1), SpanId::from(1));
    let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE);
    Context::new().with_remote_span_context(context)
}
