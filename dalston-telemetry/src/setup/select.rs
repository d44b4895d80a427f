//! Which spans and events go where: to OpenTelemetry, into log lines, or nowhere.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use opentelemetry::trace::Tracer;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Identity, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::logs::{LogLayer, LogSettings, SpanFields, has_ids};
use crate::setup::builder::TelemetryLayer;
use crate::traces::tracer::SpanTracer;

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
    let exported = ExportedSpans { level };
    let filter = filter_fn(move |metadata| exported.wants(metadata)).with_max_level_hint(level);
    let spans = span_layer(tracer).with_filter(filter);
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
        *metadata.level() <= self.level && !is_exporters(metadata.target())
    }
}

fn is_exporters(target: &str) -> bool {
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
    let name = target.split("::").next().unwrap_or(target);
    EXPORTER_CRATES.contains(&name)
        || name.starts_with("opentelemetry")
        || target.starts_with(crate::setup::telemetry::REPORTS)
        || target == crate::setup::panic::PANICS
}

/// Stands above OpenTelemetry's layer, decides for the whole subscriber what there is, and writes the log lines.
///
/// What is only a log line is written where it is asked whether there is such an event, and then there is none: that
/// keeps it from OpenTelemetry's layer, which without a filter of its own would add it to the span. What is both becomes
/// a line after it has its time in the span: whoever reads the lines may let us wait.
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

    fn write_line<S>(&self, event: &Event<'_>, target: &str, cx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(logs) = &self.logs
            && logs.filter().enables_event(event.metadata().level(), target)
        {
            logs.write(event, cx);
        }
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
        let target = target_of(event);
        let is_for_spans = *metadata.level() <= self.spans.level
            && !match &target {
                Cow::Borrowed(_) => Callsite::of(metadata).is_exporters,
                Cow::Owned(target) => is_exporters(target),
            };
        if !is_for_spans {
            self.write_line(event, &target, &cx);
        }
        is_for_spans
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        self.write_line(event, &target_of(event), &cx);
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

/// Where an event comes from. All records of `log` have one target, and their own in a field.
fn target_of(event: &Event<'_>) -> Cow<'static, str> {
    let target = event.metadata().target();
    if target != "log" {
        return Cow::Borrowed(target);
    }
    let mut own = TargetOfRecord(None);
    event.record(&mut own);
    own.0.map_or(Cow::Borrowed(target), Cow::Owned)
}

struct TargetOfRecord(Option<String>);

impl Visit for TargetOfRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
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
                is_exporters: is_exporters(metadata.target()),
                has_ids: has_ids(metadata),
            };
            callsites[place].set(callsite);
            callsite
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    use opentelemetry::InstrumentationScope;
    use opentelemetry::trace::{Status, TracerProvider as _};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanLimits, SpanProcessor as _};
    use tracing::callsite::{self, Identifier};
    use tracing::field::{FieldSet, Value};
    use tracing::metadata::Kind;
    use tracing::{Level, debug, debug_span, dispatcher, error, info, info_span};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::logs::{LogBuffer, LogFormat, LogWriter};
    use crate::metrics::{Metrics, TelemetryMetrics};
    use crate::traces::collector::SpanCollector;
    use crate::traces::ended::EndedSpan;
    use crate::traces::tracer::{End, Tracer};
    use crate::{CollectedSpan, Env};

    struct Program {
        dispatch: Dispatch,
        most_verbose: Option<LevelFilter>,
        spans: SpanCollector,
        lines: LogBuffer,
        metrics: Metrics,
    }

    #[derive(Clone, Copy)]
    struct Setup {
        others: bool,
        direct: bool,
    }

    const SETUPS: [Setup; 4] = [
        Setup {
            others: true,
            direct: true,
        },
        Setup {
            others: true,
            direct: false,
        },
        Setup {
            others: false,
            direct: true,
        },
        Setup {
            others: false,
            direct: false,
        },
    ];

    impl End for SpanCollector {
        fn span(&self, span: EndedSpan<'_>) {
            self.on_end(span.data());
        }
    }

    impl Program {
        /// With layers of others in its subscriber and with none, each with the SDK's tracer and with ours.
        fn of_all_kinds(log_filter: Option<&str>) -> [Self; 4] {
            SETUPS.map(|kind| {
                let (writer, lines) = LogWriter::buffer();
                Self::new(kind, log_filter, writer, lines)
            })
        }

        fn new(kind: Setup, log_filter: Option<&str>, writer: LogWriter, lines: LogBuffer) -> Self {
            let metrics = Metrics::new();
            let spans = SpanCollector::new();
            let logs = log_filter.map(|filter| {
                LogSettings::read(
                    &Env::from_pairs([("RUST_LOG", filter)]),
                    "test",
                    None,
                    Some(LogFormat::Json),
                    LevelFilter::INFO,
                    writer,
                    TelemetryMetrics::register(&metrics),
                )
                .unwrap()
            });
            let span_level = LevelFilter::INFO;
            let layer = match kind {
                Setup {
                    direct: false,
                    others,
                } => {
                    let provider = SdkTracerProvider::builder().with_span_processor(spans.clone());
                    let parts = Parts {
                        tracer: Some(SpanTracer::Sdk(provider.build().tracer("test"))),
                        span_level,
                        logs,
                    };
                    match others {
                        true => parts.beside_others(),
                        false => parts.alone(),
                    }
                }
                Setup { direct: true, others } => {
                    let tracer = Tracer::new(
                        InstrumentationScope::default(),
                        Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
                        SpanLimits::default(),
                        spans.clone(),
                    );
                    match others {
                        true => filtered(tracer, span_level, logs),
                        false => selected(tracer, span_level, logs),
                    }
                }
            };
            let subscriber = Registry::default().with(layer);
            Self {
                most_verbose: subscriber.max_level_hint(),
                dispatch: Dispatch::new(subscriber),
                spans,
                lines,
                metrics,
            }
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
            error!(target: crate::setup::telemetry::REPORTS, "of the exporter");
            debug_span!("too detailed").in_scope(|| info!("within it"));
            info_span!(target: "h2", "of a crate that exports").in_scope(|| {});
        });
    }

    #[test]
    fn what_is_only_logged_does_not_get_into_a_span() {
        for program in Program::of_all_kinds(Some("debug")) {
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
        for program in Program::of_all_kinds(None) {
            program.run(work);
            let span = program.only_span();
            assert_eq!((span.name.as_ref(), span.events.len()), ("work", 2));
            assert_eq!(program.lines.lines().len(), 0);
        }
    }

    #[test]
    fn nobody_is_asked_about_what_nobody_wants() {
        for (logs, level) in [(Some("debug"), LevelFilter::DEBUG), (None, LevelFilter::INFO)] {
            for program in Program::of_all_kinds(logs) {
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
        for program in Program::of_all_kinds(Some("debug")) {
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
    #[test]
    fn a_line_has_the_ids_of_the_span_that_its_event_names() {
        for program in Program::of_all_kinds(Some("debug")) {
            program.run(|| {
                let span = info_span!("work", task_id = "t-1");
                let within = info_span!(parent: &span, "within");
                info_span!("other", task_id = "t-2").in_scope(|| info!(parent: &within, "named"));
            });
            let spans = program.spans.spans();
            let within = spans.iter().find(|span| span.name == "within").unwrap();
            let text = program.lines.text();
            for part in [
                format!(r#""trace_id":"{}""#, within.trace_id),
                format!(r#""span_id":"{}""#, within.span_id),
                r#""task_id":"t-1""#.to_owned(),
            ] {
                assert!(text.contains(&part), "{part} {text}");
            }
        }
    }

    #[test]
    fn a_record_of_log_goes_where_its_own_target_belongs() {
        for program in Program::of_all_kinds(Some("warn,sqlx=info,rustls=info")) {
            program.run(|| {
                info_span!("work").in_scope(|| {
                    log("sqlx::query", "asked");
                    log("rustls::client", "shook hands");
                    log("somebody", "is quiet");
                });
            });
            let span = program.only_span();
            let events: Vec<_> = span.events.iter().map(|event| event.name.as_ref()).collect();
            assert_eq!(events, ["asked", "is quiet"]);
            let lines = program.lines.lines();
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(
                lines[0].contains("asked") && lines[1].contains("shook hands"),
                "{lines:?}"
            );
        }
    }

    /// As `tracing_log` passes on a record: it asks with the target of the record, and sends an event with that of all records.
    fn log(target: &str, text: &str) {
        struct Records;
        static RECORDS: Records = Records;
        static RECORD: Metadata<'static> = Metadata::new(
            "log event",
            "log",
            Level::INFO,
            None,
            None,
            None,
            FieldSet::new(&["message", "log.target"], Identifier(&RECORDS)),
            Kind::EVENT,
        );
        impl callsite::Callsite for Records {
            fn set_interest(&self, _: Interest) {}
            fn metadata(&self) -> &Metadata<'_> {
                &RECORD
            }
        }
        let fields = FieldSet::new(&["message", "log.target"], Identifier(&RECORDS));
        let own = Metadata::new(
            "log record",
            target,
            Level::INFO,
            None,
            None,
            None,
            fields,
            Kind::EVENT,
        );
        dispatcher::get_default(|dispatch| {
            if dispatch.enabled(&own) {
                let field = |name| RECORD.fields().field(name).unwrap();
                let values = [
                    (&field("message"), Some(&text as &dyn Value)),
                    (&field("log.target"), Some(&target as &dyn Value)),
                ];
                dispatch.event(&Event::new(&RECORD, &RECORD.fields().value_set(&values)));
            }
        });
    }

    #[test]
    fn an_event_has_its_time_before_anybody_has_to_take_its_line() {
        #[derive(Clone, Default)]
        struct Times(Arc<Mutex<Vec<SystemTime>>>);
        impl Write for Times {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().push(SystemTime::now());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for kind in SETUPS {
            let times = Times::default();
            let writer = LogWriter::new(times.clone());
            let program = Program::new(kind, Some("info"), writer, LogBuffer::default());
            program.run(|| info_span!("work").in_scope(|| info!("told to both")));
            let written = times.0.lock().unwrap()[0];
            assert!(program.only_span().events[0].timestamp <= written);
        }
    }
}
