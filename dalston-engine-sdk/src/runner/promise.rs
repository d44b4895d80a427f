//! Spans that others hear of before they exist.

use dalston_telemetry::{ReservedSpan, TelemetryHandle};

use crate::broker::{Delivery, NextSpan};

/// The spans under which the next tasks may begin. The read that was told of them may go on after it was given up, so each stays
/// here until its task comes.
#[derive(Debug, Default)]
pub(super) struct PromisedSpans {
    reserved: Vec<ReservedSpan>,
    offered: Vec<Option<NextSpan>>,
}

impl PromisedSpans {
    /// Spans for so many tasks, all of them none without traces. Nothing if the context of a span can't be known before there is one.
    pub(super) fn offer(&mut self, telemetry: &TelemetryHandle, tasks: usize) -> Option<&[Option<NextSpan>]> {
        self.offered.clear();
        if !telemetry.traces_enabled() {
            self.offered.resize(tasks, None);
            return Some(&self.offered);
        }
        while self.reserved.len() < tasks {
            self.reserved.push(telemetry.reserve_span()?);
        }
        let next = self.reserved.iter().take(tasks).map(|span| Some(next_span(span)));
        self.offered.extend(next);
        Some(&self.offered)
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
