//! The layers of a subscriber: OpenTelemetry's spans, and log lines.

use opentelemetry_sdk::trace::SdkTracer;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Identity, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::monotonic::Monotonic;
use super::targets;
use super::values::Values;
use crate::logs::{LogConfig, LogLayer, SpanFields};

/// The layer that [`TelemetryBuilder::into_layer`](crate::TelemetryBuilder::into_layer) makes.
///
/// An alias, because a type of ours could not pass on the downcasts by which
/// `tracing-opentelemetry` and per-layer filters find each other.
pub type TelemetryLayer<S> = Box<dyn Layer<S> + Send + Sync + 'static>;

/// The parts that a subscriber gets its layers from.
pub(crate) struct Layers {
    pub(crate) tracer: Option<SdkTracer>,
    /// The most verbose level of spans and of their events.
    pub(crate) span_level: LevelFilter,
    pub(crate) logs: Option<LogConfig>,
}

impl Layers {
    pub(crate) fn build<S>(self) -> TelemetryLayer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        // Each layer has its own filter and none is an `Option`: `tracing-subscriber` disables
        // spans while tracing is off, and tells each layer its subscriber, only then.
        let level = self.span_level;
        match (self.tracer, self.logs) {
            (Some(tracer), Some(logs)) => Box::new(
                // The spans come first: an event has its time before a writer can block.
                spans(tracer, level)
                    .and_then(SpanFields::layer(level))
                    .and_then(log_lines(&logs, Some(level))),
            ),
            (Some(tracer), None) => Box::new(spans(tracer, level)),
            (None, Some(logs)) => Box::new(log_lines(&logs, None)),
            (None, None) => Box::new(Layer::<S>::with_filter(Identity::new(), LevelFilter::OFF)),
        }
    }
}

fn spans<S>(tracer: SdkTracer, level: LevelFilter) -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let is_exported = move |metadata: &Metadata<'_>| {
        *metadata.level() <= level && !targets::is_of_exporter(metadata.target())
    };
    // Source locations alone cost a sixth of a span (`cargo xtask bench spans`).
    let layer = |tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
    };
    // `OpenTelemetrySpanExt` looks for the layer by its type, which the layers around it hide. It
    // finds one that sees no spans: the data of a span is with the span, not in the layer.
    let found_by_type = layer(tracer.clone()).with_filter(LevelFilter::OFF);
    let filter = filter_fn(is_exported).with_max_level_hint(level);
    let records = Monotonic::new(Values::new(layer(tracer)));
    let records = Layer::<S>::with_filter(records, filter);
    found_by_type.and_then(records)
}

/// Log lines; they inherit fields from spans up to the level `spans`.
fn log_lines<S>(logs: &LogConfig, spans: Option<LevelFilter>) -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = logs.filter.clone().beside(spans.unwrap_or(LevelFilter::OFF));
    Layer::<S>::with_filter(LogLayer::new(logs, spans.is_some()), filter)
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use opentelemetry::KeyValue;
    use opentelemetry::trace::{Status, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::callsite::{self, Identifier};
    use tracing::field::{FieldSet, Value};
    use tracing::metadata::Kind;
    use tracing::subscriber::Interest;
    use tracing::{Dispatch, Event, Level, debug, debug_span, dispatcher, error, info, info_span};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry::Registry;

    use super::*;
    use crate::export::REPORTS;
    use crate::logs::{LogBuffer, LogFormat, LogOutput, LogWriter};
    use crate::metrics::{Metrics, TelemetryMetrics};
    use crate::{CollectedSpan, Env, SpanCollector};

    struct Program {
        dispatch: Dispatch,
        most_verbose: Option<LevelFilter>,
        spans: SpanCollector,
        lines: LogBuffer,
        output: Option<LogOutput>,
        metrics: Metrics,
    }

    impl Program {
        fn new(log_filter: Option<&str>) -> Self {
            let (writer, lines) = LogWriter::buffer();
            Self::with_writer(log_filter, writer, lines)
        }

        fn with_writer(log_filter: Option<&str>, writer: LogWriter, lines: LogBuffer) -> Self {
            let metrics = Metrics::new();
            let spans = SpanCollector::new();
            let logs = log_filter.map(|filter| {
                LogConfig::read(
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
            let output = logs.as_ref().map(|logs| logs.output.clone());
            let provider = SdkTracerProvider::builder().with_span_processor(spans.clone());
            let layers = Layers {
                tracer: Some(provider.build().tracer("test")),
                span_level: LevelFilter::INFO,
                logs,
            };
            let subscriber = Registry::default().with(layers.build());
            Self {
                most_verbose: subscriber.max_level_hint(),
                dispatch: Dispatch::new(subscriber),
                spans,
                lines,
                output,
                metrics,
            }
        }

        fn run(&self, work: impl FnOnce()) {
            dispatcher::with_default(&self.dispatch, work);
        }

        fn only_span(&self) -> CollectedSpan {
            let [span] = <[_; 1]>::try_from(self.spans.spans()).unwrap();
            span
        }
    }

    fn event_names(span: &CollectedSpan) -> Vec<&str> {
        span.events.iter().map(|event| event.name.as_ref()).collect()
    }

    fn work() {
        info_span!("work").in_scope(|| {
            info!("for both");
            debug!("below the span level");
            error!(target: "hyper::client", "from an exporter crate");
            error!(target: REPORTS, "from the exporter");
            debug_span!("below the span level").in_scope(|| info!("within it"));
            info_span!(target: "h2", "from an exporter crate").in_scope(|| {});
        });
    }

    #[test]
    fn span_has_only_events_of_its_level_and_targets() {
        let program = Program::new(Some("debug"));
        program.run(work);
        let span = program.only_span();
        assert_eq!(event_names(&span), ["for both", "within it"]);
        assert_eq!(span.status, Status::Unset);
        assert_eq!(program.lines.lines().len(), 5);
        let counts = program.metrics.encode();
        for (level, count) in [("error", 2), ("warning", 0), ("info", 2), ("debug", 1)] {
            let series = format!("dalston_log_messages_total{{level=\"{level}\"}} {count}\n");
            assert!(counts.contains(&series), "{counts}");
        }
    }

    #[test]
    fn spans_are_the_same_without_log_lines() {
        let program = Program::new(None);
        program.run(work);
        let span = program.only_span();
        assert_eq!((span.name.as_ref(), span.events.len()), ("work", 2));
        assert_eq!(program.lines.lines().len(), 0);
    }

    #[test]
    fn callsites_that_no_layer_wants_are_disabled() {
        for (logs, level) in [(Some("debug"), LevelFilter::DEBUG), (None, LevelFilter::INFO)] {
            let program = Program::new(logs);
            program.run(|| {
                // The subscribers of parallel tests share the cached interest: ask this one
                // directly.
                let is_wanted = |metadata| !program.dispatch.register_callsite(metadata).is_never();
                let wanted = info_span!("wanted");
                assert!(wanted.metadata().is_some_and(is_wanted));
                let unwanted = info_span!(target: "h2", "unwanted");
                assert!(!unwanted.metadata().is_some_and(is_wanted));
                assert_eq!(program.most_verbose, Some(level));
            });
        }
    }

    #[test]
    fn attributes_set_late_reach_the_span_and_ids_the_lines() {
        let program = Program::new(Some("debug"));
        program.run(|| {
            let span = info_span!("work", task_id = tracing::field::Empty, other = 1);
            span.record("task_id", "t-1");
            span.set_attribute("set", "from outside");
            span.in_scope(|| info!("within"));
        });
        let text = program.lines.text();
        assert!(program.only_span().attribute("set").is_some());
        assert!(text.contains(r#""task_id":"t-1""#), "{text}");
    }

    #[test]
    fn integers_of_all_types_arrive_as_integers() {
        let program = Program::new(None);
        program.run(|| {
            let span = info_span!(
                "work",
                usize = 7_usize,
                max = u64::MAX,
                u16 = 8_u16,
                u128 = 9_u128,
                i128 = i128::MIN,
                i64 = -1_i64,
                f64 = 1.5,
                bool = true,
                text = "a",
                debug = ?"b",
                late = tracing::field::Empty,
                otel.name = "renamed",
            );
            span.record("late", 10_usize);
            span.in_scope(|| info!(count = 11_u32, message = "counted", ratio = 0.5));
            span.record("late", 12_u64);
        });
        let span = program.only_span();
        assert_eq!(span.name, "renamed");
        let attributes = [
            KeyValue::new("usize", 7),
            KeyValue::new("max", i64::MAX),
            KeyValue::new("u16", 8),
            KeyValue::new("u128", 9),
            KeyValue::new("i128", i64::MIN),
            KeyValue::new("i64", -1),
            KeyValue::new("f64", 1.5),
            KeyValue::new("bool", true),
            KeyValue::new("text", "a"),
            KeyValue::new("debug", "\"b\""),
            KeyValue::new("late", 12),
        ];
        assert_eq!(span.attributes, attributes);
        let [event] = &span.events[..] else {
            panic!("{span:?}")
        };
        assert_eq!(event.name, "counted");
        assert!(event.attributes.contains(&KeyValue::new("count", 11)));
        assert!(event.attributes.contains(&KeyValue::new("ratio", 0.5)));
    }

    /// Writes a part and fails, as an error in the user's code.
    struct Faulty;

    impl fmt::Display for Faulty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("half")?;
            Err(fmt::Error)
        }
    }

    impl fmt::Debug for Faulty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl std::error::Error for Faulty {}

    #[test]
    fn value_that_fails_to_format_leaves_what_it_wrote() {
        let program = Program::new(Some("info"));
        program.run(|| {
            let span = info_span!("work", shown = %Faulty, late = tracing::field::Empty);
            span.record("late", tracing::field::debug(Faulty));
            let error: &(dyn std::error::Error + 'static) = &Faulty;
            span.in_scope(|| info!(error, shown = ?Faulty, "said {}", Faulty));
        });
        let span = program.only_span();
        assert_eq!(
            span.attributes[..2],
            [KeyValue::new("shown", "half"), KeyValue::new("late", "half")]
        );
        let [event] = &span.events[..] else {
            panic!("{span:?}")
        };
        assert_eq!(event.name, "said half");
        assert!(event.attributes.contains(&KeyValue::new("shown", "half")));
        assert!(event.attributes.contains(&KeyValue::new("error", "half")));
        let text = program.lines.text();
        assert!(
            text.contains(r#""event":"said half""#) && text.contains(r#""shown":"half""#),
            "{text}"
        );
    }

    #[test]
    fn errors_and_parents_stay_beside_integers() {
        #[derive(Debug, thiserror::Error)]
        #[error("not written")]
        struct Failed(#[source] io::Error);
        let failed = Failed(io::Error::other("disk full"));
        let program = Program::new(None);
        program.run(|| {
            let outer = info_span!("outer");
            let _entered = info_span!("entered").entered();
            let inner = info_span!(parent: &outer, "inner", size = 1_u64);
            info_span!(parent: None, "root", size = 2_u64);
            info_span!("within", size = 3_u64);
            let error: &(dyn std::error::Error + 'static) = &failed;
            error!(parent: &inner, error, size = 4_u64, "upload_failed");
        });
        let spans = program.spans.spans();
        let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let id = |name: &str| Some(span(name).span_id);
        assert_eq!(span("inner").parent_span_id, id("outer"));
        assert_eq!(span("root").parent_span_id, None);
        assert_eq!(span("within").parent_span_id, id("entered"));
        let event = &span("inner").events[0];
        let attribute = |name: &str| {
            let found = event
                .attributes
                .iter()
                .find(|attribute| attribute.key.as_str() == name);
            found.map(|attribute| attribute.value.to_string())
        };
        assert_eq!(attribute("error").as_deref(), Some("not written"));
        assert_eq!(attribute("error.chain").as_deref(), Some("[\"disk full\"]"));
        assert_eq!(attribute("size").as_deref(), Some("4"));
    }

    #[test]
    fn line_has_the_ids_of_its_explicit_parent() {
        let program = Program::new(Some("debug"));
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

    #[test]
    fn record_of_log_is_filtered_by_its_own_target() {
        let program = Program::new(Some("warn,sqlx=info,rustls=info"));
        program.run(|| {
            info_span!("work").in_scope(|| {
                log("sqlx::query", "asked");
                log("rustls::client", "shook hands");
                log("module", "is quiet");
            });
        });
        assert_eq!(event_names(&program.only_span()), ["asked", "is quiet"]);
        let lines = program.lines.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("asked"), "{lines:?}");
        assert!(lines[1].contains("shook hands"), "{lines:?}");
    }

    /// Logs as `tracing_log` does: it asks whether the record's own target is enabled, and sends an
    /// event with the target that all records share.
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
    fn event_has_its_time_before_its_line_is_written() {
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
        let times = Times::default();
        let writer = LogWriter::new(times.clone());
        let program = Program::with_writer(Some("info"), writer, LogBuffer::default());
        program.run(|| info_span!("work").in_scope(|| info!("for both")));
        let output = program.output.as_ref().unwrap();
        output.flush(Duration::from_secs(60)).unwrap();
        let written = times.0.lock().unwrap()[0];
        assert!(program.only_span().events[0].timestamp <= written);
    }
}
