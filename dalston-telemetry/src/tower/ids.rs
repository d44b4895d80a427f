//! [`RequestIds`].

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanContext, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use serde_json::{Value, json};

use crate::services::http::{REQUEST_ID_HEADER, TRACE_ID_HEADER};

/// The ids of a request: in its extensions, and an extractor for axum (feature `axum`).
///
/// ```
/// # fn example(ids: &dalston_telemetry::tower::RequestIds) {
/// let body = ids.error_body("no such job");
/// assert_eq!(body["detail"], "no such job");
/// # }
/// ```
#[derive(Clone)]
pub struct RequestIds {
    request_id: Arc<str>,
    trace_id: Option<TraceId>,
    is_sampled: bool,
}

impl RequestIds {
    /// `trace` is the span of the request, or the context of its caller while tracing is off.
    pub(super) fn new(headers: &HeaderMap, trace: &SpanContext) -> Self {
        let given = headers
            .get(REQUEST_ID_HEADER)
            .and_then(|value| value.to_str().ok());
        let request_id = match given.filter(|id| is_acceptable(id)) {
            Some(id) => id.into(),
            None => new_request_id(),
        };
        Self {
            request_id,
            trace_id: trace.is_valid().then(|| trace.trace_id()),
            is_sampled: trace.is_sampled(),
        }
    }

    /// The id that the client sent or got, as in `X-Request-ID`.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(super) fn shared_request_id(&self) -> Arc<str> {
        Arc::clone(&self.request_id)
    }

    /// The id of the trace, as in `X-Trace-ID`. `None` if tracing is off and the caller sent none.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace_id
    }

    /// Whether the span of the request is exported.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The body of an error in the form of the platform: `detail`, `request_id`, and `trace_id` if
    /// there is a trace.
    #[must_use]
    pub fn error_body(&self, detail: impl fmt::Display) -> Value {
        let mut body = json!({"detail": detail.to_string()});
        self.add_to(&mut body);
        body
    }

    /// Adds `request_id` and `trace_id` to the body of an error. OpenAI's form has them within
    /// `error`. Does nothing if the body is no object.
    pub fn add_to(&self, body: &mut Value) {
        let object = match body {
            Value::Object(object) => object,
            _ => return,
        };
        let inner = match object.get_mut("error") {
            Some(Value::Object(error)) => error,
            _ => object,
        };
        inner.insert("request_id".to_owned(), self.request_id().into());
        if let Some(trace_id) = self.trace_id {
            inner.insert("trace_id".to_owned(), trace_id.to_string().into());
        }
    }

    /// Sets both headers, unless the handler has set them.
    pub(super) fn add_headers(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.request_id) {
            headers.entry(REQUEST_ID_HEADER).or_insert(value);
        }
        if let Some(trace_id) = self.trace_id
            && let Ok(value) = HeaderValue::from_bytes(&hexadecimal(trace_id))
        {
            headers.entry(TRACE_ID_HEADER).or_insert(value);
        }
    }
}

impl fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIds")
            .field("request_id", &self.request_id)
            .field("trace_id", &self.trace_id)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "axum")]
impl<S: Sync> axum::extract::FromRequestParts<S> for RequestIds {
    type Rejection = (http::StatusCode, &'static str);

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or((
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "no request ids: the router has no HttpLayer, or it excludes this path",
        ))
    }
}

/// `req_` and 32 random hexadecimal digits.
fn new_request_id() -> Arc<str> {
    let mut text = *b"req_00000000000000000000000000000000";
    text[4..].copy_from_slice(&hexadecimal(RandomIdGenerator::default().new_trace_id()));
    String::from_utf8_lossy(&text).into()
}

/// The 32 digits of an id, without an allocation.
fn hexadecimal(id: TraceId) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(id.to_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

fn is_acceptable(id: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(id: &str) -> RequestIds {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID_HEADER, HeaderValue::from_str(id).unwrap());
        RequestIds::new(&headers, &SpanContext::NONE)
    }

    #[test]
    fn harmless_request_id_is_kept_and_others_replaced() {
        for id in ["a", "Job_7.x-1", &"x".repeat(128)] {
            assert_eq!(ids(id).request_id(), id);
        }
        for id in ["", "a b", "ü", "<script>", &"x".repeat(129)] {
            let made = ids(id);
            let hex = made.request_id().strip_prefix("req_").unwrap();
            assert_eq!(hex.len(), 32, "{hex}");
        }
        assert_ne!(ids("").request_id(), ids("").request_id());
    }

    #[test]
    fn ids_are_added_in_both_forms_of_errors() {
        let ids = ids("r1");
        assert_eq!(
            ids.error_body("no job"),
            json!({"detail": "no job", "request_id": "r1"})
        );
        let mut body = json!({"error": {"message": "no model"}});
        ids.add_to(&mut body);
        assert_eq!(
            body,
            json!({"error": {"message": "no model", "request_id": "r1"}})
        );
    }
}
