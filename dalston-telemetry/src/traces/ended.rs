use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::SpanData;

/// A span that has ended, wherever its parts lie. Not for `Debug`: secrets in it are not masked yet.
pub(crate) struct EndedSpan<'a> {
    pub(crate) span_context: &'a SpanContext,
    pub(crate) parent_span_id: SpanId,
    pub(crate) parent_span_is_remote: bool,
    pub(crate) span_kind: &'a SpanKind,
    pub(crate) name: &'a mut Cow<'static, str>,
    pub(crate) start_time: SystemTime,
    pub(crate) end_time: SystemTime,
    pub(crate) attributes: &'a mut Vec<KeyValue>,
    pub(crate) dropped_attributes_count: u32,
    pub(crate) events: &'a mut [Event],
    pub(crate) dropped_events_count: u32,
    pub(crate) links: &'a mut [Link],
    pub(crate) dropped_links_count: u32,
    pub(crate) status: &'a mut Status,
    pub(crate) instrumentation_scope: &'a InstrumentationScope,
}

impl<'a> From<&'a mut SpanData> for EndedSpan<'a> {
    fn from(span: &'a mut SpanData) -> Self {
        Self {
            span_context: &span.span_context,
            parent_span_id: span.parent_span_id,
            parent_span_is_remote: span.parent_span_is_remote,
            span_kind: &span.span_kind,
            name: &mut span.name,
            start_time: span.start_time,
            end_time: span.end_time,
            attributes: &mut span.attributes,
            dropped_attributes_count: span.dropped_attributes_count,
            events: &mut span.events.events,
            dropped_events_count: span.events.dropped_count,
            links: &mut span.links.links,
            dropped_links_count: span.links.dropped_count,
            status: &mut span.status,
            instrumentation_scope: &span.instrumentation_scope,
        }
    }
}
