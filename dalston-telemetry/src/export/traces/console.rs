//! Spans for people: `OTEL_TRACES_EXPORTER=console`.

use std::time::SystemTime;

use jiff::Timestamp;
use opentelemetry::trace::{SpanId, Status};
use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use serde_json::{Map, json};

/// A span as a JSON object on one line.
pub(super) fn line(span: &SpanData) -> String {
    let parent = (span.parent_span_id != SpanId::INVALID).then(|| span.parent_span_id.to_string());
    let events: Vec<_> = span
        .events
        .iter()
        .map(|event| json!({"name": event.name, "time": time(event.timestamp), "attributes": object(&event.attributes)}))
        .collect();
    let links: Vec<_> = span
        .links
        .iter()
        .map(|link| {
            let to = &link.span_context;
            json!({"trace_id": to.trace_id().to_string(), "span_id": to.span_id().to_string()})
        })
        .collect();
    let status = match &span.status {
        Status::Unset => json!("unset"),
        Status::Ok => json!("ok"),
        Status::Error { description } => json!({"error": description}),
    };
    let line = json!({
        "name": span.name,
        "trace_id": span.span_context.trace_id().to_string(),
        "span_id": span.span_context.span_id().to_string(),
        "parent_span_id": parent,
        "kind": format!("{:?}", span.span_kind).to_lowercase(),
        "start": time(span.start_time),
        "end": time(span.end_time),
        "status": status,
        "attributes": object(&span.attributes),
        "events": events,
        "links": links,
    });
    format!("{line}\n")
}

fn time(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| time.to_string())
}

fn object(attributes: &[KeyValue]) -> Map<String, serde_json::Value> {
    attributes
        .iter()
        .map(|attribute| (attribute.key.to_string(), value(&attribute.value)))
        .collect()
}

fn value(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::String(value) => json!(value.as_str()),
        Value::Array(Array::Bool(values)) => json!(values),
        Value::Array(Array::I64(values)) => json!(values),
        Value::Array(Array::F64(values)) => json!(values),
        Value::Array(Array::String(values)) => {
            json!(values.iter().map(|value| value.as_str()).collect::<Vec<_>>())
        }
        other => json!(other.to_string()),
    }
}
