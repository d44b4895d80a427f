//! Traces and metrics through an OTLP receiver that shares no code with ours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use reqwest::StatusCode;
use serde_json::Value;
use testbed::collector::{Protocol, ReceivedMetrics};
use tokio::time::{Instant, sleep};

use crate::job::STEREO;
use crate::rig::{Rig, Series, stereo, trace_id};
use crate::tree::tree;

/// Processes that push, by role and `service.name`.
const SERVICES: [(&str, &str); 3] = [
    ("gateway", "dalston-gateway"),
    ("orchestrator", "dalston-orchestrator"),
    ("prepare", "dalston-engine-audio-prepare"),
];

/// Totals that do not change by themselves once the job is done.
const COMPARED: [&str; 8] = [
    "dalston_gateway_jobs_created_total",
    "dalston_gateway_requests_total",
    "dalston_gateway_upload_bytes_total",
    "dalston_orchestrator_events_processed_total",
    "dalston_orchestrator_jobs_total",
    "dalston_orchestrator_tasks_completed_total",
    "dalston_engine_tasks_processed_total",
    "dalston_build_info",
];

/// A metric without labels, and one for each value of its labels.
type Totals = BTreeMap<(String, BTreeSet<String>), f64>;

#[tokio::test]
async fn job_passes_another_receiver_over_grpc() {
    job_passes_another_receiver(Protocol::Grpc).await;
}

#[tokio::test]
async fn job_passes_another_receiver_over_http() {
    job_passes_another_receiver(Protocol::Http).await;
}

async fn job_passes_another_receiver(protocol: Protocol) {
    let mut rig = Rig::new().await;
    let Some(rotel) = rig.export_through_rotel(protocol) else {
        return;
    };
    rig.variables = vec![
        ("OTEL_METRICS_EXPORTER", "otlp".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500".to_owned()),
    ];
    for role in ["gateway", "orchestrator", "prepare"] {
        rig.run(role, &[]);
    }
    rig.run("mock-engine", &["--delay", "200"]);
    rig.is_ready(2).await;
    let response = rig
        .submit(&stereo(2), &[("speaker_detection", "per_channel")])
        .await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    rig.wait_for(created["id"].as_str().unwrap(), "completed").await;
    rig.until("last event", async || {
        let series = rig.series("orchestrator").await;
        let last = r#"dalston_orchestrator_events_processed_total{event_type="job.completed"}"#;
        (series.get(last) == Some(&1.0)).then_some(())
    })
    .await;
    let mut scraped = BTreeMap::new();
    for (role, service) in SERVICES {
        let series = rig.series(role).await;
        assert_nothing_was_refused(role, &series);
        scraped.insert(service.to_owned(), scraped_totals(&series));
    }

    // The last push follows the end of the work.
    rig.end_all();
    let expected = STEREO.lines().filter(|line| !line.is_empty()).count();
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut spans, mut pushed) = (Vec::new(), BTreeMap::new());
    while Instant::now() < deadline && (spans.len() < expected || of_services(&pushed) != scraped) {
        sleep(Duration::from_millis(50)).await;
        spans = rig.spans_of(&trace);
        for received in rig.pushed_metrics() {
            add_totals(received, &mut pushed);
        }
    }
    tree(&spans).assert_eq(STEREO);
    assert_eq!(of_services(&pushed), scraped, "{}", rotel.log());
    assert!(!rotel.log().contains("rror"), "{}", rotel.log());
}

/// The exporters count requests that a receiver refuses and spans that it does not get.
fn assert_nothing_was_refused(role: &str, series: &Series) {
    let lost = series.iter().filter(|(name, _)| {
        name.starts_with("dalston_telemetry_export_failures_total")
            || name.starts_with("dalston_telemetry_spans_dropped_total")
    });
    let lost: Vec<_> = lost.collect();
    assert!(!lost.is_empty(), "{role} does not count them");
    assert!(lost.iter().all(|(_, value)| **value == 0.0), "{role}: {lost:?}");
}

fn of_services(pushed: &BTreeMap<String, Totals>) -> BTreeMap<String, Totals> {
    let names = SERVICES.iter().map(|(_, service)| *service);
    let found = names.filter_map(|name| Some((name.to_owned(), pushed.get(name)?.clone())));
    found.collect()
}

/// The compared series of a scrape. Their labels are sorted: a push has another order.
fn scraped_totals(series: &Series) -> Totals {
    let mut totals = Totals::new();
    for (series, value) in series {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        if COMPARED.contains(&name) {
            let labels = labels.trim_end_matches('}').split(',');
            let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
            totals.insert((name.to_owned(), labels.collect()), *value);
        }
    }
    totals
}

/// Adds the compared series of a push, which replace older ones of the service.
fn add_totals(received: ReceivedMetrics, pushed: &mut BTreeMap<String, Totals>) {
    for resource in received.request.resource_metrics {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = attributes
            .iter()
            .find(|attribute| attribute.key == "service.name");
        let totals = pushed.entry(text(service.unwrap())).or_default();
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            if !COMPARED.contains(&&*metric.name) {
                continue;
            }
            let points = match metric.data.unwrap() {
                Data::Sum(sum) => sum.data_points,
                Data::Gauge(gauge) => gauge.data_points,
                other => panic!("{other:?}"),
            };
            for point in points {
                let labels = point.attributes.iter();
                let labels = labels.map(|label| format!("{}=\"{}\"", label.key, text(label)));
                let value = match point.value.unwrap() {
                    number_data_point::Value::AsInt(whole) => whole as f64,
                    number_data_point::Value::AsDouble(real) => real,
                };
                totals.insert((metric.name.clone(), labels.collect()), value);
            }
        }
    }
}

fn text(attribute: &KeyValue) -> String {
    match attribute.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => text,
        other => panic!("{other:?}"),
    }
}
