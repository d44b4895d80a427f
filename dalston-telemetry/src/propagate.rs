//! Carrying the trace from one process to the next.
//!
//! [W3C trace context](https://www.w3.org/TR/trace-context/) and [W3C baggage](https://www.w3.org/TR/baggage/)
//! in the three carriers that the platform has: HTTP headers, string maps (queue entries) and JSON (the
//! `_trace_context` field of tasks and events).
//!
//! Extraction never fails: what can't be understood is left out, and a carrier without a usable `traceparent`
//! starts a new trace. Nothing here needs tracing to be on. With tracing off the ids go from the incoming
//! carrier to the outgoing one untouched, so a service without an exporter does not cut the trace in two.
//!
//! ```
//! use dalston_telemetry::propagate;
//!
//! let task = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
//! let context = propagate::extract_json(task);
//! let headers = propagate::inject_map(&context);
//! assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::baggage::{Baggage, BaggageExt, BaggageMetadata};
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::context::LogContext;
use crate::env::{Env, EnvError};

/// The name of the JSON field that holds a trace context in tasks and events.
pub const TRACE_CONTEXT_FIELD: &str = "_trace_context";

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// Longer values are not looked at: the specifications ask for 512 characters of `tracestate` and 8192 bytes of
/// `baggage`, and a carrier must not make us work for longer than that.
const MAX_FIELD_LENGTH: usize = 8192;
const MAX_BAGGAGE_MEMBERS: usize = 64;
const MAX_JSON_LENGTH: usize = 64 * 1024;

/// What a baggage value may not contain as it is; `%` included, or a value that looks encoded changes on its way.
const BAGGAGE_VALUE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b',')
    .add(b';')
    .add(b'=')
    .add(b'\\');

/// Extracts a context from HTTP headers. Starts a new trace if they carry none.
#[must_use]
pub fn extract_headers(headers: &HeaderMap) -> Context {
    Propagator::installed().extract_headers(headers)
}

/// Extracts a context from a string map: a queue entry that carries the fields themselves, or a task's hash with
/// a `_trace_context` field. Names are compared without regard to case.
#[must_use]
pub fn extract_map(map: &HashMap<String, String>) -> Context {
    Propagator::installed().extract_map(map)
}

/// Extracts a context from JSON text: the content of a `_trace_context` field, as an object or as a JSON string
/// that holds the object, or a whole entry with such a field.
#[must_use]
pub fn extract_json(json: &str) -> Context {
    Propagator::installed().extract_json(json)
}

/// As [`extract_json`], for JSON that is already parsed.
#[must_use]
pub fn extract_value(value: &Value) -> Context {
    Propagator::installed().extract_value(value)
}

/// Writes a context into HTTP headers, replacing what they carried before.
pub fn inject_headers(context: &Context, headers: &mut HeaderMap) {
    Propagator::installed().inject_headers(context, headers);
}

/// The fields that carry a context; empty if there is nothing to carry.
#[must_use]
pub fn inject_map(context: &Context) -> BTreeMap<String, String> {
    Propagator::installed().inject_map(context)
}

/// The fields that carry a context, as JSON text for a `_trace_context` field; `None` if there is nothing to
/// carry.
#[must_use]
pub fn inject_json(context: &Context) -> Option<String> {
    Propagator::installed().inject_json(context)
}

/// As [`inject_json`], as a JSON object to nest in another one.
#[must_use]
pub fn inject_value(context: &Context) -> Option<Value> {
    Propagator::installed().inject_value(context)
}

/// The context to hand on from here: that of the current span, else the context that came with the current
/// task or request ([`LogContext::carrier`]), else an empty one.
#[must_use]
pub fn current_context() -> Context {
    let ambient = Context::current();
    if ambient.span().span_context().is_valid() {
        return ambient;
    }
    // Reached with an OpenTelemetry layer that does not activate contexts, as other people's may not.
    let span = tracing::Span::current().context();
    if span.span().span_context().is_valid() {
        return span;
    }
    LogContext::with_current(|context| context.carrier_context().cloned()).unwrap_or(ambient)
}

/// Which formats are read and written; chosen by `OTEL_PROPAGATORS`.
///
/// The functions of this module use the one that was installed for the process, which is both formats unless
/// `OTEL_PROPAGATORS` said otherwise. Use a value of this type to decide for yourself.
///
/// ```
/// use dalston_telemetry::propagate::Propagator;
///
/// let none = Propagator::from_list("none")?;
/// let headers = [("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into())];
/// assert!(none.inject_map(&none.extract_map(&headers.into())).is_empty());
/// # Ok::<(), dalston_telemetry::propagate::UnknownPropagator>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagator {
    trace_context: bool,
    baggage: bool,
}

/// An entry of `OTEL_PROPAGATORS` that names no propagator of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown propagator \"{name}\": expected a list of tracecontext and baggage, or none")]
#[non_exhaustive]
pub struct UnknownPropagator {
    /// The entry as it was written.
    pub name: String,
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

/// The choice of the process, as bits, set by the one call that may touch globals.
static INSTALLED: AtomicU8 = AtomicU8::new(TRACE_CONTEXT_BIT | BAGGAGE_BIT);
const TRACE_CONTEXT_BIT: u8 = 1;
const BAGGAGE_BIT: u8 = 2;

impl Propagator {
    /// What `OTEL_PROPAGATORS` takes: a comma-separated list of `tracecontext` and `baggage`, or `none`.
    ///
    /// # Errors
    ///
    /// If an entry is neither. Formats of other vendors (`b3`, `jaeger`, `xray`) are not silently ignored: a
    /// service that was told to use them would otherwise cut every trace.
    pub fn from_list(list: &str) -> Result<Self, UnknownPropagator> {
        let mut chosen = Self {
            trace_context: false,
            baggage: false,
        };
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match entry.to_ascii_lowercase().as_str() {
                "tracecontext" => chosen.trace_context = true,
                "baggage" => chosen.baggage = true,
                // The specification: no automatically configured propagator, whatever else is listed.
                "none" => {
                    return Ok(Self {
                        trace_context: false,
                        baggage: false,
                    });
                }
                _ => {
                    return Err(UnknownPropagator {
                        name: entry.to_owned(),
                    });
                }
            }
        }
        Ok(chosen)
    }

    /// Reads `OTEL_PROPAGATORS`; both formats if it is unset.
    ///
    /// # Errors
    ///
    /// If an entry is unknown, see [`from_list`](Self::from_list).
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        const VARIABLE: &str = "OTEL_PROPAGATORS";
        match env.get(VARIABLE) {
            None => Ok(Self::default()),
            Some(list) => Self::from_list(list)
                .map_err(|_| EnvError::new(VARIABLE, list, "a list of tracecontext and baggage, or none")),
        }
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
            // Both formats are printable ASCII by construction, except for a tracestate that came from outside.
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
        // An entry, in it a string, in that the object: no carrier of the platform is nested deeper.
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
    type Err = UnknownPropagator;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        Self::from_list(list)
    }
}

/// So that libraries which ask for OpenTelemetry's global propagator get the same behaviour.
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

/// The three fields of a carrier, whatever it was.
#[derive(Default)]
struct Fields<'a> {
    traceparent: Option<Cow<'a, str>>,
    tracestate: Option<Cow<'a, str>>,
    baggage: Option<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    fn from_headers(headers: &'a HeaderMap) -> Self {
        let all = |name: &'static str| {
            headers
                .get_all(name)
                .into_iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
        };
        let mut parents = all(TRACEPARENT);
        let traceparent = match (parents.next(), parents.next()) {
            // Two of them contradict each other; the specification says to trust neither.
            (Some(parent), None) => Some(parent),
            _ => None,
        };
        Self {
            traceparent,
            tracestate: join(all(TRACESTATE)),
            baggage: join(all(BAGGAGE)),
        }
    }

    fn from_pairs(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut fields = Self::default();
        for (name, value) in pairs {
            let slot = match name {
                _ if name.eq_ignore_ascii_case(TRACEPARENT) => &mut fields.traceparent,
                _ if name.eq_ignore_ascii_case(TRACESTATE) => &mut fields.tracestate,
                _ if name.eq_ignore_ascii_case(BAGGAGE) => &mut fields.baggage,
                _ => continue,
            };
            *slot = Some(Cow::Borrowed(value));
        }
        fields
    }

    fn span_context(&self) -> Option<SpanContext> {
        let (trace_id, span_id, flags) = parse_traceparent(self.traceparent.as_deref()?)?;
        let state = self
            .tracestate
            .as_deref()
            .filter(|state| state.len() <= MAX_FIELD_LENGTH)
            .and_then(|state| TraceState::from_str(state).ok())
            .unwrap_or_default();
        let span_context = SpanContext::new(trace_id, span_id, flags, true, state);
        span_context.is_valid().then_some(span_context)
    }
}

/// Repeated header fields are one list.
fn join<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let first = values.next()?;
    Some(values.fold(first, |mut joined, value| {
        let text = joined.to_mut();
        text.push(',');
        text.push_str(&value);
        joined
    }))
}

/// `version-traceid-spanid-flags`, of exact lengths and in lower case; later versions may append more.
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    const LENGTH: usize = 55;
    let bytes = text.trim_matches([' ', '\t']).as_bytes();
    let (known, rest) = bytes.split_at_checked(LENGTH)?;
    let version = hex(&known[..2])?;
    let separators = [known[2], known[35], known[52]];
    if version == 0xff || separators != [b'-'; 3] {
        return None;
    }
    match (version, rest.first()) {
        (_, None) => {}
        (0, Some(_)) => return None,
        (_, Some(byte)) if *byte != b'-' => return None,
        _ => {}
    }
    let trace_id = TraceId::from(hex(&known[3..35])?);
    let span_id = SpanId::from(u64::try_from(hex(&known[36..52])?).ok()?);
    // Bits that the two levels of the specification do not define are cleared, as they ask.
    let flags = TraceFlags::new(u8::try_from(hex(&known[53..55])?).ok()? & KNOWN_FLAGS);
    Some((trace_id, span_id, flags))
}

/// `sampled`, and `random` of level 2.
const KNOWN_FLAGS: u8 = 0x03;

fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn format_traceparent(span_context: &SpanContext) -> String {
    let flags = span_context.trace_flags().to_u8() & KNOWN_FLAGS;
    format!(
        "00-{:032x}-{:016x}-{flags:02x}",
        span_context.trace_id(),
        span_context.span_id()
    )
}

/// `None` if no member could be read, so that garbage does not become an empty baggage.
fn parse_baggage(text: &str) -> Option<Baggage> {
    if text.len() > MAX_FIELD_LENGTH {
        return None;
    }
    let decoded = |part: &str| Some(percent_decode_str(part.trim()).decode_utf8().ok()?.into_owned());
    let mut baggage = Baggage::new();
    for member in text.split(',').take(MAX_BAGGAGE_MEMBERS) {
        let (pair, properties) = member.split_once(';').unwrap_or((member, ""));
        // A value may contain `=`, a name may not.
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        if let (Some(name), Some(value)) = (decoded(name), decoded(value)) {
            baggage.insert_with_metadata(name, value, BaggageMetadata::from(properties.trim()));
        }
    }
    (!baggage.is_empty()).then_some(baggage)
}

fn format_baggage(baggage: &Baggage) -> String {
    let mut members: Vec<_> = baggage.iter().collect();
    members.sort_by_key(|(name, _)| name.as_str());
    let mut text = String::new();
    for (name, (value, properties)) in members {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(utf8_percent_encode(name.as_str(), BAGGAGE_VALUE));
        text.push('=');
        text.extend(utf8_percent_encode(value.as_str(), BAGGAGE_VALUE));
        if !properties.as_str().is_empty() {
            text.push(';');
            text.push_str(properties.as_str());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn parent_of(text: &str) -> Option<String> {
        let context = extract_map(&map(&[("traceparent", text)]));
        inject_map(&context).remove("traceparent")
    }

    #[test]
    fn ids_pass_through_every_carrier_untouched() {
        let pairs = [
            ("traceparent", PARENT),
            ("tracestate", "vendor=a:b,other=1"),
            ("baggage", "tenant=acme,user=J%C3%BCrgen"),
        ];
        let expected: BTreeMap<_, _> = map(&pairs).into_iter().collect();

        let context = extract_map(&map(&pairs));
        assert_eq!(inject_map(&context), expected);

        let json = inject_json(&context).unwrap();
        assert_eq!(inject_map(&extract_json(&json)), expected);

        let mut headers = HeaderMap::new();
        inject_headers(&context, &mut headers);
        assert_eq!(inject_map(&extract_headers(&headers)), expected);
        assert!(extract_headers(&headers).span().span_context().is_remote());
    }

    #[test]
    fn a_json_carrier_may_be_an_object_a_string_or_a_whole_entry() {
        let object = format!(r#"{{"traceparent":"{PARENT}"}}"#);
        let string = serde_json::to_string(&object).unwrap();
        let carriers = [
            object.clone(),
            string.clone(),
            format!(r#"{{"task_id":"t","_trace_context":{object}}}"#),
            format!(r#"{{"task_id":"t","_trace_context":{string}}}"#),
        ];
        for carrier in carriers {
            assert_eq!(
                inject_map(&extract_json(&carrier)).get("traceparent").unwrap(),
                PARENT,
                "{carrier}"
            );
        }
        let hash = map(&[("task_id", "t"), ("_trace_context", &object)]);
        assert_eq!(inject_map(&extract_map(&hash))["traceparent"], PARENT);
    }

    #[test]
    fn a_malformed_traceparent_starts_a_new_trace() {
        let trace_id = "0af7651916cd43dd8448eb211c80319c";
        let span_id = "b7ad6b7169203331";
        let malformed = [
            String::new(),
            "-".into(),
            "garbage".into(),
            "00".into(),
            format!("00-{trace_id}-{span_id}"),
            format!("00-{trace_id}-{span_id}-"),
            format!("00-{trace_id}-{span_id}-1"),
            format!("00-{trace_id}-{span_id}-001"),
            format!("00-{trace_id}-{span_id}-01-"),
            format!("00-{trace_id}-{span_id}-01-more"),
            format!("0-{trace_id}-{span_id}-01"),
            format!("ff-{trace_id}-{span_id}-01"),
            format!("0g-{trace_id}-{span_id}-01"),
            format!("FF-{trace_id}-{span_id}-01"),
            format!("01-{trace_id}-{span_id}-01more"),
            format!("00-{}-{span_id}-01", trace_id.to_uppercase()),
            format!("00-{trace_id}-{}-01", span_id.to_uppercase()),
            format!("00-{trace_id}-{span_id}-0A"),
            format!("00-{trace_id}-{span_id}-xx"),
            format!("00-+{}-{span_id}-01", &trace_id[1..]),
            format!("00-{}-{span_id}-01", &trace_id[1..]),
            format!("00-{trace_id}0-{}-01", &span_id[1..]),
            format!("00-{}-{span_id}-01", "0".repeat(32)),
            format!("00-{trace_id}-{}-01", "0".repeat(16)),
            format!("00_{trace_id}_{span_id}_01"),
            format!("00-{trace_id}-{span_id}-01\0"),
            format!("00-{}é-{span_id}-01", &trace_id[2..]),
            PARENT.repeat(1000),
        ];
        for text in malformed {
            assert_eq!(parent_of(&text), None, "{text:?}");
        }
    }

    #[test]
    fn later_versions_and_unknown_flags_are_read_as_the_specification_asks() {
        let with = |version: &str, rest: &str| parent_of(&format!("{version}{}{rest}", &PARENT[2..53]));
        assert_eq!(with("00", "01").as_deref(), Some(PARENT));
        assert_eq!(with("cc", "01-what-the-future-brings").as_deref(), Some(PARENT));
        assert_eq!(with("01", "ff"), Some(PARENT.replace("-01", "-03")));
        assert_eq!(with("00", "00"), Some(PARENT.replace("-01", "-00")));
        assert_eq!(parent_of(&format!(" {PARENT}\t")).as_deref(), Some(PARENT));
    }

    #[test]
    fn no_bytes_whatever_make_extraction_fail() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for _ in 0..20_000 {
            let length = (next() % 80) as usize;
            let mut bytes: Vec<u8> = (0..length).map(|_| (next() >> 24) as u8).collect();
            if next() % 2 == 0 {
                // Close to the real thing: damage a valid value in up to three places.
                bytes = PARENT.as_bytes().to_vec();
                for _ in 0..=next() % 3 {
                    let at = (next() as usize) % bytes.len();
                    bytes[at] = (next() >> 32) as u8;
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let carrier = map(&[("traceparent", &text), ("tracestate", &text), ("baggage", &text)]);
            let _ = inject_map(&extract_map(&carrier));
            let _ = extract_json(&text);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                for name in ["traceparent", "tracestate", "baggage"] {
                    headers.append(name, value.clone());
                }
                let context = extract_headers(&headers);
                inject_headers(&context, &mut headers);
            }
        }
    }

    #[test]
    fn malformed_json_starts_a_new_trace() {
        let deep = "[".repeat(100_000);
        let nested = (0..10).fold(format!(r#"{{"traceparent":"{PARENT}"}}"#), |inner, _| {
            serde_json::to_string(&inner).unwrap()
        });
        for json in [
            "",
            "null",
            "{",
            "[]",
            "7",
            r#"{"traceparent":7}"#,
            r#"{"traceparent":null}"#,
            "\"{\"",
            &deep,
            &nested,
        ] {
            assert!(
                inject_json(&extract_json(json)).is_none(),
                "{}",
                &json[..json.len().min(40)]
            );
        }
    }

    #[test]
    fn a_bad_tracestate_or_baggage_does_not_cost_the_trace() {
        let context = extract_map(&map(&[
            ("traceparent", PARENT),
            ("tracestate", "no good"),
            ("baggage", ";;;=,%ff=1"),
        ]));
        assert_eq!(
            inject_map(&context),
            BTreeMap::from([("traceparent".into(), PARENT.into())])
        );
    }

    #[test]
    fn two_traceparent_headers_are_trusted_neither_but_lists_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append("traceparent", HeaderValue::from_static(PARENT));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2"));
        headers.append("baggage", HeaderValue::from_static("x=1"));
        headers.append("baggage", HeaderValue::from_static("y=2"));
        let fields = inject_map(&extract_headers(&headers));
        assert_eq!(fields["tracestate"], "a=1,b=2");
        assert_eq!(fields["baggage"], "x=1,y=2");
        headers.append("traceparent", HeaderValue::from_static(PARENT));
        assert!(!extract_headers(&headers).span().span_context().is_valid());
    }

    #[test]
    fn baggage_values_survive_any_number_of_hops() {
        let mut baggage = Baggage::new();
        for (name, value) in [
            ("plain", "a"),
            ("odd", "a=b;c,d \"e\" 100%41 \\ ü"),
            ("empty", ""),
        ] {
            baggage.insert(name, value);
        }
        let mut context = Context::new().with_baggage(baggage);
        for _ in 0..3 {
            context = extract_json(&inject_json(&context).unwrap());
        }
        assert_eq!(
            context.baggage().get("odd").unwrap().as_str(),
            "a=b;c,d \"e\" 100%41 \\ ü"
        );
        assert_eq!(context.baggage().get("empty").unwrap().as_str(), "");
        let with_property = extract_map(&map(&[("baggage", "k=v=w;ttl=5")]));
        assert_eq!(inject_map(&with_property)["baggage"], "k=v%3Dw;ttl=5");
    }

    #[test]
    fn injecting_replaces_what_the_headers_carried_before() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(PARENT));
        headers.insert("baggage", HeaderValue::from_static("stale=1"));
        inject_headers(&Context::new(), &mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn the_list_of_propagators_is_read_and_a_wrong_entry_is_named() {
        let carrier = map(&[("traceparent", PARENT), ("baggage", "a=1")]);
        let names = |list: &str| {
            let chosen = Propagator::from_list(list).unwrap();
            inject_map_with(chosen, &carrier)
        };
        assert_eq!(names("tracecontext,baggage"), ["baggage", "traceparent"]);
        assert_eq!(names(" TraceContext "), ["traceparent"]);
        assert_eq!(names("baggage"), ["baggage"]);
        assert_eq!(names("none"), [""; 0]);
        assert_eq!(names("tracecontext,none"), [""; 0]);
        let error = Propagator::from_list("tracecontext,b3").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown propagator \"b3\": expected a list of tracecontext and baggage, or none"
        );
        let from_env = |list: &str| Propagator::from_env(&Env::from_pairs([("OTEL_PROPAGATORS", list)]));
        assert_eq!(from_env("").unwrap(), Propagator::default());
        assert_eq!(
            from_env("b3").unwrap_err().to_string(),
            "OTEL_PROPAGATORS is \"b3\": expected a list of tracecontext and baggage, or none"
        );
    }

    fn inject_map_with(propagator: Propagator, carrier: &HashMap<String, String>) -> Vec<String> {
        propagator
            .inject_map(&propagator.extract_map(carrier))
            .into_keys()
            .collect()
    }

    #[test]
    fn the_current_context_is_that_of_the_task_when_there_is_no_span() {
        assert!(inject_json(&current_context()).is_none());
        let carrier = extract_map(&map(&[("traceparent", PARENT), ("baggage", "a=1")]));
        let _guard = LogContext::new().carrier(carrier).enter();
        assert_eq!(inject_map(&current_context())["traceparent"], PARENT);
        assert_eq!(inject_map(&current_context())["baggage"], "a=1");
    }

    #[test]
    fn other_libraries_get_the_same_through_the_propagator_trait() {
        let propagator: &dyn TextMapPropagator = &Propagator::default();
        let carrier = map(&[("traceparent", PARENT), ("baggage", "a=1")]);
        let context = propagator.extract(&carrier);
        let mut out = HashMap::new();
        propagator.inject_context(&context, &mut out);
        assert_eq!(out, carrier);
        assert_eq!(propagator.fields().count(), 3);
    }
}
