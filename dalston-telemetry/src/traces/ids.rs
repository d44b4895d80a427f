//! The ids of spans, and how to know one before the span exists.

use std::cell::Cell;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The ids of a span that does not exist yet: for whoever must tell others of a span before it is known whether
/// there will be one, or what its parent is. From [`TelemetryHandle::reserve_span`].
///
/// ```
/// use dalston_telemetry::opentelemetry::Context;
/// use dalston_telemetry::opentelemetry::trace::TraceContextExt;
/// use dalston_telemetry::{Env, SpanCollector, Telemetry};
/// use tracing_opentelemetry::OpenTelemetrySpanExt;
/// use tracing_subscriber::layer::SubscriberExt;
///
/// let builder = Telemetry::builder("orchestrator").env(Env::default());
/// let (layer, telemetry) = builder.span_collector(SpanCollector::new()).into_layer()?;
/// let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
///
/// let reserved = telemetry.handle().reserve_span().expect("all spans are sampled");
/// let promised = reserved.span_context(&Context::new());
/// let span = reserved.start(Context::new(), || tracing::info_span!("orchestrator.handle_job"));
/// assert_eq!(span.context().span().span_context(), &promised);
/// # Ok::<(), dalston_telemetry::InitError>(())
/// ```
///
/// [`TelemetryHandle::reserve_span`]: crate::TelemetryHandle::reserve_span
#[derive(Debug)]
#[must_use = "a span that is promised to others should be started"]
pub struct ReservedSpan {
    trace_id: TraceId,
    span_id: SpanId,
}

impl ReservedSpan {
    pub(crate) fn new() -> Self {
        Self {
            trace_id: Ids.new_trace_id(),
            span_id: Ids.new_span_id(),
        }
    }

    /// The trace that the span begins if its parent's context has none.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The span's own id, whatever its parent.
    #[must_use]
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// What the span's context will be, if it is started in `parent`.
    #[must_use]
    pub fn span_context(&self, parent: &Context) -> SpanContext {
        let span = parent.span();
        let above = span.span_context();
        let (trace_id, flags) = match above.is_valid() {
            true => (above.trace_id(), above.trace_flags()),
            false => (self.trace_id, TraceFlags::default()),
        };
        let flags = match !parent.has_active_span() || above.is_sampled() {
            true => flags.with_sampled(true),
            false => TraceFlags::default(),
        };
        SpanContext::new(trace_id, self.span_id, flags, false, above.trace_state().clone())
    }

    /// Makes the span, and starts it in `parent` with the ids that were reserved for it.
    ///
    /// `make` must neither enter the span nor ask for its context, because that would start it with other ids. A span that
    /// nobody records, be it for its level or because telemetry has ended, has no ids at all.
    pub fn start(self, parent: Context, make: impl FnOnce() -> Span) -> Span {
        let span = make();
        let begins_trace = !parent.span().span_context().is_valid();
        // Fails for a span that is disabled or has started: then there is nothing to give ids to.
        if span.set_parent(parent).is_ok() {
            let _next = NextIds::are(self.span_id, begins_trace.then_some(self.trace_id));
            span.context();
        }
        span
    }
}

/// Random ids, none of them zero, unless the next ones on this thread are given.
#[derive(Debug)]
pub(crate) struct Ids;

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT_TRACE
            .take()
            .unwrap_or_else(|| other_than(TraceId::INVALID, || RandomIdGenerator::default().new_trace_id()))
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_SPAN
            .take()
            .unwrap_or_else(|| other_than(SpanId::INVALID, || RandomIdGenerator::default().new_span_id()))
    }
}

fn other_than<I: PartialEq>(invalid: I, mut random: impl FnMut() -> I) -> I {
    loop {
        let id = random();
        if id != invalid {
            return id;
        }
    }
}

thread_local! {
    static NEXT_SPAN: Cell<Option<SpanId>> = const { Cell::new(None) };
    static NEXT_TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// The ids of the next span that this thread starts, for as long as this lives.
///
/// A tracer, ours or the SDK's, takes them before it shows the span to anyone. A trace id is given only where it will be taken: else a
/// span that a processor starts then would have it.
struct NextIds;

impl NextIds {
    fn are(span_id: SpanId, trace_id: Option<TraceId>) -> Self {
        NEXT_SPAN.set(Some(span_id));
        NEXT_TRACE.set(trace_id);
        Self
    }
}

impl Drop for NextIds {
    fn drop(&mut self) {
        NEXT_SPAN.set(None);
        NEXT_TRACE.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry::trace::{Span as _, TraceState, Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};
    use tracing::{debug_span, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::{Env, SpanCollector, Telemetry, TelemetryHandle};

    /// Runs `work` with telemetry that collects spans.
    fn with_telemetry(env: &[(&str, &str)], work: impl FnOnce(&TelemetryHandle)) -> SpanCollector {
        let spans = SpanCollector::new();
        let builder = Telemetry::builder("test")
            .env(Env::from_pairs(env.iter().copied()))
            .without_logs()
            .span_collector(spans.clone());
        let (layer, telemetry) = builder.into_layer().unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || work(&telemetry.handle()));
        spans
    }

    fn remote(flags: u8) -> Context {
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from(7),
            SpanId::from(8),
            TraceFlags::new(flags),
            true,
            TraceState::from_key_value([("vendor", "x")]).unwrap(),
        ))
    }

    fn of(span: &Span) -> SpanContext {
        span.context().span().span_context().clone()
    }

    #[test]
    fn a_span_has_the_ids_that_were_reserved_for_it() {
        let mut ids = Vec::new();
        let spans = with_telemetry(&[], |telemetry| {
            for parent in [Context::new(), remote(0b01), remote(0b11)] {
                let reserved = telemetry.reserve_span().unwrap();
                ids.push((reserved.trace_id(), reserved.span_id()));
                let promised = reserved.span_context(&parent);
                let span = reserved.start(parent, || info_span!("work"));
                assert_eq!(of(&span), promised);
                assert!(promised.is_sampled());
            }
        });
        let expected = [(ids[0].0, ids[0].1), (7.into(), ids[1].1), (7.into(), ids[2].1)];
        let seen = spans.spans();
        let seen = seen.iter().map(|span| (span.trace_id, span.span_id));
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        let parents = spans.spans();
        let parents = parents.iter().map(|span| span.parent_span_id);
        assert_eq!(
            parents.collect::<Vec<_>>(),
            [None, Some(8.into()), Some(8.into())]
        );
    }

    #[test]
    fn a_span_of_an_unsampled_trace_has_its_id_and_is_not_sampled() {
        let invalid = Context::new().with_remote_span_context(SpanContext::empty_context());
        let spans = with_telemetry(&[], |telemetry| {
            for parent in [remote(0b00), remote(0b10), invalid.clone()] {
                let reserved = telemetry.reserve_span().unwrap();
                let promised = reserved.span_context(&parent);
                let span = reserved.start(parent, || info_span!("work"));
                assert_eq!(of(&span), promised);
                assert_eq!(promised.trace_flags(), TraceFlags::default());
            }
        });
        assert_eq!(spans.spans(), []);
    }

    #[test]
    fn no_other_span_gets_the_ids() {
        let mut ids = Vec::new();
        let spans = with_telemetry(&[], |telemetry| {
            let mut reserve = || {
                let reserved = telemetry.reserve_span().unwrap();
                ids.push(reserved.span_id());
                reserved
            };
            // It makes another span first, is disabled, has started before, may not start, or panics.
            let _span = reserve().start(Context::new(), || {
                info_span!("other").in_scope(|| {});
                info_span!("reserved")
            });
            let _disabled = reserve().start(Context::new(), || debug_span!("disabled"));
            let _started = reserve().start(Context::new(), || {
                let span = info_span!("started");
                span.in_scope(|| {});
                span
            });
            let suppressed = Context::new().with_telemetry_suppressed();
            let _never = reserve().start(suppressed, || info_span!("never"));
            info_span!("next").in_scope(|| {});
            let panics = || reserve().start(Context::new(), || panic!("on purpose"));
            catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
            info_span!("next").in_scope(|| {});
        });
        let with_reserved: Vec<_> = spans
            .spans()
            .into_iter()
            .filter(|span| ids.contains(&span.span_id))
            .map(|span| span.name)
            .collect();
        assert_eq!(with_reserved, ["reserved"]);
        let traces = spans.trace_ids();
        assert_eq!(traces.len(), spans.spans().len(), "each has a trace of its own");
    }

    #[test]
    fn a_span_that_a_processor_starts_meanwhile_has_ids_of_its_own() {
        /// Starts a root span for each span.
        #[derive(Debug)]
        struct Starts {
            provider: SdkTracerProvider,
            started: Arc<Mutex<Vec<SpanContext>>>,
        }
        impl SpanProcessor for Starts {
            fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {
                let own = self
                    .provider
                    .tracer("own")
                    .start_with_context("own", &Context::new());
                self.started.lock().unwrap().push(own.span_context().clone());
            }
            fn on_end(&self, _: SpanData) {}
            fn force_flush(&self) -> OTelSdkResult {
                Ok(())
            }
            fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
                Ok(())
            }
        }
        let provider = SdkTracerProvider::builder().with_id_generator(Ids).build();
        let started = Arc::default();
        let starts = Starts {
            provider,
            started: Arc::clone(&started),
        };
        let builder = Telemetry::builder("test").env(Env::default()).without_logs();
        let (layer, telemetry) = builder.span_processor(starts).into_layer().unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for parent in [Context::new(), remote(1)] {
                let reserved = telemetry.handle().reserve_span().unwrap();
                let (trace_id, promised) = (reserved.trace_id(), reserved.span_context(&parent));
                assert_eq!(of(&reserved.start(parent, || info_span!("work"))), promised);
                let own = started.lock().unwrap().pop().unwrap();
                assert!(own.span_id() != promised.span_id() && own.trace_id() != trace_id);
            }
        });
    }

    #[test]
    fn what_follows_a_sampler_of_its_own_can_not_be_reserved() {
        assert!(TelemetryHandle::disabled().reserve_span().is_none());
        let reserves = |sampler: &str| {
            let mut reserves = false;
            let env = [("OTEL_TRACES_SAMPLER", sampler)];
            with_telemetry(&env, |telemetry| reserves = telemetry.reserve_span().is_some());
            reserves
        };
        assert!(reserves("ParentBased_Always_On"));
        for other in [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ] {
            assert!(!reserves(other), "{other}");
        }
    }

    #[test]
    fn ids_are_random_and_never_zero() {
        let mut spans: Vec<_> = (0..1000).map(|_| Ids.new_span_id()).collect();
        let mut traces: Vec<_> = (0..1000).map(|_| Ids.new_trace_id()).collect();
        spans.sort_unstable_by_key(|id| id.to_bytes());
        traces.sort_unstable_by_key(|id| id.to_bytes());
        spans.dedup();
        traces.dedup();
        assert_eq!((spans.len(), traces.len()), (1000, 1000));

        let mut zero_first = [SpanId::INVALID, SpanId::from(1)].into_iter();
        assert_eq!(
            other_than(SpanId::INVALID, || zero_first.next().unwrap()),
            SpanId::from(1)
        );
    }
}
