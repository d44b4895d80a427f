//! Steps of the work of a service, each as a span.

use std::fmt::Display;
use std::future::Future;

use opentelemetry::KeyValue;
use opentelemetry::trace::Status;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::names::{attr, event};
use crate::redact;

/// The length of the text of an error.
const LONGEST_ERROR: usize = 1_000;

/// Runs a step in its span, which records its error.
pub(super) async fn run<T, E: Display>(span: Span, step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let result = step.instrument(span.clone()).await;
    if let Err(error) = &result {
        record_error(&span, error);
    }
    result
}

pub(super) fn record_error(span: &Span, error: &impl Display) {
    if span.is_disabled() {
        return;
    }
    let text: String = redact::text(&error.to_string())
        .chars()
        .take(LONGEST_ERROR)
        .collect();
    span.add_event(
        event::EXCEPTION,
        vec![KeyValue::new(attr::EXCEPTION_MESSAGE, text.clone())],
    );
    span.set_status(Status::error(text));
}

/// Sets the attributes that have a value.
pub(super) fn set_texts<'a>(
    span: &Span,
    attributes: impl IntoIterator<Item = (&'static str, Option<&'a str>)>,
) {
    for (name, value) in attributes {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            span.set_attribute(name, value.to_owned());
        }
    }
}
