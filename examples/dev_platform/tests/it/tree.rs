//! Spans that a collector received, as a tree.

use std::fmt::Write as _;

use dalston_telemetry::services::engine::spans::span;
use dalston_telemetry::testing::SpanTree;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

/// The attributes that the tree shows.
const SHOWN: [&str; 4] = [
    "http.response.status_code",
    "dalston.stage",
    "dalston.engine_id",
    "dalston.retry_count",
];

/// The spans of a request with their services, without the wait for an inference thread: whether
/// the second channel of a recording has one differs from run to run.
pub(crate) fn with_services(request: ExportTraceServiceRequest) -> Vec<(String, Span)> {
    let mut found = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = attributes
            .into_iter()
            .find(|attribute| attribute.key == "service.name");
        let service = match service.unwrap().value.unwrap().value.unwrap() {
            Value::StringValue(service) => service,
            other => panic!("{other:?}"),
        };
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let spans = spans.filter(|span| span.name != span::SLOT_WAIT);
        found.extend(spans.map(|span| (service.clone(), span)));
    }
    found
}

/// The tree of the spans of one trace with their services. Siblings of one service stand in the
/// order of their starts, and services in the order of their names: how the work of two processes
/// overlaps differs from run to run.
pub(crate) fn tree(spans: &[(String, Span)]) -> SpanTree {
    let mut text = String::new();
    draw_all(spans, 0, &mut text, &|span| {
        !spans
            .iter()
            .any(|(_, other)| other.span_id == span.parent_span_id)
    });
    text.parse().unwrap()
}

fn draw_all(spans: &[(String, Span)], depth: usize, text: &mut String, is_drawn: &dyn Fn(&Span) -> bool) {
    let mut drawn: Vec<_> = spans.iter().filter(|(_, span)| is_drawn(span)).collect();
    drawn.sort_by_key(|(service, span)| (service, span.start_time_unix_nano));
    for (_, span) in drawn {
        let attributes: Vec<String> = SHOWN
            .into_iter()
            .filter_map(|name| attribute(span, name))
            .collect();
        let _ = match span.name.contains('{') {
            true => write!(text, "{:indent$}{:?}", "", span.name, indent = depth * 2),
            false => write!(text, "{:indent$}{}", "", span.name, indent = depth * 2),
        };
        if !attributes.is_empty() {
            let _ = write!(text, " {{{}}}", attributes.join(", "));
        }
        let status = span.status.as_ref();
        let is_error = status.is_some_and(|status| status.code() == StatusCode::Error);
        text.push_str(if is_error { " !\n" } else { "\n" });
        draw_all(spans, depth + 1, text, &|child| {
            child.parent_span_id == span.span_id
        });
    }
}

/// An attribute as `name=value`.
pub(crate) fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(format!("{name}={text}")),
        Value::IntValue(number) => Some(format!("{name}={number}")),
        other => Some(format!("{name}={other:?}")),
    }
}
