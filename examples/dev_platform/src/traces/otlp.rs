//! A trace as OTLP/JSON: ids in hexadecimal, integers of 64 bits as texts, enumerations as numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::trace::{Event, Link, SpanKind, Status};
use dalston_telemetry::opentelemetry::{Array, KeyValue, Value as Attribute};
use serde_json::{Value, json};

use super::{SERVICE_NAME, by_service, sender};

/// The bits of a span's flags: sampled, whether its parent is remote is known, and it is.
const SAMPLED: u32 = 0x001;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The form of a file that any collector reads.
pub(crate) fn to_otlp(spans: &[CollectedSpan]) -> Value {
    let resources = by_service(spans).into_iter().map(|(service, spans)| {
        let spans: Vec<Value> = spans.into_iter().map(span).collect();
        json!({
            "resource": {"attributes": attributes(&[KeyValue::new(SERVICE_NAME, service)])},
            "scopeSpans": [{"scope": {}, "spans": spans}],
        })
    });
    json!({"resourceSpans": resources.collect::<Vec<_>>()})
}

fn span(span: &CollectedSpan) -> Value {
    let (_, own) = sender(span);
    let (code, message) = match &span.status {
        Status::Unset => (0, ""),
        Status::Ok => (1, ""),
        Status::Error { description } => (2, description.as_ref()),
    };
    json!({
        "traceId": span.trace_id.to_string(),
        "spanId": span.span_id.to_string(),
        "parentSpanId": span.parent_span_id.map_or_else(String::new, |id| id.to_string()),
        "flags": SAMPLED | HAS_IS_REMOTE | if span.parent_is_remote { IS_REMOTE } else { 0 },
        "name": span.name,
        "kind": match span.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.end),
        "attributes": attributes(own),
        "events": span.events.iter().map(event).collect::<Vec<_>>(),
        "links": span.links.iter().map(link).collect::<Vec<_>>(),
        "status": {"code": code, "message": message},
    })
}

fn event(event: &Event) -> Value {
    json!({
        "timeUnixNano": nanos(event.timestamp),
        "name": event.name,
        "attributes": attributes(&event.attributes),
        "droppedAttributesCount": event.dropped_attributes_count,
    })
}

fn link(link: &Link) -> Value {
    json!({
        "traceId": link.span_context.trace_id().to_string(),
        "spanId": link.span_context.span_id().to_string(),
        "attributes": attributes(&link.attributes),
        "droppedAttributesCount": link.dropped_attributes_count,
    })
}

fn attributes(attributes: &[KeyValue]) -> Value {
    let attributes = attributes
        .iter()
        .map(|attribute| json!({"key": attribute.key.as_str(), "value": value(&attribute.value)}));
    attributes.collect()
}

fn value(value: &Attribute) -> Value {
    match value {
        Attribute::Bool(flag) => json!({"boolValue": flag}),
        Attribute::I64(number) => json!({"intValue": number.to_string()}),
        Attribute::F64(number) => json!({"doubleValue": double(*number)}),
        Attribute::String(text) => json!({"stringValue": text.as_str()}),
        // The receiver makes lists of texts only.
        Attribute::Array(Array::String(texts)) => {
            let values = texts.iter().map(|text| json!({"stringValue": text.as_str()}));
            json!({"arrayValue": {"values": values.collect::<Vec<_>>()}})
        }
        other => json!({"stringValue": other.to_string()}),
    }
}

/// JSON has no number for these; the form is that of protobuf.
fn double(number: f64) -> Value {
    match number {
        number if number.is_finite() => json!(number),
        number if number.is_nan() => json!("NaN"),
        number if number > 0.0 => json!("Infinity"),
        _ => json!("-Infinity"),
    }
}

fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}
