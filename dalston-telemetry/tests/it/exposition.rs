//! How Prometheus reads `/metrics`.

use dalston_telemetry::metrics::{
    Counter, DenseFamily, DropReason, Exemplar, Gauge, Histogram, Metrics, MetricsServer, Signal,
    TelemetryMetrics, TextFormat, Unit,
};
use dalston_telemetry::{Env, SpanCollector, Telemetry};
use testbed::{TestPrometheus, parse_open_metrics, promtool};
use tracing::info_span;
use tracing_subscriber::layer::SubscriberExt;

/// Every set of metrics of this crate, with something in it.
fn everything(metrics: &Metrics) {
    crate::sets::everything(metrics);
    let telemetry = TelemetryMetrics::register(metrics);
    telemetry.spans_dropped(DropReason::QueueFull, 1);
    telemetry.export_failed(Signal::Metrics);
    let (size, open) = (
        DenseFamily::<(), Histogram>::new(|| Histogram::new(&[1.0])),
        DenseFamily::<(), Gauge>::default(),
    );
    metrics.register(|registry| {
        registry.register_with_unit(
            "my_size",
            "Size of \"things\", C:\\new",
            Unit::Bytes,
            size.clone(),
        );
        registry.register("my_open", "Open things", open.clone());
    });
}

#[test]
fn promtool_finds_no_fault_in_metrics_of_this_crate() {
    let (_layer, telemetry) = Telemetry::builder("engine-asr")
        .env(Env::default())
        .into_layer::<tracing_subscriber::Registry>()
        .unwrap();
    everything(telemetry.metrics());
    let text = telemetry.metrics().encode_as(TextFormat::Prometheus);
    assert!(
        text.contains("dalston_build_info{") && text.contains("dalston_engine_task_duration_seconds_bucket{")
    );
    promtool(&["check", "metrics"], &text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
}

#[test]
fn a_strict_parser_reads_metrics_of_this_crate() {
    let metrics = Metrics::new();
    everything(&metrics);
    let text = metrics.encode_as(TextFormat::OpenMetrics);
    parse_open_metrics(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
}

#[test]
fn of_families_with_a_common_sample_name_one_is_written() {
    let metrics = Metrics::new();
    let _telemetry = TelemetryMetrics::register(&metrics);
    let (jobs, wait) = (
        DenseFamily::<(), Counter>::default(),
        DenseFamily::<(), Histogram>::new(|| Histogram::new(&[1.0])),
    );
    metrics.register(|registry| {
        registry.register("jobs_total", "Jobs", jobs.clone());
        registry.register_with_unit("wait", "Wait", Unit::Seconds, wait.clone());
        let client = registry.prometheus();
        let gauge = dalston_telemetry::metrics::prometheus_client::metrics::gauge::Gauge::<i64>::default;
        client.register("jobs_total", "Taken", gauge());
        client.register("wait_seconds_sum", "Taken", gauge());
        client.register("held", "Held", gauge());
    });
    let meter = metrics.meter("mine");
    let describe = "What it is";
    let gauge = |name| {
        meter
            .u64_gauge(name)
            .with_description(describe)
            .build()
            .record(1, &[])
    };
    let counter = |name| {
        meter
            .u64_counter(name)
            .with_description(describe)
            .build()
            .add(1, &[])
    };
    gauge("wait.seconds.count");
    counter("held");
    counter("sent");
    // The names of instruments are taken in the order in which they are first read.
    let _ = metrics.encode();
    gauge("sent.total");
    gauge("sent");
    // A text begins with the metrics of this crate, so the next one shows what it refused.
    let _ = metrics.encode();

    for (format, check) in [
        (TextFormat::OpenMetrics, parse_open_metrics as fn(&str) -> _),
        (TextFormat::Prometheus, |text| {
            promtool(&["check", "metrics"], text)
        }),
    ] {
        let text = metrics.encode_as(format);
        check(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
        let written = |line: &str| assert!(text.contains(line), "{line}\n{text}");
        written("\njobs_total 0\n");
        written("\nheld 0\n");
        written("\nsent_total{otel_scope_name=\"mine\"} 1\n");
        for refused in [
            "jobs_total",
            "wait_seconds_sum",
            "wait_seconds_count",
            "held",
            "sent",
            "sent_total",
        ] {
            written(&format!(
                "\ndalston_telemetry_metrics_refused_total{{metric=\"{refused}\"}} 1\n"
            ));
        }
    }
}

#[test]
fn checkers_find_a_fault_in_wrong_metrics() {
    promtool(&["check", "metrics"], "# TYPE jobs counter\njobs 1\n").unwrap_err();
    parse_open_metrics("# TYPE jobs counter\n# TYPE jobs_total gauge\n# EOF\n").unwrap_err();
}

#[test]
fn prometheus_stores_all_series_and_exemplars() {
    let spans = SpanCollector::new();
    let (layer, telemetry) = Telemetry::builder("engine-asr")
        .env(Env::from_pairs([("OTEL_TRACES_EXPORTER", "none")]))
        .span_collector(spans.clone())
        .without_logs()
        .into_layer()
        .unwrap();
    let metrics = telemetry.metrics();
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        info_span!("task").in_scope(|| everything(metrics));
    });
    let server = MetricsServer::start("127.0.0.1:0", metrics.clone()).unwrap();
    let prometheus = TestPrometheus::start(&[("engine", server.address())]);

    let span = &spans.spans()[0];
    let range = "start=0&end=9999999999";
    for (query, value) in [
        ("dalston_engine_queue_wait_seconds_bucket", "0.001"),
        ("dalston_engine_task_duration_seconds_bucket", "0.001"),
        ("dalston_engine_tasks_processed_total", "1"),
    ] {
        let exemplar = prometheus.wait_for(&format!("query_exemplars?query={query}&{range}"), |data| {
            Some(data[0]["exemplars"][0].clone()).filter(|exemplar| !exemplar.is_null())
        });
        assert_eq!(exemplar["labels"]["trace_id"], *span.trace_id.to_string());
        assert_eq!(exemplar["labels"]["span_id"], *span.span_id.to_string());
        assert_eq!(exemplar["value"], value, "{query}");
    }

    // One scrape stores all or nothing.
    let snapshot = metrics.snapshot();
    let stored = prometheus.wait_for(
        "query?query={__name__=~%22(dalston|my|audio|wake|end_to|pre|process|stt)_.*%22}",
        |data| {
            data["result"]
                .as_array()
                .cloned()
                .filter(|series| !series.is_empty())
        },
    );
    assert_eq!(stored.len(), snapshot.iter().count());
    for series in stored {
        let labels = series["metric"].as_object().unwrap();
        let text = |name: &str| labels[name].as_str().unwrap().to_owned();
        let wanted: Vec<_> = labels
            .keys()
            .filter(|name| !["__name__", "job", "instance"].contains(&name.as_str()))
            .map(|name| (name.clone(), text(name)))
            .collect();
        let wanted: Vec<_> = wanted.iter().map(|(name, value)| (&**name, &**value)).collect();
        let value: f64 = series["value"][1].as_str().unwrap().parse().unwrap();
        let ours = snapshot.value(&text("__name__"), &wanted);
        // They change by themselves.
        let name = text("__name__");
        if name != "dalston_engine_inference_busy_ratio" && !name.starts_with("process_") {
            assert_eq!(ours, Some(value), "{series}");
        }
    }
}

#[test]
fn unsampled_spans_are_no_exemplars() {
    let metrics = Metrics::new();
    let jobs = DenseFamily::<(), Counter>::default();
    metrics.register(|registry| registry.register("jobs", "Jobs", jobs.clone()));
    for variables in [
        [("OTEL_ENABLED", "false"), ("OTEL_TRACES_SAMPLER", "always_on")],
        [("OTEL_ENABLED", "true"), ("OTEL_TRACES_SAMPLER", "always_off")],
    ] {
        let (layer, _telemetry) = Telemetry::builder("engine-asr")
            .env(Env::from_pairs(
                [&variables[..], &[("OTEL_TRACES_EXPORTER", "none")]].concat(),
            ))
            .without_logs()
            .into_layer()
            .unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            info_span!("task").in_scope(|| jobs.with(()).inc_in(Exemplar::current()));
        });
    }
    assert!(
        metrics.encode().contains("\njobs_total 2\n"),
        "{}",
        metrics.encode()
    );
}
