//! The cost of the layer for HTTP servers. The peers are the trace layer of tower-http and
//! axum-prometheus together: they make a span and the metrics by route. Ours also makes the ids,
//! their headers and the log context, and observes the body.
//!
//! `cargo xtask bench http`. A request goes through an axum router in the same process, without a
//! socket. The bare router is measured, too, and its time is subtracted. The cases alternate, and
//! the median of the rounds counts.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::get;
use axum_prometheus::PrometheusMetricLayerBuilder;
use dalston_telemetry::http::Request;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::tower::HttpLayer;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use testbed::report::{Report, is_quick, median, number};
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_service::Service;
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Level};
use tracing_subscriber::layer::SubscriberExt;

const ROUNDS: usize = 15;
const REQUESTS: u32 = 20_000;

/// A subscriber, and the most time and allocations of a request compared with the peers.
struct Case {
    name: &'static str,
    subscriber: fn() -> Dispatch,
    time_limit: f64,
    allocations_limit: f64,
}

/// A traced request has 11 attributes; that of the peers has 3, so it may take longer.
const CASES: [Case; 2] = [
    Case {
        name: "tracing off",
        subscriber: untraced,
        time_limit: 1.0,
        allocations_limit: 0.5,
    },
    Case {
        name: "traced",
        subscriber: traced,
        time_limit: 1.25,
        allocations_limit: 0.5,
    },
];

fn main() {
    let mut report = Report::start(&["tower-http", "axum-prometheus", "tracing-opentelemetry"]);
    let routers = [bare(), ours(), peers()];
    for case in CASES {
        let (name, dispatch) = (case.name, (case.subscriber)());
        let rounds = if is_quick() { 1 } else { ROUNDS };
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (router, times) in routers.iter().zip(&mut times) {
                times.push(with_default(&dispatch, || nanoseconds(router)));
            }
        }
        let times = times.map(|times| median(&times));
        let counts = routers
            .each_ref()
            .map(|router| with_default(&dispatch, || allocations(router)));
        let added = |values: [f64; 3]| [values[1] - values[0], values[2] - values[0]];
        let ([time, peer_time], [count, peer_count]) = (added(times), added(counts));
        report.at_most(
            format!("time added to a request, {name}, ratio to the peers"),
            case.time_limit,
            time / peer_time,
            "",
        );
        report.at_most(
            format!("allocations added to a request, {name}, ratio to the peers"),
            case.allocations_limit,
            count / peer_count,
            "",
        );
        let row = |router: &str, at: usize| {
            [
                router.to_owned(),
                number(times[at]),
                number(times[at] - times[0]),
                number(counts[at]),
                number(counts[at] - counts[0]),
            ]
        };
        report.table(
            &format!("A request, {name}:"),
            ["", "Nanoseconds", "Added", "Allocations", "Added"],
            &[
                row("the bare router", 0),
                row("dalston-telemetry", 1),
                row("tower-http and axum-prometheus", 2),
            ],
        );
    }
    report.finish();
}

fn bare() -> Router {
    Router::new().route("/v1/jobs/{id}", get(async |Path(id): Path<String>| id))
}

fn ours() -> Router {
    let metrics = GatewayMetrics::register(&Metrics::new());
    bare().layer(HttpLayer::new().metrics(metrics))
}

fn peers() -> Router {
    // It starts a task of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _runtime = runtime.enter();
    let (metrics, _handle) = PrometheusMetricLayerBuilder::new()
        .with_default_metrics()
        .build_pair();
    let spans = TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO));
    bare().layer(metrics).layer(spans)
}

/// A subscriber that records no span.
fn untraced() -> Dispatch {
    let only_warnings = tracing_subscriber::filter::LevelFilter::WARN;
    Dispatch::new(tracing_subscriber::registry().with(only_warnings))
}

/// A subscriber that records all spans and exports none.
fn traced() -> Dispatch {
    let tracer = SdkTracerProvider::builder().build().tracer("http");
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    let info = tracing_subscriber::filter::LevelFilter::INFO;
    Dispatch::new(tracing_subscriber::registry().with(layer).with(info))
}

fn nanoseconds(router: &Router) -> f64 {
    let began = Instant::now();
    send(router, REQUESTS);
    began.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
}

fn allocations(router: &Router) -> f64 {
    const SOME: u32 = 1_000;
    send(router, SOME);
    let counted = allocation_counter::measure(|| send(router, SOME));
    counted.count_total as f64 / f64::from(SOME)
}

fn send(router: &Router, requests: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for _ in 0..requests {
            let request = Request::builder()
                .uri("/v1/jobs/job-7")
                .header("host", "gateway:8000")
                .header("user-agent", "bench")
                .body(Body::empty())
                .unwrap();
            let response = router.clone().call(request).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1_024).await.unwrap();
            assert_eq!(body, "job-7");
        }
    });
}
