//! The fields and formats of [W3C trace context](https://www.w3.org/TR/trace-context/) and
//! [W3C baggage](https://www.w3.org/TR/baggage/).

use std::borrow::Cow;
use std::str::FromStr;

use http::HeaderMap;
use opentelemetry::baggage::{Baggage, BaggageMetadata};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

pub(super) const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";
pub(super) const BAGGAGE: &str = "baggage";

/// Longer values are ignored. The specifications ask for 512 characters of `tracestate` and 8192
/// bytes of `baggage`.
const MAX_FIELD_LENGTH: usize = 8192;
const MAX_BAGGAGE_MEMBERS: usize = 64;

/// The characters that are encoded in baggage. Without `%`, a value that looks encoded would
/// change.
const BAGGAGE_VALUE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b',')
    .add(b';')
    .add(b'=')
    .add(b'\\');

/// The three fields of a carrier.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) traceparent: Option<Cow<'a, str>>,
    pub(super) tracestate: Option<Cow<'a, str>>,
    pub(super) baggage: Option<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn from_headers(headers: &'a HeaderMap) -> Self {
        let all = |name: &'static str| {
            headers
                .get_all(name)
                .into_iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
        };
        let mut parents = all(TRACEPARENT);
        let traceparent = match (parents.next(), parents.next()) {
            // By the specification, neither of two is trusted.
            (Some(parent), None) => Some(parent),
            _ => None,
        };
        Self {
            traceparent,
            tracestate: join(all(TRACESTATE)),
            baggage: join(all(BAGGAGE)),
        }
    }

    pub(super) fn from_pairs(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
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

    pub(super) fn span_context(&self) -> Option<SpanContext> {
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

/// Joins repeated header fields to one list.
pub(super) fn join<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let first = values.next()?;
    Some(values.fold(first, |mut joined, value| {
        let text = joined.to_mut();
        text.push(',');
        text.push_str(&value);
        joined
    }))
}

/// The length of a `traceparent`, to which later versions may append.
const LENGTH: usize = 55;

/// Parses `version-traceid-spanid-flags`, of exact lengths and in lower case.
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
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
    // The specification asks to clear undefined bits.
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

pub(super) fn format_traceparent(span_context: &SpanContext) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let flags = span_context.trace_flags().to_u8() & KNOWN_FLAGS;
    let mut text = String::with_capacity(LENGTH);
    text.push_str("00");
    // Not with `format!`, which takes several times as long: this runs for each task and request.
    for part in [
        &span_context.trace_id().to_bytes()[..],
        &span_context.span_id().to_bytes(),
        &[flags],
    ] {
        text.push('-');
        for byte in part {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
        }
    }
    text
}

/// Parses a list of members; `None` if none of them can be parsed.
pub(super) fn parse_baggage(text: &str) -> Option<Baggage> {
    if text.len() > MAX_FIELD_LENGTH {
        return None;
    }
    let mut baggage = Baggage::new();
    for member in text.split(',').take(MAX_BAGGAGE_MEMBERS) {
        let (pair, properties) = member.split_once(';').unwrap_or((member, ""));
        // A value may contain `=`, a name may not.
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let name = name.trim();
        // Only the value is encoded: a name is a token, in which `%` stands for itself.
        if is_token(name)
            && let Ok(value) = percent_decode_str(value.trim()).decode_utf8()
        {
            let properties = BaggageMetadata::from(properties.trim());
            baggage.insert_with_metadata(name.to_owned(), value.into_owned(), properties);
        }
    }
    (!baggage.is_empty()).then_some(baggage)
}

/// A list of members, in the order of their names. Leaves out names that are no tokens, and what
/// [`parse_baggage`] would not accept because of its size.
pub(super) fn format_baggage(baggage: &Baggage) -> String {
    let mut members: Vec<_> = baggage
        .iter()
        .filter(|(name, _)| is_token(name.as_str()))
        .collect();
    members.sort_by_key(|(name, _)| name.as_str());
    let mut text = String::new();
    for (name, (value, properties)) in members.into_iter().take(MAX_BAGGAGE_MEMBERS) {
        let length = text.len();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name.as_str());
        text.push('=');
        text.extend(utf8_percent_encode(value.as_str(), BAGGAGE_VALUE));
        if !properties.as_str().is_empty() {
            text.push(';');
            text.push_str(properties.as_str());
        }
        if text.len() > MAX_FIELD_LENGTH {
            text.truncate(length);
        }
    }
    text
}

/// Whether the text is a token of HTTP (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_fit)
}
