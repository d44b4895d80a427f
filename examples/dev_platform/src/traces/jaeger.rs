//! A trace as JSON for the pages of Jaeger, which can open such a file.

use std::time::{SystemTime, UNIX_EPOCH};

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::trace::{Event, SpanKind, Status};
use dalston_telemetry::opentelemetry::{KeyValue, Value as Attribute};
use serde_json::{Map, Value, json};

use super::{by_service, sender};

/// The form of Jaeger's own downloads. Times are in microseconds.
pub(crate) fn to_jaeger(spans: &[CollectedSpan]) -> Value {
    let mut processes = Map::new();
    let mut listed = Vec::new();
    for (number, (service, spans)) in (1..).zip(by_service(spans)) {
        let process = format!("p{number}");
        listed.extend(spans.into_iter().map(|found| span(found, &process)));
        processes.insert(process, json!({"serviceName": service, "tags": []}));
    }
    let trace_id = spans.first().map(|span| span.trace_id.to_string());
    json!({
        "data": [{
            "traceID": trace_id, "spans": listed, "processes": processes, "warnings": null,
        }],
        "total": 0,
        "limit": 0,
        "offset": 0,
        "errors": null,
    })
}

fn span(span: &CollectedSpan, process: &str) -> Value {
    let trace_id = span.trace_id.to_string();
    let parent = span
        .parent_span_id
        .map(|id| json!({"refType": "CHILD_OF", "traceID": trace_id, "spanID": id.to_string()}));
    let links = span.links.iter().map(|link| {
        let target = &link.span_context;
        json!({
            "refType": "FOLLOWS_FROM",
            "traceID": target.trace_id().to_string(),
            "spanID": target.span_id().to_string(),
        })
    });
    let (_, own) = sender(span);
    let mut tags: Vec<Value> = own.iter().map(tag).collect();
    let kind = match span.kind {
        SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    };
    tags.push(tag(&KeyValue::new("span.kind", kind)));
    match &span.status {
        Status::Unset => {}
        Status::Ok => tags.push(tag(&KeyValue::new("otel.status_code", "OK"))),
        Status::Error { description } => {
            tags.push(tag(&KeyValue::new("error", true)));
            tags.push(tag(&KeyValue::new("otel.status_code", "ERROR")));
            let description = description.clone().into_owned();
            tags.push(tag(&KeyValue::new("otel.status_description", description)));
        }
    }
    json!({
        "traceID": trace_id,
        "spanID": span.span_id.to_string(),
        "operationName": span.name,
        "references": parent.into_iter().chain(links).collect::<Vec<_>>(),
        "startTime": micros(span.start),
        "duration": u64::try_from(span.duration().as_micros()).unwrap_or(u64::MAX),
        "tags": tags,
        "logs": span.events.iter().map(log).collect::<Vec<_>>(),
        "processID": process,
        "warnings": null,
    })
}

fn log(event: &Event) -> Value {
    let name = tag(&KeyValue::new("event", event.name.clone().into_owned()));
    let fields = std::iter::once(name).chain(event.attributes.iter().map(tag));
    json!({"timestamp": micros(event.timestamp), "fields": fields.collect::<Vec<_>>()})
}

fn tag(attribute: &KeyValue) -> Value {
    let (kind, value) = match &attribute.value {
        Attribute::Bool(flag) => ("bool", json!(flag)),
        Attribute::I64(number) => ("int64", json!(number)),
        Attribute::F64(number) if number.is_finite() => ("float64", json!(number)),
        other => ("string", json!(other.to_string())),
    };
    json!({"key": attribute.key.as_str(), "type": kind, "value": value})
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
