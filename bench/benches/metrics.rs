//! The cost of counters, histograms and scrapes, beside five peers in the same run.
//!
//! `cargo xtask bench metrics`. The cases alternate, and the shortest of many rounds counts,
//! because noise only adds time.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dalston_telemetry::label;
use dalston_telemetry::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Histogram, Metrics, TextFormat,
};
use measured::metric::histogram::Thresholds;
use measured::text::BufferedTextEncoder;
use measured::{CounterVec, FixedCardinalityLabel, LabelGroup, MetricGroup};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter as ClientCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram as ClientHistogram;
use prometheus_client::registry::Registry;
use testbed::report::{Report, is_quick, median, number};

const ROUNDS: usize = 40;
const REPETITIONS: u64 = 100_000;
const BOUNDS: [f64; 14] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
];

label! {
    enum Kind = "kind" { User => "user", Internal => "internal", Network => "network" }
}
label! {
    enum Route = "route" { Jobs => "/v1/jobs", Job => "/v1/jobs/{id}", Models => "/v1/models", Health => "/health" }
}

fn main() {
    let mut report = Report::start(&[
        "prometheus-client",
        "prometheus",
        "metrics",
        "metrics-exporter-prometheus",
        "measured",
        "opentelemetry_sdk",
    ]);
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&BOUNDS)
        .unwrap()
        .build_recorder();
    let provider = SdkMeterProvider::builder()
        .with_reader(ManualReader::default())
        .build();
    let meter = provider.meter("bench");
    metrics::set_global_recorder(recorder).unwrap();
    resolved(&mut report, &meter);
    labelled(&mut report, &meter);
    histograms(&mut report, &meter);
    counters_as_text(&mut report);
    histograms_as_text(&mut report);
    report.finish();
}

/// The name of our case in each comparison.
const OURS: &str = "dalston-telemetry";

struct Case<'a> {
    name: &'static str,
    /// Repeats the operation this many times.
    work: Box<dyn Fn(u64) + Send + Sync + 'a>,
}

fn case<'a>(name: &'static str, work: impl Fn() + Send + Sync + 'a) -> Case<'a> {
    Case {
        name,
        work: Box::new(move |times| (0..times).for_each(|_| work())),
    }
}

fn rounds() -> usize {
    if is_quick() { 4 } else { ROUNDS }
}

/// A comparison. Ratios are to its first case.
struct Comparison {
    title: &'static str,
    /// The largest accepted ratio of dalston-telemetry, on one thread.
    limit: f64,
}

impl Comparison {
    /// Reports nanoseconds for each case, on one thread and on two threads at once.
    ///
    /// With one thread, the shortest round counts. With two threads that share a cache line, the
    /// shortest round is meaningless. There, only rounds in which both threads ran at the same time
    /// count, and the report has the medians of times and of ratios within a round.
    fn run(&self, report: &mut Report, cases: &[Case<'_>]) {
        let mut shortest = vec![f64::INFINITY; cases.len()];
        let mut together = vec![Vec::new(); cases.len()];
        for _ in 0..rounds() {
            for (index, case) in cases.iter().enumerate() {
                shortest[index] = shortest[index].min(on_one_thread(case));
                together[index].push((0..TRIES).find_map(|_| on_two_threads(case)));
            }
        }
        let rows = cases.iter().zip(&shortest).zip(&together);
        let rows = rows.map(|((case, one), two)| {
            let times: Vec<f64> = two.iter().copied().flatten().collect();
            let ratios = two.iter().zip(&together[0]);
            let ratios: Vec<f64> = ratios
                .filter_map(|(time, first)| Some((*time)? / (*first)?))
                .collect();
            [
                case.name.to_owned(),
                number(*one),
                number(one / shortest[0]),
                number(median(&times)),
                number(median(&ratios)),
            ]
        });
        let rows: Vec<_> = rows.collect();
        let ours = cases.iter().position(|case| case.name == OURS).unwrap();
        report.at_most(
            format!("{}, ratio to {}", self.title, cases[0].name),
            self.limit,
            shortest[ours] / shortest[0],
            "",
        );
        report.table(
            &format!("{}, nanoseconds:", self.title),
            ["", "One thread", "Ratio", "Two threads", "Ratio"],
            &rows,
        );
    }

    /// Reports milliseconds for a text with all series.
    fn run_texts(&self, report: &mut Report, cases: &[(&str, &dyn Fn() -> String)]) {
        let mut shortest = vec![Duration::MAX; cases.len()];
        for _ in 0..rounds() {
            for ((_, encode), shortest) in cases.iter().zip(&mut shortest) {
                let started = Instant::now();
                black_box(encode());
                *shortest = started.elapsed().min(*shortest);
            }
        }
        let ratio = |time: &Duration| time.as_secs_f64() / shortest[0].as_secs_f64();
        let rows = cases.iter().zip(&shortest).map(|((name, encode), time)| {
            let text = encode();
            [
                (*name).to_owned(),
                number(time.as_secs_f64() * 1e3),
                number(ratio(time)),
                text.len().to_string(),
            ]
        });
        let rows: Vec<_> = rows.collect();
        let ours = cases.iter().position(|(name, _)| *name == OURS).unwrap();
        report.at_most(
            format!("{}, ratio to {}", self.title, cases[0].0),
            self.limit,
            ratio(&shortest[ours]),
            "",
        );
        report.table(
            &format!("{}:", self.title),
            ["", "Milliseconds", "Ratio", "Bytes"],
            &rows,
        );
    }
}

/// Nanoseconds for one repetition.
fn on_one_thread(case: &Case<'_>) -> f64 {
    let started = Instant::now();
    (case.work)(REPETITIONS);
    started.elapsed().as_nanos() as f64 / REPETITIONS as f64
}

/// Attempts to have both threads run at the same time, which is rare on a busy machine.
const TRIES: usize = 10;

/// Nanoseconds for one repetition on each of two threads, if both ran at the same time.
fn on_two_threads(case: &Case<'_>) -> Option<f64> {
    const TOGETHER: f64 = 0.9;
    /// Shorter than the time slice of a thread on a busy machine.
    const REPETITIONS: u64 = 5_000;
    let (barrier, arrived) = (Barrier::new(2), AtomicU64::new(0));
    let run = || {
        barrier.wait();
        // The thread that the barrier wakes starts later than the other one.
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < 2 {
            std::hint::spin_loop();
        }
        let started = Instant::now();
        (case.work)(REPETITIONS);
        (started, Instant::now())
    };
    let ((first, first_end), (second, second_end)) = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        (run(), other.join().unwrap())
    });
    let whole = first_end.max(second_end) - first.min(second);
    let shared = first_end
        .min(second_end)
        .saturating_duration_since(first.max(second));
    let together = shared.as_secs_f64() / whole.as_secs_f64() >= TOGETHER;
    together.then(|| whole.as_nanos() as f64 / REPETITIONS as f64)
}

fn resolved(report: &mut Report, meter: &opentelemetry::metrics::Meter) {
    let bare = AtomicU64::new(0);
    let family = DenseFamily::<(Kind, Route), Counter>::default();
    let ours = family.with((Kind::User, Route::Job));
    let client = Family::<ClientLabels, ClientCounter>::default();
    let client = client.get_or_create_owned(&client_labels());
    let tikv = prometheus::IntCounter::new("a", "a").unwrap();
    let exporter = metrics::counter!("resolved", "kind" => "user", "route" => "/v1/jobs/{id}");
    let measured = measured::Counter::new();
    let otel = meter.u64_counter("resolved").build();
    Comparison {
        title: "A counter, looked up before",
        limit: 1.10,
    }
    .run(
        report,
        &[
            case("a bare relaxed atomic addition", || {
                black_box(&bare).fetch_add(1, Ordering::Relaxed);
            }),
            case("dalston-telemetry", || black_box(ours).inc()),
            case(
                "dalston-telemetry, with an exemplar of the current span (there is none)",
                || {
                    black_box(ours).inc_in(Exemplar::current());
                },
            ),
            case("prometheus-client", || {
                black_box(&client).inc();
            }),
            case("prometheus", || black_box(&tikv).inc()),
            case("metrics, exporter for Prometheus", || {
                black_box(&exporter).increment(1)
            }),
            case("measured", || black_box(&measured).inc()),
            case("OpenTelemetry SDK, without labels", || {
                black_box(&otel).add(1, &[])
            }),
        ],
    );
}

fn labelled(report: &mut Report, meter: &opentelemetry::metrics::Meter) {
    let bare = AtomicU64::new(0);
    let ours = DenseFamily::<(Kind, Route), Counter>::default();
    let client = Family::<ClientLabels, ClientCounter>::default();
    let tikv = prometheus::IntCounterVec::new(prometheus::Opts::new("a", "a"), &["kind", "route"]).unwrap();
    let measured = CounterVec::<MeasuredSet>::default();
    let otel = meter.u64_counter("labelled").build();
    Comparison {
        title: "A counter with two closed labels of 3 and 4 values",
        limit: 1.20,
    }
    .run(
        report,
        &[
            case("a bare relaxed atomic addition", || {
                black_box(&bare).fetch_add(1, Ordering::Relaxed);
            }),
            case("dalston-telemetry", || {
                black_box(&ours).with(black_box((Kind::User, Route::Job))).inc();
            }),
            case("prometheus-client", || {
                black_box(&client)
                    .get_or_create(black_box(&client_labels()))
                    .inc();
            }),
            case("prometheus", || {
                black_box(&tikv)
                    .with_label_values(black_box(&["user", "/v1/jobs/{id}"]))
                    .inc();
            }),
            case("metrics, exporter for Prometheus", || {
                metrics::counter!("labelled", "kind" => "user", "route" => "/v1/jobs/{id}").increment(1);
            }),
            case("measured", || {
                let group = MeasuredLabels {
                    kind: MeasuredKind::User,
                    route: MeasuredRoute::Job,
                };
                black_box(&measured).inc(black_box(group));
            }),
            case("OpenTelemetry SDK", || {
                let labels = [
                    KeyValue::new("kind", "user"),
                    KeyValue::new("route", "/v1/jobs/{id}"),
                ];
                black_box(&otel).add(1, black_box(&labels));
            }),
        ],
    );
}

fn histograms(report: &mut Report, meter: &opentelemetry::metrics::Meter) {
    const SOME: f64 = 7.0;
    static STATIC: [f64; 14] = BOUNDS;
    let client = ClientHistogram::new(BOUNDS);
    let ours = Histogram::new(&STATIC);
    let traced = Histogram::with_exemplars(&STATIC);
    let tikv =
        prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("a", "a").buckets(BOUNDS.to_vec()));
    let tikv = tikv.unwrap();
    let exporter = metrics::histogram!("resolved_histogram");
    let measured = measured::Histogram::with_metadata(Thresholds::with_buckets(BOUNDS));
    let otel = meter
        .f64_histogram("resolved_histogram")
        .with_boundaries(BOUNDS.to_vec())
        .build();
    Comparison {
        title: "A histogram with 14 bounds, looked up before",
        limit: 0.85,
    }
    .run(
        report,
        &[
            case("prometheus-client", || {
                black_box(&client).observe(black_box(SOME))
            }),
            case("dalston-telemetry", || black_box(&ours).observe(black_box(SOME))),
            case(
                "dalston-telemetry, with an exemplar of the current span (there is none)",
                || {
                    black_box(&traced).observe_in(black_box(SOME), Exemplar::current());
                },
            ),
            case("prometheus", || black_box(&tikv).observe(black_box(SOME))),
            case("metrics, exporter for Prometheus", || {
                black_box(&exporter).record(black_box(SOME))
            }),
            case("measured", || {
                black_box(&measured).get_metric().observe(black_box(SOME))
            }),
            case("OpenTelemetry SDK, without labels", || {
                black_box(&otel).record(black_box(SOME), &[])
            }),
        ],
    );
}

fn counters_as_text(report: &mut Report) {
    let pairs = || (0..10_000).map(|n| (format!("model-{}", n % 100), format!("worker-{}", n / 100)));

    let ours = Metrics::new();
    let (model, worker) = (ours.open_label("model", 100), ours.open_label("worker", 100));
    let family = BoundedFamily::<2, (), Counter>::new([&model, &worker], Counter::default);
    ours.register(|registry| registry.register("tasks", "Tasks", family.clone()));

    let mut client = Registry::default();
    let client_family = Family::<OpenLabels, ClientCounter>::default();
    client.register("tasks", "Tasks", client_family.clone());

    let tikv = prometheus::Registry::new();
    let tikv_family = prometheus::IntCounterVec::new(
        prometheus::Opts::new("tasks_total", "Tasks"),
        &["model", "worker"],
    )
    .unwrap();
    tikv.register(Box::new(tikv_family.clone())).unwrap();

    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let measured = MeasuredTasks::default();

    for (model, worker) in pairs() {
        family.with([&model, &worker]).with(()).inc();
        tikv_family.with_label_values(&[&model, &worker]).inc();
        measured.tasks.inc(MeasuredTask {
            model: &model,
            worker: &worker,
        });
        let labels = [("model", model.clone()), ("worker", worker.clone())];
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("tasks_total", &labels).increment(1)
        });
        client_family.get_or_create(&OpenLabels { model, worker }).inc();
    }
    let encoder = std::cell::RefCell::new(BufferedTextEncoder::new());
    let exporter = recorder.handle();
    Comparison {
        title: "Text of 10,000 counters with two labels",
        limit: 0.30,
    }
    .run_texts(
        report,
        &[
            ("prometheus-client", &|| client_text(&client)),
            ("dalston-telemetry", &|| ours.encode()),
            ("dalston-telemetry, Prometheus text", &|| {
                ours.encode_as(TextFormat::Prometheus)
            }),
            ("prometheus", &|| tikv_text(&tikv)),
            ("metrics, exporter for Prometheus", &|| exporter.render()),
            ("measured", &|| {
                let mut encoder = encoder.borrow_mut();
                measured.collect_group_into(&mut *encoder).unwrap();
                String::from_utf8(encoder.finish().to_vec()).unwrap()
            }),
        ],
    );
}

fn histograms_as_text(report: &mut Report) {
    static STATIC: [f64; 14] = BOUNDS;
    let pairs = || (0..600).map(|n| (format!("model-{}", n % 30), format!("worker-{}", n / 30)));

    let ours = Metrics::new();
    let (model, worker) = (ours.open_label("model", 100), ours.open_label("worker", 100));
    let family =
        BoundedFamily::<2, (), Histogram>::new([&model, &worker], || Histogram::with_exemplars(&STATIC));
    ours.register(|registry| registry.register("wait", "Wait", family.clone()));

    let mut client = Registry::default();
    let make: fn() -> ClientHistogram = || ClientHistogram::new(BOUNDS);
    let client_family = Family::<OpenLabels, ClientHistogram, _>::new_with_constructor(make);
    client.register("wait", "Wait", client_family.clone());

    let tikv = prometheus::Registry::new();
    let options = prometheus::HistogramOpts::new("wait", "Wait").buckets(BOUNDS.to_vec());
    let tikv_family = prometheus::HistogramVec::new(options, &["model", "worker"]).unwrap();
    tikv.register(Box::new(tikv_family.clone())).unwrap();

    for (model, worker) in pairs() {
        family.with([&model, &worker]).with(()).observe(7.0);
        tikv_family.with_label_values(&[&model, &worker]).observe(7.0);
        client_family
            .get_or_create(&OpenLabels { model, worker })
            .observe(7.0);
    }
    Comparison {
        title: "Text of 600 histograms with two labels and 14 bounds",
        limit: 0.20,
    }
    .run_texts(
        report,
        &[
            ("prometheus-client", &|| client_text(&client)),
            ("dalston-telemetry", &|| ours.encode()),
            ("prometheus", &|| tikv_text(&tikv)),
        ],
    );
}

fn client_text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

fn tikv_text(registry: &prometheus::Registry) -> String {
    prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ClientKind {
    User,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ClientRoute {
    Job,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClientLabels {
    kind: ClientKind,
    route: ClientRoute,
}

fn client_labels() -> ClientLabels {
    ClientLabels {
        kind: ClientKind::User,
        route: ClientRoute::Job,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpenLabels {
    model: String,
    worker: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, FixedCardinalityLabel)]
#[label(singleton = "kind")]
#[allow(dead_code, reason = "the set has as many values as that of the others")]
enum MeasuredKind {
    User,
    Internal,
    Network,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, FixedCardinalityLabel)]
#[label(singleton = "route")]
#[allow(dead_code, reason = "the set has as many values as that of the others")]
enum MeasuredRoute {
    Jobs,
    Job,
    Models,
    Health,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, LabelGroup)]
#[label(set = MeasuredSet)]
struct MeasuredLabels {
    kind: MeasuredKind,
    route: MeasuredRoute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, LabelGroup)]
#[label(set = MeasuredTaskSet)]
struct MeasuredTask<'a> {
    #[label(dynamic_with = measured::lasso::ThreadedRodeo, default)]
    model: &'a str,
    #[label(dynamic_with = measured::lasso::ThreadedRodeo, default)]
    worker: &'a str,
}

#[derive(Default, MetricGroup)]
struct MeasuredTasks {
    /// Tasks
    tasks: CounterVec<MeasuredTaskSet>,
}
