//! The limits of a span: `OTEL_*_LIMIT`.

use std::time::Duration;

use opentelemetry::{Array, Context, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanLimits, SpanProcessor};

use crate::env::{Env, EnvError};

#[derive(Debug)]
pub(crate) struct Limits {
    /// How many attributes, events and links; the SDK sees to these.
    pub(crate) counts: SpanLimits,
    /// The longest text of an attribute, in characters. The SDK has no such limit, [`Processors`] sees to it.
    pub(crate) value_length: Option<usize>,
}

impl Limits {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        const ACCEPTED: &str = "a whole number";
        let mut counts = SpanLimits::default();
        let of_all = env.parse("OTEL_ATTRIBUTE_COUNT_LIMIT", ACCEPTED)?;
        let settings = [
            (
                "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
                &mut counts.max_attributes_per_span,
                of_all,
            ),
            (
                "OTEL_SPAN_EVENT_COUNT_LIMIT",
                &mut counts.max_events_per_span,
                None,
            ),
            ("OTEL_SPAN_LINK_COUNT_LIMIT", &mut counts.max_links_per_span, None),
            (
                "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
                &mut counts.max_attributes_per_event,
                of_all,
            ),
            (
                "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
                &mut counts.max_attributes_per_link,
                of_all,
            ),
        ];
        for (name, limit, general) in settings {
            if let Some(number) = env.parse(name, ACCEPTED)?.or(general) {
                *limit = number;
            }
        }
        let of_spans = env.parse("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", ACCEPTED)?;
        let of_all = env.parse("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", ACCEPTED)?;
        Ok(Self {
            counts,
            value_length: of_spans.or(of_all),
        })
    }
}

/// All processors of a provider, behind the limit on the length of texts.
#[derive(Debug)]
pub(crate) struct Processors {
    pub(crate) all: Vec<Box<dyn SpanProcessor>>,
    pub(crate) value_length: Option<usize>,
}

impl SpanProcessor for Processors {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        for processor in &self.all {
            processor.on_start(span, cx);
        }
    }

    fn on_end(&self, mut span: SpanData) {
        if let Some(limit) = self.value_length {
            shorten_all(&mut span, limit);
        }
        if let Some((last, others)) = self.all.split_last() {
            for processor in others {
                processor.on_end(span.clone());
            }
            last.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.all
            .iter()
            .map(|processor| processor.force_flush())
            .fold(Ok(()), OTelSdkResult::and)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.all
            .iter()
            .map(|processor| processor.shutdown_with_timeout(timeout))
            .fold(Ok(()), OTelSdkResult::and)
    }

    fn set_resource(&mut self, resource: &Resource) {
        for processor in &mut self.all {
            processor.set_resource(resource);
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

/// The first characters, if there are more than `limit`.
fn shortened(text: &str, limit: usize) -> Option<String> {
    let (end, _) = text.char_indices().nth(limit)?;
    Some(text[..end].to_owned())
}
