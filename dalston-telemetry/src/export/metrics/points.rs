//! Metrics as OTLP points: the series that are scraped, with the same names and values.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, exemplar, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_sdk::Resource;
use prost::Message;

use super::Source;
use crate::export::delivery::MAX_REQUEST_BYTES;
use crate::metrics::Metrics;
use crate::metrics::series::{Buckets, Head, Kind, Measured, Number, Series, Value, Visitor};

/// Converts metrics to points.
pub(super) struct Points {
    metrics: Metrics,
    resource: ProtoResource,
    /// Whether counters and histograms have delta temporality.
    delta: bool,
    /// The last delivered values of the series; empty with cumulative temporality.
    known: HashMap<Key, Known>,
    /// How often the series were read.
    round: u64,
}

/// The number of reads without a value after which the last value of an instrument is forgotten.
const ROUNDS_OF_SILENCE: u64 = 20;

/// The key of a series: scope, name, kind, labels.
type Key = (String, String, Kind, String);

pub(super) struct Known {
    /// The last round in which the series existed.
    seen: Cell<u64>,
    at: u64,
    value: Total,
}

/// The total of a series.
#[derive(Clone)]
enum Total {
    Number(Number),
    Histogram { counts: Vec<u64>, sum: f64 },
}

impl Points {
    pub(super) fn new(metrics: Metrics, resource: &Resource, delta: bool) -> Self {
        Self {
            metrics,
            resource: resource.into(),
            delta,
            known: HashMap::new(),
            round: 0,
        }
    }
}

impl Source<ExportMetricsServiceRequest> for Points {
    type Receipt = Vec<(Key, Known)>;

    fn requests(&mut self) -> Vec<(ExportMetricsServiceRequest, Self::Receipt)> {
        self.round += 1;
        let mut builder = Builder {
            points: self,
            now: nanoseconds(SystemTime::now()),
            since: nanoseconds(self.metrics.created()),
            requests: Vec::new(),
            scopes: Vec::new(),
            bytes: self.resource.encoded_len(),
            receipt: Vec::new(),
        };
        self.metrics.visit(&mut builder);
        let requests = builder.finish();
        // Series come and go, and a process may run for a year. An instrument of OpenTelemetry can
        // observe nothing for a while and then continue.
        let round = self.round;
        self.known.retain(|(scope, ..), known| {
            let patience = if scope.is_empty() { 0 } else { ROUNDS_OF_SILENCE };
            round - known.seen.get() <= patience
        });
        requests
    }

    fn delivered(&mut self, receipt: Self::Receipt) {
        self.known.extend(receipt);
    }
}

struct Builder<'a> {
    points: &'a Points,
    now: u64,
    since: u64,
    requests: Vec<(ExportMetricsServiceRequest, Vec<(Key, Known)>)>,
    // The request that grows.
    scopes: Vec<ScopeMetrics>,
    bytes: usize,
    receipt: Vec<(Key, Known)>,
}

enum Point {
    Number(NumberDataPoint),
    Histogram(HistogramDataPoint),
}

impl Visitor for Builder<'_> {
    fn knows_originals(&self) -> bool {
        true
    }

    fn family(&mut self, head: &Head<'_>) {
        self.begin(head);
    }

    fn series(&mut self, head: &Head<'_>, series: &Series<'_>) {
        let attributes = attributes(series);
        let point = match &series.value {
            Value::Counter(total, exemplar) => {
                let (since, value) = self.added(head, series, *total);
                Point::Number(NumberDataPoint {
                    attributes,
                    start_time_unix_nano: since,
                    time_unix_nano: self.now,
                    value: Some(number(value)),
                    exemplars: exemplar.map(proto_exemplar).into_iter().collect(),
                    ..Default::default()
                })
            }
            Value::Gauge(value) => Point::Number(NumberDataPoint {
                attributes,
                start_time_unix_nano: if goes_up_and_down(head) { self.since } else { 0 },
                time_unix_nano: self.now,
                value: Some(number(*value)),
                ..Default::default()
            }),
            Value::Histogram(buckets) => {
                let exemplars = (0..=buckets.bounds().len()).filter_map(|bucket| buckets.exemplar(bucket));
                let exemplars = exemplars.map(proto_exemplar).collect();
                let (since, counts, sum) = self.added_to_histogram(head, series, *buckets);
                Point::Histogram(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano: since,
                    time_unix_nano: self.now,
                    count: counts.iter().sum(),
                    sum: Some(sum),
                    bucket_counts: counts,
                    explicit_bounds: buckets.bounds().to_vec(),
                    exemplars,
                    ..Default::default()
                })
            }
        };
        let bytes = match &point {
            Point::Number(point) => point.encoded_len(),
            Point::Histogram(point) => point.encoded_len(),
        };
        // With the key and the length that precede the point.
        self.bytes += bytes + 8;
        if self.bytes > MAX_REQUEST_BYTES {
            let tells_differences = self.points.delta && matches!(head.kind, Kind::Counter | Kind::Histogram);
            let last = self.receipt.pop_if(|_| tells_differences);
            self.end_request();
            self.begin(head);
            self.receipt.extend(last);
            self.bytes += bytes + 8;
        }
        self.push(point);
    }
}

impl Builder<'_> {
    /// Begins a metric.
    fn begin(&mut self, head: &Head<'_>) {
        let suffix = match head.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            _ => "",
        };
        let temporality = match self.points.delta {
            true => AggregationTemporality::Delta,
            false => AggregationTemporality::Cumulative,
        };
        let data = match head.kind {
            Kind::Counter => Data::Sum(Sum {
                aggregation_temporality: temporality.into(),
                is_monotonic: true,
                data_points: Vec::new(),
            }),
            Kind::Histogram => Data::Histogram(Histogram {
                aggregation_temporality: temporality.into(),
                data_points: Vec::new(),
            }),
            // An up-down counter has no delta temporality.
            Kind::Gauge if goes_up_and_down(head) => Data::Sum(Sum {
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: false,
                data_points: Vec::new(),
            }),
            Kind::Gauge | Kind::Info | Kind::Unknown => Data::Gauge(Gauge::default()),
        };
        let (scope, name, unit) = match head.original {
            Some(original) => (original.scope, original.name.to_owned(), original.unit),
            None => (
                env!("CARGO_PKG_NAME"),
                format!("{}{suffix}", head.name),
                ucum(head.unit),
            ),
        };
        let metric = Metric {
            name,
            description: head.help.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Default::default()
        };
        let is_last = |last: &ScopeMetrics| last.scope.as_ref().is_some_and(|last| last.name == scope);
        if !self.scopes.last().is_some_and(is_last) {
            self.scopes.push(ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: scope.to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
        self.bytes += metric.encoded_len() + 16;
        if let Some(scope) = self.scopes.last_mut() {
            scope.metrics.push(metric);
        }
    }

    fn push(&mut self, point: Point) {
        let metric = self.scopes.last_mut().and_then(|scope| scope.metrics.last_mut());
        match (metric.and_then(|metric| metric.data.as_mut()), point) {
            (Some(Data::Sum(sum)), Point::Number(point)) => sum.data_points.push(point),
            (Some(Data::Gauge(gauge)), Point::Number(point)) => gauge.data_points.push(point),
            (Some(Data::Histogram(histogram)), Point::Histogram(point)) => histogram.data_points.push(point),
            _ => debug_assert!(false, "the points of a family are of its kind"),
        }
    }

    fn end_request(&mut self) {
        let resource_metrics = ResourceMetrics {
            resource: Some(self.points.resource.clone()),
            scope_metrics: std::mem::take(&mut self.scopes),
            ..Default::default()
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![resource_metrics],
        };
        self.requests.push((request, std::mem::take(&mut self.receipt)));
        self.bytes = self.points.resource.encoded_len();
    }

    fn finish(mut self) -> Vec<(ExportMetricsServiceRequest, Vec<(Key, Known)>)> {
        if !self.scopes.is_empty() {
            self.end_request();
        }
        self.requests
    }

    /// The start time and the value of the point of a counter.
    fn added(&mut self, head: &Head<'_>, series: &Series<'_>, total: Number) -> (u64, Number) {
        if !self.points.delta {
            return (self.since, total);
        }
        let key = key(head, series);
        let known = self.points.known.get(&key);
        known.inspect(|known| known.seen.set(self.points.round));
        let since = known.map_or(self.since, |known| known.at);
        let before = known.map(|known| &known.value);
        let added = match (total, before) {
            // A smaller total than before: the counter has started again.
            (Number::Whole(total), Some(Total::Number(Number::Whole(before)))) => {
                Number::Whole(total.checked_sub(*before).unwrap_or(total))
            }
            (Number::Real(total), Some(Total::Number(Number::Real(before)))) if *before <= total => {
                Number::Real(total - before)
            }
            _ => total,
        };
        self.receipt.push((
            key,
            Known {
                seen: Cell::new(self.points.round),
                at: self.now,
                value: Total::Number(total),
            },
        ));
        (since, added)
    }

    /// The start time, the buckets and the sum of the point of a histogram.
    fn added_to_histogram(
        &mut self,
        head: &Head<'_>,
        series: &Series<'_>,
        buckets: &dyn Buckets,
    ) -> (u64, Vec<u64>, f64) {
        let counts: Vec<_> = (0..=buckets.bounds().len())
            .map(|bucket| buckets.count(bucket))
            .collect();
        let sum = buckets.sum();
        if !self.points.delta {
            return (self.since, counts, sum);
        }
        let key = key(head, series);
        let known = self.points.known.get(&key);
        known.inspect(|known| known.seen.set(self.points.round));
        let since = known.map_or(self.since, |known| known.at);
        let (added, added_sum) = match known.map(|known| &known.value) {
            Some(Total::Histogram {
                counts: before,
                sum: sum_before,
            }) if before.len() == counts.len()
                && before.iter().zip(&counts).all(|(before, now)| before <= now) =>
            {
                (
                    counts
                        .iter()
                        .zip(before)
                        .map(|(now, before)| now - before)
                        .collect(),
                    sum - sum_before,
                )
            }
            _ => (counts.clone(), sum),
        };
        self.receipt.push((
            key,
            Known {
                seen: Cell::new(self.points.round),
                at: self.now,
                value: Total::Histogram { counts, sum },
            },
        ));
        (since, added, added_sum)
    }
}

/// The key has the names of the instrument, because different names can be one name in Prometheus.
fn key(head: &Head<'_>, series: &Series<'_>) -> Key {
    let (scope, name) = head
        .original
        .map_or(("", head.name), |original| (original.scope, original.name));
    let labels = series
        .attributes
        .map_or_else(|| series.text(), |attributes| format!("{attributes:?}"));
    (scope.to_owned(), name.to_owned(), head.kind, labels)
}

fn attributes(series: &Series<'_>) -> Vec<KeyValue> {
    let attributes = series.attributes();
    let attribute = |(name, value): &(String, String)| KeyValue {
        key: name.clone(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.clone())),
        }),
        ..Default::default()
    };
    attributes.iter().map(attribute).collect()
}

fn number(number: Number) -> number_data_point::Value {
    match number {
        // OTLP has no unsigned numbers.
        Number::Whole(number) => number_data_point::Value::AsInt(i64::try_from(number).unwrap_or(i64::MAX)),
        Number::Signed(number) => number_data_point::Value::AsInt(number),
        Number::Real(number) => number_data_point::Value::AsDouble(number),
    }
}

fn proto_exemplar(measured: Measured) -> Exemplar {
    Exemplar {
        trace_id: measured.trace_id.to_bytes().to_vec(),
        span_id: measured.span_id.to_bytes().to_vec(),
        time_unix_nano: measured.at * 1_000,
        value: Some(exemplar::Value::AsDouble(measured.value)),
        ..Default::default()
    }
}

/// Whether this gauge is an up-down counter of OpenTelemetry.
fn goes_up_and_down(head: &Head<'_>) -> bool {
    head.original.is_some_and(|original| original.is_sum)
}

/// The unit as OpenTelemetry writes it.
fn ucum(unit: &str) -> &str {
    match unit {
        "seconds" => "s",
        "bytes" => "By",
        "ratio" => "1",
        "celsius" => "Cel",
        "meters" => "m",
        "grams" => "g",
        "joules" => "J",
        "volts" => "V",
        "amperes" => "A",
        other => other,
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{BoundedFamily, Counter, DenseFamily};

    #[test]
    fn requests_are_cut_and_each_has_its_own_receipt() {
        let metrics = Metrics::new();
        let (a, b) = (
            metrics.open_label("first_label", 200),
            metrics.open_label("second_label", 200),
        );
        let many = BoundedFamily::<2, (), Counter>::new([&a, &b], Counter::default);
        let one = DenseFamily::<(), Counter>::default();
        metrics.register(|registry| {
            registry.register("many", "Many", many.clone());
            registry.register("one", "One", one.clone());
        });
        for number in 0..40_000 {
            let (first, second) = (
                format!("value-{:090}", number % 200),
                format!("value-{}", number / 200),
            );
            many.with([&first, &second]).with(()).inc();
        }
        let mut points = Points::new(metrics, &Resource::builder_empty().build(), true);
        let requests = points.requests();
        assert!(requests.len() > 1);
        let mut names = Vec::new();
        for (request, receipt) in &requests {
            assert!(
                request.encoded_len() <= MAX_REQUEST_BYTES,
                "{}",
                request.encoded_len()
            );
            let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
            let mut points = 0;
            for metric in metrics {
                let Some(Data::Sum(sum)) = &metric.data else {
                    panic!("not a counter")
                };
                points += sum.data_points.len();
                names.push((metric.name.clone(), sum.data_points.len()));
            }
            assert_eq!(points, receipt.len());
        }
        let of_many = names.iter().filter(|(name, _)| name == "many_total");
        assert_eq!(of_many.map(|(_, points)| points).sum::<usize>(), 40_000);
        assert!(names.contains(&("one_total".to_owned(), 1)));

        // Only the first request is delivered.
        let (first, receipt) = requests.into_iter().next().unwrap();
        let arrived = receipt.iter().filter(|((_, name, ..), _)| name == "many").count();
        points.delivered(receipt);
        drop(first);
        let again = points.requests();
        let told = again
            .iter()
            .flat_map(|(request, _)| &request.resource_metrics[0].scope_metrics[0].metrics);
        let told = told
            .filter(|metric| metric.name == "many_total")
            .flat_map(|metric| match &metric.data {
                Some(Data::Sum(sum)) => sum.data_points.clone(),
                _ => Vec::new(),
            });
        let nothing_new = told.filter(|point| point.value == Some(number_data_point::Value::AsInt(0)));
        assert_eq!(nothing_new.count(), arrived);
    }

    #[test]
    fn removed_series_are_forgotten() {
        use prometheus_client::metrics::counter::Counter;
        use prometheus_client::metrics::family::Family;

        let metrics = Metrics::new();
        let jobs = Family::<Vec<(String, String)>, Counter>::default();
        metrics.register(|registry| registry.prometheus().register("jobs", "Jobs", jobs.clone()));
        let mut points = Points::new(metrics, &Resource::builder_empty().build(), true);
        for number in 0..100 {
            jobs.get_or_create(&vec![("number".to_owned(), number.to_string())])
                .inc();
            for (_, receipt) in points.requests() {
                points.delivered(receipt);
            }
            jobs.clear();
        }
        assert!(points.known.len() <= 2, "{}", points.known.len());
    }
}
