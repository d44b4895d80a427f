//! Delivery to a collector that works.

use std::time::{Duration, SystemTime};

use dalston_telemetry::opentelemetry::trace::{SpanKind, TraceContextExt};
use dalston_telemetry::opentelemetry::{Context, KeyValue};
use dalston_telemetry::propagate;
use dalston_telemetry::{OtlpConfig, OtlpProtocol, SpanCollector, TimedSpan};
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
use testbed::collector::{Collector, Protocol, env};
use tracing::info_span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::service::{Caller, Service};

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];

#[test]
fn spans_arrive_from_every_kind_of_thread_over_both_transports() {
    for protocol in PROTOCOLS {
        for caller in Caller::ALL {
            let collector = Collector::start(protocol);
            let (result, stats) = caller.live(collector.env(), Duration::from_secs(30), |service| {
                service.in_scope(|| info_span!("outer").in_scope(|| info_span!("inner").in_scope(|| {})));
            });
            assert_eq!(result, Ok(()), "{protocol:?} {caller:?}");
            let names: Vec<_> = collector
                .rest()
                .iter()
                .flat_map(|request| request.span_names())
                .collect();
            assert_eq!(names, ["inner", "outer"], "{protocol:?} {caller:?}");
            assert_eq!(
                (stats.exported(), stats.dropped_total(), stats.waiting()),
                (2, 0, 0)
            );
        }
    }
}

#[test]
fn headers_compression_path_and_resource_arrive() {
    for protocol in PROTOCOLS {
        let collector = Collector::start(protocol);
        let mut env = collector.env();
        for (name, value) in [
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "x-api-key=a%20secret,x-tenant=dalston",
            ),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test%2Fone",
            ),
        ] {
            env.push((name.into(), value.into()));
        }
        let service = Service::with(env, |builder| builder.version("1.2.3"));
        service.spans(1);
        service.telemetry.flush(Duration::from_secs(30)).unwrap();

        let request = collector.next();
        assert_eq!(request.header("x-api-key"), Some("a secret"));
        assert_eq!(request.header("x-tenant"), Some("dalston"));
        assert!(
            request
                .header("user-agent")
                .is_some_and(|agent| agent.starts_with("dalston-telemetry/"))
        );
        match protocol {
            Protocol::Grpc => assert_eq!(request.header("grpc-encoding"), Some("gzip")),
            Protocol::Http => {
                assert_eq!(request.header("content-encoding"), Some("gzip"));
                assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
                assert_eq!(request.path, "/v1/traces");
            }
        }
        let resource = |key| request.resource(key);
        assert_eq!(resource("service.name").as_deref(), Some("engine-test"));
        assert_eq!(resource("service.version").as_deref(), Some("1.2.3"));
        assert_eq!(resource("service.namespace").as_deref(), Some("dalston"));
        assert_eq!(
            resource("deployment.environment.name").as_deref(),
            Some("test/one")
        );
    }
}

#[test]
fn endpoint_without_scheme_gets_plain_text() {
    for protocol in PROTOCOLS {
        let collector = Collector::start(protocol);
        let service = Service::start(env(protocol, &collector.address.to_string()));
        service.spans(1);
        assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
        assert_eq!(collector.next().span_names(), ["work"]);
    }
}

#[test]
fn an_endpoint_for_traces_is_used_as_it_is_and_wins() {
    let collector = Collector::start(Protocol::Http);
    let mut env = env(Protocol::Http, "http://127.0.0.1:1");
    let endpoint = format!("http://{}/custom/intake", collector.address);
    env.push(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT".into(), endpoint));
    let service = Service::start(env);
    service.spans(1);
    assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
    assert_eq!(collector.next().path, "/custom/intake");
}

#[test]
fn explicit_calls_win_over_the_environment() {
    let collector = Collector::start(Protocol::Http);
    let env = env(Protocol::Grpc, "http://127.0.0.1:1");
    let endpoint = format!("http://{}/explicit", collector.address);
    let service = Service::with(env, |builder| {
        builder.otlp(
            OtlpConfig::new()
                .protocol(OtlpProtocol::HttpProtobuf)
                .endpoint(endpoint)
                .header("x-key", "k"),
        )
    });
    service.spans(1);
    assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
    let request = collector.next();
    assert_eq!(
        (request.path.as_str(), request.header("x-key")),
        ("/explicit", Some("k"))
    );
}

#[test]
fn many_spans_arrive_in_batches_of_the_size_that_was_asked_for() {
    let collector = Collector::start(Protocol::Grpc);
    let mut env = collector.env();
    env.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE".into(), "10".into()));
    env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "3600000".into()));
    let service = Service::start(env);
    service.spans(25);
    assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
    let sizes: Vec<_> = collector
        .rest()
        .iter()
        .map(|request| request.span_names().len())
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 25);
    assert!(sizes.iter().all(|size| *size <= 10), "{sizes:?}");
}

#[test]
fn a_full_batch_does_not_wait_for_its_time() {
    let collector = Collector::start(Protocol::Grpc);
    let mut env = collector.env();
    env.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE".into(), "10".into()));
    env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "3600000".into()));
    let service = Service::start(env);
    service.spans(10);
    assert_eq!(collector.next().span_names().len(), 10);
}

#[test]
fn timed_span_keeps_its_times_and_its_parent() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    let carried = propagate::extract_json(
        r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#,
    );
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut span = TimedSpan::new(
        "engine.queue_wait",
        &carried,
        start,
        start + Duration::from_secs(7),
    );
    span.kind = SpanKind::Consumer;
    span.attributes
        .push(KeyValue::new("dalston.queue_wait_seconds", 7.0));
    let context = service.telemetry.handle().record_span(span).unwrap();
    // Ends before it starts: the end is moved to the start.
    let backwards = TimedSpan::new("backwards", &carried, start, start - Duration::from_secs(7));
    service.telemetry.handle().record_span(backwards).unwrap();
    service.telemetry.flush(Duration::from_secs(30)).unwrap();

    let request = collector.next();
    let spans = &request.request.resource_spans[0].scope_spans[0].spans;
    let carried = carried.span().span_context().clone();
    assert_eq!(spans[0].trace_id, carried.trace_id().to_bytes());
    assert_eq!(spans[0].parent_span_id, carried.span_id().to_bytes());
    assert_eq!(spans[0].span_id, context.span_id().to_bytes());
    let second = 1_000_000_000;
    assert_eq!(spans[0].start_time_unix_nano, 1_700_000_000 * second);
    assert_eq!(spans[0].end_time_unix_nano, 1_700_000_007 * second);
    assert_eq!(spans[1].start_time_unix_nano, spans[1].end_time_unix_nano);
}

#[test]
fn children_of_unsampled_parent_are_not_exported() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    let unsampled = propagate::extract_json(
        r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}"#,
    );
    let now = SystemTime::now();
    service
        .telemetry
        .handle()
        .record_span(TimedSpan::new("unseen", &unsampled, now, now));
    service
        .telemetry
        .handle()
        .record_span(TimedSpan::new("seen", &Context::new(), now, now));
    service.telemetry.flush(Duration::from_secs(30)).unwrap();
    assert_eq!(collector.next().span_names(), ["seen"]);
}

#[test]
fn spans_of_exporter_crates_are_not_exported() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    service.in_scope(|| {
        tracing::info_span!(target: "h2::client", "not exported").in_scope(|| {});
        tracing::info_span!(target: "hyper_util::client", "not exported").in_scope(|| {});
        tracing::info_span!(target: "tonic", "not exported").in_scope(|| {});
        tracing::info_span!(target: "opentelemetry_sdk", "not exported").in_scope(|| {});
        tracing::debug_span!(target: "my_engine", "too detailed").in_scope(|| {});
        // Only the beginning of the name is that of an exporter crate.
        tracing::info_span!(target: "tower_of_babel::speech", "exported").in_scope(|| {});
    });
    service.telemetry.flush(Duration::from_secs(30)).unwrap();
    assert_eq!(collector.next().span_names(), ["exported"]);
}

#[test]
fn long_texts_are_cut_for_collector_and_in_memory() {
    for in_memory in [true, false] {
        let collector = Collector::start(Protocol::Http);
        let mut env = collector.env();
        env.push(("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT".into(), "5".into()));
        env.push(("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT".into(), "4".into()));
        let spans = SpanCollector::new();
        let service = Service::with(env, |builder| match in_memory {
            true => builder.span_collector(spans.clone()),
            false => builder,
        });
        let attributes = || (0..6).map(|number| KeyValue::new(format!("key-{number}"), "äöüäöüäöü"));
        let now = SystemTime::now();
        let root = Context::new();
        let mut span = TimedSpan::new("work", &root, now, now);
        span.attributes = attributes().collect();
        service.telemetry.handle().record_span(span);
        service.in_scope(|| {
            let span = info_span!("work");
            for KeyValue { key, value, .. } in attributes() {
                span.set_attribute(key, value);
            }
        });
        service.telemetry.flush(Duration::from_secs(30)).unwrap();

        let request = collector.next();
        let exported = &request.request.resource_spans[0].scope_spans[0].spans;
        assert_eq!(exported.len(), 2);
        for span in exported {
            assert_eq!((span.attributes.len(), span.dropped_attributes_count), (4, 2));
            for attribute in &span.attributes {
                let value = format!("{:?}", attribute.value);
                assert!(value.contains("\"äöüäö\""), "{value}");
            }
        }
        let kept: Vec<_> = spans.spans().iter().map(|span| span.attributes.len()).collect();
        assert_eq!(kept, vec![4; if in_memory { 2 } else { 0 }]);
    }
}

#[test]
fn span_of_carried_context_arrives_with_its_parent() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start(collector.env());
    let carried = propagate::extract_json(
        r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#,
    );
    service.in_scope(|| {
        let span = info_span!("outer");
        span.set_parent(carried.clone()).unwrap();
        span.in_scope(|| info_span!("inner").in_scope(|| {}));
    });
    service.telemetry.flush(Duration::from_secs(30)).unwrap();

    let request = collector.next();
    let [inner, outer] = &request.request.resource_spans[0].scope_spans[0].spans[..] else {
        panic!("{request:?}");
    };
    let carried = carried.span().span_context().clone();
    assert_eq!(inner.parent_span_id, outer.span_id);
    assert_eq!(outer.parent_span_id, carried.span_id().to_bytes());
    for span in [inner, outer] {
        assert_eq!(span.trace_id, carried.trace_id().to_bytes());
        assert_ne!(span.span_id, [0; 8]);
    }
}

#[test]
fn attribute_set_twice_is_exported_with_its_last_value() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start(collector.env());
    service.in_scope(|| {
        let span = tracing::info_span!("work", language = "auto", task = "t-1");
        span.record("language", "de");
        span.set_attribute("task", "t-2");
    });
    service.telemetry.flush(Duration::from_secs(30)).unwrap();

    let request = collector.next();
    let attributes = &request.request.resource_spans[0].scope_spans[0].spans[0].attributes;
    let text = |value: &Option<AnyValue>| match value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let attributes: Vec<_> = attributes
        .iter()
        .map(|attribute| (attribute.key.clone(), text(&attribute.value)))
        .collect();
    let expected = [("language", "de"), ("task", "t-2")];
    assert_eq!(
        attributes,
        expected.map(|(key, value)| (key.into(), value.into()))
    );
}

#[test]
fn disabled_sdk_or_missing_exporter_exports_nothing() {
    for (name, value, traces) in [
        ("OTEL_ENABLED", "false", false),
        ("OTEL_SDK_DISABLED", "true", false),
        // Spans have ids, for log lines and propagation.
        ("OTEL_TRACES_EXPORTER", "none", true),
        ("OTEL_TRACES_SAMPLER", "always_off", true),
    ] {
        let collector = Collector::start(Protocol::Grpc);
        let mut env = collector.env();
        env.push((name.into(), value.into()));
        let service = Service::start(env);
        assert_eq!(service.telemetry.handle().traces_enabled(), traces, "{name}");
        service.spans(3);
        assert_eq!(service.telemetry.shutdown_blocking(), Ok(()));
        assert!(collector.rest().is_empty(), "{name}");
    }
}
