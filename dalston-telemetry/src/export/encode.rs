//! Spans as protobuf, without the tree of messages in between.
//!
//! The conversions of `opentelemetry-proto` copy every name, key and text of a span into a message of its own, which is
//! then written and freed: some 4 µs for a span of a task. What is written here is the same to the byte; a test compares.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{Array, KeyValue, Value};

use crate::traces::ended::EndedSpan;

/// Appends a span, as a field of the `ScopeSpans` that it will belong to.
///
/// False if the text would grow beyond `limit` bytes; what was appended then makes no sense.
pub(super) fn span(span: &EndedSpan<'_>, limit: usize, to: &mut Vec<u8>) -> bool {
    let mut message = Message {
        to,
        limit,
        fits: true,
    };
    // Most spans take two bytes to say their length.
    message.message::<2>(2, |message| fields_of_span(message, span));
    message.fits && to.len() <= limit
}

/// Appends a field that holds bytes, or a message that was encoded before.
pub(super) fn bytes(field: u8, bytes: &[u8], to: &mut Vec<u8>) {
    length_of_bytes(field, bytes.len(), to);
    to.extend_from_slice(bytes);
}

/// Appends the key and the length of such a field, when its bytes come in parts.
pub(super) fn length_of_bytes(field: u8, length: usize, to: &mut Vec<u8>) {
    to.push(key(field, LENGTH_DELIMITED));
    varint(length as u64, to);
}

/// How many bytes [`bytes`] appends for so many.
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(super) fn size_of_bytes(length: usize) -> usize {
    1 + size_of_varint(length as u64) + length
}

fn fields_of_span(message: &mut Message<'_>, span: &EndedSpan<'_>) {
    let context = span.span_context;
    message.ids(context);
    message.trace_state(3, context.trace_state());
    if span.parent_span_id != SpanId::INVALID {
        message.fixed(&id(4, span.parent_span_id));
    }
    message.text(5, &*span.name);
    message.small(
        6,
        match *span.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
    );
    message.fixed64(7, nanoseconds(span.start_time));
    message.fixed64(8, nanoseconds(span.end_time));
    message.attributes(9, span.attributes);
    message.number(10, u64::from(span.dropped_attributes_count));
    for event in &*span.events {
        message.message::<1>(11, |message| fields_of_event(message, event));
    }
    message.number(12, u64::from(span.dropped_events_count));
    for link in &*span.links {
        message.message::<1>(13, |message| fields_of_link(message, link));
    }
    message.number(14, u64::from(span.dropped_links_count));
    match &*span.status {
        Status::Unset => message.fixed(&[key(15, LENGTH_DELIMITED), 0]),
        Status::Ok => message.fixed(&[key(15, LENGTH_DELIMITED), 2, key(3, VARINT), 1]),
        Status::Error { description } => message.message::<1>(15, |message| {
            message.text(2, description);
            message.small(3, 2);
        }),
    }
    let [a, b, c, d] = flags(context.trace_flags().to_u8(), span.parent_span_is_remote).to_le_bytes();
    // Field 16, the only one here whose key takes two bytes.
    message.fixed(&[FIXED32 | 0x80, 1, a, b, c, d]);
}

fn fields_of_event(message: &mut Message<'_>, event: &Event) {
    message.fixed64(1, nanoseconds(event.timestamp));
    message.text(2, &event.name);
    message.attributes(3, &event.attributes);
    message.number(4, u64::from(event.dropped_attributes_count));
}

fn fields_of_link(message: &mut Message<'_>, link: &Link) {
    let context = &link.span_context;
    message.ids(context);
    message.trace_state(3, context.trace_state());
    message.attributes(4, &link.attributes);
    message.number(5, u64::from(link.dropped_attributes_count));
    message.fixed32(6, flags(context.trace_flags().to_u8(), context.is_remote()));
}

/// `value` of a `KeyValue` or of an `ArrayValue`. One of several kinds, so written also when it is zero or empty.
fn fields_of_value(message: &mut Message<'_>, value: &Value) {
    match value {
        Value::String(text) => message.bytes(1, text.as_str().as_bytes()),
        Value::Bool(value) => message.small(2, u8::from(*value)),
        Value::I64(value) => message.any_number(3, value.cast_unsigned()),
        Value::F64(value) => message.any_fixed64(4, value.to_bits()),
        Value::Array(array) => message.message::<1>(5, |message| match array {
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
    since
        .as_secs()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::from(since.subsec_nanos()))
}

/// A field that holds the id of a span.
fn id(field: u8, id: SpanId) -> [u8; 10] {
    let mut bytes = [key(field, LENGTH_DELIMITED), 8, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[2..].copy_from_slice(&id.to_bytes());
    bytes
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// A message that is being written. Without the prefix `any_`, a field that is zero or empty is left out, as protobuf has it.
struct Message<'a> {
    to: &'a mut Vec<u8>,
    limit: usize,
    fits: bool,
}

impl Message<'_> {
    /// Bytes whose number the compiler knows.
    fn fixed<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.to.extend_from_slice(bytes);
    }

    /// The ids of a span as the fields 1 and 2.
    fn ids(&mut self, context: &SpanContext) {
        let mut bytes = [0; 28];
        bytes[..2].copy_from_slice(&[key(1, LENGTH_DELIMITED), 16]);
        bytes[2..18].copy_from_slice(&context.trace_id().to_bytes());
        bytes[18..].copy_from_slice(&id(2, context.span_id()));
        self.fixed(&bytes);
    }

    /// A number that is left out nowhere and takes one byte.
    fn small(&mut self, field: u8, number: u8) {
        debug_assert!(number < 0x80, "takes two bytes");
        self.fixed(&[key(field, VARINT), number]);
    }

    fn number(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.any_number(field, number);
        }
    }

    fn any_number(&mut self, field: u8, number: u64) {
        self.to.push(key(field, VARINT));
        varint(number, self.to);
    }

    fn fixed32(&mut self, field: u8, number: u32) {
        if number != 0 {
            let [a, b, c, d] = number.to_le_bytes();
            self.fixed(&[key(field, FIXED32), a, b, c, d]);
        }
    }

    fn fixed64(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.any_fixed64(field, number);
        }
    }

    fn any_fixed64(&mut self, field: u8, number: u64) {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        self.fixed(&[key(field, FIXED64), a, b, c, d, e, f, g, h]);
    }

    fn text(&mut self, field: u8, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn bytes(&mut self, field: u8, content: &[u8]) {
        // Before it is copied: a text may have any size.
        if self.to.len() + content.len() > self.limit {
            self.fits = false;
            return;
        }
        bytes(field, content, self.to);
    }

    fn trace_state(&mut self, field: u8, state: &TraceState) {
        if *state != TraceState::NONE {
            self.text(field, &state.header());
        }
    }

    fn attributes(&mut self, field: u8, attributes: &[KeyValue]) {
        for attribute in attributes {
            let name = attribute.key.as_str();
            if let Value::String(text) = &attribute.value
                && !name.is_empty()
                && self.short_text(field, name.as_bytes(), text.as_str().as_bytes())
            {
                continue;
            }
            self.message::<1>(field, |message| {
                message.text(1, name);
                message.message::<1>(2, |message| fields_of_value(message, &attribute.value));
            });
        }
    }

    /// An attribute with a text, what most of them are, if all of its lengths take one byte.
    fn short_text(&mut self, field: u8, name: &[u8], text: &[u8]) -> bool {
        const LONGEST: usize = 0x7F - 6;
        if name.len() + text.len() > LONGEST || self.to.len() > self.limit {
            return false;
        }
        let (name_length, text_length) = (name.len() as u8, text.len() as u8);
        let of_value = text_length + 2;
        let of_attribute = name_length + of_value + 4;
        self.to.reserve(2 + usize::from(of_attribute));
        self.fixed(&[
            key(field, LENGTH_DELIMITED),
            of_attribute,
            key(1, LENGTH_DELIMITED),
            name_length,
        ]);
        self.to.extend_from_slice(name);
        self.fixed(&[
            key(2, LENGTH_DELIMITED),
            of_value,
            key(1, LENGTH_DELIMITED),
            text_length,
        ]);
        self.to.extend_from_slice(text);
        true
    }

    fn values<T: Into<Value>>(&mut self, values: impl Iterator<Item = T>) {
        for value in values {
            self.message::<1>(1, |message| fields_of_value(message, &value.into()));
        }
    }

    /// A message within this one, whose length is known only afterwards: room is left for `EXPECTED` bytes of it.
    fn message<const EXPECTED: usize>(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        if self.to.len() > self.limit {
            self.fits = false;
            return;
        }
        self.to.push(key(field, LENGTH_DELIMITED));
        let at = self.to.len();
        self.fixed(&[0; EXPECTED]);
        write(self);
        let start = at + EXPECTED;
        let length = self.to.len() - start;
        let needed = size_of_varint(length as u64);
        if needed != EXPECTED {
            self.to
                .resize(start + length + needed.saturating_sub(EXPECTED), 0);
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

/// Of the fields up to 15, whose keys take one byte.
const fn key(field: u8, kind: u8) -> u8 {
    debug_assert!(field <= 15, "takes two bytes");
    field << 3 | kind
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

    use opentelemetry::trace::{TraceFlags, TraceId};
    use opentelemetry::{InstrumentationScope, StringValue};
    use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
    use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
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
        let short = 110..130;
        let texts = short.chain([0, 1, 16_383, 16_384, 20_000]);
        let spans = texts.map(full);
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
        for mut data in spans.chain([early]) {
            let mut ours = Vec::new();
            assert!(span(&(&mut data).into(), usize::MAX, &mut ours));
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
        assert!(!span(&(&mut data).into(), 10_000, &mut to));
        assert!(to.capacity() < 100_000, "{}", to.capacity());
    }

    #[test]
    fn sizes_are_known_before_the_bytes_are_written() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 3_000_000] {
            let mut to = Vec::new();
            bytes(2, &vec![0; length], &mut to);
            assert_eq!(to.len(), size_of_bytes(length));
        }
    }
}
