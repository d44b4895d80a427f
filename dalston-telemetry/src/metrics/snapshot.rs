use std::collections::BTreeMap;
use std::fmt;

/// The values of all series at one moment. Made by [`Metrics::snapshot`](super::Metrics::snapshot).
///
/// A series is written as `name{label="value",...}` with its labels in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    series: BTreeMap<String, f64>,
}

/// A series whose value is not what it was. Shown as `name{...}: before -> after`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MetricChange {
    /// The series, as in [`MetricsSnapshot`].
    pub series: String,
    /// The value before; 0 if the series did not exist.
    pub before: f64,
    /// The value after.
    pub after: f64,
}

impl MetricsSnapshot {
    /// The value of a series, if it exists. Its labels may be given in any order.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.series.get(&series_name(name, labels)).copied()
    }

    /// The sum of all series of this name that have at least these labels; 0 if there are none.
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

    /// The series that have moved since an earlier snapshot, in alphabetical order.
    ///
    /// A histogram shows as its `_count` and `_sum`; the buckets are left out.
    #[must_use]
    pub fn diff(&self, earlier: &Self) -> Vec<MetricChange> {
        let is_bucket = |series: &str| {
            series
                .split('{')
                .next()
                .is_some_and(|name| name.ends_with("_bucket"))
        };
        self.series
            .iter()
            .map(|(series, after)| MetricChange {
                series: series.clone(),
                before: earlier.series.get(series).copied().unwrap_or(0.0),
                after: *after,
            })
            .filter(|change| change.before != change.after && !is_bucket(&change.series))
            .collect()
    }

    /// Reads what the encoder wrote.
    pub(super) fn parse(text: &str) -> Self {
        let series = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, rest) = split_series(line)?;
                let (name, labels) = parse_series(series)?;
                // After the value there may be an exemplar.
                let value = rest.split_whitespace().next()?.parse().ok()?;
                Some((series_name(name, labels), value))
            });
        Self {
            series: series.collect(),
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

/// Splits `name{labels} value` where the labels end; label values may contain anything.
fn split_series(line: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b' ' if !quoted => return Some((&line[..at], &line[at + 1..])),
            _ => {}
        }
    }
    None
}

fn parse_series(series: &str) -> Option<(&str, Vec<(String, String)>)> {
    let Some((name, rest)) = series.split_once('{') else {
        return Some((series, Vec::new()));
    };
    let mut rest = rest.strip_suffix('}')?;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut end = None;
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                '"' => {
                    end = Some(at);
                    break;
                }
                other => value.push(other),
            }
        }
        labels.push((label.to_owned(), value));
        let after = &quoted[end? + 1..];
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some((name, labels))
}

#[cfg(test)]
mod tests {
    use super::super::{BoundedFamily, Counter, DenseFamily, Histogram, Metrics, Outcome};
    use super::*;

    #[test]
    fn the_difference_of_two_snapshots_is_what_moved() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 5);
        let tasks = BoundedFamily::<1, Outcome, Counter>::new([&model], Counter::default);
        let wait = DenseFamily::<(), Histogram>::new(|| Histogram::new(&[1.0]));
        metrics.register(|registry| {
            registry.register("tasks", "Tasks", tasks.clone());
            registry.register("wait", "Wait", wait.clone());
        });
        tasks.with(["b"]).with(Outcome::Success).inc();
        let before = metrics.snapshot();
        tasks.with(["a b}\",\\"]).with(Outcome::Success).inc();
        tasks.with(["b"]).with(Outcome::Success).inc();
        wait.with(()).observe(0.5);
        let moved: Vec<_> = metrics
            .snapshot()
            .diff(&before)
            .iter()
            .map(ToString::to_string)
            .collect();
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
    fn a_value_is_found_by_its_labels_in_any_order() {
        let snapshot =
            MetricsSnapshot::parse("x_total{b=\"2\",a=\"1\"} 3 # {trace_id=\"7\"} 1.0\ny 4\n# EOF\n");
        assert_eq!(snapshot.value("x_total", &[("a", "1"), ("b", "2")]), Some(3.0));
        assert_eq!(snapshot.value("x_total", &[("a", "1")]), None);
        assert_eq!(snapshot.sum("x_total", &[("a", "1")]), 3.0);
        assert_eq!(snapshot.value("y", &[]), Some(4.0));
    }
}
