//! How much memory a span takes.

use std::borrow::Cow;

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::trace::{Event, Link, Status};
use dalston_telemetry::opentelemetry::{Array, KeyValue, Value};

/// A trace without spans: its places in the two maps, which have up to twice as many as they need.
pub(super) const TRACE: usize = 400;
/// What the allocator adds to a block: its header, and the rest of its unit of 16 bytes.
const BLOCK: usize = 16;

/// A span with everything that it owns, and its place in a queue that is half full.
pub(super) fn of(span: &CollectedSpan) -> usize {
    let events = span.events.iter().map(event).sum::<usize>();
    let links = span.links.iter().map(link).sum::<usize>();
    let status = match &span.status {
        Status::Error { description } => text(description),
        _ => 0,
    };
    2 * size_of::<Box<CollectedSpan>>()
        + block(size_of::<CollectedSpan>())
        + text(&span.name)
        + attributes(&span.attributes)
        + block(span.events.capacity() * size_of::<Event>())
        + events
        + block(span.links.capacity() * size_of::<Link>())
        + links
        + status
}

fn event(event: &Event) -> usize {
    text(&event.name) + attributes(&event.attributes)
}

fn link(link: &Link) -> usize {
    attributes(&link.attributes)
}

fn attributes(attributes: &Vec<KeyValue>) -> usize {
    let contents = attributes
        .iter()
        .map(|attribute| block(attribute.key.as_str().len()) + value(&attribute.value));
    block(attributes.capacity() * size_of::<KeyValue>()) + contents.sum::<usize>()
}

fn value(value: &Value) -> usize {
    match value {
        Value::String(text) => block(text.as_str().len()),
        Value::Array(Array::String(texts)) => {
            let contents = texts.iter().map(|text| block(text.as_str().len()));
            block(size_of_val(&**texts)) + contents.sum::<usize>()
        }
        Value::Array(Array::Bool(flags)) => block(size_of_val(&**flags)),
        Value::Array(Array::I64(numbers)) => block(size_of_val(&**numbers)),
        Value::Array(Array::F64(numbers)) => block(size_of_val(&**numbers)),
        _ => 0,
    }
}

#[expect(clippy::ptr_arg, reason = "a borrowed text takes no memory")]
fn text(text: &Cow<'static, str>) -> usize {
    match text {
        Cow::Owned(text) => block(text.capacity()),
        Cow::Borrowed(_) => 0,
    }
}

/// A block on the heap; an empty list has none.
fn block(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        bytes => bytes + BLOCK,
    }
}
