//! Durations of spans by the monotonic clock: [`Monotonic`].

use std::time::Instant;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::traces::monotonic;

/// Measures spans for OpenTelemetry's layer, which takes the end of a span from the system's clock.
/// If that is set back, a span would end before it starts.
pub(super) struct Monotonic<L> {
    layer: L,
}

impl<L> Monotonic<L> {
    pub(super) fn new(layer: L) -> Self {
        Self { layer }
    }
}

/// Kept with a span.
struct Times {
    started: Instant,
    /// The last exit, which is the end of a span: it can be dropped much later.
    exited: Option<Instant>,
}

impl<S, L> Layer<S> for Monotonic<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Layer<S>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id) {
            span.extensions_mut().replace(Times {
                started: Instant::now(),
                exited: None,
            });
        }
        self.layer.on_new_span(attributes, id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id)
            && let Some(times) = span.extensions_mut().get_mut::<Times>()
        {
            times.exited = Some(Instant::now());
        }
        self.layer.on_exit(id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        let duration = cx.span(&id).and_then(|span| {
            let extensions = span.extensions();
            let times = extensions.get::<Times>()?;
            let ended = times.exited.unwrap_or_else(Instant::now);
            Some(ended.saturating_duration_since(times.started))
        });
        match duration {
            Some(duration) => monotonic::ending(duration, || self.layer.on_close(id, cx)),
            None => self.layer.on_close(id, cx),
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, cx: Context<'_, S>) {
        self.layer.on_record(id, record, cx);
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        self.layer.on_event(event, cx);
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, cx: Context<'_, S>) {
        self.layer.on_follows_from(id, follows, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        self.layer.on_enter(id, cx);
    }
}
