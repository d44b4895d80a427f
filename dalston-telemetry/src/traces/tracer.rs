//! Spans that only the exporter wants to see.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use opentelemetry::trace::{
    Event, Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    IdGenerator, Sampler, SamplingDecision, SamplingResult, SdkTracer, ShouldSample, SpanLimits,
};

use crate::export::Pipeline;
use crate::traces::ended::EndedSpan;
use crate::traces::ids::Ids;
use crate::traces::{limits, sampler};

/// A tracer that does what the SDK's does, where no processor has to be shown a span of the SDK when it starts.
///
/// The SDK moves some 400 bytes of a span several times and copies what its end needs. Here they are put in their place once,
/// and the exporter looks at them there.
pub(crate) struct Tracer<E> {
    shared: Arc<Shared<E>>,
}

/// The tracer behind the layer that makes spans of those of `tracing`.
#[derive(Clone, Debug)]
pub(crate) enum SpanTracer {
    Sdk(SdkTracer),
    Direct(Tracer<Export>),
}

impl SpanTracer {
    /// Makes no spans from now on. The SDK's tracer hears of it from its provider.
    pub(crate) fn end(&self) {
        if let Self::Direct(tracer) = self {
            tracer.end();
        }
    }
}

/// To the exporter, as [`Processors`](crate::traces::limits::Processors) would show them to it.
pub(crate) struct Export {
    pub(crate) pipeline: Pipeline,
    pub(crate) value_length: Option<usize>,
}

impl End for Export {
    fn span(&self, mut span: EndedSpan<'_>) {
        limits::clean(&mut span, self.value_length);
        self.pipeline.take(&span);
    }
}

/// What becomes of spans that have ended.
pub(crate) trait End: Send + Sync + 'static {
    /// Takes what it wants of a span.
    fn span(&self, span: EndedSpan<'_>);
}

struct Shared<E> {
    scope: InstrumentationScope,
    sampler: Sampler,
    /// Whether the sampler is the default one: then it need not be asked.
    follows_parents: bool,
    limits: SpanLimits,
    /// As that of a provider that is shut down. Until then spans have ids, whether or not the exporter still takes them.
    is_over: AtomicBool,
    end: E,
}

impl<E> Tracer<E> {
    pub(crate) fn new(scope: InstrumentationScope, sampler: Sampler, limits: SpanLimits, end: E) -> Self {
        Self {
            shared: Arc::new(Shared {
                scope,
                follows_parents: sampler::follows_parents_alone(&sampler),
                sampler,
                limits,
                is_over: AtomicBool::new(false),
                end,
            }),
        }
    }

    /// Makes no spans from now on; those that there are can end.
    fn end(&self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl<E> Clone for Tracer<E> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<E> fmt::Debug for Tracer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

impl<E: End> opentelemetry::trace::Tracer for Tracer<E> {
    type Span = Span<E>;

    fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> Span<E> {
        let shared = &*self.shared;
        if parent.is_telemetry_suppressed() || shared.is_over.load(Ordering::Relaxed) {
            return Span {
                context: SpanContext::NONE,
                recorded: None,
            };
        }
        // In the order in which the SDK asks for them, see `ids`.
        let span_id = Ids.new_span_id();
        let parent_span = parent.span();
        let above = Some(parent_span.span_context()).filter(|above| above.is_valid());
        let trace_id = above.map_or_else(|| Ids.new_trace_id(), SpanContext::trace_id);
        let sampled = match shared.follows_parents {
            true => SamplingResult {
                decision: match !parent.has_active_span() || parent_span.span_context().is_sampled() {
                    true => SamplingDecision::RecordAndSample,
                    false => SamplingDecision::Drop,
                },
                attributes: Vec::new(),
                trace_state: parent_span.span_context().trace_state().clone(),
            },
            false => shared.sampler.should_sample(
                Some(parent),
                trace_id,
                &builder.name,
                builder.span_kind.as_ref().unwrap_or(&SpanKind::Internal),
                builder.attributes.as_deref().unwrap_or_default(),
                builder.links.as_deref().unwrap_or_default(),
            ),
        };
        if sampled.decision != SamplingDecision::RecordAndSample {
            let flags = TraceFlags::default();
            return Span {
                context: SpanContext::new(trace_id, span_id, flags, false, sampled.trace_state),
                recorded: None,
            };
        }
        let flags = above.map(SpanContext::trace_flags).unwrap_or_default();
        Span {
            context: SpanContext::new(
                trace_id,
                span_id,
                flags.with_sampled(true),
                false,
                sampled.trace_state,
            ),
            recorded: Some(Recorded::new(&self.shared, above, builder, sampled.attributes)),
        }
    }
}

/// A span, until its context is dropped.
pub(crate) struct Span<E: End> {
    context: SpanContext,
    /// Until it ends, and only if it is sampled.
    recorded: Option<Recorded<E>>,
}

struct Recorded<E> {
    parent_span_id: SpanId,
    parent_span_is_remote: bool,
    kind: SpanKind,
    name: Cow<'static, str>,
    start_time: SystemTime,
    attributes: Vec<KeyValue>,
    dropped_attributes: u32,
    /// Whether there were as many as there may be: from then on each key stands there once.
    is_full: bool,
    events: Vec<Event>,
    dropped_events: u32,
    links: Vec<Link>,
    dropped_links: u32,
    status: Status,
    shared: Arc<Shared<E>>,
}

impl<E> Recorded<E> {
    fn new(
        shared: &Arc<Shared<E>>,
        parent: Option<&SpanContext>,
        builder: SpanBuilder,
        of_sampler: Vec<KeyValue>,
    ) -> Self {
        let SpanBuilder {
            name,
            start_time,
            span_kind,
            attributes,
            events,
            links,
            ..
        } = builder;
        let limits = &shared.limits;
        let mut attributes = attributes.unwrap_or_default();
        attributes.extend(of_sampler);
        let is_full = attributes.len() > limits.max_attributes_per_span as usize;
        if is_full {
            limits::keep_last_values(&mut attributes);
        }
        let dropped_attributes = limit(&mut attributes, limits.max_attributes_per_span);
        let mut events = events.unwrap_or_default();
        let dropped_events = limit(&mut events, limits.max_events_per_span);
        for event in &mut events {
            event.dropped_attributes_count = limit(&mut event.attributes, limits.max_attributes_per_event);
        }
        let mut links = links.unwrap_or_default();
        let dropped_links = limit(&mut links, limits.max_links_per_span);
        for link in &mut links {
            link.dropped_attributes_count = limit(&mut link.attributes, limits.max_attributes_per_link);
        }
        Self {
            parent_span_id: parent.map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: parent.is_some_and(SpanContext::is_remote),
            kind: span_kind.unwrap_or(SpanKind::Internal),
            name,
            start_time: start_time.unwrap_or_else(SystemTime::now),
            attributes,
            dropped_attributes,
            is_full,
            events,
            dropped_events,
            links,
            dropped_links,
            status: Status::Unset,
            shared: Arc::clone(shared),
        }
    }
}

/// Shortens a list, and tells by how much.
fn limit<T>(list: &mut Vec<T>, most: u32) -> u32 {
    let most = most as usize;
    let dropped = list.len().saturating_sub(most);
    list.truncate(most);
    dropped as u32
}

impl<E: End> Span<E> {
    fn recorded(&mut self) -> Option<(&mut Recorded<E>, SpanLimits)> {
        let recorded = self.recorded.as_mut()?;
        let limits = recorded.shared.limits;
        Some((recorded, limits))
    }
}

impl<E: End> opentelemetry::trace::Span for Span<E> {
    fn add_event_with_timestamp<T>(&mut self, name: T, timestamp: SystemTime, mut attributes: Vec<KeyValue>)
    where
        T: Into<Cow<'static, str>>,
    {
        let Some((recorded, limits)) = self.recorded() else {
            return;
        };
        if recorded.events.len() < limits.max_events_per_span as usize {
            let dropped = limit(&mut attributes, limits.max_attributes_per_event);
            let event = Event::new(name, timestamp, attributes, dropped);
            recorded.events.push(event);
        } else {
            recorded.dropped_events += 1;
        }
    }

    fn span_context(&self) -> &SpanContext {
        &self.context
    }

    fn is_recording(&self) -> bool {
        self.recorded.is_some()
    }

    fn set_attribute(&mut self, attribute: KeyValue) {
        let Some((recorded, limits)) = self.recorded() else {
            return;
        };
        let has_room =
            |recorded: &Recorded<E>| recorded.attributes.len() < limits.max_attributes_per_span as usize;
        if !recorded.is_full && !has_room(recorded) {
            recorded.is_full = true;
            limits::keep_last_values(&mut recorded.attributes);
        }
        // A value that is set again takes no room. The SDK keeps what was set first, and loses what counts.
        if recorded.is_full
            && let Some(known) = (recorded.attributes.iter_mut()).find(|known| known.key == attribute.key)
        {
            known.value = attribute.value;
        } else if has_room(recorded) {
            recorded.attributes.push(attribute);
        } else {
            recorded.dropped_attributes += 1;
        }
    }

    fn set_status(&mut self, status: Status) {
        if let Some(recorded) = &mut self.recorded
            // Their order says which of two counts.
            && status > recorded.status
        {
            recorded.status = status;
        }
    }

    fn update_name<T>(&mut self, new_name: T)
    where
        T: Into<Cow<'static, str>>,
    {
        if let Some(recorded) = &mut self.recorded {
            recorded.name = new_name.into();
        }
    }

    fn add_link(&mut self, span_context: SpanContext, mut attributes: Vec<KeyValue>) {
        let Some((recorded, limits)) = self.recorded() else {
            return;
        };
        if recorded.links.len() < limits.max_links_per_span as usize {
            let dropped = limit(&mut attributes, limits.max_attributes_per_link);
            recorded.links.push(Link::new(span_context, attributes, dropped));
        } else {
            recorded.dropped_links += 1;
        }
    }

    fn end_with_timestamp(&mut self, timestamp: SystemTime) {
        // Also if what looks at the span panics: it has ended then.
        let ending = Ending(&mut self.recorded);
        let Some(recorded) = ending.0 else {
            return;
        };
        let shared = &recorded.shared;
        shared.end.span(EndedSpan {
            span_context: &self.context,
            parent_span_id: recorded.parent_span_id,
            parent_span_is_remote: recorded.parent_span_is_remote,
            span_kind: &recorded.kind,
            name: &mut recorded.name,
            start_time: recorded.start_time,
            end_time: timestamp,
            attributes: &mut recorded.attributes,
            dropped_attributes_count: recorded.dropped_attributes,
            events: &mut recorded.events,
            dropped_events_count: recorded.dropped_events,
            links: &mut recorded.links,
            dropped_links_count: recorded.dropped_links,
            status: &mut recorded.status,
            instrumentation_scope: &shared.scope,
        });
    }
}

struct Ending<'a, E>(&'a mut Option<Recorded<E>>);

impl<E> Drop for Ending<'_, E> {
    fn drop(&mut self) {
        *self.0 = None;
    }
}

impl<E: End> Drop for Span<E> {
    fn drop(&mut self) {
        if self.is_recording() {
            self.end();
        }
    }
}

impl<E: End> fmt::Debug for Span<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, UNIX_EPOCH};

    use opentelemetry::trace::{TraceId, TraceState, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};

    use tracing::info_span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::metrics::DropReason;
    use crate::setup::telemetry::Tracing;
    use crate::{Env, Telemetry};

    /// Keeps what it is shown, as the SDK would have it.
    #[derive(Clone, Debug, Default)]
    struct Kept {
        spans: Arc<Mutex<Vec<SpanData>>>,
    }

    impl End for Kept {
        fn span(&self, span: EndedSpan<'_>) {
            self.spans.lock().unwrap().push(span.data());
        }
    }

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.spans.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    fn samplers() -> Vec<Sampler> {
        let plain = [
            Sampler::AlwaysOn,
            Sampler::AlwaysOff,
            Sampler::TraceIdRatioBased(0.0),
            HALF,
            Sampler::TraceIdRatioBased(1.0),
        ];
        let of_parents = |sampler: &Sampler| Sampler::ParentBased(Box::new(sampler.clone()));
        plain
            .iter()
            .cloned()
            .chain(plain.iter().map(of_parents))
            .collect()
    }

    /// Tosses a coin for a trace that begins.
    const HALF: Sampler = Sampler::TraceIdRatioBased(0.5);

    fn tosses_coins(sampler: &Sampler) -> bool {
        format!("{sampler:?}").contains(&format!("{HALF:?}"))
    }

    /// Few of each, and none.
    fn limits() -> [SpanLimits; 2] {
        [
            SpanLimits {
                max_attributes_per_span: 3,
                max_events_per_span: 2,
                max_links_per_span: 2,
                max_attributes_per_event: 1,
                max_attributes_per_link: 1,
            },
            SpanLimits {
                max_attributes_per_span: 0,
                max_events_per_span: 0,
                max_links_per_span: 0,
                max_attributes_per_event: 0,
                max_attributes_per_link: 0,
            },
        ]
    }

    fn parents() -> Vec<Context> {
        let parent = |trace_id: u128, id: u64, flags: u8, is_remote: bool| {
            Context::new().with_remote_span_context(SpanContext::new(
                TraceId::from(trace_id),
                SpanId::from(id),
                TraceFlags::new(flags),
                is_remote,
                TraceState::from_key_value([("vendor", "x")]).unwrap(),
            ))
        };
        let remote = |id, flags| parent(7, id, flags, true);
        vec![
            Context::new(),
            remote(8, 0b00),
            remote(8, 0b01),
            remote(8, 0b11),
            parent(7, 8, 0b00, false),
            parent(7, 8, 0b01, false),
            // On the other side of a half.
            parent(u128::MAX, 8, 0b01, true),
            // As wrong as it gets.
            remote(0, 0b01),
            Context::new().with_remote_span_context(SpanContext::NONE),
            Context::new().with_telemetry_suppressed(),
        ]
    }

    fn attributes(count: i64) -> Vec<KeyValue> {
        (0..count)
            .map(|number| KeyValue::new(format!("key.{number}"), number))
            .collect()
    }

    fn time(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Everything that can be done to a span, with what its caller sees.
    fn work<T: opentelemetry::trace::Tracer>(
        tracer: &T,
        parents: &[Context],
    ) -> Vec<(SpanContext, [bool; 2])> {
        let link = |id: u64| {
            SpanContext::new(
                TraceId::from(1),
                SpanId::from(id),
                TraceFlags::SAMPLED,
                true,
                TraceState::NONE,
            )
        };
        let mut seen = Vec::new();
        for parent in parents {
            for many in [0, 1, 5] {
                let event = || Event::new("first", time(2), attributes(many), 0);
                let linked = || Link::new(link(1), attributes(many), 0);
                let builder = tracer
                    .span_builder("early")
                    .with_start_time(time(1))
                    .with_attributes(attributes(many))
                    .with_events((0..many).map(|_| event()).collect())
                    .with_links((0..many).map(|_| linked()).collect())
                    .with_kind(SpanKind::Consumer);
                let mut span = builder.start_with_context(tracer, parent);
                let was_recording = span.is_recording();
                for number in 0..many {
                    span.set_attribute(KeyValue::new(format!("late.{number}"), number));
                    span.add_event_with_timestamp("late", time(3), attributes(many));
                    span.add_link(link(2), attributes(many));
                }
                if many == 1 {
                    span.set_attribute(KeyValue::new("late.0", "again"));
                }
                span.set_status(Status::Unset);
                if many > 0 {
                    span.update_name("late");
                    span.set_status(Status::error("first"));
                    span.set_status(Status::Unset);
                }
                if many > 1 {
                    span.set_status(Status::Ok);
                    span.set_status(Status::error("later"));
                }
                span.end_with_timestamp(time(4));
                span.update_name("too late");
                span.end_with_timestamp(time(5));
                seen.push((span.span_context().clone(), [was_recording, span.is_recording()]));
            }
        }
        seen
    }

    /// Without what is random.
    fn without_ids(context: &SpanContext) -> (bool, TraceId, TraceFlags, bool, String) {
        let trace_id = match context.trace_id() {
            known if [7, u128::MAX].map(TraceId::from).contains(&known) => known,
            random => TraceId::from(u128::from(random != TraceId::INVALID)),
        };
        (
            context.span_id() != SpanId::INVALID,
            trace_id,
            context.trace_flags(),
            context.is_remote(),
            context.trace_state().header(),
        )
    }

    /// But for attributes that are set again at the limit.
    #[test]
    fn spans_are_those_of_the_sdk() {
        for (sampler, limits) in samplers()
            .into_iter()
            .flat_map(|sampler| limits().map(|limits| (sampler.clone(), limits)))
        {
            let (of_sdk, direct) = (Kept::default(), Kept::default());
            let scope = InstrumentationScope::builder("scope").with_version("1").build();
            let provider = SdkTracerProvider::builder()
                .with_sampler(sampler.clone())
                .with_span_limits(limits)
                .with_span_processor(of_sdk.clone())
                .build();
            let is_certain =
                |parent: &Context| parent.span().span_context().is_valid() || !tosses_coins(&sampler);
            let parents: Vec<_> = parents().into_iter().filter(is_certain).collect();
            let expected = work(&provider.tracer_with_scope(scope.clone()), &parents);
            let seen = work(
                &Tracer::new(scope, sampler.clone(), limits, direct.clone()),
                &parents,
            );
            let plain = |seen: Vec<(SpanContext, _)>| -> Vec<_> {
                seen.into_iter()
                    .map(|(context, recording)| (without_ids(&context), recording))
                    .collect()
            };
            assert_eq!(plain(seen), plain(expected), "{sampler:?}");
            let plain = |kept: &Kept| -> Vec<_> {
                let spans = kept.spans.lock().unwrap().clone();
                spans
                    .into_iter()
                    .map(|mut span| {
                        let context = without_ids(&span.span_context);
                        span.span_context = SpanContext::NONE;
                        (context, format!("{span:?}"))
                    })
                    .collect()
            };
            assert_eq!(plain(&direct), plain(&of_sdk), "{sampler:?}");
        }
    }

    fn tracer<E: End>(limits: SpanLimits, end: E) -> Tracer<E> {
        Tracer::new(InstrumentationScope::default(), Sampler::AlwaysOn, limits, end)
    }

    fn start<E: End>(tracer: &Tracer<E>, attributes: Vec<KeyValue>) -> Span<E> {
        let builder = tracer.span_builder("work").with_attributes(attributes);
        builder.start_with_context(tracer, &Context::new())
    }

    #[test]
    fn at_the_limit_of_attributes_the_last_value_of_each_counts() {
        let kept = Kept::default();
        let [limits, _] = limits();
        let tracer = tracer(limits, kept.clone());
        let text = |values: &[(&str, i64)]| -> Vec<_> {
            let attributes = values.iter().map(|(key, value)| format!("{key}={value}"));
            attributes.collect()
        };
        let ended = |span: Span<Kept>| {
            drop(span);
            let span = kept.spans.lock().unwrap().pop().unwrap();
            let attributes = span.attributes.iter();
            let attributes: Vec<_> = attributes
                .map(|attribute| format!("{}={}", attribute.key, attribute.value))
                .collect();
            (attributes, span.dropped_attributes_count)
        };

        let mut progress = start(&tracer, Vec::new());
        for number in 0..200 {
            progress.set_attribute(KeyValue::new("progress", number));
        }
        progress.set_attribute(KeyValue::new("result", 1));
        assert_eq!(ended(progress), (text(&[("progress", 199), ("result", 1)]), 0));

        let mut others = start(&tracer, attributes(3));
        for number in 0..5 {
            others.set_attribute(KeyValue::new("key.1", 10 + number));
            others.set_attribute(KeyValue::new("other", number));
        }
        assert_eq!(
            ended(others),
            (text(&[("key.0", 0), ("key.1", 14), ("key.2", 2)]), 5)
        );

        let of_builder = (0..9).map(|number| KeyValue::new(format!("key.{}", number % 2), number));
        let of_builder = start(&tracer, of_builder.collect());
        assert_eq!(ended(of_builder), (text(&[("key.0", 8), ("key.1", 7)]), 0));
    }

    #[test]
    fn a_span_ends_once_though_what_looks_at_it_panics() {
        #[derive(Clone, Default)]
        struct Panics(Arc<AtomicUsize>);
        impl End for Panics {
            fn span(&self, _: EndedSpan<'_>) {
                self.0.fetch_add(1, Ordering::Relaxed);
                panic!("on purpose");
            }
        }
        let panics = Panics::default();
        let tracer = tracer(SpanLimits::default(), panics.clone());
        let ends = || start(&tracer, Vec::new()).end();
        // A second panic while the first one unwinds would end the process.
        catch_unwind(AssertUnwindSafe(ends)).unwrap_err();
        assert_eq!(panics.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_span_that_is_dropped_ends_now() {
        let kept = Kept::default();
        let tracer = Tracer::new(
            InstrumentationScope::default(),
            Sampler::AlwaysOn,
            SpanLimits::default(),
            kept.clone(),
        );
        let before = SystemTime::now();
        drop(
            tracer
                .span_builder("dropped")
                .start_with_context(&tracer, &Context::new()),
        );
        let span = kept.spans.lock().unwrap().pop().unwrap();
        assert!(before <= span.start_time && span.start_time <= span.end_time);
        assert!(kept.spans.lock().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_recorded_when_it_is_over() {
        let kept = Kept::default();
        let tracer = tracer(SpanLimits::default(), kept.clone());
        let before = start(&tracer, Vec::new());
        tracer.end();
        let span = start(&tracer, Vec::new());
        assert!(!span.is_recording() && !span.span_context().is_valid());
        drop(span);
        assert!(kept.spans.lock().unwrap().is_empty());
        drop(before);
        assert_eq!(kept.spans.lock().unwrap().len(), 1);
    }

    #[test]
    fn spans_have_ids_and_are_counted_until_telemetry_has_ended() {
        // Nobody listens there.
        let env = [
            ("OTEL_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ];
        let builder = Telemetry::builder("test")
            .env(Env::from_pairs(env))
            .without_logs();
        let (layer, telemetry) = builder.into_layer().unwrap();
        let Tracing { spans, pipeline, .. } = telemetry.tracing().unwrap();
        assert!(matches!(spans, SpanTracer::Direct(_)));
        let pipeline = pipeline.clone().unwrap();
        let handle = telemetry.handle();
        let dropped = || handle.export_stats().dropped(DropReason::Shutdown);
        let is_valid = || {
            let span = info_span!("work");
            span.context().span().span_context().is_valid()
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            // The exporter ends first, be it because it was told to or because it panicked.
            pipeline.shutdown_blocking(Duration::ZERO).unwrap();
            assert!(is_valid());
            assert_eq!(dropped(), 1);
            telemetry.shutdown_blocking().unwrap_err();
            assert!(!is_valid());
            assert_eq!(dropped(), 1);
        });
    }
}
