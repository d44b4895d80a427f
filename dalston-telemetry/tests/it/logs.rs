//! Log lines of a service that is set up with the builder.

use std::collections::HashMap;

use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::opentelemetry::trace::{Status, TraceContextExt as _};
use dalston_telemetry::opentelemetry::{self, Array, KeyValue};
use dalston_telemetry::{Env, LogBuffer, LogWriter, SpanCollector, Telemetry, propagate};
use serde_json::Value;
use tracing::dispatcher::with_default;
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, Instrument as _, Span, debug, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Service {
    telemetry: Telemetry,
    dispatch: Dispatch,
    spans: SpanCollector,
    lines: LogBuffer,
}

impl Service {
    fn start(env: &[(&str, &str)], traced: bool) -> Self {
        let spans = SpanCollector::new();
        let (writer, lines) = LogWriter::buffer();
        let mut builder = Telemetry::builder("engine-test")
            .env(Env::from_pairs(env.iter().copied()))
            .log_writer(writer);
        if traced {
            builder = builder.span_collector(spans.clone());
        }
        let (layer, telemetry) = builder.into_layer().unwrap();
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        Self {
            telemetry,
            dispatch,
            spans,
            lines,
        }
    }

    fn lines(&self) -> Vec<Value> {
        self.lines
            .lines()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn carrier() -> HashMap<String, String> {
    HashMap::from([("traceparent".to_owned(), PARENT.to_owned())])
}

#[test]
fn the_log_filter_does_not_filter_spans() {
    let service = Service::start(&[("LOG_LEVEL", "ERROR")], true);
    with_default(&service.dispatch, || {
        info_span!("first").in_scope(|| info!("quiet"))
    });
    service.telemetry.set_log_filter("off").unwrap();
    with_default(&service.dispatch, || {
        info_span!("second").in_scope(|| info!("quiet"))
    });
    service.telemetry.set_log_filter("debug").unwrap();
    with_default(&service.dispatch, || {
        info_span!("third").in_scope(|| debug!("loud"))
    });

    let names: Vec<_> = service
        .spans
        .spans()
        .iter()
        .map(|span| span.name.to_string())
        .collect();
    assert_eq!(names, ["first", "second", "third"]);
    let events: Vec<_> = service.lines().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["loud"]);
}

/// A worker of the platform: an asynchronous task with a synchronous part on its own thread.
async fn handle_task(task_id: &'static str) {
    info!("task_received");
    tokio::task::yield_now().await;
    let context = LogContext::current();
    let span = Span::current();
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    let (done, when_done) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        with_default(&dispatch, || {
            let _context = context.enter();
            let _span = info_span!(parent: &span, "engine.process").entered();
            info!("inferring");
            done.send(propagate::inject_map(&propagate::current_context()))
                .unwrap();
        });
    });
    let carried = when_done.await.unwrap();
    thread.join().unwrap();
    info!(
        expected = task_id,
        traceparent = carried["traceparent"],
        "task_completed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_all_threads_carry_the_task() {
    for traced in [false, true] {
        let service = Service::start(&[], traced);
        let tasks = ["task-a", "task-b", "task-c"].map(|task_id| {
            let carried = propagate::extract_map(&carrier());
            let context = LogContext::new()
                .job_id("job")
                .task_id(task_id)
                .carrier(carried.clone());
            async move {
                let span = info_span!("task");
                propagate::continue_trace(&span, &carried);
                handle_task(task_id).instrument(span).await;
            }
            .with_log_context(context)
            .with_subscriber(service.dispatch.clone())
        });
        for task in tasks.map(tokio::spawn) {
            task.await.unwrap();
        }

        let lines = service.lines();
        assert_eq!(lines.len(), 9);
        for line in &lines {
            assert_eq!(line["job_id"], "job");
            assert_eq!(
                line["trace_id"], "0af7651916cd43dd8448eb211c80319c",
                "the producer's trace"
            );
            assert_eq!(line.get("span_id").is_some(), traced, "{line}");
            if let Some(expected) = line.get("expected") {
                assert_eq!(&line["task_id"], expected);
            }
        }
        let spans = service.spans.spans();
        for line in lines.iter().filter(|line| line["event"] == "inferring" && traced) {
            let span = spans
                .iter()
                .find(|span| span.name == "engine.process" && span.span_id.to_string() == line["span_id"]);
            assert!(span.is_some(), "{line}");
        }
        for line in lines.iter().filter(|line| line["event"] == "task_completed") {
            let handed_on = line["traceparent"].as_str().unwrap();
            assert!(handed_on.starts_with(&PARENT[..35]), "the trace goes on");
            assert_eq!(handed_on == PARENT, !traced, "unchanged if no span is recorded");
        }
    }
}

#[test]
fn a_span_joins_the_carried_trace_and_is_carried_on() {
    let service = Service::start(&[], true);
    let carried = with_default(&service.dispatch, || {
        let span = info_span!("orchestrator.schedule_task");
        propagate::continue_trace(&span, &carrier());
        span.in_scope(|| propagate::inject_json(&propagate::current_context()).unwrap())
    });
    let spans = service.spans.spans();
    let next = propagate::extract_json(&carried);
    let next = next.span().span_context().clone();
    assert_eq!(spans[0].trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(spans[0].parent_span_id.unwrap().to_string(), "b7ad6b7169203331");
    assert_eq!(
        (next.trace_id(), next.span_id()),
        (spans[0].trace_id, spans[0].span_id)
    );
    assert!(next.is_sampled());
}

#[test]
fn errors_name_the_wrong_setting() {
    let start = |name: &str, value: &str| {
        let builder = Telemetry::builder("s").env(Env::from_pairs([(name, value)]));
        builder
            .into_layer::<tracing_subscriber::Registry>()
            .err()
            .unwrap()
            .to_string()
    };
    assert!(start("DALSTON_LOG_FORMAT", "xml").starts_with("DALSTON_LOG_FORMAT is \"xml\""));
    assert!(start("LOG_LEVEL", "inof").starts_with("LOG_LEVEL is \"inof\""));
    assert!(start("RUST_LOG", "a=b").contains("\"a=b\" is not"));
}

#[test]
fn lines_and_build_info_have_the_service_of_the_environment() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("OTEL_SERVICE_NAME", "renamed")], "renamed"),
        (&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed")], "listed"),
        (&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=")], "engine-test"),
        // A wrong value is no error while tracing is off.
        (&[("OTEL_RESOURCE_ATTRIBUTES", "nonsense")], "engine-test"),
    ];
    for (env, expected) in cases {
        let service = Service::start(env, false);
        with_default(&service.dispatch, || info!("started"));
        assert_eq!(service.lines()[0]["service"], expected, "{env:?}");
        let metrics = service.telemetry.metrics().encode();
        let labels = format!("dalston_build_info{{service=\"{expected}\",");
        assert!(metrics.contains(&labels), "{metrics}");
    }
}

#[test]
fn secrets_are_masked_in_recorded_spans() {
    let service = Service::start(&[("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "24")], true);
    with_default(&service.dispatch, || {
        let span = info_span!(
            "work",
            url = "redis://user:hunter2@cache:6379/0/and/a/long/path",
            api_key = "hunter2",
            plain = "nothing to hide",
        );
        span.add_link_with_attributes(
            propagate::extract_map(&carrier()).span().span_context().clone(),
            vec![KeyValue::new("authorization", "Bearer hunter2")],
        );
        span.set_status(Status::error("GET /?token=hunter2 failed"));
        span.in_scope(|| info!(url = "http://a:hunter2@b/", "asked http://c:hunter2@d/"));
        span.set_attribute(
            "urls",
            opentelemetry::Value::Array(Array::String(vec!["http://a:hunter2@b/".into(), "c".into()])),
        );
    });
    let span = &service.spans.spans()[0];
    let text = format!("{span:?}");
    assert!(!text.contains("hunter2"), "{text}");
    for kept in [
        "redis://***@cache:6379/0",
        "nothing to hide",
        "http://***@b/",
        "/?token=*** failed",
    ] {
        assert!(text.contains(kept), "{kept} is not in {text}");
    }
}

#[test]
fn every_carrier_is_continued_in_one_call() {
    let service = Service::start(&[], true);
    let context = propagate::extract_map(&carrier());
    let mut headers = dalston_telemetry::http::HeaderMap::new();
    propagate::inject_headers(&context, &mut headers);
    let json = propagate::inject_json(&context).unwrap();
    let value = propagate::inject_value(&context).unwrap();
    let map = propagate::inject_map(&context);
    let nested = HashMap::from([("_trace_context".to_owned(), json.clone())]);
    with_default(&service.dispatch, || {
        propagate::continue_trace(&info_span!("headers"), &headers);
        propagate::continue_trace(&info_span!("map"), &carrier());
        propagate::continue_trace(&info_span!("nested"), &nested);
        propagate::continue_trace(&info_span!("ordered"), &map);
        propagate::continue_trace(&info_span!("text"), json.as_str());
        propagate::continue_trace(&info_span!("value"), &value);
        let carried = propagate::continue_trace(&info_span!("context"), &context);
        assert_eq!(propagate::inject_map(&carried), map, "for the log context");
    });
    let spans = service.spans.spans();
    assert_eq!(spans.len(), 7);
    for span in spans {
        let parent = span.parent_span_id.map(|id| id.to_string());
        assert_eq!(parent.as_deref(), Some("b7ad6b7169203331"), "{}", span.name);
        assert!(span.parent_is_remote, "{}", span.name);
    }
}

#[test]
fn span_without_usable_context_is_a_root() {
    let service = Service::start(&[], true);
    with_default(&service.dispatch, || {
        info_span!("loop").in_scope(|| {
            propagate::continue_trace(&info_span!("request"), "{\"traceparent\": \"00-0-0-01\"}");
        });
    });
    let spans = service.spans.spans();
    let request = spans.iter().find(|span| span.name == "request").unwrap();
    assert_eq!(request.parent_span_id, None);
}

#[test]
fn trace_is_continued_while_tracing_is_off() {
    let service = Service::start(&[], false);
    with_default(&service.dispatch, || {
        let span = info_span!("request");
        let carried = propagate::continue_trace(&span, &carrier());
        let _log_context = LogContext::new().carrier(carried).enter();
        info!("answered");
        let next = propagate::inject_map(&propagate::current_context());
        assert_eq!(next["traceparent"], PARENT);
    });
    assert_eq!(service.lines()[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
}

#[test]
fn late_call_for_an_entered_span_is_one_warning() {
    let service = Service::start(&[], true);
    with_default(&service.dispatch, || {
        let span = info_span!("request");
        span.in_scope(|| {});
        for _ in 0..2 {
            propagate::continue_trace(&span, &carrier());
        }
    });
    let lines = service.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["event"], "parent_of_span_not_set");
    assert_eq!(lines[0]["span"], "request");
}
