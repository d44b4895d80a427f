//! The clean-up of every span that ends: unique keys, no secrets, and no texts beyond the limit.

use std::borrow::Cow;

use opentelemetry::trace::Status;
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanLimits};

use crate::env::{Env, EnvError};
use crate::redact;
use crate::settings::traces::{
    OTEL_ATTRIBUTE_COUNT_LIMIT, OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT,
    OTEL_LINK_ATTRIBUTE_COUNT_LIMIT, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT, OTEL_SPAN_EVENT_COUNT_LIMIT,
    OTEL_SPAN_LINK_COUNT_LIMIT,
};

#[derive(Debug)]
pub(crate) struct Limits {
    /// How many attributes, events and links a span may have. The SDK's tracer enforces them.
    pub(crate) counts: SpanLimits,
    /// The longest text of an attribute, in characters. The SDK has no such limit; [`clean`] cuts.
    pub(crate) value_length: Option<usize>,
}

impl Limits {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        let mut counts = SpanLimits::default();
        let general = OTEL_ATTRIBUTE_COUNT_LIMIT.read(env)?;
        let limits = [
            (
                &OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT,
                &mut counts.max_attributes_per_span,
                general,
            ),
            (
                &OTEL_SPAN_EVENT_COUNT_LIMIT,
                &mut counts.max_events_per_span,
                None,
            ),
            (&OTEL_SPAN_LINK_COUNT_LIMIT, &mut counts.max_links_per_span, None),
            (
                &OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT,
                &mut counts.max_attributes_per_event,
                general,
            ),
            (
                &OTEL_LINK_ATTRIBUTE_COUNT_LIMIT,
                &mut counts.max_attributes_per_link,
                general,
            ),
        ];
        for (variable, limit, general) in limits {
            if let Some(number) = variable.read(env)?.or(general) {
                *limit = number;
            }
        }
        Ok(Self {
            counts,
            value_length: OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT.read(env)?,
        })
    }
}

/// Prepares a span for processors.
pub(crate) fn clean(span: &mut SpanData, value_length: Option<usize>) {
    make_unique(span);
    // Before texts are cut: half of a secret may not be recognised.
    mask_all(span);
    if let Some(limit) = value_length {
        shorten_all(span, limit);
    }
}

/// Leaves each key of a span, of each of its events and of each of its links once.
///
/// The SDK's span keeps every value that was ever set, but an exported key must be unique.
pub(crate) fn make_unique(span: &mut SpanData) {
    keep_last_values(&mut span.attributes);
    for event in &mut span.events.events {
        // Those of `tracing` begin with its own level and target, which must not be replaced.
        keep(Keep::First, &mut event.attributes);
    }
    for link in &mut span.links.links {
        keep_last_values(&mut link.attributes);
    }
}

/// Leaves each key once, with the value that was set last, in the order in which they were first
/// set.
fn keep_last_values(attributes: &mut Vec<KeyValue>) {
    keep(Keep::Last, attributes);
}

/// The value of a key that is kept.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    First,
    Last,
}

fn keep(which: Keep, attributes: &mut Vec<KeyValue>) {
    // The buckets that have keys so far. A key in a new bucket is new.
    let mut seen = 0_u64;
    let is_new = |attribute: &KeyValue| {
        let bucket = 1 << bucket(attribute.key.as_str());
        let is_new = seen & bucket == 0;
        seen |= bucket;
        is_new
    };
    if attributes.iter().all(is_new) {
        return;
    }
    seen = 0;
    let mut kept = 0;
    for at in 0..attributes.len() {
        let (before, rest) = attributes.split_at_mut(at);
        let attribute = &mut rest[0];
        let bucket = 1 << bucket(attribute.key.as_str());
        if seen & bucket != 0
            && let Some(known) = before[..kept].iter_mut().find(|known| known.key == attribute.key)
        {
            if which == Keep::Last {
                std::mem::swap(&mut known.value, &mut attribute.value);
            }
            continue;
        }
        seen |= bucket;
        if kept < at {
            std::mem::swap(&mut before[kept], attribute);
        }
        kept += 1;
    }
    attributes.truncate(kept);
}

/// One of 64 buckets, by length and last byte.
fn bucket(key: &str) -> usize {
    let last = key.as_bytes().last().map_or(0, |last| usize::from(*last));
    (key.len() * 3 + last * 5) % 64
}

fn mask_all(span: &mut SpanData) {
    // A name in the source code is not a secret.
    if let Cow::Owned(name) = &mut span.name
        && let Cow::Owned(masked) = redact::text(name)
    {
        *name = masked;
    }
    mask(&mut span.attributes);
    for event in &mut span.events.events {
        mask(&mut event.attributes);
        // The message of a log event becomes the name of the span's event.
        if let Cow::Owned(masked) = redact::text(&event.name) {
            event.name = masked.into();
        }
    }
    for link in &mut span.links.links {
        mask(&mut link.attributes);
    }
    if let Status::Error { description } = &mut span.status
        && let Cow::Owned(masked) = redact::text(description)
    {
        *description = masked.into();
    }
}

fn mask(attributes: &mut [KeyValue]) {
    for attribute in attributes {
        let texts = match &mut attribute.value {
            Value::String(text) => std::slice::from_mut(text),
            Value::Array(Array::String(texts)) => texts.as_mut_slice(),
            _ => continue,
        };
        let is_secret = redact::is_secret_name(attribute.key.as_str());
        for text in texts {
            if is_secret {
                *text = StringValue::from(redact::MASK);
            } else if let Cow::Owned(masked) = redact::text(text.as_str()) {
                *text = masked.into();
            }
        }
    }
}

fn shorten_all(span: &mut SpanData, limit: usize) {
    shorten(&mut span.attributes, limit);
    for event in &mut span.events.events {
        shorten(&mut event.attributes, limit);
    }
    for link in &mut span.links.links {
        shorten(&mut link.attributes, limit);
    }
}

fn shorten(attributes: &mut [KeyValue], limit: usize) {
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => {
                if let Some(short) = shortened(text.as_str(), limit) {
                    *text = short.into();
                }
            }
            Value::Array(Array::String(texts)) => {
                for text in texts {
                    if let Some(short) = shortened(text.as_str(), limit) {
                        *text = short.into();
                    }
                }
            }
            _ => {}
        }
    }
}

/// The first `limit` characters, if there are more.
fn shortened(text: &str, limit: usize) -> Option<String> {
    let (end, _) = text.char_indices().nth(limit)?;
    Some(text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use opentelemetry::Context;
    use opentelemetry::trace::{
        Event, Link, SpanBuilder, SpanContext, SpanId, TraceFlags, TraceId, TraceState, TracerProvider as _,
    };
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::traces::processors::Processors;
    use crate::{CollectedSpan, SpanCollector};

    #[test]
    fn key_set_again_keeps_its_place_and_has_the_last_value() {
        let kept = |keys: &[usize]| {
            let all = keys.iter().zip(0_i64..);
            let mut attributes: Vec<_> = all
                .map(|(key, number)| KeyValue::new(format!("key.{key}"), number))
                .collect();
            keep_last_values(&mut attributes);
            attributes
                .iter()
                .map(|attribute| format!("{}={}", attribute.key, attribute.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&[]), [""; 0]);
        assert_eq!(kept(&[1]), ["key.1=0"]);
        assert_eq!(kept(&[1, 2, 1, 1, 3, 2]), ["key.1=3", "key.2=5", "key.3=4"]);
        assert_eq!(kept(&[7; 5]), ["key.7=4"]);
        // More keys than buckets.
        let many: Vec<_> = (0..300).chain(0..300).collect();
        let expected: Vec<_> = (0..300).map(|key| format!("key.{key}={}", key + 300)).collect();
        assert_eq!(kept(&many), expected);
    }
    fn cleaned(span: SpanBuilder) -> CollectedSpan {
        let spans = SpanCollector::new();
        let processors = Processors::new(
            vec![Box::new(spans.clone())],
            None,
            None,
            &Resource::builder_empty().build(),
        );
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processors)
            .build();
        drop(span.start_with_context(&provider.tracer("test"), &Context::new()));
        spans.spans().remove(0)
    }

    fn texts(attributes: &[KeyValue]) -> Vec<String> {
        let attributes = attributes.iter();
        attributes
            .map(|attribute| format!("{}={}", attribute.key, attribute.value))
            .collect()
    }

    #[test]
    fn event_keeps_its_first_and_link_its_last_value() {
        let context = SpanContext::new(
            TraceId::from(1),
            SpanId::from(1),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        let twice = vec![
            KeyValue::new("level", "INFO"),
            KeyValue::new("target", "here"),
            KeyValue::new("level", "loud"),
        ];
        let span = SpanBuilder::from_name("work")
            .with_events(vec![Event::new("said", UNIX_EPOCH, twice.clone(), 0)])
            .with_links(vec![Link::new(context, twice, 0)]);
        let span = cleaned(span);
        assert_eq!(texts(&span.events[0].attributes), ["level=INFO", "target=here"]);
        assert_eq!(texts(&span.links[0].attributes), ["level=loud", "target=here"]);
    }

    #[test]
    fn span_name_has_no_secret() {
        let name = "GET https://user:hunter2@host/a?token=hunter2".to_owned();
        let span = cleaned(SpanBuilder::from_name(name));
        assert_eq!(span.name, "GET https://***@host/a?token=***");
    }
}
