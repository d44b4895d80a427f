use std::collections::BTreeMap;
use std::fmt;

use super::label_text::{parse_labels, parse_series};
use super::process::PREFIX;
use super::series::{Head, Kind, Series, Value, Visitor};

/// The values of all series at one moment. Made by [`Metrics::snapshot`](super::Metrics::snapshot).
///
/// A series has the form `name{label="value",...}`, with labels in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    series: BTreeMap<String, f64>,
}

/// A series with its values before and after. Displayed as `name{...}: before -> after`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MetricChange {
    /// The series, in the form of [`MetricsSnapshot`].
    pub series: String,
    /// The value before; 0 if the series did not exist.
    pub before: f64,
    /// The value after.
    pub after: f64,
}

impl MetricsSnapshot {
    /// The value of a series, if it exists. The order of the labels does not matter.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.series.get(&series_name(name, labels)).copied()
    }

    /// The sum of all series of this name that have these labels and perhaps others; 0 if there are
    /// none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.series.iter().filter(|(series, _)| {
            parse_series(series).is_some_and(|(its_name, its_labels)| {
                its_name == name
                    && labels.iter().all(|wanted| {
                        its_labels
                            .iter()
                            .any(|(n, v)| (n.as_str(), v.as_str()) == *wanted)
                    })
            })
        });
        matching.map(|(_, value)| value).sum()
    }

    /// All series with their values, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.series
            .iter()
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// The series that differ from an earlier snapshot, in alphabetical order.
    ///
    /// Of a histogram, `_count` and `_sum` are compared, not the buckets. Figures of the process
    /// (`process_…`) are left out, because they change by themselves.
    #[must_use]
    pub fn diff(&self, earlier: &Self) -> Vec<MetricChange> {
        self.series
            .iter()
            .map(|(series, after)| MetricChange {
                series: series.clone(),
                before: earlier.series.get(series).copied().unwrap_or(0.0),
                after: *after,
            })
            .filter(|change| {
                let name = change.name();
                change.before != change.after && !name.ends_with("_bucket") && !name.starts_with(PREFIX)
            })
            .collect()
    }
}

impl MetricChange {
    /// The name of the series, without its labels.
    #[must_use]
    pub fn name(&self) -> &str {
        self.series.split('{').next().unwrap_or_default()
    }

    /// The value of a label of the series.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<String> {
        let (_, labels) = parse_series(&self.series)?;
        labels
            .into_iter()
            .find_map(|(label, value)| (label == name).then_some(value))
    }
}

impl Visitor for MetricsSnapshot {
    fn family(&mut self, _head: &Head<'_>) {}

    fn series(&mut self, head: &Head<'_>, series: &Series<'_>) {
        let labels = parse_labels(&series.text()).unwrap_or_default();
        let mut add = |suffix: &str, labels: Vec<(String, String)>, value: f64| {
            self.series
                .insert(series_name(&format!("{}{suffix}", head.name), labels), value);
        };
        match &series.value {
            Value::Counter(count, _) => add("_total", labels, count.as_f64()),
            Value::Gauge(value) => {
                let suffix = if head.kind == Kind::Info { "_info" } else { "" };
                add(suffix, labels, value.as_f64());
            }
            Value::Histogram(buckets) => {
                let bounds = buckets.bounds().iter().map(|bound| format!("{bound:?}"));
                let mut count = 0;
                for (bucket, bound) in bounds.chain(["+Inf".to_owned()]).enumerate() {
                    count += buckets.count(bucket);
                    let mut labels = labels.clone();
                    labels.push(("le".to_owned(), bound));
                    add("_bucket", labels, count as f64);
                }
                add("_sum", labels.clone(), buckets.sum());
                add("_count", labels, count as f64);
            }
        }
    }
}

impl fmt::Display for MetricChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.series, self.before, self.after)
    }
}

fn series_name(name: &str, mut labels: Vec<(String, String)>) -> String {
    if labels.is_empty() {
        return name.to_owned();
    }
    labels.sort();
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    format!("{name}{{{}}}", labels.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::{BoundedFamily, Counter, DenseFamily, Gauge, Histogram, LogLevel, Metrics, Status};

    #[test]
    fn the_difference_has_the_changed_series() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 5);
        let tasks = BoundedFamily::<1, Status, Counter>::new([&model], Counter::default);
        let wait = DenseFamily::<(), Histogram>::new(|| Histogram::new(&[1.0]));
        metrics.register(|registry| {
            registry.register("tasks", "Tasks", tasks.clone());
            registry.register("wait", "Wait", wait.clone());
        });
        tasks.with(["b"]).with(Status::Success).inc();
        let before = metrics.snapshot();
        tasks.with(["a b}\",\\"]).with(Status::Success).inc();
        tasks.with(["b"]).with(Status::Success).inc();
        wait.with(()).observe(0.5);
        let changes = metrics.snapshot().diff(&before);
        let model = |change: &super::MetricChange| (change.name().to_owned(), change.label("model"));
        assert_eq!(
            model(&changes[0]),
            ("tasks_total".to_owned(), Some("a b}\",\\".to_owned()))
        );
        assert_eq!(model(&changes[2]), ("wait_count".to_owned(), None));
        let moved: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            moved,
            [
                r#"tasks_total{model="a b}\",\\",status="success"}: 0 -> 1"#,
                r#"tasks_total{model="b",status="success"}: 1 -> 2"#,
                "wait_count: 0 -> 1",
                "wait_sum: 0 -> 0.5",
            ]
        );
    }

    #[test]
    fn the_order_of_labels_does_not_matter() {
        let metrics = Metrics::new();
        let x = DenseFamily::<(Status, LogLevel), Counter>::default();
        let y = DenseFamily::<(), Gauge>::default();
        metrics.register(|registry| {
            registry.register("x", "X", x.clone());
            registry.register("y", "Y", y.clone());
        });
        x.with((Status::Failure, LogLevel::Error)).inc_by(3);
        y.with(()).set(4);
        let snapshot = metrics.snapshot();
        assert_eq!(
            snapshot.value("x_total", &[("level", "error"), ("status", "failure")]),
            Some(3.0)
        );
        assert_eq!(snapshot.value("x_total", &[("status", "failure")]), None);
        assert_eq!(snapshot.sum("x_total", &[("status", "failure")]), 3.0);
        assert_eq!(snapshot.value("y", &[]), Some(4.0));
    }
}
