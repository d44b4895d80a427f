//! What a message between services carries for telemetry: [`MessageContext`].

use opentelemetry::Context;

use crate::logs::context::LogContext;
use crate::propagate::{self, TRACE_CONTEXT_FIELD};

/// The trace context and the request id of a message: an event, or the metadata of a task.
///
/// Both go into every message, so that one search finds the log lines of all services for a
/// request, whether tracing is on or off.
///
/// ```
/// use dalston_telemetry::services::MessageContext;
///
/// let message = MessageContext::new(None, Some("req_1"));
/// assert_eq!(message.fields().collect::<Vec<_>>(), [("request_id", "req_1")]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageContext {
    /// The W3C trace context as a JSON text: the field `_trace_context`.
    pub trace_context: Option<String>,
    /// The id of the gateway's request: the field `request_id`.
    pub request_id: Option<String>,
}

impl MessageContext {
    /// The context of a received message, from its fields.
    #[must_use]
    pub fn new(trace_context: Option<&str>, request_id: Option<&str>) -> Self {
        Self {
            trace_context: trace_context.map(str::to_owned),
            request_id: request_id.filter(|id| !id.is_empty()).map(str::to_owned),
        }
    }

    /// The context for a message that is sent now: the current span, and the request id of the
    /// current log context.
    #[must_use]
    pub fn current() -> Self {
        Self {
            trace_context: propagate::inject_json(&propagate::current_context()),
            request_id: LogContext::current().get("request_id").map(str::to_owned),
        }
    }

    /// The fields of a message, without those that have no value.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let trace = self.trace_context.as_deref();
        let trace = trace.map(|json| (TRACE_CONTEXT_FIELD, json));
        let request = self.request_id.as_deref().map(|id| ("request_id", id));
        trace.into_iter().chain(request)
    }

    /// The trace context, to continue it. It has no span if the message carries none.
    #[must_use]
    pub fn context(&self) -> Context {
        match &self.trace_context {
            Some(json) => propagate::extract_json(json),
            None => Context::new(),
        }
    }

    /// The log context of the work for this message.
    #[must_use]
    pub fn log_context(&self) -> LogContext {
        LogContext::new()
            .request_id(self.request_id.clone().unwrap_or_default())
            .carrier(self.context())
    }
}
