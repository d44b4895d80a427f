//! What is known about one span.

use std::time::{Duration, SystemTime};

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::KeyValue;
use maud::{Markup, html};

use super::super::layout::duration;
use super::critical::Section;

pub(super) fn details(
    span: &CollectedSpan,
    service: &str,
    start: SystemTime,
    path: &[&Section],
    notes: &[String],
) -> Markup {
    let critical: Duration = path.iter().map(|section| section.duration()).sum();
    let after = |time: SystemTime| duration(time.duration_since(start).unwrap_or_default());
    html! {
        h3 { (span.name) }
        @if span.is_error() {
            p.bad { "Error" @if let Some(message) = span.error_message() { ": " (message) } }
        }
        @for note in notes { p.note { (note) } }
        dl.facts {
            dt { "Service" } dd { (service) }
            dt { "Kind" } dd { (format!("{:?}", span.kind).to_lowercase()) }
            dt { "Starts after" } dd { (after(span.start)) }
            dt { "Took" } dd { (duration(span.duration())) }
            @if !critical.is_zero() { dt { "On the critical path" } dd { (duration(critical)) } }
            dt { "Span id" } dd { code { (span.span_id) } }
        }
        @if !span.attributes.is_empty() { h4 { "Attributes" } (attributes(&span.attributes)) }
        @if !span.events.is_empty() {
            h4 { "Events" }
            @for event in &span.events {
                p { b { (event.name) } " after " (after(event.timestamp)) }
                (attributes(&event.attributes))
            }
        }
        @if !span.links.is_empty() {
            h4 { "Links" }
            @for link in &span.links {
                p {
                    "span " code { (link.span_context.span_id()) } " of trace " code { (link.span_context.trace_id()) }
                }
                (attributes(&link.attributes))
            }
        }
    }
}

fn attributes(attributes: &[KeyValue]) -> Markup {
    html! {
        dl.facts {
            @for attribute in attributes {
                dt { (attribute.key) } dd { (attribute.value) }
            }
        }
    }
}
