//! [`Carrier`] and [`continue_trace`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Once;

use http::HeaderMap;
use opentelemetry::Context;
use serde_json::Value;
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt, SetParentError};

use super::Propagator;
use super::w3c::Fields;

/// A place in which context travels: HTTP headers, a string map, JSON as text or as a value.
///
/// Implement it for the messages of another queue.
pub trait Carrier {
    /// Extracts the context that it carries, in the formats of the propagator. Without a usable
    /// `traceparent`, the context has no span.
    fn extract(&self, propagator: &Propagator) -> Context;
}

/// Extracts a context and makes it the parent of a span. Call it before the span is entered.
///
/// Returns the context, for [`LogContext::carrier`](crate::context::LogContext::carrier): log lines
/// and outgoing calls then continue the trace also while tracing is off.
///
/// If the carrier has no usable context, the span is the root of a new trace. While tracing is off,
/// the span stays as it is. The parent of a span that was entered can't change; the first such call
/// in a process logs the warning `parent_of_span_not_set`.
///
/// ```
/// use dalston_telemetry::context::LogContext;
/// use dalston_telemetry::{http::HeaderMap, propagate};
/// use tracing::info_span;
///
/// fn answer(headers: &HeaderMap) {
///     let span = info_span!("gateway.create_job");
///     let carried = propagate::continue_trace(&span, headers);
///     let _log_context = LogContext::new().carrier(carried).enter();
///     span.in_scope(|| tracing::info!("job_created"));
/// }
/// # answer(&HeaderMap::new());
/// ```
#[doc(alias("set_parent", "span_from_context", "extract_trace_context"))]
pub fn continue_trace<C: Carrier + ?Sized>(span: &Span, carrier: &C) -> Context {
    static WARNED: Once = Once::new();
    let context = carrier.extract(&Propagator::installed());
    if let Err(SetParentError::AlreadyStarted) = span.set_parent(context.clone()) {
        WARNED.call_once(|| {
            tracing::warn!(
                span = span.metadata().map(|metadata| metadata.name()),
                advice = "call continue_trace before the span is entered",
                "parent_of_span_not_set"
            );
        });
    }
    context
}

impl Carrier for HeaderMap {
    fn extract(&self, propagator: &Propagator) -> Context {
        propagator.extract_headers(self)
    }
}

/// A queue entry with the fields themselves, or with a `_trace_context` field.
impl Carrier for HashMap<String, String> {
    fn extract(&self, propagator: &Propagator) -> Context {
        propagator.extract_map(self)
    }
}

/// As [`inject_map`](super::inject_map) writes it.
impl Carrier for BTreeMap<String, String> {
    fn extract(&self, propagator: &Propagator) -> Context {
        match self.get(super::TRACE_CONTEXT_FIELD) {
            Some(json) => propagator.extract_json(json),
            None => {
                let pairs = self.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                propagator.read(&Fields::from_pairs(pairs), Context::new())
            }
        }
    }
}

/// JSON text.
impl Carrier for str {
    fn extract(&self, propagator: &Propagator) -> Context {
        propagator.extract_json(self)
    }
}

/// JSON text.
impl Carrier for String {
    fn extract(&self, propagator: &Propagator) -> Context {
        propagator.extract_json(self)
    }
}

impl Carrier for Value {
    fn extract(&self, propagator: &Propagator) -> Context {
        propagator.extract_value(self)
    }
}

/// A context that was extracted before.
impl Carrier for Context {
    fn extract(&self, _: &Propagator) -> Context {
        self.clone()
    }
}
