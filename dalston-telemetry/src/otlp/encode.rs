//! Spans as protobuf, without the tree of messages in between.
//!
//! The conversions of `opentelemetry-proto` copy every name, key and text of a span into a message of its own, which is
//! then written and freed: some 4 µs for a span of a task. What is written here is the same to the byte; a test compares.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

/// Appends a span, as a field of the `ScopeSpans` that it will belong to.
///
/// False if the text would grow beyond `limit` bytes; what was appended then makes no sense.
pub(super) fn span(span: &SpanData, limit: usize, to: &mut Vec<u8>) -> bool {
    let mut message = Message {
        to,
        limit,
        fits: true,
    };
    // Most spans take two bytes to say their length.
    message.message(2, 2, |message| fields_of_span(message, span));
    message.fits && to.len() <= limit
}

/// Appends a field that holds bytes, or a message that was encoded before.
pub(super) fn bytes(field: u32, bytes: &[u8], to: &mut Vec<u8>) {
    length_of_bytes(field, bytes.len(), to);
    to.extend_from_slice(bytes);
}

/// Appends the key and the length of such a field, when its bytes come in parts.
pub(super) fn length_of_bytes(field: u32, length: usize, to: &mut Vec<u8>) {
    varint(key(field, LENGTH_DELIMITED), to);
    varint(length as u64, to);
}

/// How many bytes [`bytes`] appends for so many.
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(super) fn size_of_bytes(field: u32, length: usize) -> usize {
    size_of_varint(key(field, LENGTH_DELIMITED)) + size_of_varint(length as u64) + length
}

fn fields_of_span(message: &mut Message<'_>, span: &SpanData) {
    let context = &span.span_context;
    message.bytes(1, &context.trace_id().to_bytes());
    message.bytes(2, &context.span_id().to_bytes());
    message.trace_state(3, context.trace_state());
    if span.parent_span_id != SpanId::INVALID {
        message.bytes(4, &span.parent_span_id.to_bytes());
    }
    message.text(5, &span.name);
    message.number(
        6,
        match span.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
    );
    message.fixed64(7, nanoseconds(span.start_time));
    message.fixed64(8, nanoseconds(span.end_time));
    message.attributes(9, &span.attributes);
    message.number(10, u64::from(span.dropped_attributes_count));
    for event in &span.events.events {
        message.message(11, 1, |message| fields_of_event(message, event));
    }
    message.number(12, u64::from(span.events.dropped_count));
    for link in &span.links.links {
        message.message(13, 1, |message| fields_of_link(message, link));
    }
    message.number(14, u64::from(span.links.dropped_count));
    message.message(15, 1, |message| match &span.status {
        Status::Unset => {}
        Status::Ok => message.number(3, 1),
        Status::Error { description } => {
            message.text(2, description);
            message.number(3, 2);
        }
    });
    message.fixed32(
        16,
        flags(context.trace_flags().to_u8(), span.parent_span_is_remote),
    );
}

fn fields_of_event(message: &mut Message<'_>, event: &Event) {
    message.fixed64(1, nanoseconds(event.timestamp));
    message.text(2, &event.name);
    message.attributes(3, &event.attributes);
    message.number(4, u64::from(event.dropped_attributes_count));
}

fn fields_of_link(message: &mut Message<'_>, link: &Link) {
    let context = &link.span_context;
    message.bytes(1, &context.trace_id().to_bytes());
    message.bytes(2, &context.span_id().to_bytes());
    message.trace_state(3, context.trace_state());
    message.attributes(4, &link.attributes);
    message.number(5, u64::from(link.dropped_attributes_count));
    message.fixed32(6, flags(context.trace_flags().to_u8(), context.is_remote()));
}

/// `value` of a `KeyValue` or of an `ArrayValue`. One of several kinds, so written also when it is zero or empty.
fn fields_of_value(message: &mut Message<'_>, value: &Value) {
    match value {
        Value::String(text) => message.bytes(1, text.as_str().as_bytes()),
        Value::Bool(value) => message.any_number(2, u64::from(*value)),
        Value::I64(value) => message.any_number(3, value.cast_unsigned()),
        Value::F64(value) => message.any_fixed64(4, value.to_bits()),
        Value::Array(array) => message.message(5, 1, |message| match array {
            Array::String(texts) => message.values(texts.iter().cloned()),
            Array::Bool(values) => message.values(values.iter().copied()),
            Array::I64(values) => message.values(values.iter().copied()),
            Array::F64(values) => message.values(values.iter().copied()),
            _ => {}
        }),
        other => message.bytes(1, other.as_str().as_bytes()),
    }
}

/// The flags of the trace, and whether the parent, or what is linked to, is in another process: bit 8 says that bit 9 says so.
fn flags(of_trace: u8, is_remote: bool) -> u32 {
    u32::from(of_trace) | 1 << 8 | u32::from(is_remote) << 9
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;
const FIXED32: u32 = 5;

/// A message that is being written. Without the prefix `any_`, a field that is zero or empty is left out, as protobuf has it.
struct Message<'a> {
    to: &'a mut Vec<u8>,
    limit: usize,
    fits: bool,
}

impl Message<'_> {
    fn key(&mut self, field: u32, kind: u32) {
        varint(key(field, kind), self.to);
    }

    fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.any_number(field, number);
        }
    }

    fn any_number(&mut self, field: u32, number: u64) {
        self.key(field, VARINT);
        varint(number, self.to);
    }

    fn fixed32(&mut self, field: u32, number: u32) {
        if number != 0 {
            self.key(field, FIXED32);
            self.to.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn fixed64(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.any_fixed64(field, number);
        }
    }

    fn any_fixed64(&mut self, field: u32, number: u64) {
        self.key(field, FIXED64);
        self.to.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn bytes(&mut self, field: u32, content: &[u8]) {
        // Before it is copied: a text may have any size.
        if self.to.len() + content.len() > self.limit {
            self.fits = false;
            return;
        }
        bytes(field, content, self.to);
    }

    fn trace_state(&mut self, field: u32, state: &TraceState) {
        if *state != TraceState::NONE {
            self.text(field, &state.header());
        }
    }

    fn attributes(&mut self, field: u32, attributes: &[KeyValue]) {
        for attribute in attributes {
            self.message(field, 1, |message| {
                message.text(1, attribute.key.as_str());
                message.message(2, 1, |message| fields_of_value(message, &attribute.value));
            });
        }
    }

    fn values<T: Into<Value>>(&mut self, values: impl Iterator<Item = T>) {
        for value in values {
            self.message(1, 1, |message| fields_of_value(message, &value.into()));
        }
    }

    /// A message within this one, whose length is known only afterwards: room is left for `expected` bytes of it.
    fn message(&mut self, field: u32, expected: usize, write: impl FnOnce(&mut Self)) {
        if self.to.len() > self.limit {
            self.fits = false;
            return;
        }
        self.key(field, LENGTH_DELIMITED);
        let at = self.to.len();
        self.to.resize(at + expected, 0);
        write(self);
        let start = at + expected;
        let length = self.to.len() - start;
        let needed = size_of_varint(length as u64);
        if needed != expected {
            self.to
                .resize(start + length + needed.saturating_sub(expected), 0);
            self.to.copy_within(start..start + length, at + needed);
            self.to.truncate(at + needed + length);
        }
        let mut rest = length;
        for byte in &mut self.to[at..at + needed - 1] {
            *byte = rest as u8 | 0x80;
            rest >>= 7;
        }
        self.to[at + needed - 1] = rest as u8;
    }
}

fn key(field: u32, kind: u32) -> u64 {
    u64::from(field << 3 | kind)
}

fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn size_of_varint(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

#[cfg(all(test, any(feature = "otlp-grpc", feature = "otlp-http")))]
mod tests {
    use std::time::Duration;

    use opentelemetry::trace::{SpanContext, TraceFlags, TraceId};
    use opentelemetry::{InstrumentationScope, StringValue};
    use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use prost::Message as _;

    use super::*;

    fn context(id: u128, flags: TraceFlags, is_remote: bool, state: TraceState) -> SpanContext {
        SpanContext::new(
            TraceId::from(id),
            SpanId::from(id as u64),
            flags,
            is_remote,
            state,
        )
    }

    fn plain() -> SpanData {
        SpanData {
            span_context: context(1, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "engine.process".into(),
            start_time: UNIX_EPOCH + Duration::from_nanos(1_763_740_800_123_456_789),
            end_time: UNIX_EPOCH + Duration::from_nanos(1_763_740_800_987_654_321),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    /// With everything that a span may have, at sizes around those where a length takes another byte.
    fn full(text: usize) -> SpanData {
        let text = "é".repeat(text / 2) + &"x".repeat(text % 2);
        let state = TraceState::from_key_value([("vendor", "value"), ("other", "2")]).expect("valid");
        let attributes = vec![
            KeyValue::new("text", text.clone()),
            KeyValue::new("", ""),
            KeyValue::new("no", false),
            KeyValue::new("yes", true),
            KeyValue::new("zero", 0),
            KeyValue::new("negative", -7),
            KeyValue::new("largest", i64::MAX),
            KeyValue::new("fraction", 0.25),
            KeyValue::new("nothing", 0.0),
            KeyValue::new("minus nothing", -0.0),
            KeyValue::new(
                "texts",
                Value::Array(vec![StringValue::from(text.clone()), "".into()].into()),
            ),
            KeyValue::new("bools", Value::Array(vec![true, false].into())),
            KeyValue::new("numbers", Value::Array(vec![1_i64, 0, -1].into())),
            KeyValue::new("fractions", Value::Array(vec![0.5, 0.0].into())),
            KeyValue::new("none", Value::Array(Vec::<i64>::new().into())),
        ];
        let event = |name: &str, attributes: Vec<KeyValue>| {
            Event::new(
                name.to_owned(),
                UNIX_EPOCH + Duration::from_nanos(5),
                attributes,
                3,
            )
        };
        let mut events = SpanEvents::default();
        events.events = vec![event("", Vec::new()), event(&text, attributes.clone())];
        events.dropped_count = 300;
        let mut links = SpanLinks::default();
        links.links = vec![
            Link::new(
                context(u128::MAX, TraceFlags::NOT_SAMPLED, true, state.clone()),
                attributes.clone(),
                2,
            ),
            Link::with_context(context(4, TraceFlags::SAMPLED, false, TraceState::NONE)),
        ];
        links.dropped_count = 1;
        SpanData {
            span_context: context(u128::MAX / 3, TraceFlags::SAMPLED, false, state),
            parent_span_id: SpanId::from(77),
            parent_span_is_remote: true,
            span_kind: SpanKind::Consumer,
            name: text.clone().into(),
            attributes,
            dropped_attributes_count: 128,
            events,
            links,
            status: Status::error(text),
            ..plain()
        }
    }

    #[test]
    fn a_span_is_written_as_the_generated_messages_write_it() {
        let texts = [0, 1, 100, 126, 127, 128, 129, 16_383, 16_384, 20_000];
        let spans = texts.into_iter().map(full);
        let kinds = [
            SpanKind::Client,
            SpanKind::Internal,
            SpanKind::Producer,
            SpanKind::Server,
        ];
        let spans = spans.chain(
            kinds
                .into_iter()
                .map(|span_kind| SpanData { span_kind, ..plain() }),
        );
        let statuses = [Status::Ok, Status::Unset, Status::error("")];
        let spans = spans.chain(statuses.into_iter().map(|status| SpanData { status, ..plain() }));
        let early = SpanData {
            start_time: UNIX_EPOCH - Duration::from_secs(1),
            ..plain()
        };
        for data in spans.chain([early]) {
            let mut ours = Vec::new();
            assert!(span(&data, usize::MAX, &mut ours));
            let theirs = ScopeSpans {
                spans: vec![Span::from(data)],
                ..Default::default()
            };
            assert_eq!(ScopeSpans::decode(&*ours), Ok(theirs.clone()));
            assert_eq!(ours, theirs.encode_to_vec());
        }
    }

    #[test]
    fn a_span_that_is_too_large_is_not_copied_first() {
        let mut data = plain();
        data.attributes = vec![KeyValue::new(
            "numbers",
            Value::Array(vec![-1_i64; 100_000].into()),
        )];
        data.attributes.push(KeyValue::new("text", "x".repeat(1 << 20)));
        let mut to = Vec::new();
        assert!(!span(&data, 10_000, &mut to));
        assert!(to.capacity() < 100_000, "{}", to.capacity());
    }

    #[test]
    fn sizes_are_known_before_the_bytes_are_written() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 3_000_000] {
            let mut to = Vec::new();
            bytes(2, &vec![0; length], &mut to);
            assert_eq!(to.len(), size_of_bytes(2, length));
        }
    }
}
