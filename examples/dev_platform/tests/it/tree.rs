//! Spans that a collector received, as a tree.

use std::fmt::Write as _;

use dalston_telemetry::testing::SpanTree;
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
        let _ = write!(text, "{:indent$}{}", "", span.name, indent = depth * 2);
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

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(format!("{name}={text}")),
        Value::IntValue(number) => Some(format!("{name}={number}")),
        other => Some(format!("{name}={other:?}")),
    }
}
