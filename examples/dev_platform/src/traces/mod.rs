//! Spans of all processes: receivers of OTLP, a bounded store, and two forms for download.
//!
//! | Module | What is in it |
//! |---|---|
//! | `receive` | OTLP over HTTP and over gRPC |
//! | `store` | the newest traces, in memory |
//! | `size` | how much memory a span takes |
//! | `otlp` | a trace as OTLP/JSON |
//! | `jaeger` | a trace as JSON for the pages of Jaeger |

mod jaeger;
mod otlp;
mod receive;
mod size;
mod store;

use std::collections::BTreeMap;

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::KeyValue;

pub(crate) use self::jaeger::to_jaeger;
pub(crate) use self::otlp::to_otlp;
pub(crate) use self::receive::{Ports, receive};
pub(crate) use self::store::TraceStore;

/// The resource attribute that the receiver adds to each span.
const SERVICE_NAME: &str = "service.name";

/// The spans by the service that sent them.
fn by_service(spans: &[CollectedSpan]) -> BTreeMap<String, Vec<&CollectedSpan>> {
    let mut services: BTreeMap<String, Vec<&CollectedSpan>> = BTreeMap::new();
    for span in spans {
        services.entry(sender(span).0).or_default().push(span);
    }
    services
}

/// The service that sent a span, which is its last attribute, and the attributes of its own.
fn sender(span: &CollectedSpan) -> (String, &[KeyValue]) {
    match span.attributes.split_last() {
        Some((last, own)) if last.key.as_str() == SERVICE_NAME => (last.value.to_string(), own),
        _ => (String::new(), &span.attributes),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind};
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
    use prost::Message;
    use serde_json::json;

    use super::*;

    /// A span with attributes of all types, of which one is a text of this length.
    pub(super) fn span(trace: u128, id: u64, text_bytes: usize) -> Span {
        let attributes = [
            ("text", Value::StringValue("x".repeat(text_bytes))),
            ("flag", Value::BoolValue(true)),
            ("number", Value::IntValue(i64::MAX)),
            ("share", Value::DoubleValue(0.5)),
        ];
        Span {
            trace_id: trace.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: vec![7; 8],
            flags: 0x301,
            name: "a span".to_owned(),
            kind: SpanKind::Consumer.into(),
            start_time_unix_nano: 1_700_000_000_000_001_000 + id,
            end_time_unix_nano: 1_700_000_000_000_004_000,
            attributes: attributes.map(|(key, value)| attribute(key, value)).into(),
            events: vec![Event {
                time_unix_nano: 1_700_000_000_000_002_000,
                name: "an event".to_owned(),
                attributes: vec![attribute("number", Value::IntValue(1))],
                ..Event::default()
            }],
            links: vec![Link {
                trace_id: vec![8; 16],
                span_id: vec![9; 8],
                ..Link::default()
            }],
            status: Some(Status {
                message: "disk full".to_owned(),
                code: StatusCode::Error.into(),
            }),
            ..Span::default()
        }
    }

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        }
    }

    fn request(spans: impl IntoIterator<Item = Span>) -> ExportTraceServiceRequest {
        let name = Value::StringValue("sender".to_owned());
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![attribute(SERVICE_NAME, name)],
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(Default::default()),
                    spans: spans.into_iter().collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        }
    }

    pub(super) fn encode(spans: impl IntoIterator<Item = Span>) -> Vec<u8> {
        request(spans).encode_to_vec()
    }

    #[test]
    fn otlp_form_is_the_received_request() {
        let sent = request([span(5, 6, 3), span(5, 7, 0)]);
        let spans = CollectedSpan::from_otlp(&sent.encode_to_vec()).unwrap();
        let read: ExportTraceServiceRequest = serde_json::from_value(to_otlp(&spans)).unwrap();
        assert_eq!(read, sent);
        let span = &to_otlp(&spans)["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "00000000000000000000000000000005");
        assert_eq!(span["startTimeUnixNano"], "1700000000000001006");
        assert_eq!(span["kind"], 5);
        assert_eq!(
            span["attributes"][2]["value"],
            json!({"intValue": "9223372036854775807"})
        );
    }

    #[test]
    fn number_that_json_lacks_is_a_text() {
        let mut odd = span(5, 6, 0);
        odd.attributes = vec![attribute("share", Value::DoubleValue(f64::NEG_INFINITY))];
        let spans = CollectedSpan::from_otlp(&encode([odd])).unwrap();
        let value = json!({"doubleValue": "-Infinity"});
        let otlp = to_otlp(&spans);
        let pointer = "/resourceSpans/0/scopeSpans/0/spans/0/attributes/0/value";
        assert_eq!(otlp.pointer(pointer), Some(&value));
        let jaeger = to_jaeger(&spans);
        let tag = json!({"key": "share", "type": "string", "value": "-inf"});
        assert_eq!(jaeger.pointer("/data/0/spans/0/tags/0"), Some(&tag));
    }

    #[test]
    fn jaeger_form_is_that_of_its_downloads() {
        let spans = CollectedSpan::from_otlp(&encode([span(5, 6, 1)])).unwrap();
        let id = "00000000000000000000000000000005";
        let tag = |key: &str, kind: &str, value: serde_json::Value| json!({"key": key, "type": kind, "value": value});
        let expected = json!({
            "data": [{
                "traceID": id,
                "spans": [{
                    "traceID": id,
                    "spanID": "0000000000000006",
                    "operationName": "a span",
                    "references": [
                        {"refType": "CHILD_OF", "traceID": id, "spanID": "0707070707070707"},
                        {
                            "refType": "FOLLOWS_FROM",
                            "traceID": "08080808080808080808080808080808",
                            "spanID": "0909090909090909",
                        },
                    ],
                    "startTime": 1_700_000_000_000_001_u64,
                    "duration": 2,
                    "tags": [
                        tag("text", "string", json!("x")),
                        tag("flag", "bool", json!(true)),
                        tag("number", "int64", json!(i64::MAX)),
                        tag("share", "float64", json!(0.5)),
                        tag("span.kind", "string", json!("consumer")),
                        tag("error", "bool", json!(true)),
                        tag("otel.status_code", "string", json!("ERROR")),
                        tag("otel.status_description", "string", json!("disk full")),
                    ],
                    "logs": [{
                        "timestamp": 1_700_000_000_000_002_u64,
                        "fields": [
                            tag("event", "string", json!("an event")),
                            tag("number", "int64", json!(1)),
                        ],
                    }],
                    "processID": "p1",
                    "warnings": null,
                }],
                "processes": {"p1": {"serviceName": "sender", "tags": []}},
                "warnings": null,
            }],
            "total": 0,
            "limit": 0,
            "offset": 0,
            "errors": null,
        });
        assert_eq!(to_jaeger(&spans), expected);
    }
}
