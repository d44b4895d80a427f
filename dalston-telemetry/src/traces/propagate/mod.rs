//! Propagation of trace context and baggage between processes.
//!
//! The formats are [W3C trace context](https://www.w3.org/TR/trace-context/) and [W3C
//! baggage](https://www.w3.org/TR/baggage/). The carriers of the platform are HTTP headers, string
//! maps (queue entries) and JSON (the `_trace_context` field of tasks and events).
//!
//! Extraction never fails: a field that can't be parsed is left out, and a carrier without a usable
//! `traceparent` starts a new trace. Tracing can be off: the ids then pass from the incoming
//! carrier to the outgoing one unchanged, so a service without an exporter does not cut the trace
//! in two.
//!
//! [`continue_trace`] makes the context that came with a request or task the parent of a span.
//!
//! ```
//! use dalston_telemetry::propagate;
//!
//! let task = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
//! let context = propagate::extract_json(task);
//! let headers = propagate::inject_map(&context);
//! assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
//! ```

mod carrier;
mod w3c;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::baggage::BaggageExt;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TraceState};
use serde_json::Value;
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use self::carrier::{Carrier, continue_trace};
use self::w3c::{
    BAGGAGE, Fields, TRACEPARENT, TRACESTATE, format_baggage, format_traceparent, join, parse_baggage,
};
use crate::env::{Env, EnvError};
use crate::logs::context::LogContext;
use crate::parse_error::ParseError;
use crate::settings::traces::OTEL_PROPAGATORS;

/// The name of the JSON field that holds a trace context in tasks and events.
pub const TRACE_CONTEXT_FIELD: &str = "_trace_context";

/// Longer texts are ignored.
const MAX_JSON_LENGTH: usize = 64 * 1024;

/// Extracts a context from HTTP headers. Starts a new trace if they carry none.
#[doc(alias("extract_trace_context", "instrument_fastapi"))]
#[must_use]
pub fn extract_headers(headers: &HeaderMap) -> Context {
    Propagator::installed().extract_headers(headers)
}

/// Extracts a context from a string map: a queue entry with the fields themselves, or a task's hash
/// with a `_trace_context` field. Names are compared without regard to case.
#[doc(alias("extract_trace_context", "span_from_context"))]
#[must_use]
pub fn extract_map(map: &HashMap<String, String>) -> Context {
    Propagator::installed().extract_map(map)
}

/// Extracts a context from JSON text: the content of a `_trace_context` field, as an object or as a
/// JSON string that holds the object, or a whole entry with such a field.
#[doc(alias("extract_trace_context", "span_from_context"))]
#[must_use]
pub fn extract_json(json: &str) -> Context {
    Propagator::installed().extract_json(json)
}

/// [`extract_json`] for parsed JSON.
#[must_use]
pub fn extract_value(value: &Value) -> Context {
    Propagator::installed().extract_value(value)
}

/// Writes a context into HTTP headers and removes the one that they carried before.
#[doc(alias("inject_trace_context", "instrument_http_clients"))]
pub fn inject_headers(context: &Context, headers: &mut HeaderMap) {
    Propagator::installed().inject_headers(context, headers);
}

/// The fields that carry a context; empty for an empty context.
#[doc(alias = "inject_trace_context")]
#[must_use]
pub fn inject_map(context: &Context) -> BTreeMap<String, String> {
    Propagator::installed().inject_map(context)
}

/// The fields that carry a context, as JSON text for a `_trace_context` field; `None` for an empty
/// context.
#[doc(alias = "inject_trace_context")]
#[must_use]
pub fn inject_json(context: &Context) -> Option<String> {
    Propagator::installed().inject_json(context)
}

/// [`inject_json`] as a JSON object, for another object to contain.
#[must_use]
pub fn inject_value(context: &Context) -> Option<Value> {
    Propagator::installed().inject_value(context)
}

/// The context for outgoing calls: that of the current span, else the one that came with the
/// current task or request ([`LogContext::carrier`]), else an empty one.
#[must_use]
pub fn current_context() -> Context {
    let ambient = Context::current();
    if ambient.span().span_context().is_valid() {
        return ambient;
    }
    // For an OpenTelemetry layer of the program that does not activate contexts.
    let span = tracing::Span::current().context();
    if span.span().span_context().is_valid() {
        return span;
    }
    LogContext::with_current(|context| context.carrier_context().cloned()).unwrap_or(ambient)
}

/// The formats that are read and written; set by `OTEL_PROPAGATORS`.
///
/// The functions of this module use the propagator of the process, which has both formats by
/// default. Use a value of this type for other formats.
///
/// ```
/// use dalston_telemetry::propagate::Propagator;
///
/// let none: Propagator = "none".parse()?;
/// let headers = [("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into())];
/// assert!(none.inject_map(&none.extract_map(&headers.into())).is_empty());
/// # Ok::<(), dalston_telemetry::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagator {
    trace_context: bool,
    baggage: bool,
}

impl Default for Propagator {
    /// Trace context and baggage.
    fn default() -> Self {
        Self {
            trace_context: true,
            baggage: true,
        }
    }
}

/// The propagator of the process, as bits.
static INSTALLED: AtomicU8 = AtomicU8::new(TRACE_CONTEXT_BIT | BAGGAGE_BIT);
const TRACE_CONTEXT_BIT: u8 = 1;
const BAGGAGE_BIT: u8 = 2;

impl Propagator {
    /// Reads `OTEL_PROPAGATORS`; both formats if it is unset. Formats that OpenTelemetry defines
    /// and this crate does not support, such as `b3`, are left out.
    ///
    /// # Errors
    ///
    /// If an entry is unknown.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let list = OTEL_PROPAGATORS.read_or_default(env)?;
        list.parse().map_err(|_| OTEL_PROPAGATORS.error_in(env))
    }

    /// Makes this the propagator that the functions of this module use in the whole process.
    pub(crate) fn install(self) {
        let bits = if self.trace_context { TRACE_CONTEXT_BIT } else { 0 }
            | if self.baggage { BAGGAGE_BIT } else { 0 };
        INSTALLED.store(bits, Ordering::Relaxed);
    }

    fn installed() -> Self {
        let bits = INSTALLED.load(Ordering::Relaxed);
        Self {
            trace_context: bits & TRACE_CONTEXT_BIT != 0,
            baggage: bits & BAGGAGE_BIT != 0,
        }
    }

    /// See [`extract_headers`].
    #[must_use]
    pub fn extract_headers(&self, headers: &HeaderMap) -> Context {
        self.read(&Fields::from_headers(headers), Context::new())
    }

    /// See [`extract_map`].
    #[must_use]
    pub fn extract_map(&self, map: &HashMap<String, String>) -> Context {
        match map.get(TRACE_CONTEXT_FIELD) {
            Some(json) => self.extract_json(json),
            None => {
                let pairs = map.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                self.read(&Fields::from_pairs(pairs), Context::new())
            }
        }
    }

    /// See [`extract_json`].
    #[must_use]
    pub fn extract_json(&self, json: &str) -> Context {
        if json.len() > MAX_JSON_LENGTH {
            return Context::new();
        }
        serde_json::from_str(json).map_or_else(|_| Context::new(), |value| self.extract_value(&value))
    }

    /// See [`extract_value`].
    #[must_use]
    pub fn extract_value(&self, value: &Value) -> Context {
        self.extract_nested(value, 0)
    }

    /// See [`inject_headers`].
    pub fn inject_headers(&self, context: &Context, headers: &mut HeaderMap) {
        for name in [TRACEPARENT, TRACESTATE, BAGGAGE] {
            headers.remove(name);
        }
        self.write(context, |name, value| {
            // Fails only for a tracestate from outside; all else is printable ASCII.
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        });
    }

    /// See [`inject_map`].
    #[must_use]
    pub fn inject_map(&self, context: &Context) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        self.write(context, |name, value| {
            map.insert(name.to_owned(), value);
        });
        map
    }

    /// See [`inject_json`].
    #[must_use]
    pub fn inject_json(&self, context: &Context) -> Option<String> {
        // Most contexts have a trace id and a span id only.
        if self.trace_context && (!self.baggage || context.baggage().is_empty()) {
            let span = context.span();
            let span_context = span.span_context();
            if span_context.is_valid() && *span_context.trace_state() == TraceState::NONE {
                let traceparent = format_traceparent(span_context);
                return Some(["{\"traceparent\":\"", &traceparent, "\"}"].concat());
            }
        }
        self.inject_value(context).map(|value| value.to_string())
    }

    /// See [`inject_value`].
    #[must_use]
    pub fn inject_value(&self, context: &Context) -> Option<Value> {
        let mut object = serde_json::Map::new();
        self.write(context, |name, value| {
            object.insert(name.to_owned(), Value::String(value));
        });
        (!object.is_empty()).then_some(Value::Object(object))
    }

    fn extract_nested(&self, value: &Value, depth: u8) -> Context {
        // The deepest carrier of the platform: an entry with a string that holds the object.
        const MAX_DEPTH: u8 = 3;
        match value {
            Value::String(text) if depth < MAX_DEPTH && text.len() <= MAX_JSON_LENGTH => {
                match serde_json::from_str::<Value>(text) {
                    Ok(inner) => self.extract_nested(&inner, depth + 1),
                    Err(_) => Context::new(),
                }
            }
            Value::Object(object) => match object.get(TRACE_CONTEXT_FIELD) {
                Some(inner) if depth < MAX_DEPTH => self.extract_nested(inner, depth + 1),
                _ => {
                    let pairs = object
                        .iter()
                        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
                    self.read(&Fields::from_pairs(pairs), Context::new())
                }
            },
            _ => Context::new(),
        }
    }

    fn read(&self, fields: &Fields<'_>, base: Context) -> Context {
        let mut context = base;
        if self.trace_context
            && let Some(span_context) = fields.span_context()
        {
            context = context.with_remote_span_context(span_context);
        }
        if self.baggage
            && let Some(baggage) = fields.baggage.as_deref().and_then(parse_baggage)
        {
            context = context.with_baggage(baggage);
        }
        context
    }

    fn write(&self, context: &Context, mut set: impl FnMut(&'static str, String)) {
        if self.trace_context {
            let span = context.span();
            let span_context = span.span_context();
            if span_context.is_valid() {
                set(TRACEPARENT, format_traceparent(span_context));
                let state = span_context.trace_state().header();
                if !state.is_empty() {
                    set(TRACESTATE, state);
                }
            }
        }
        if self.baggage {
            let baggage = context.baggage();
            if !baggage.is_empty() {
                set(BAGGAGE, format_baggage(baggage));
            }
        }
    }
}

impl FromStr for Propagator {
    type Err = ParseError;

    /// A list of `tracecontext` and `baggage` with commas between, or `none`.
    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let none = Self {
            trace_context: false,
            baggage: false,
        };
        let mut chosen = none;
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match entry.to_ascii_lowercase().as_str() {
                "tracecontext" => chosen.trace_context = true,
                "baggage" => chosen.baggage = true,
                // By the specification, `none` wins over all other entries.
                "none" => return Ok(none),
                _ => return Err(ParseError::new("propagator", entry, OTEL_PROPAGATORS.accepted())),
            }
        }
        Ok(chosen)
    }
}

/// For libraries that use OpenTelemetry's global propagator.
impl TextMapPropagator for Propagator {
    fn inject_context(&self, context: &Context, injector: &mut dyn Injector) {
        self.write(context, |name, value| injector.set(name, value));
    }

    fn extract_with_context(&self, context: &Context, extractor: &dyn Extractor) -> Context {
        let joined = |name| {
            extractor
                .get_all(name)
                .map(|values| join(values.into_iter().map(Cow::Borrowed)))
        };
        let fields = Fields {
            traceparent: extractor.get(TRACEPARENT).map(Cow::Borrowed),
            tracestate: joined(TRACESTATE).flatten(),
            baggage: joined(BAGGAGE).flatten(),
        };
        self.read(&fields, context.clone())
    }

    fn fields(&self) -> FieldIter<'_> {
        static NAMES: std::sync::LazyLock<[String; 3]> =
            std::sync::LazyLock::new(|| [TRACEPARENT.into(), TRACESTATE.into(), BAGGAGE.into()]);
        let names = match (self.trace_context, self.baggage) {
            (true, true) => &NAMES[..],
            (true, false) => &NAMES[..2],
            (false, true) => &NAMES[2..],
            (false, false) => &[],
        };
        FieldIter::new(names)
    }
}

#[cfg(test)]
mod tests;
