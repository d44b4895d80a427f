//! Instruments of OpenTelemetry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality};

use super::label_text::push_label;
use super::lock;
use super::meter_provider::MeterProvider;
use super::names::{Names, RefusedFamilies};
use super::owned::{OwnedHistogram, OwnedValue};
use super::series::{Head, Kind, Number, Original, Series, Visitor};

/// The meter provider of a process and its reader.
pub(super) struct Meters {
    pub(super) provider: MeterProvider,
    reader: Reader,
    /// The names that instruments have taken, in the order in which they were first read.
    names: Mutex<Names>,
}

impl Default for Meters {
    fn default() -> Self {
        let reader = Reader::default();
        let provider = SdkMeterProvider::builder()
            // The push adds the resource, and a scrape has none.
            .with_resource(Resource::builder_empty().build())
            .with_reader(reader.clone())
            .build();
        Self {
            provider: MeterProvider::new(provider),
            reader,
            names: Mutex::default(),
        }
    }
}

impl Meters {
    /// Visits all instruments whose names are free.
    pub(super) fn visit(
        &self,
        is_free: impl Fn(&str, Kind) -> bool,
        refused: &RefusedFamilies,
        visitor: &mut dyn Visitor,
    ) {
        let mut read = ResourceMetrics::default();
        if self.reader.collect(&mut read).is_err() {
            // The provider was shut down.
            return;
        }
        // Instruments with the same name in several scopes are one family.
        let mut families: BTreeMap<String, Vec<(&InstrumentationScope, &Metric, Kind, &'static str)>> =
            BTreeMap::new();
        for scope in read.scope_metrics() {
            for metric in scope.metrics() {
                if let Some(kind) = kind(metric) {
                    let (name, unit) = exposed_name(metric, kind);
                    if is_free(&name, kind) {
                        let family = families.entry(name).or_default();
                        family.push((scope.scope(), metric, kind, unit));
                    } else {
                        refused.add(&name);
                    }
                }
            }
        }
        for (name, mut instruments) in families {
            // The order of the SDK is not stable.
            instruments.sort_by_key(|(scope, metric, ..)| {
                let of_scope = (scope.name(), scope.version(), scope.schema_url());
                (of_scope, metric.name(), metric.description(), metric.unit())
            });
            let mut shown = BTreeSet::new();
            for (scope, metric, kind, unit) in instruments {
                // Prometheus would refuse the whole text.
                if !visitor.knows_originals() && !lock(&self.names).take(&name, kind) {
                    refused.add(&name);
                    continue;
                }
                let head = Head {
                    name: &name,
                    help: metric.description().trim_end_matches('.'),
                    unit,
                    kind,
                    original: Some(Original {
                        scope: scope.name(),
                        name: metric.name(),
                        unit: metric.unit(),
                        is_sum: is_sum(metric),
                    }),
                };
                visitor.family(&head);
                match metric.data() {
                    AggregatedMetrics::F64(data) => {
                        show(visitor, &mut shown, &head, data, Number::Real, |sum| sum)
                    }
                    AggregatedMetrics::U64(data) => {
                        show(visitor, &mut shown, &head, data, Number::Whole, |sum| sum as f64)
                    }
                    AggregatedMetrics::I64(data) => {
                        show(visitor, &mut shown, &head, data, Number::Signed, |sum| sum as f64)
                    }
                }
            }
        }
    }
}

/// A point of an instrument with its labels.
struct Point {
    labels: String,
    attributes: Vec<(String, String)>,
    value: OwnedValue,
}

/// Visits the points of an instrument. Two instruments of a scope, or two sets of attributes, can
/// have the same labels. `shown` has the labels of earlier points, because a text with the same
/// series twice is invalid.
fn show<T: Copy>(
    visitor: &mut dyn Visitor,
    shown: &mut BTreeSet<String>,
    head: &Head<'_>,
    data: &MetricData<T>,
    number: fn(T) -> Number,
    real: fn(T) -> f64,
) {
    let mut points = points(head, data, number, real);
    // The order of the SDK is not stable, and of two points with the same labels always the same
    // one must be visited.
    points.sort_by(|a, b| (&a.labels, &a.attributes).cmp(&(&b.labels, &b.attributes)));
    for point in points {
        if shown.contains(&point.labels) && !visitor.knows_originals() {
            continue;
        }
        let series = Series {
            open: "",
            closed: &point.labels,
            attributes: Some(&point.attributes),
            value: point.value.as_value(head.kind),
        };
        visitor.series(head, &series);
        shown.insert(point.labels);
    }
}

fn points<T: Copy>(
    head: &Head<'_>,
    data: &MetricData<T>,
    number: fn(T) -> Number,
    real: fn(T) -> f64,
) -> Vec<Point> {
    let point = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>, value| {
        let attributes: Vec<_> = attributes
            .map(|attribute| (attribute.key.to_string(), attribute.value.to_string()))
            .collect();
        let mut text = String::new();
        for (name, value) in labels(&attributes, head.kind) {
            push_label(&mut text, &name, &value);
        }
        if let Some(original) = head.original {
            push_label(&mut text, "otel_scope_name", original.scope);
        }
        Point {
            labels: text,
            attributes,
            value,
        }
    };
    let number = |value| OwnedValue::Number(number(value));
    match data {
        MetricData::Gauge(gauge) => gauge
            .data_points()
            .map(|each| point(&mut each.attributes(), number(each.value())))
            .collect(),
        MetricData::Sum(sum) => sum
            .data_points()
            .map(|each| point(&mut each.attributes(), number(each.value())))
            .collect(),
        MetricData::Histogram(histogram) => histogram
            .data_points()
            .map(|each| {
                let buckets = OwnedHistogram {
                    bounds: each.bounds().collect(),
                    counts: each.bucket_counts().collect(),
                    sum: real(each.sum()),
                };
                point(&mut each.attributes(), OwnedValue::Histogram(buckets))
            })
            .collect(),
        MetricData::ExponentialHistogram(_) => Vec::new(),
    }
}

/// The kind of an instrument in Prometheus; `None` if there is no such kind.
fn kind(metric: &Metric) -> Option<Kind> {
    fn of<T>(data: &MetricData<T>) -> Option<Kind> {
        match data {
            MetricData::Gauge(_) => Some(Kind::Gauge),
            MetricData::Sum(sum) if sum.is_monotonic() => Some(Kind::Counter),
            MetricData::Sum(_) => Some(Kind::Gauge),
            MetricData::Histogram(_) => Some(Kind::Histogram),
            MetricData::ExponentialHistogram(_) => None,
        }
    }
    match metric.data() {
        AggregatedMetrics::F64(data) => of(data),
        AggregatedMetrics::U64(data) => of(data),
        AggregatedMetrics::I64(data) => of(data),
    }
}

fn is_sum(metric: &Metric) -> bool {
    match metric.data() {
        AggregatedMetrics::F64(data) => matches!(data, MetricData::Sum(_)),
        AggregatedMetrics::U64(data) => matches!(data, MetricData::Sum(_)),
        AggregatedMetrics::I64(data) => matches!(data, MetricData::Sum(_)),
    }
}

/// The name of an instrument in Prometheus, without `_total`, and the unit at its end: `http.wait`
/// in `s` is `http_wait_seconds`.
fn exposed_name(metric: &Metric, kind: Kind) -> (String, &'static str) {
    let mut name = as_name(metric.name());
    if kind == Kind::Counter && name.ends_with("_total") {
        name.truncate(name.len() - "_total".len());
    }
    let unit = match metric.unit() {
        "s" => "seconds",
        "ms" => "milliseconds",
        "us" => "microseconds",
        "ns" => "nanoseconds",
        "min" => "minutes",
        "h" => "hours",
        "By" => "bytes",
        // Only gauges in `1` are ratios (OpenTelemetry's specification for Prometheus).
        "1" if kind == Kind::Gauge && !is_sum(metric) => "ratio",
        _ => "",
    };
    if name == unit {
        // Prometheus refuses a text in which a unit does not follow a `_`.
        return (name, "");
    }
    let has_unit = name.strip_suffix(unit).is_some_and(|name| name.ends_with('_'));
    if !unit.is_empty() && !has_unit {
        name.push('_');
        name.push_str(unit);
    }
    (name, unit)
}

/// Attributes as labels. A line with an invalid or repeated label name would invalidate the whole
/// scrape: the values of attributes with the same label name are joined, as OpenTelemetry
/// specifies, and reserved names get a `_`.
fn labels(attributes: &[(String, String)], kind: Kind) -> BTreeMap<String, String> {
    let mut sorted: Vec<_> = attributes.iter().collect();
    sorted.sort();
    let mut labels = BTreeMap::<String, String>::new();
    for (key, value) in sorted {
        let mut name = as_name(key);
        let is_reserved = match &*name {
            "otel_scope_name" | "__name__" => true,
            "le" => kind == Kind::Histogram,
            _ => false,
        };
        if is_reserved {
            name.push('_');
        }
        labels
            .entry(name)
            .and_modify(|values| {
                values.push(';');
                values.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    labels
}

fn as_name(text: &str) -> String {
    let mut name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

/// A reader that is shared with the SDK, which takes ownership of its reader.
#[derive(Clone, Debug, Default)]
struct Reader(Arc<ManualReader>);

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, read: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(read)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry::{InstrumentationScope, KeyValue};

    use super::super::{Counter, DenseFamily, Metrics, TextFormat};

    #[test]
    fn instruments_have_names_of_prometheus() {
        let metrics = Metrics::new();
        let ours = DenseFamily::<(), Counter>::default();
        metrics.register(|registry| registry.register("taken", "Taken", ours.clone()));
        let label = [KeyValue::new("http.route", "/a \"b\""), KeyValue::new("ok", true)];
        let meter = metrics.meter("my-scope");
        meter
            .u64_counter("http.requests")
            .with_description("Requests.")
            .build()
            .add(3, &label);
        meter
            .f64_histogram("http.wait")
            .with_unit("s")
            .with_boundaries(vec![0.5, 2.0])
            .build()
            .record(1.5, &[]);
        meter.i64_up_down_counter("open").build().add(-2, &[]);
        meter.u64_counter("taken_total").build().add(1, &[]);
        metrics
            .meter("other")
            .i64_up_down_counter("open")
            .build()
            .add(7, &[]);
        assert_eq!(
            metrics.encode_as(TextFormat::Prometheus),
            "# HELP taken_total Taken.\n\
             # TYPE taken_total counter\n\
             taken_total 0\n\
             # HELP http_requests_total Requests.\n\
             # TYPE http_requests_total counter\n\
             http_requests_total{http_route=\"/a \\\"b\\\"\",ok=\"true\",otel_scope_name=\"my-scope\"} 3\n\
             # TYPE http_wait_seconds histogram\n\
             http_wait_seconds_bucket{otel_scope_name=\"my-scope\",le=\"0.5\"} 0\n\
             http_wait_seconds_bucket{otel_scope_name=\"my-scope\",le=\"2.0\"} 1\n\
             http_wait_seconds_bucket{otel_scope_name=\"my-scope\",le=\"+Inf\"} 1\n\
             http_wait_seconds_sum{otel_scope_name=\"my-scope\"} 1.5\n\
             http_wait_seconds_count{otel_scope_name=\"my-scope\"} 1\n\
             # TYPE open gauge\n\
             open{otel_scope_name=\"my-scope\"} -2\n\
             open{otel_scope_name=\"other\"} 7\n"
        );
        let snapshot = metrics.snapshot();
        let labels = [
            ("http_route", "/a \"b\""),
            ("ok", "true"),
            ("otel_scope_name", "my-scope"),
        ];
        assert_eq!(snapshot.value("http_requests_total", &labels), Some(3.0));
    }

    #[test]
    fn a_unit_follows_an_underscore_or_is_left_out() {
        let metrics = Metrics::new();
        let meter = metrics.meter("s");
        for (name, unit) in [
            ("totalbytes", "By"),
            ("bytes", "By"),
            ("sent.bytes", "By"),
            ("seconds_total", "s"),
            ("held", "{lock}"),
        ] {
            meter.u64_counter(name).with_unit(unit).build().add(1, &[]);
        }
        let text = metrics.encode_as(TextFormat::OpenMetrics);
        let lines = |start| -> Vec<_> { text.lines().filter(|line| line.starts_with(start)).collect() };
        assert_eq!(
            lines("# UNIT"),
            ["# UNIT sent_bytes bytes", "# UNIT totalbytes_bytes bytes"]
        );
        assert_eq!(
            lines("# TYPE"),
            [
                "# TYPE bytes counter",
                "# TYPE held counter",
                "# TYPE seconds counter",
                "# TYPE sent_bytes counter",
                "# TYPE totalbytes_bytes counter",
            ]
        );
    }

    #[test]
    fn label_names_are_valid_and_unique() {
        let metrics = Metrics::new();
        let meter = metrics.meter("mine");
        let attributes = [
            ("http_route", "/b"),
            ("http.route", "/a"),
            ("otel_scope_name", "theirs"),
            ("otel.scope.name", "another's"),
            ("__name__", "n"),
            ("le", "7"),
            ("", "empty"),
            ("1st", "one"),
        ]
        .map(|(key, value)| KeyValue::new(key, value));
        meter.u64_counter("jobs").build().add(1, &attributes);
        meter
            .f64_histogram("wait")
            .with_boundaries(vec![2.0])
            .build()
            .record(1.0, &attributes);
        let both = "http_route=\"/a;/b\"";
        let scopes = "otel_scope_name_=\"another's;theirs\",otel_scope_name=\"mine\"";
        let text = metrics.encode_as(TextFormat::Prometheus);
        for line in [
            format!("jobs_total{{_=\"empty\",_1st=\"one\",__name___=\"n\",{both},le=\"7\",{scopes}}} 1\n"),
            format!(
                "wait_bucket{{_=\"empty\",_1st=\"one\",__name___=\"n\",{both},le_=\"7\",{scopes},le=\"+Inf\"}} 1\n"
            ),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn points_with_equal_labels_are_exposed_once() {
        let metrics = Metrics::new();
        let meter = metrics.meter("mine");
        meter.u64_counter("jobs.done").build().add(1, &[]);
        meter.u64_counter("jobs_done").build().add(2, &[]);
        let gauge = meter.u64_gauge("open").build();
        for (key, route) in [("http_route", "/a"), ("http.route", "/a"), ("http_route", "/b")] {
            gauge.record(3, &[KeyValue::new(key, route)]);
        }
        let text = metrics.encode_as(TextFormat::Prometheus);
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "jobs_done_total{otel_scope_name=\"mine\"} 1",
                "open{http_route=\"/a\",otel_scope_name=\"mine\"} 3",
                "open{http_route=\"/b\",otel_scope_name=\"mine\"} 3",
            ]
        );
    }

    #[test]
    fn only_gauges_in_ones_are_ratios() {
        let metrics = Metrics::new();
        let meter = metrics.meter("s");
        meter.f64_gauge("busy").with_unit("1").build().record(0.5, &[]);
        meter
            .i64_up_down_counter("open")
            .with_unit("1")
            .build()
            .add(2, &[]);
        let text = metrics.encode_as(TextFormat::Prometheus);
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types, ["# TYPE busy_ratio gauge", "# TYPE open gauge"]);
    }
    #[test]
    fn of_two_scope_versions_always_the_same_is_exposed() {
        for _ in 0..20 {
            let metrics = Metrics::new();
            for (version, count) in [("2", 2), ("1", 1)] {
                let scope = InstrumentationScope::builder("mine").with_version(version);
                let meter = metrics.meter_provider().meter_with_scope(scope.build());
                meter.u64_counter("jobs").build().add(count, &[]);
            }
            let text = metrics.encode_as(TextFormat::Prometheus);
            let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(series, ["jobs_total{otel_scope_name=\"mine\"} 1"]);
        }
    }
}
