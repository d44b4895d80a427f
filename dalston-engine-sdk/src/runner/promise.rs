//! Spans that others hear of before they exist.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use dalston_telemetry::{ReservedSpan, TelemetryHandle};

use crate::broker::{Delivery, NextSpan};

/// Whether spans may be promised: whether that of the last task was made. Telemetry can't tell beforehand, because a filter of the
/// program's own subscriber may leave them out, and others would be told of a span that never is. At first nobody knows.
#[derive(Debug, Default)]
pub(super) struct SpansMade(AtomicBool);

impl SpansMade {
    pub(super) fn note(&self, made: bool) {
        // Mostly that is known, and a write would take the line from the other processors.
        if self.0.load(Relaxed) != made {
            self.0.store(made, Relaxed);
        }
    }

    /// Ids for the next span, if it will be made and they can be known.
    pub(super) fn reserve(&self, telemetry: &TelemetryHandle) -> Option<ReservedSpan> {
        self.any().then(|| telemetry.reserve_span())?
    }

    fn any(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The spans under which the next tasks may begin. The read that was told of them may go on after it was given up, so each stays
/// here until its task comes.
#[derive(Debug, Default)]
pub(super) struct PromisedSpans {
    reserved: Vec<ReservedSpan>,
    offered: Vec<Option<NextSpan>>,
}

impl PromisedSpans {
    /// Spans for so many tasks, all of them none without traces. Nothing if the context of a span can't be known before there is one.
    pub(super) fn offer(
        &mut self,
        telemetry: &TelemetryHandle,
        made: &SpansMade,
        tasks: usize,
    ) -> Option<&[Option<NextSpan>]> {
        self.offered.clear();
        if !telemetry.traces_enabled() {
            self.offered.resize(tasks, None);
            return Some(&self.offered);
        }
        if !made.any() {
            return None;
        }
        while self.reserved.len() < tasks {
            self.reserved.push(telemetry.reserve_span()?);
        }
        let next = self.reserved.iter().take(tasks).map(|span| Some(next_span(span)));
        self.offered.extend(next);
        Some(&self.offered)
    }

    /// After a read that failed: tasks may have begun under them, and no two may begin under one.
    pub(super) fn forget(&mut self) {
        self.reserved.clear();
    }

    /// The one under which this task was begun.
    pub(super) fn of(&mut self, delivery: &Delivery) -> Option<ReservedSpan> {
        let span = delivery.begun.as_ref()?.span?;
        let place = self
            .reserved
            .iter()
            .position(|reserved| next_span(reserved) == span)?;
        Some(self.reserved.swap_remove(place))
    }
}

/// What a broker has to know of it.
pub(super) fn next_span(span: &ReservedSpan) -> NextSpan {
    let span_id = u64::from_be_bytes(span.span_id().to_bytes());
    NextSpan::new(u128::from_be_bytes(span.trace_id().to_bytes()), span_id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use dalston_telemetry::testing::TestTelemetry;

    use super::*;

    fn offered(
        promised: &mut PromisedSpans,
        telemetry: &TestTelemetry,
        made: &SpansMade,
    ) -> Option<Vec<u64>> {
        let spans = promised.offer(&telemetry.handle(), made, 3)?;
        Some(spans.iter().flatten().map(|span| span.span_id).collect())
    }

    #[test]
    fn spans_are_offered_again_unless_the_read_failed_that_was_told_of_them() {
        let (telemetry, mut promised, made) = (
            TestTelemetry::new(),
            PromisedSpans::default(),
            SpansMade::default(),
        );
        made.note(true);
        let first = offered(&mut promised, &telemetry, &made).unwrap();
        assert_eq!(offered(&mut promised, &telemetry, &made).unwrap(), first);
        promised.forget();
        let second = offered(&mut promised, &telemetry, &made).unwrap();
        let all: HashSet<_> = first.iter().chain(&second).collect();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn no_span_is_offered_before_one_was_made_nor_after_one_was_not() {
        let (telemetry, mut promised, made) = (
            TestTelemetry::new(),
            PromisedSpans::default(),
            SpansMade::default(),
        );
        assert_eq!(offered(&mut promised, &telemetry, &made), None);
        made.note(true);
        assert!(offered(&mut promised, &telemetry, &made).is_some());
        made.note(false);
        assert_eq!(offered(&mut promised, &telemetry, &made), None);
    }
}
