//! The parts of a log line, which each form writes in its own way.

use std::time::SystemTime;

use opentelemetry::trace::{SpanId, TraceId};
use tracing::{Level, Metadata};

use super::key::Key;

/// A form of a log line: JSON or readable.
pub(super) trait LineForm {
    fn begin(&mut self, time: SystemTime, level: Level);

    fn message(&mut self, text: &str);

    /// A field with a text, in which secrets are masked.
    fn text(&mut self, key: Key, text: &str);

    /// A field with a number, a truth value or `null`.
    fn literal(&mut self, key: Key, literal: &str);

    fn trace_id(&mut self, trace_id: TraceId);

    fn span_id(&mut self, span_id: SpanId);

    /// A field of a span around the event.
    fn inherited(&mut self, name: &str, value: &str);

    /// A field of the log context; `json` is the whole member of a JSON line.
    fn context_field(&mut self, name: &str, value: &str, json: &str);

    /// A field of the process; `json` is the whole member of a JSON line.
    fn process_field(&mut self, json: &str);

    fn end(&mut self, metadata: &Metadata<'_>);
}
