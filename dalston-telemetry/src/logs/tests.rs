use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tracing::callsite::{Callsite, Identifier};
use tracing::dispatcher::with_default;
use tracing::field::FieldSet;
use tracing::level_filters::LevelFilter;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Dispatch, Level, Metadata, Span, debug, error, info, info_span, trace, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use super::inherited::{Fallback, INHERITED, InheritedField};
use super::*;
use crate::logs::context::{LogContext, WithLogContext};
use crate::metrics::{Metrics, TelemetryMetrics};
use crate::traces::propagate;

/// How long a test waits on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const CARRIER: &str = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;

fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(1_709_208_000_123_456)
}

/// A subscriber like that of the builder, with its lines.
struct Logs {
    dispatch: Dispatch,
    lines: LogBuffer,
    filter: LogFilter,
}

impl Logs {
    fn new(form: Form, tracing: bool) -> Self {
        let (config, lines) = config(form);
        let filter = config.filter.clone();
        let beside = if tracing {
            LevelFilter::INFO
        } else {
            LevelFilter::OFF
        };
        let layer = LogLayer::new(&config, tracing).clock(noon);
        let layer = Layer::<Registry>::with_filter(layer, filter.clone().beside(beside));
        let dispatch = if tracing {
            let provider = SdkTracerProvider::builder().build();
            let spans = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("test"))
                .with_filter(LevelFilter::INFO);
            let layer = spans
                .and_then(SpanFields::layer(LevelFilter::INFO))
                .and_then(layer);
            Dispatch::new(Registry::default().with(layer.boxed()))
        } else {
            Dispatch::new(Registry::default().with(layer.boxed()))
        };
        Self {
            dispatch,
            lines,
            filter,
        }
    }

    fn json(tracing: bool) -> Self {
        Self::new(Form::Json, tracing)
    }

    /// The lines that `f` logs. Each is JSON in which no member occurs twice.
    fn of(&self, f: impl FnOnce()) -> Vec<Value> {
        let before = self.lines.lines().len();
        with_default(&self.dispatch, f);
        self.lines
            .lines()
            .iter()
            .skip(before)
            .map(|line| parse(line))
            .collect()
    }
}

fn config(form: Form) -> (LogConfig, LogBuffer) {
    let (writer, lines) = LogWriter::buffer();
    let config = LogConfig {
        service: "engine-test".into(),
        instance_type: "g5.xlarge".into(),
        form,
        output: output(&writer, &Metrics::new()),
        filter: filter("trace"),
        warning: None,
    };
    (config, lines)
}

fn output(writer: &LogWriter, metrics: &Metrics) -> LogOutput {
    LogOutput::start(writer, TelemetryMetrics::register(metrics)).unwrap()
}

/// Parses an object. Panics if a member occurs twice, which `serde_json` accepts.
fn parse(line: &str) -> Value {
    struct Unique;
    impl<'de> serde::de::Visitor<'de> for Unique {
        type Value = serde_json::Map<String, Value>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut object = serde_json::Map::new();
            while let Some((key, value)) = map.next_entry::<String, Value>()? {
                assert!(object.insert(key.clone(), value).is_none(), "{key} occurs twice");
            }
            Ok(object)
        }
    }
    let mut parser = serde_json::Deserializer::from_str(line);
    let object = serde::Deserializer::deserialize_map(&mut parser, Unique);
    Value::Object(object.unwrap_or_else(|error| panic!("{error} in {line}")))
}

fn hex_ids(span: &Span) -> (String, String) {
    use opentelemetry::trace::TraceContextExt as _;
    let context = span.context();
    let span = context.span();
    (
        span.span_context().trace_id().to_string(),
        span.span_context().span_id().to_string(),
    )
}

#[test]
fn json_lines_have_exactly_this_form() {
    let logs = Logs::json(false);
    with_default(&logs.dispatch, || {
        info!(
            stream = "a\"b\n",
            attempt = 2,
            factor = 0.5,
            done = true,
            "task_received"
        );
        let context = LogContext::new()
            .request_id("r-1")
            .job_id("j-1")
            .task_id("t-1")
            .field("model", "tiny");
        let _guard = context.carrier(propagate::extract_json(CARRIER)).enter();
        warn!(target: "other", "slow {}", "disk");
    });
    assert_eq!(
        logs.lines.text(),
        concat!(
            r#"{"timestamp":"2024-02-29T12:00:00.123456Z","level":"info","service":"engine-test","#,
            r#""event":"task_received","stream":"a\"b\n","attempt":2,"factor":0.5,"done":true,"#,
            r#""instance_type":"g5.xlarge","target":"dalston_telemetry::logs::tests"}"#,
            "\n",
            r#"{"timestamp":"2024-02-29T12:00:00.123456Z","level":"warning","service":"engine-test","#,
            r#""event":"slow disk","trace_id":"0af7651916cd43dd8448eb211c80319c","request_id":"r-1","#,
            r#""job_id":"j-1","task_id":"t-1","model":"tiny","instance_type":"g5.xlarge","target":"other"}"#,
            "\n",
        )
    );
}

#[test]
fn readable_lines_have_exactly_this_form() {
    let line = |colours| {
        let logs = Logs::new(Form::Readable { colours }, false);
        with_default(&logs.dispatch, || {
            let _guard = LogContext::new().task_id("t-1").enter();
            warn!(target: "engine", path = "my file", count = 2, empty = "", job_id = "j", "odd\x1b[2J\nthing");
        });
        logs.lines.text()
    };
    assert_eq!(
        line(false),
        "12:00:00.123  WARN odd\\u{1b}[2J\n    thing path=\"my file\" count=2 empty=\"\" job_id=j task_id=t-1 engine\n"
    );
    assert_eq!(
        line(true),
        "\x1b[2m12:00:00.123\x1b[0m \x1b[33m WARN\x1b[0m odd\\u{1b}[2J\n    thing path=\"my file\" count=2 \
         empty=\"\"\x1b[2m job_id=j task_id=t-1 engine\x1b[0m\n"
    );
}

#[test]
fn levels_have_the_names_of_the_platform() {
    let lines = Logs::json(false).of(|| {
        error!("e");
        warn!("w");
        info!("i");
        debug!("d");
        trace!("t");
    });
    let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["error", "warning", "info", "debug", "trace"]);
}

#[test]
fn every_kind_of_value_becomes_valid_json() {
    let source = std::io::Error::other("disk full");
    let lines = Logs::json(false).of(|| {
        info!(
            nan = f64::NAN,
            infinite = f64::NEG_INFINITY,
            tiny = 1e-300,
            huge = 1.5e300,
            negative = i64::MIN,
            large = u64::MAX,
            wide = u128::MAX,
            debug = ?Some("x"),
            display = %"y\u{1}",
            error = &source as &(dyn std::error::Error + 'static),
            none = tracing::field::Empty,
            unicode = "é😀\u{2028}",
            "all"
        );
    });
    let line = &lines[0];
    assert_eq!((&line["nan"], &line["infinite"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (line["tiny"].as_f64(), line["huge"].as_f64()),
        (Some(1e-300), Some(1.5e300))
    );
    assert_eq!(
        (line["negative"].as_i64(), line["large"].as_u64()),
        (Some(i64::MIN), Some(u64::MAX))
    );
    assert_eq!(line["debug"], "Some(\"x\")");
    assert_eq!(line["display"], "y\u{1}");
    assert_eq!(line["error"], "disk full");
    assert_eq!(line["unicode"], "é😀\u{2028}");
    assert!(line.get("none").is_none());
}

#[test]
fn control_characters_of_8_bits_are_escaped() {
    let logs = Logs::json(false);
    let (text, title) = ("ü\u{9b}31m\u{80}", "\u{9d}0;title\u{9c}");
    let lines = logs.of(|| info!(text, "{title}"));
    assert_eq!(
        (&lines[0]["text"], &lines[0]["event"]),
        (&text.into(), &title.into())
    );
    let written = logs.lines.text();
    assert!(written.contains("ü\\u009b31m"), "{written:?}");
    assert!(!written.trim_end().contains(char::is_control), "{written:?}");
}

#[test]
fn an_error_is_written_with_its_sources() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot load the model")]
    struct Outer(#[source] std::io::Error);
    let error = Outer(std::io::Error::other("file not found"));
    let lines =
        Logs::json(false).of(|| error!(error = &error as &(dyn std::error::Error + 'static), "failed"));
    assert_eq!(lines[0]["error"], "cannot load the model: file not found");
}

#[test]
fn no_member_occurs_twice() {
    let logs = Logs::json(true);
    let lines = logs.of(|| {
        let span = info_span!("s", task_id = "from-span", dalston.job_id = "job");
        let _guard = span.enter();
        let _context = LogContext::new()
            .task_id("from-context")
            .field("model", "ctx")
            .field("extra", "ctx")
            .enter();
        info!(
            timestamp = 1,
            level = "loud",
            service = "s",
            target = "t",
            event = "e",
            trace_id = "mine",
            span_id = "mine",
            task_id = "own",
            dalston.task_id = "own too",
            model = "own",
            instance_type = "own",
            r#type = "t",
            "odd \" name" = 1,
            "message text"
        );
    });
    let line = &lines[0];
    assert_eq!(line["event"], "message text");
    assert_eq!(line["field.level"], "loud");
    assert_eq!(line["field.event"], "e");
    assert_eq!(line["field.trace_id"], "mine");
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(line["task_id"], "own");
    assert_eq!(line["job_id"], "job");
    assert_eq!(
        (&line["model"], &line["extra"]),
        (&Value::from("own"), &Value::from("ctx"))
    );
    assert_eq!(line["instance_type"], "own");
    assert_eq!(line["type"], "t");
    assert_eq!(line["odd \" name"], 1);
}

#[test]
fn an_event_without_message_is_written_with_its_name() {
    let lines = Logs::json(false).of(|| {
        info!(name: "task_received", stream = 1);
        info!(message = "by field", stream = 1);
    });
    assert_eq!(
        (&lines[0]["event"], &lines[1]["event"]),
        (&Value::from("task_received"), &Value::from("by field"))
    );
}

#[test]
fn ids_are_from_the_span_around_the_event() {
    let logs = Logs::json(true);
    let lines = logs.of(|| {
        let outer = info_span!("outer");
        let inner = info_span!(parent: &outer, "inner");
        let (trace_id, outer_id) = hex_ids(&outer);
        let (_, inner_id) = hex_ids(&inner);
        info!("outside");
        outer.in_scope(|| info!(expected = %outer_id, trace = %trace_id, "in outer"));
        inner.in_scope(|| info!(expected = %inner_id, trace = %trace_id, "in inner"));
        inner.in_scope(|| info!(parent: &outer, expected = %outer_id, trace = %trace_id, "explicit parent"));
        info!(parent: &inner, expected = %inner_id, trace = %trace_id, "explicit parent, outside");
        inner.in_scope(|| info!(parent: None, "root"));
        let hidden = tracing::debug_span!(parent: &inner, "not exported");
        hidden.in_scope(|| info!(parent: &hidden, "within a span that is not exported"));
        std::thread::scope(|scope| {
            let logs = &logs;
            let (inner, inner_id, trace_id) = (inner.clone(), &inner_id, &trace_id);
            scope.spawn(move || {
                with_default(&logs.dispatch, || {
                    let _guard = inner.enter();
                    info!(expected = %inner_id, trace = %trace_id, "on another thread");
                });
            });
        });
    });
    for line in &lines {
        assert_eq!(line.get("span_id"), line.get("expected"), "{line}");
        assert_eq!(line.get("trace_id"), line.get("trace"), "{line}");
    }
    assert_eq!(lines.len(), 8);
}

#[tokio::test]
async fn a_task_keeps_ids_and_fields_across_await() {
    use tracing::Instrument as _;
    let logs = Logs::json(true);
    // On one thread, so that the tasks interleave.
    let task = |name: &'static str| {
        let span = info_span!("task");
        let (trace_id, span_id) = hex_ids(&span);
        async move {
            for _ in 0..3 {
                info!(expected = %span_id, trace = %trace_id, name, "step");
                tokio::task::yield_now().await;
            }
        }
        .instrument(span)
        .with_log_context(LogContext::new().task_id(name))
    };
    let guard = tracing::dispatcher::set_default(&logs.dispatch);
    futures_join(task("a"), task("b")).await;
    drop(guard);
    let lines: Vec<_> = logs.lines.lines().iter().map(|line| parse(line)).collect();
    assert_eq!(lines.len(), 6);
    for line in &lines {
        assert_eq!(
            (&line["span_id"], &line["trace_id"]),
            (&line["expected"], &line["trace"])
        );
        assert_eq!(line["task_id"], line["name"]);
    }
    assert_ne!(lines[0]["name"], lines[1]["name"], "the tasks did interleave");
}

async fn futures_join(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    tokio::join!(a, b);
}

#[test]
fn fields_are_inherited_from_the_nearest_span() {
    let logs = Logs::json(true);
    let lines = logs.of(|| {
        let outer = info_span!(
            "outer",
            dalston.job_id = "job",
            task_id = "outer",
            request_id = tracing::field::Empty
        );
        let _outer = outer.enter();
        let _plain = info_span!("plain", unrelated = 1).entered();
        let inner = info_span!("inner", dalston.task_id = %"inner", engine_id = 7);
        outer.record("request_id", "later");
        inner.in_scope(|| info!("in inner"));
        info!("in outer");
        info!(parent: &inner, "explicit");
        info!(parent: None, "root");
    });
    let ids = |line: &Value| {
        ["request_id", "job_id", "task_id", "engine_id"]
            .map(|id| line.get(id).and_then(Value::as_str).map(str::to_owned))
    };
    let some = |id: &str| Some(id.to_owned());
    let inner = [some("later"), some("job"), some("inner"), some("7")];
    assert_eq!(ids(&lines[0]), inner);
    assert_eq!(ids(&lines[1]), [some("later"), some("job"), some("outer"), None]);
    assert_eq!(ids(&lines[2]), inner);
    assert_eq!(ids(&lines[3]), [None, None, None, None]);
}

#[test]
fn each_row_of_the_table_is_inherited_from_the_context() {
    for field in INHERITED {
        let InheritedField { name, attribute, .. } = *field;
        assert_eq!(
            InheritedField::position(name),
            InheritedField::position(attribute)
        );
        for logs in [Logs::json(false), Logs::json(true)] {
            let lines = logs.of(|| {
                info!("without");
                let _context = LogContext::new().field(attribute, "s3://a:hunter2@b").enter();
                info!("from the context");
            });
            let fallback = match field.fallback {
                Fallback::Absent => None,
                Fallback::InstanceType => Some("g5.xlarge"),
            };
            assert_eq!(lines[0].get(name).and_then(Value::as_str), fallback, "{name}");
            assert_eq!(lines[1][name], "s3://***@b");
        }
    }
}

#[test]
fn each_row_of_the_table_is_inherited_from_spans() {
    let logs = Logs::json(true);
    for InheritedField { name, attribute, .. } in INHERITED {
        let lines = logs.of(|| {
            let _outer = span_with(attribute, "http://a:hunter2@outer").entered();
            info!("in outer");
            let _inner = span_with(name, "inner").entered();
            info!("in inner");
        });
        assert_eq!(lines[0][*name], "http://***@outer");
        assert_eq!(lines[1][*name], "inner");
    }
}

/// A span with one field, whose name is not a literal.
fn span_with(field: &'static str, value: &str) -> Span {
    struct Site(OnceLock<Metadata<'static>>);
    impl Callsite for Site {
        fn set_interest(&self, _: Interest) {}
        fn metadata(&self) -> &Metadata<'_> {
            self.0.get().unwrap()
        }
    }
    let site: &'static Site = Box::leak(Box::new(Site(OnceLock::new())));
    let names: &'static [&'static str] = Box::leak(Box::new([field]));
    let metadata = site.0.get_or_init(|| {
        let fields = FieldSet::new(names, Identifier(site));
        Metadata::new("span", "test", Level::INFO, None, None, None, fields, Kind::SPAN)
    });
    let field = metadata.fields().field(field).unwrap();
    let values = [(&field, Some(&value as &dyn tracing::field::Value))];
    // The filters of layers decide when they are asked, which the macros of `tracing` do.
    assert!(tracing::dispatcher::get_default(
        |dispatch| dispatch.enabled(metadata)
    ));
    Span::new(metadata, &metadata.fields().value_set(&values))
}

#[test]
fn spans_are_disabled_when_tracing_is_off() {
    let logs = Logs::json(false);
    let lines = logs.of(|| {
        let span = info_span!("work", task_id = "t");
        // Asked directly, because a subscriber of another test can enable the span.
        let is_wanted = |metadata| !logs.dispatch.register_callsite(metadata).is_never();
        assert!(!span.metadata().is_some_and(is_wanted));
        span.in_scope(|| info!("inside"));
    });
    assert!(lines[0].get("task_id").is_none());
    assert!(lines[0].get("trace_id").is_none());
}

#[test]
fn a_changed_filter_applies_to_lines_and_not_to_spans() {
    let logs = Logs::json(true);
    let step = || {
        debug!("fine");
        info!("normal");
        assert!(!info_span!("kept").is_disabled());
    };
    assert_eq!(logs.of(step).len(), 2);
    logs.filter.set("info").unwrap();
    assert_eq!(logs.of(step).len(), 1);
    logs.filter.set("off").unwrap();
    assert_eq!(logs.of(step).len(), 0);
    logs.filter.set("warn,dalston_telemetry=debug").unwrap();
    assert_eq!(logs.of(step).len(), 2);
    assert_eq!(
        logs.filter.set("dalston=loud").unwrap_err().value(),
        Some("dalston=loud")
    );
    assert_eq!(logs.of(step).len(), 2, "a wrong filter changes nothing");
}

#[test]
fn secrets_are_masked_in_lines() {
    let logs = Logs::json(true);
    let uri: http::Uri = "/v1/audio?token=hunter2".parse().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", "Bearer hunter2".parse().unwrap());
    headers.insert("x-api-key", "hunter2".parse().unwrap());
    logs.of(|| {
        let _span = info_span!("s", request_id = "http://a:hunter2@b/").entered();
        info!(url = "redis://:hunter2@cache:6379", "a");
        info!(%uri, "b");
        info!(?headers, "c");
        info!(authorization = "Bearer hunter2", api_key = ?Some("hunter2"), "d");
        info!("cannot reach {}", "https://h/x?X-Amz-Signature=hunter2&y=1");
        info!(error = "dsn: password=hunter2 host=x", "e");
        info!("\"redis://u:\"hunter2@h\"");
    });
    let text = logs.lines.text();
    assert_eq!(logs.lines.lines().len(), 7);
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn an_event_within_a_value_leaves_the_outer_line_whole() {
    struct Chatty;
    impl fmt::Display for Chatty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let _guard = LogContext::new().task_id("inner").enter();
            info!("inner");
            f.write_str("chatty")
        }
    }
    // While an event is recorded, `tracing` hides the scoped subscriber from its thread, and the
    // inner event is lost. The outer line must be whole.
    let lines = Logs::json(false).of(|| info!(value = %Chatty, "outer"));
    let outer = lines.iter().find(|line| line["event"] == "outer").unwrap();
    assert_eq!(outer["value"], "chatty");
    assert!(outer.get("task_id").is_none());
}

#[test]
fn each_line_is_one_write() {
    #[derive(Clone, Default)]
    struct Writes(std::sync::Arc<std::sync::Mutex<Vec<Vec<u8>>>>);
    impl std::io::Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let writes = Writes::default();
    let config = LogConfig {
        service: "s".into(),
        instance_type: "unknown".into(),
        form: Form::Json,
        output: output(&LogWriter::new(writes.clone()), &Metrics::new()),
        filter: filter("info"),
        warning: None,
    };
    let layer = Layer::<Registry>::with_filter(LogLayer::new(&config, false), config.filter.clone());
    tracing::subscriber::with_default(Registry::default().with(layer), || {
        info!(big = %"x".repeat(100_000), "one");
        info!("two");
    });
    config.output.flush(PATIENCE).unwrap();
    let writes = writes.0.lock().unwrap();
    assert_eq!(writes.len(), 2);
    assert!(writes.iter().all(|write| write.ends_with(b"}\n")));
}

#[test]
fn the_filter_is_from_the_first_variable_that_is_set() {
    let filter = |pairs: &[(&str, &str)]| {
        LogFilter::from_env(&Env::from_pairs(pairs.iter().copied()), LevelFilter::INFO)
            .map(|(filter, _)| format!("{filter:?}"))
    };
    let error = |pairs| filter(pairs).unwrap_err().to_string();
    assert_eq!(filter(&[]).unwrap(), "LogFilter(info)");
    assert_eq!(
        filter(&[("DALSTON_LOG_LEVEL", "WARNING")]).unwrap(),
        "LogFilter(warn)"
    );
    assert_eq!(
        filter(&[("LOG_LEVEL", "CRITICAL"), ("DALSTON_LOG_LEVEL", "debug")]).unwrap(),
        "LogFilter(error)"
    );
    assert_eq!(
        filter(&[("RUST_LOG", "debug"), ("LOG_LEVEL", "error")]).unwrap(),
        "LogFilter(debug)"
    );
    assert_eq!(
        filter(&[("RUST_LOG", "hyper=off, info")]).unwrap(),
        "LogFilter(hyper=off,info)"
    );
    assert_eq!(
        filter(&[("RUST_LOG", "my_crate=debug")]).unwrap(),
        "LogFilter(my_crate=debug,error)"
    );
    assert_eq!(
        error(&[("LOG_LEVEL", "inof")]),
        "LOG_LEVEL is \"inof\": expected trace, debug, info, warning, error, critical or off"
    );
    assert_eq!(
        error(&[("RUST_LOG", "info,my_crate=loud")]),
        "RUST_LOG is \"info,my_crate=loud\": expected level, target or target=level, with a level of trace, debug, \
         info, warn, error or off, which \"my_crate=loud\" is not"
    );
}

#[test]
fn directives_for_spans_are_ignored_with_a_warning() {
    let read = |directives: &str| {
        let env = Env::from_pairs([("RUST_LOG", directives)]);
        LogFilter::from_env(&env, LevelFilter::INFO).map(|(filter, warning)| {
            let ignored = warning.map(|warning| (warning.value, warning.used));
            (format!("{filter:?}"), ignored)
        })
    };
    for (directives, ignored, used) in [
        ("info,[span]=debug", "[span]=debug", "info"),
        ("[{id=1,x=2}],warn", "[{id=1,x=2}]", "warn"),
        ("h2=off,a[b{c}]=trace,[d]", "a[b{c}]=trace,[d]", "h2=off,error"),
        ("[span]=debug", "[span]=debug", "info"),
    ] {
        let expected = (
            format!("LogFilter({used})"),
            Some((ignored.to_owned(), used.to_owned())),
        );
        assert_eq!(read(directives).unwrap(), expected, "{directives}");
    }
    assert_eq!(read("info,a=debug").unwrap().1, None);
    for wrong in ["a[span]=loud", "a[span", "[span]debug", "a]"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

fn filter(directives: &str) -> LogFilter {
    let env = Env::from_pairs([("RUST_LOG", directives)]);
    LogFilter::from_env(&env, LevelFilter::INFO).unwrap().0
}

#[test]
fn lines_that_fail_to_be_written_count_as_dropped() {
    struct Full(bool);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = !self.0;
            match self.0 {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(bytes.len()),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = Metrics::new();
    let (mut config, _) = config(Form::Json);
    config.output = output(&LogWriter::new(Full(false)), &metrics);
    let layer = LogLayer::new(&config, false).with_filter(config.filter.clone());
    with_default(&Dispatch::new(Registry::default().with(layer)), || {
        info!("lost");
        info!("written");
    });
    config.output.flush(PATIENCE).unwrap();
    let page = metrics.encode();
    for count in [
        "dalston_log_messages_total{level=\"info\"} 1\n",
        "dalston_log_lines_dropped_total 1\n",
    ] {
        assert!(page.contains(count), "{page}");
    }
}
