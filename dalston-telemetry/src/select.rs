//! Which spans and events go where: to OpenTelemetry, into log lines, or nowhere.

use std::cell::Cell;

use opentelemetry::trace::Tracer;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::layer::{Context, Filter, Identity, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::builder::TelemetryLayer;
use crate::format::{LogLayer, LogSettings, SpanFields, has_ids};
use crate::tracer::SpanTracer;

/// What a subscriber is made of.
pub(crate) struct Parts {
    pub(crate) tracer: Option<SpanTracer>,
    pub(crate) span_level: LevelFilter,
    pub(crate) logs: Option<LogSettings>,
}

impl Parts {
    /// For a subscriber with layers of others, who may want what we don't.
    pub(crate) fn beside_others<S>(self) -> TelemetryLayer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        // Every part has a filter of its own, and none stands in an `Option`: only then is nobody interested in
        // spans when tracing is off, and do the parts learn which subscriber they belong to.
        match (self.tracer, self.logs) {
            (Some(SpanTracer::Sdk(tracer)), logs) => filtered(tracer, self.span_level, logs),
            (Some(SpanTracer::Direct(tracer)), logs) => filtered(tracer, self.span_level, logs),
            (None, Some(logs)) => Box::new(filtered_logs(&logs, None)),
            (None, None) => Box::new(Layer::<S>::with_filter(Identity::new(), LevelFilter::OFF)),
        }
    }

    /// For a subscriber that has nothing else: there nobody needs filters of layers, each of which looks a span up
    /// whenever it is made, entered, left and closed.
    pub(crate) fn alone(self) -> TelemetryLayer<Registry> {
        match self.tracer {
            Some(SpanTracer::Sdk(tracer)) => selected(tracer, self.span_level, self.logs),
            Some(SpanTracer::Direct(tracer)) => selected(tracer, self.span_level, self.logs),
            None => self.beside_others(),
        }
    }
}

fn filtered<S, T>(tracer: T, level: LevelFilter, logs: Option<LogSettings>) -> TelemetryLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    T: Tracer<Span: Send + Sync> + Send + Sync + 'static,
{
    let spans = span_layer(tracer).with_filter(ExportedSpans { level });
    match logs {
        Some(logs) => Box::new(
            spans
                .and_then(SpanFields::layer(level))
                .and_then(filtered_logs(&logs, Some(level))),
        ),
        None => Box::new(spans),
    }
}

/// With the level of the spans from which lines inherit, if there are any.
fn filtered_logs<S>(logs: &LogSettings, spans: Option<LevelFilter>) -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = logs.filter.clone().beside(spans.unwrap_or(LevelFilter::OFF));
    Layer::<S>::with_filter(LogLayer::new(logs, spans.is_some()), filter)
}

fn selected<T>(tracer: T, level: LevelFilter, logs: Option<LogSettings>) -> TelemetryLayer<Registry>
where
    T: Tracer<Span: Send + Sync> + Send + Sync + 'static,
{
    let selection = Selection {
        spans: ExportedSpans { level },
        logs: logs.map(|logs| LogLayer::new(&logs, true)),
    };
    Box::new(span_layer(tracer).and_then(selection))
}

fn span_layer<S, T>(tracer: T) -> OpenTelemetryLayer<S, T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    T: Tracer<Span: Send + Sync> + 'static,
{
    // Who reads a trace looks at names and times. Where in the source a span begins would alone be a sixth of what the
    // span costs; its thread, and how long it was not entered, come on top of that.
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
}

/// Decides by the callsite alone which spans and span events reach OpenTelemetry.
///
/// Left out are the crates that an exporter is made of: what they do while they export would itself be exported.
struct ExportedSpans {
    level: LevelFilter,
}

impl ExportedSpans {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && !is_exporters(metadata)
    }
}

impl<S> Filter<S> for ExportedSpans {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }
}

fn is_exporters(metadata: &Metadata<'_>) -> bool {
    const EXPORTER_CRATES: [&str; 10] = [
        "h2",
        "hyper",
        "hyper_util",
        "hyper_rustls",
        "reqwest",
        "rustls",
        "tokio_rustls",
        "tonic",
        "tower",
        "tokio_util",
    ];
    let target = metadata.target();
    let name = target.split("::").next().unwrap_or(target);
    EXPORTER_CRATES.contains(&name)
        || name.starts_with("opentelemetry")
        || target.starts_with(crate::telemetry::REPORTS)
        || target == crate::panic::PANICS
}

/// Stands above OpenTelemetry's layer, decides for the whole subscriber what there is, and writes the log lines.
///
/// What is only a log line is written where it is asked whether there is such an event, and then there is none: that
/// keeps it from OpenTelemetry's layer, which without a filter of its own would add it to the span.
struct Selection {
    spans: ExportedSpans,
    logs: Option<LogLayer>,
}

impl Selection {
    fn logs(&self, metadata: &Metadata<'_>) -> bool {
        self.logs
            .as_ref()
            .is_some_and(|logs| logs.filter().enables(metadata))
    }
}

impl<S> Layer<S> for Selection
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        if let Some(logs) = &self.logs {
            logs.filter().belongs_to(dispatch);
        }
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.spans.wants(metadata) || self.logs(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.spans.wants(metadata) || self.logs(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let of_logs = self.logs.as_ref().map(|logs| logs.filter().most_verbose());
        of_logs.into_iter().chain([self.spans.level]).max()
    }

    fn event_enabled(&self, event: &Event<'_>, cx: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if let Some(logs) = &self.logs
            && logs.filter().enables(metadata)
        {
            logs.write(event, &cx);
        }
        *metadata.level() <= self.spans.level && !Callsite::of(metadata).is_exporters
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        if self.logs.is_some() && Callsite::of(attributes.metadata()).has_ids {
            SpanFields.on_new_span(attributes, id, cx);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        if self.logs.is_some()
            && cx
                .metadata(id)
                .is_some_and(|metadata| Callsite::of(metadata).has_ids)
        {
            SpanFields.on_record(id, values, cx);
        }
    }
}

/// What can be told of a place in the program, whatever the settings.
#[derive(Clone, Copy)]
struct Callsite {
    metadata: Option<&'static Metadata<'static>>,
    is_exporters: bool,
    has_ids: bool,
}

impl Callsite {
    fn of(metadata: &'static Metadata<'static>) -> Self {
        /// A power of two.
        const KNOWN: usize = 64;
        const NONE: Callsite = Callsite {
            metadata: None,
            is_exporters: false,
            has_ids: false,
        };
        thread_local! {
            static CALLSITES: [Cell<Callsite>; KNOWN] = const { [const { Cell::new(NONE) }; KNOWN] };
        }
        // The lowest bits of all addresses are alike.
        let place = (std::ptr::from_ref(metadata).addr() >> 5) % KNOWN;
        CALLSITES.with(|callsites| {
            let known = callsites[place].get();
            if known.metadata.is_some_and(|known| std::ptr::eq(known, metadata)) {
                return known;
            }
            let callsite = Self {
                metadata: Some(metadata),
                is_exporters: is_exporters(metadata),
                has_ids: has_ids(metadata),
            };
            callsites[place].set(callsite);
            callsite
        })
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Status, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::{debug, debug_span, error, info, info_span};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::collect::SpanCollector;
    use crate::format::{LogBuffer, LogFormat, LogWriter};
    use crate::metrics::{Metrics, TelemetryMetrics};
    use crate::{CollectedSpan, Env};

    struct Program {
        dispatch: Dispatch,
        most_verbose: Option<LevelFilter>,
        spans: SpanCollector,
        lines: LogBuffer,
        metrics: Metrics,
    }

    impl Program {
        /// With layers of others in its subscriber, and with none.
        fn of_both_kinds(logs: bool) -> [Self; 2] {
            [true, false].map(|others| {
                let metrics = Metrics::new();
                let spans = SpanCollector::new();
                let provider = SdkTracerProvider::builder().with_span_processor(spans.clone());
                let (writer, lines) = LogWriter::buffer();
                let settings = LogSettings::read(
                    &Env::default(),
                    "test",
                    None,
                    Some(LogFormat::Json),
                    LevelFilter::DEBUG,
                    writer,
                    TelemetryMetrics::register(&metrics),
                );
                let parts = Parts {
                    tracer: Some(SpanTracer::Sdk(provider.build().tracer("test"))),
                    span_level: LevelFilter::INFO,
                    logs: logs.then(|| settings.unwrap()),
                };
                let subscriber = Registry::default().with(match others {
                    true => parts.beside_others(),
                    false => parts.alone(),
                });
                Self {
                    most_verbose: subscriber.max_level_hint(),
                    dispatch: Dispatch::new(subscriber),
                    spans,
                    lines,
                    metrics,
                }
            })
        }

        fn run(&self, work: impl FnOnce()) {
            tracing::dispatcher::with_default(&self.dispatch, work);
        }

        fn only_span(&self) -> CollectedSpan {
            let [span] = <[_; 1]>::try_from(self.spans.spans()).unwrap();
            span
        }
    }

    fn work() {
        info_span!("work").in_scope(|| {
            info!("told to both");
            debug!("too detailed for a span");
            error!(target: "hyper::client", "of a crate that exports");
            error!(target: crate::telemetry::REPORTS, "of the exporter");
            debug_span!("too detailed").in_scope(|| info!("within it"));
            info_span!(target: "h2", "of a crate that exports").in_scope(|| {});
        });
    }

    #[test]
    fn what_is_only_logged_does_not_get_into_a_span() {
        for program in Program::of_both_kinds(true) {
            program.run(work);
            let span = program.only_span();
            let events: Vec<_> = span.events.iter().map(|event| event.name.as_ref()).collect();
            assert_eq!(events, ["told to both", "within it"]);
            assert_eq!(span.status, Status::Unset);
            assert_eq!(program.lines.lines().len(), 5);
            let counts = program.metrics.encode();
            for (level, count) in [("error", 2), ("warning", 0), ("info", 2), ("debug", 1)] {
                let series = format!("dalston_log_messages_total{{level=\"{level}\"}} {count}\n");
                assert!(counts.contains(&series), "{counts}");
            }
        }
    }

    #[test]
    fn without_log_lines_spans_are_the_same() {
        for program in Program::of_both_kinds(false) {
            program.run(work);
            let span = program.only_span();
            assert_eq!((span.name.as_ref(), span.events.len()), ("work", 2));
            assert_eq!(program.lines.lines().len(), 0);
        }
    }

    #[test]
    fn nobody_is_asked_about_what_nobody_wants() {
        for (logs, level) in [(true, LevelFilter::DEBUG), (false, LevelFilter::INFO)] {
            for program in Program::of_both_kinds(logs) {
                program.run(|| {
                    let is_wanted = |metadata| !program.dispatch.register_callsite(metadata).is_never();
                    // Asked directly, because what other tests of this process do has a say in whether a span exists.
                    let wanted = info_span!("wanted");
                    assert!(wanted.metadata().is_some_and(is_wanted));
                    let unwanted = info_span!(target: "h2", "unwanted");
                    assert!(!unwanted.metadata().is_some_and(is_wanted));
                    assert_eq!(program.most_verbose, Some(level));
                });
            }
        }
    }

    #[test]
    fn spans_can_be_changed_from_outside_and_ids_recorded_late_are_in_the_lines() {
        for program in Program::of_both_kinds(true) {
            program.run(|| {
                let span = info_span!("work", task_id = tracing::field::Empty, other = 1);
                span.record("task_id", "t-1");
                span.set_attribute("set", "from outside");
                span.in_scope(|| info!("within"));
            });
            let span = program.only_span();
            assert!(span.attribute("set").is_some());
            assert!(
                program.lines.text().contains(r#""task_id":"t-1""#),
                "{}",
                program.lines.text()
            );
        }
    }
}
