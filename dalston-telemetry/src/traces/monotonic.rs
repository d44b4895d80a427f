//! Durations by the monotonic clock, for spans that end.

use std::cell::Cell;
use std::time::Duration;

use opentelemetry_sdk::trace::SpanData;

thread_local! {
    static ENDING: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Runs `end`, which ends a span that lasted for `duration`.
pub(crate) fn ending(duration: Duration, end: impl FnOnce()) {
    ENDING.set(Some(duration));
    end();
    ENDING.set(None);
}

/// Moves the end of a span to its start plus its duration, if that is known, and its events between
/// the two. The clock of the system can be set while the span is open.
pub(super) fn correct(span: &mut SpanData) {
    // Taken, because a processor can end spans of its own.
    if let Some(duration) = ENDING.take()
        && let Some(end) = span.start_time.checked_add(duration)
    {
        span.end_time = end;
        for event in &mut span.events.events {
            event.timestamp = event.timestamp.clamp(span.start_time, end);
        }
    }
}
