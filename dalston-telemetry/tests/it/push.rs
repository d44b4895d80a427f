//! Metrics that are pushed, beside the same metrics being scraped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::{Counter, DenseFamily, Histogram, MetricsSnapshot, Status, Unit};
use dalston_telemetry::opentelemetry::KeyValue;
use dalston_telemetry::services::engine::{EngineLabels, EngineMetrics};
use dalston_telemetry::{Env, ShutdownError, SpanCollector};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue as ProtoKeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, number_data_point};
use testbed::collector::{Answer, Collector, Connection, Protocol, env, nowhere};
use tracing::info_span;

use crate::service::Service;

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];
const LONG: Duration = Duration::from_secs(30);

/// The variables with which metrics are pushed on request.
fn pushing(mut env: Vec<(String, String)>, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let push = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
    ];
    let more = push.iter().chain(more);
    env.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

fn one_task(service: &Service) -> EngineMetrics {
    let engine = EngineMetrics::register(
        service.telemetry.metrics(),
        &EngineLabels::new("asr", "transcribe"),
    );
    let model = engine.model("a \"tiny\" one");
    engine.queue_wait(Duration::from_millis(300));
    model.task_duration(Duration::from_secs(2));
    model.task_processed(Status::Success);
    engine
}

fn metrics(request: &ExportMetricsServiceRequest) -> Vec<&Metric> {
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).collect()
}

fn metric<'a>(request: &'a ExportMetricsServiceRequest, name: &str) -> &'a Metric {
    let mut found = metrics(request).into_iter().filter(|metric| metric.name == name);
    found.next().unwrap_or_else(|| panic!("{name} was not pushed"))
}

fn labels(attributes: &[ProtoKeyValue]) -> BTreeMap<String, String> {
    let value = |attribute: &ProtoKeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => text,
        other => panic!("{other:?}"),
    };
    let pairs = attributes
        .iter()
        .map(|attribute| (attribute.key.clone(), value(attribute)));
    pairs.collect()
}

fn number(value: &Option<number_data_point::Value>) -> f64 {
    match value.unwrap() {
        number_data_point::Value::AsInt(whole) => whole as f64,
        number_data_point::Value::AsDouble(real) => real,
    }
}

/// Every series as a scrape would show it.
fn series(request: &ExportMetricsServiceRequest) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
    let mut series = BTreeMap::new();
    for metric in metrics(request) {
        let name = |suffix: &str| format!("{}{suffix}", metric.name);
        match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic);
                for point in &sum.data_points {
                    series.insert((name(""), labels(&point.attributes)), number(&point.value));
                }
            }
            Data::Gauge(gauge) => {
                for point in &gauge.data_points {
                    series.insert((name(""), labels(&point.attributes)), number(&point.value));
                }
            }
            Data::Histogram(histogram) => {
                for point in &histogram.data_points {
                    let labels = labels(&point.attributes);
                    let bounds = point.explicit_bounds.iter().map(|bound| format!("{bound:?}"));
                    let mut below = 0;
                    for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&point.bucket_counts) {
                        below += count;
                        let mut labels = labels.clone();
                        labels.insert("le".to_owned(), bound);
                        series.insert((name("_bucket"), labels), below as f64);
                    }
                    series.insert((name("_sum"), labels.clone()), point.sum.unwrap());
                    series.insert((name("_count"), labels), point.count as f64);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    series
}

#[track_caller]
fn assert_same(request: &ExportMetricsServiceRequest, scraped: &MetricsSnapshot) {
    let pushed = series(request);
    for ((name, labels), value) in &pushed {
        let labels: Vec<_> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
        let scraped = scraped.value(name, &labels);
        // Figures of the process change by themselves.
        match name.starts_with("process_") {
            true => assert!(scraped.is_some(), "{name}"),
            false => assert_eq!(scraped, Some(*value), "{name}{labels:?}"),
        }
    }
    assert_eq!(pushed.len(), scraped.iter().count());
}

#[test]
fn a_push_and_a_scrape_of_the_same_moment_have_the_same_series() {
    for protocol in PROTOCOLS {
        let collector = Collector::start(protocol);
        let service = Service::start(pushing(
            collector.env(),
            &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")],
        ));
        one_task(&service);
        let size = DenseFamily::<(), Histogram>::new(|| Histogram::new(&[0.5, 1.0]));
        let foreign =
            dalston_telemetry::metrics::prometheus_client::metrics::counter::Counter::<u64>::default();
        service.telemetry.metrics().register(|registry| {
            registry.register_with_unit("my_size", "Size of things", Unit::Bytes, size.clone());
            registry
                .prometheus()
                .register("foreign", "Of another crate", foreign.clone());
        });
        size.with(()).observe(0.75);
        foreign.inc_by(5);

        service.telemetry.flush(LONG).unwrap();
        let scraped = service.telemetry.metrics().snapshot();
        let received = collector.next_metrics();
        assert_same(&received.request, &scraped);

        let wait = metric(&received.request, "dalston_engine_queue_wait_seconds");
        assert_eq!(
            (&*wait.unit, &*wait.description),
            ("s", "Time from the queueing of a task to its read")
        );
        let Some(Data::Histogram(wait)) = &wait.data else {
            panic!("{wait:?}")
        };
        assert_eq!(wait.aggregation_temporality(), AggregationTemporality::Cumulative);
        let point = &wait.data_points[0];
        assert!(point.start_time_unix_nano > 0 && point.start_time_unix_nano < point.time_unix_nano);
        assert_eq!(metric(&received.request, "my_size_bytes").unit, "By");
        assert_eq!(
            metric(&received.request, "foreign_total").description,
            "Of another crate"
        );

        let resource = received.request.resource_metrics[0].resource.as_ref().unwrap();
        assert_eq!(
            labels_of_texts(&resource.attributes)["service.name"],
            "engine-test"
        );
        if protocol == Protocol::Http {
            assert_eq!(received.path, "/v1/metrics");
        }
        service.telemetry.shutdown_blocking().unwrap();
    }
}

fn labels_of_texts(attributes: &[ProtoKeyValue]) -> BTreeMap<String, String> {
    let texts = attributes.iter().filter(|attribute| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
        matches!(value, Some(any_value::Value::StringValue(_)))
    });
    labels(&texts.cloned().collect::<Vec<_>>())
}

#[test]
fn instruments_are_pushed_with_their_own_names() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(pushing(collector.env(), &[]));
    let label = [KeyValue::new("http.route", "/a")];
    let meter = service.telemetry.meter("my-scope");
    meter
        .f64_histogram("http.wait")
        .with_unit("s")
        .build()
        .record(1.5, &label);
    service.telemetry.flush(LONG).unwrap();
    let received = collector.next_metrics().request;
    let scopes = &received.resource_metrics[0].scope_metrics;
    let scope = scopes
        .iter()
        .find(|scope| scope.scope.as_ref().unwrap().name == "my-scope")
        .unwrap();
    let wait = &scope.metrics[0];
    assert_eq!((&*wait.name, &*wait.unit), ("http.wait", "s"));
    let Some(Data::Histogram(histogram)) = &wait.data else {
        panic!("{wait:?}")
    };
    assert_eq!(labels(&histogram.data_points[0].attributes)["http.route"], "/a");
    assert!(
        service
            .telemetry
            .metrics()
            .encode()
            .contains("http_wait_seconds_sum{http_route=\"/a\"")
    );
}

#[test]
fn exemplars_are_pushed_with_the_ids_of_exported_spans() {
    let collector = Collector::start(Protocol::Http);
    let spans = SpanCollector::new();
    let service = Service::with(pushing(collector.env(), &[]), |builder| {
        builder.span_collector(spans.clone())
    });
    service.in_scope(|| info_span!("task").in_scope(|| drop(one_task(&service))));
    service.telemetry.flush(LONG).unwrap();
    let received = collector.next_metrics().request;
    let span = &spans.spans()[0];
    let Some(Data::Histogram(wait)) = &metric(&received, "dalston_engine_queue_wait_seconds").data else {
        panic!("not a histogram")
    };
    let Some(Data::Sum(tasks)) = &metric(&received, "dalston_engine_tasks_processed_total").data else {
        panic!("not a counter")
    };
    for exemplars in [&wait.data_points[0].exemplars, &tasks.data_points[0].exemplars] {
        assert_eq!(exemplars.len(), 1);
        assert_eq!(exemplars[0].trace_id, span.trace_id.to_bytes());
        assert_eq!(exemplars[0].span_id, span.span_id.to_bytes());
    }
}

#[test]
fn differences_are_told_from_what_the_collector_has_heard() {
    let collector = Collector::answering(Protocol::Http, [Answer::Accept, Answer::Refuse]);
    let service = Service::start(pushing(
        collector.env(),
        &[("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")],
    ));
    let seen = DenseFamily::<(), Counter>::default();
    let wait = DenseFamily::<(), Histogram>::new(|| Histogram::new(&[1.0]));
    service.telemetry.metrics().register(|registry| {
        registry.register("seen", "Seen", seen.clone());
        registry.register("wait", "Wait", wait.clone());
    });
    let mut last_end = None;
    for (add, expected, delivered) in [(3, 3, true), (4, 4, false), (5, 9, true), (0, 0, true)] {
        seen.with(()).inc_by(add);
        (0..add).for_each(|_| wait.with(()).observe(0.5));
        assert_eq!(service.telemetry.flush(LONG).is_ok(), delivered);
        let received = collector.next_metrics().request;
        let Some(Data::Sum(sum)) = &metric(&received, "seen_total").data else {
            panic!("not a counter")
        };
        let Some(Data::Histogram(histogram)) = &metric(&received, "wait").data else {
            panic!("not a histogram")
        };
        assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Delta);
        assert_eq!(number(&sum.data_points[0].value), expected as f64);
        let point = &histogram.data_points[0];
        assert_eq!(
            (&*point.bucket_counts, point.sum),
            (&[expected, 0][..], Some(expected as f64 / 2.0))
        );
        // Without gaps and without overlaps.
        if let Some(end) = last_end {
            assert_eq!(point.start_time_unix_nano, end);
        }
        if delivered {
            last_end = Some(point.time_unix_nano);
        }
    }
}

#[test]
fn metrics_are_pushed_at_intervals_and_at_shutdown() {
    let collector = Collector::start(Protocol::Grpc);
    let mut env = pushing(collector.env(), &[("OTEL_METRIC_EXPORT_INTERVAL", "20")]);
    env.retain(|(name, _)| name != "OTEL_ENABLED");
    let service = Service::start(env);
    assert!(!service.telemetry.handle().traces_enabled());
    let seen = DenseFamily::<(), Counter>::default();
    service
        .telemetry
        .metrics()
        .register(|registry| registry.register("seen", "Seen", seen.clone()));
    let last = |collector: &Collector| {
        series(&collector.next_metrics().request)[&("seen_total".to_owned(), BTreeMap::new())]
    };
    while last(&collector) != 0.0 {}
    seen.with(()).inc();
    while last(&collector) != 1.0 {}
    seen.with(()).inc();
    service.telemetry.shutdown_blocking().unwrap();
    while last(&collector) != 2.0 {}
}

#[test]
fn nothing_is_pushed_by_default() {
    let collector = Collector::start(Protocol::Http);
    for variables in [
        &[("OTEL_METRICS_EXPORTER", "none")][..],
        &[("OTEL_METRICS_EXPORTER", "prometheus")],
        &[("OTEL_ENABLED", "false")],
        &[("OTEL_SDK_DISABLED", "true")],
        &[("METRICS_ENABLED", "false")],
        &[("DALSTON_METRICS_ENABLED", "false"), ("METRICS_ENABLED", "true")],
    ] {
        let service = Service::start(pushing(collector.env(), variables));
        one_task(&service);
        service.telemetry.flush(LONG).unwrap();
        service.telemetry.shutdown_blocking().unwrap();
        assert!(collector.rest_of_metrics().is_empty(), "{variables:?}");
    }
}

#[test]
fn an_absent_or_hanging_collector_does_no_harm() {
    let hanging = Collector::connecting(Protocol::Http, [const { Connection::Hang }; 8]);
    let silent = Collector::answering(Protocol::Grpc, [const { Answer::Hang }; 8]);
    for env in [
        env(Protocol::Grpc, &format!("http://{}", nowhere())),
        env(Protocol::Http, &format!("http://{}", nowhere())),
        hanging.env(),
        silent.env(),
    ] {
        let timeout = Duration::from_millis(300);
        let service = Service::with(pushing(env, &[("OTEL_TRACES_EXPORTER", "none")]), |builder| {
            builder.shutdown_timeout(timeout)
        });
        let engine = one_task(&service);
        assert!(service.telemetry.flush(timeout).is_err());
        engine.queue_wait(Duration::from_secs(1));
        let metrics = service.telemetry.metrics().clone();
        let begun = Instant::now();
        let error = service.telemetry.shutdown_blocking().unwrap_err();
        assert!(matches!(error, ShutdownError::Metrics { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let waits = metrics
            .snapshot()
            .sum("dalston_engine_queue_wait_seconds_count", &[]);
        assert_eq!(waits, 2.0, "being scraped goes on");
        let failures = [("signal", "metrics")];
        assert!(
            metrics
                .snapshot()
                .sum("dalston_telemetry_export_failures_total", &failures)
                >= 1.0
        );
    }
}

#[test]
fn a_refused_request_blocks_no_other_and_is_reported() {
    let collector = Collector::answering(Protocol::Grpc, [Answer::Refuse]);
    let service = Service::start(pushing(collector.env(), &[]));
    let meter = service.telemetry.meter("wide");
    // More than fits into one request.
    let wide = meter.u64_counter("wide").build();
    let value = "x".repeat(64 * 1024);
    for series in 0..100 {
        wide.add(1, &[KeyValue::new("of", format!("{series}{value}"))]);
    }
    let error = service.telemetry.flush(LONG).unwrap_err();
    assert!(matches!(error, ShutdownError::Metrics { .. }), "{error}");
    let requests = collector.rest_of_metrics().len();
    assert_eq!(requests, 2, "the refused one, and the other");
    let failures = [("signal", "metrics")];
    let snapshot = service.telemetry.metrics().snapshot();
    assert_eq!(
        snapshot.sum("dalston_telemetry_export_failures_total", &failures),
        1.0
    );
    service.telemetry.flush(LONG).unwrap();
    assert_eq!(collector.rest_of_metrics().len(), 2);
}

#[test]
fn flush_and_shutdown_report_a_panicking_callback() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start(pushing(collector.env(), &[]));
    let meter = service.telemetry.meter("mine");
    let _gauge = meter
        .u64_observable_gauge("fatal")
        .with_callback(|_| panic!("a callback's own fault"))
        .build();
    for result in [
        service.telemetry.flush(LONG),
        service.telemetry.shutdown_blocking(),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("the thread that exports metrics panicked"),
            "{error}"
        );
    }
}

#[test]
fn a_hanging_callback_does_not_block_shutdown() {
    let collector = Collector::start(Protocol::Http);
    let timeout = Duration::from_secs(1);
    let service = Service::with(pushing(collector.env(), &[]), |builder| {
        builder.shutdown_timeout(timeout)
    });
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let meter = service.telemetry.meter("mine");
    let _gauge = meter
        .u64_observable_gauge("stuck")
        .with_callback(move |_| {
            let _ = held.lock().unwrap().recv();
        })
        .build();
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime
        .block_on(service.telemetry.shutdown())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("callback of an instrument has not returned"),
        "{error}"
    );
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    drop(release);
}

#[test]
fn up_down_counters_are_never_pushed_as_differences() {
    let collector = Collector::start(Protocol::Http);
    let delta = [("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")];
    let service = Service::start(pushing(collector.env(), &delta));
    let open = service
        .telemetry
        .meter("mine")
        .i64_up_down_counter("open")
        .build();
    open.add(5, &[]);
    service.telemetry.flush(LONG).unwrap();
    open.add(-2, &[]);
    service.telemetry.flush(LONG).unwrap();
    let told = collector.rest_of_metrics().into_iter().map(|request| {
        let Some(Data::Sum(sum)) = metric(&request.request, "open").data.clone() else {
            panic!("not a sum")
        };
        let temporality = sum.aggregation_temporality();
        (sum.is_monotonic, temporality, number(&sum.data_points[0].value))
    });
    let cumulative = AggregationTemporality::Cumulative;
    assert_eq!(
        told.collect::<Vec<_>>(),
        [(false, cumulative, 5.0), (false, cumulative, 3.0)]
    );
}

#[test]
fn differences_of_equally_named_instruments_stay_apart() {
    let collector = Collector::start(Protocol::Http);
    let delta = [("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")];
    let service = Service::start(pushing(collector.env(), &delta));
    let meter = service.telemetry.meter("mine");
    let (dotted, plain) = (
        meter.u64_counter("jobs.done").build(),
        meter.u64_counter("jobs_done").build(),
    );
    for _ in 0..2 {
        dotted.add(10, &[]);
        plain.add(1, &[]);
        service.telemetry.flush(LONG).unwrap();
    }
    for request in collector.rest_of_metrics() {
        for (name, added) in [("jobs.done", 10.0), ("jobs_done", 1.0)] {
            let Some(Data::Sum(sum)) = &metric(&request.request, name).data else {
                panic!("not a sum")
            };
            assert_eq!(number(&sum.data_points[0].value), added, "{name}");
        }
    }
}

#[test]
fn instruments_with_one_name_and_two_kinds_are_pushed() {
    let collector = Collector::start(Protocol::Http);
    let delta = [("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")];
    let service = Service::start(pushing(collector.env(), &delta));
    let meter = service.telemetry.meter("mine");
    let counter = meter.u64_counter("jobs").build();
    let histogram = meter.f64_histogram("jobs").build();
    for _ in 0..2 {
        counter.add(10, &[]);
        histogram.record(1.0, &[]);
        service.telemetry.flush(LONG).unwrap();
    }
    for request in collector.rest_of_metrics() {
        let jobs = metrics(&request.request)
            .into_iter()
            .filter(|metric| metric.name == "jobs");
        let mut added: Vec<_> = jobs
            .map(|metric| match metric.data.as_ref().unwrap() {
                Data::Sum(sum) => ("sum", number(&sum.data_points[0].value)),
                Data::Histogram(histogram) => ("histogram", histogram.data_points[0].count as f64),
                other => panic!("{other:?}"),
            })
            .collect();
        added.sort_by_key(|(kind, _)| *kind);
        assert_eq!(added, [("histogram", 1.0), ("sum", 10.0)]);
    }
}

#[test]
fn metrics_are_served_unless_the_environment_says_no() {
    let serve = |pairs: &[(&str, &str)]| {
        let env = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let service = Service::start(env.collect());
        service.telemetry.serve_metrics("127.0.0.1:0").unwrap().is_some()
    };
    assert!(serve(&[]));
    assert!(serve(&[("METRICS_ENABLED", "true")]));
    assert!(!serve(&[("METRICS_ENABLED", "false")]));
    assert!(!serve(&[
        ("DALSTON_METRICS_ENABLED", "off"),
        ("METRICS_ENABLED", "on")
    ]));
}

#[test]
fn a_wrong_variable_of_the_push_is_refused_at_start() {
    let builder = dalston_telemetry::Telemetry::builder("engine-test").env(Env::from_pairs([
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "ftp://x"),
    ]));
    let error = builder
        .into_layer::<tracing_subscriber::Registry>()
        .map(|_| ())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is \"ftp://x\""),
        "{error}"
    );
}
