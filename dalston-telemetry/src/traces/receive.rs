//! Spans that other processes export, in the store of this one.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue as ProtoKeyValue};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message;

use super::collector::{CollectedSpan, SpanCollector};
use crate::parse_error::ParseError;

/// The resource attribute that every received span gets.
const SERVICE_NAME: &str = "service.name";
/// The bit of a span's flags that says whether its parent is in another process.
const PARENT_IS_REMOTE: u32 = 0x200;

impl CollectedSpan {
    /// The spans of an OTLP request: the body of `POST /v1/traces` in protobuf, without
    /// compression, or the message of the gRPC call. Each span gets the `service.name` of its
    /// sender as its last attribute.
    ///
    /// For a program that keeps or shows the spans of other processes in its own way;
    /// [`SpanCollector::receive_otlp`] is the ready-made way. The caller bounds the size of the
    /// body: the spans take about ten times as much memory.
    ///
    /// ```
    /// use dalston_telemetry::CollectedSpan;
    ///
    /// assert_eq!(CollectedSpan::from_otlp(b""), Ok(Vec::new())); // a request without spans
    /// assert!(CollectedSpan::from_otlp(b"{}").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If the body is no such request.
    pub fn from_otlp(body: &[u8]) -> Result<Vec<Self>, ParseError> {
        let request = ExportTraceServiceRequest::decode(body).map_err(|_| {
            let found = format!("{} bytes", body.len());
            ParseError::new("the OTLP request", found, "ExportTraceServiceRequest in protobuf")
        })?;
        let mut spans = Vec::new();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes
                .into_iter()
                .find(|attribute| attribute.key == SERVICE_NAME);
            let sent = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(sent.map(|span| {
                let mut span = read(span);
                span.attributes.extend(service.clone().and_then(attribute));
                span
            }));
        }
        Ok(spans)
    }
}

impl SpanCollector {
    /// Adds the spans of an OTLP request, as [`CollectedSpan::from_otlp`] reads it. Returns their
    /// number.
    ///
    /// A small collector for development is a route that calls this. The caller bounds the size of
    /// the body.
    ///
    /// ```
    /// use dalston_telemetry::SpanCollector;
    ///
    /// let collector = SpanCollector::new();
    /// assert_eq!(collector.receive_otlp(b""), Ok(0)); // a request without spans
    /// assert!(collector.receive_otlp(b"{}").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If the body is no such request. No span is added then.
    pub fn receive_otlp(&self, body: &[u8]) -> Result<usize, ParseError> {
        let spans = CollectedSpan::from_otlp(body)?;
        let count = spans.len();
        spans.into_iter().for_each(|span| self.add(span));
        Ok(count)
    }
}

fn read(span: proto::Span) -> CollectedSpan {
    let parent = span_id(&span.parent_span_id);
    CollectedSpan {
        trace_id: trace_id(&span.trace_id),
        span_id: span_id(&span.span_id),
        parent_span_id: (parent != SpanId::INVALID).then_some(parent),
        parent_is_remote: span.flags & PARENT_IS_REMOTE != 0,
        kind: match span.kind() {
            proto::span::SpanKind::Server => SpanKind::Server,
            proto::span::SpanKind::Client => SpanKind::Client,
            proto::span::SpanKind::Producer => SpanKind::Producer,
            proto::span::SpanKind::Consumer => SpanKind::Consumer,
            proto::span::SpanKind::Internal | proto::span::SpanKind::Unspecified => SpanKind::Internal,
        },
        status: match span.status.unwrap_or_default() {
            status if status.code() == proto::status::StatusCode::Error => Status::error(status.message),
            status if status.code() == proto::status::StatusCode::Ok => Status::Ok,
            _ => Status::Unset,
        },
        name: span.name.into(),
        start: time(span.start_time_unix_nano),
        end: time(span.end_time_unix_nano),
        attributes: attributes(span.attributes),
        events: span
            .events
            .into_iter()
            .map(|event| {
                let (at, dropped) = (time(event.time_unix_nano), event.dropped_attributes_count);
                Event::new(event.name, at, attributes(event.attributes), dropped)
            })
            .collect(),
        links: span
            .links
            .into_iter()
            .map(|link| {
                let target = SpanContext::new(
                    trace_id(&link.trace_id),
                    span_id(&link.span_id),
                    TraceFlags::default(),
                    true,
                    TraceState::NONE,
                );
                Link::new(target, attributes(link.attributes), link.dropped_attributes_count)
            })
            .collect(),
    }
}

/// An id of another length is invalid, as one of zeros.
fn trace_id(bytes: &[u8]) -> TraceId {
    bytes.try_into().map_or(TraceId::INVALID, TraceId::from_bytes)
}

fn span_id(bytes: &[u8]) -> SpanId {
    bytes.try_into().map_or(SpanId::INVALID, SpanId::from_bytes)
}

fn time(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn attributes(attributes: Vec<ProtoKeyValue>) -> Vec<KeyValue> {
    attributes.into_iter().filter_map(attribute).collect()
}

fn attribute(attribute: ProtoKeyValue) -> Option<KeyValue> {
    Some(KeyValue::new(attribute.key, value(attribute.value?)?))
}

/// Lists become lists of texts. Values that no attribute of ours can have are left out.
fn value(value: AnyValue) -> Option<Value> {
    Some(match value.value? {
        ProtoValue::StringValue(text) => text.into(),
        ProtoValue::BoolValue(flag) => flag.into(),
        ProtoValue::IntValue(number) => number.into(),
        ProtoValue::DoubleValue(number) => number.into(),
        ProtoValue::ArrayValue(list) => {
            let scalar = |value: AnyValue| match value.value? {
                ProtoValue::StringValue(text) => Some(text),
                ProtoValue::BoolValue(flag) => Some(flag.to_string()),
                ProtoValue::IntValue(number) => Some(number.to_string()),
                ProtoValue::DoubleValue(number) => Some(number.to_string()),
                _ => None,
            };
            let texts = list.values.into_iter().filter_map(scalar).map(StringValue::from);
            Value::Array(Array::String(texts.collect()))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Span, SpanBuilder, TraceContextExt, Tracer, TracerProvider};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor};

    use super::*;

    /// Keeps what an exporter would get.
    #[derive(Clone, Debug, Default)]
    struct Exporter(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Exporter {
        fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// A trace as the store of its own process has it, and as OTLP.
    fn exported() -> (Vec<CollectedSpan>, Vec<u8>) {
        let (collector, exporter) = (SpanCollector::new(), Exporter::default());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(collector.clone())
            .with_span_processor(exporter.clone())
            .build();
        let tracer = provider.tracer("test");
        let caller = SpanContext::new(
            TraceId::from(7),
            SpanId::from(8),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        let remote = Context::new().with_remote_span_context(caller.clone());
        let builder = SpanBuilder::from_name("orchestrator.handle_job")
            .with_kind(SpanKind::Consumer)
            .with_attributes([KeyValue::new("count", 3), KeyValue::new("share", 0.5)])
            .with_links(vec![Link::with_context(caller)]);
        let mut parent = tracer.build_with_context(builder, &remote);
        parent.add_event("exception", vec![KeyValue::new("exception.message", "disk full")]);
        parent.set_status(Status::error("disk full"));
        let inside = Context::new().with_span(parent);
        tracer.start_with_context("inner", &inside).end();
        inside.span().end();
        let resource = Resource::builder_empty()
            .with_service_name("dalston-orchestrator")
            .build();
        let resource = ResourceAttributesWithSchema::from(&resource);
        let spans = exporter.0.lock().unwrap().clone();
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &resource),
        };
        (collector.spans(), request.encode_to_vec())
    }

    #[test]
    fn received_spans_are_those_of_the_sender_and_its_name() {
        let (sent, body) = exported();
        let collector = SpanCollector::new();
        assert_eq!(collector.receive_otlp(&body), Ok(2));
        for (mut received, sent) in collector.spans().into_iter().zip(sent) {
            let service = received.attributes.pop().unwrap();
            assert_eq!(service, KeyValue::new("service.name", "dalston-orchestrator"));
            // The flags of a linked span are not sent.
            let links = |span: &CollectedSpan| -> Vec<_> {
                let targets = span.links.iter().map(|link| link.span_context.span_id());
                targets.collect()
            };
            assert_eq!(links(&received), links(&sent));
            received.links.clone_from(&sent.links);
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn malformed_request_adds_nothing() {
        let (_, body) = exported();
        let collector = SpanCollector::new();
        let error = collector.receive_otlp(&body[..body.len() - 1]).unwrap_err();
        assert!(error.to_string().starts_with("the OTLP request is "), "{error}");
        assert!(collector.spans().is_empty());
    }

    #[test]
    fn ids_of_a_wrong_length_are_invalid() {
        let span = proto::Span {
            trace_id: vec![1; 3],
            span_id: vec![2; 9],
            parent_span_id: vec![3; 1],
            ..proto::Span::default()
        };
        let read = read(span);
        assert_eq!((read.trace_id, read.span_id), (TraceId::INVALID, SpanId::INVALID));
        assert_eq!(read.parent_span_id, None);
    }
}
