//! Metrics of `prometheus_client`, which are parsed from its text.

use super::label_text::{parse_series, push_label, unescaped};
use super::owned::{OwnedHistogram, OwnedValue};
use super::series::{Head, Kind, Number, Series, Visitor};

/// Visits the families of an OpenMetrics text. Invalid lines are ignored.
pub(super) fn visit(text: &str, visitor: &mut dyn Visitor) {
    let mut help = String::new();
    let mut family: Option<Reading> = None;
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rest = words.next().unwrap_or_default();
            match (keyword, &mut family) {
                ("HELP", _) => help = unescaped(rest.strip_suffix('.').unwrap_or(rest)),
                ("TYPE", _) => {
                    let next = Reading::new(name, std::mem::take(&mut help), kind(rest));
                    family
                        .replace(next)
                        .into_iter()
                        .for_each(|last| last.show(visitor));
                }
                ("UNIT", Some(family)) => rest.clone_into(&mut family.unit),
                _ => {}
            }
        } else if let (Some(family), Some(sample)) = (&mut family, Sample::parse(line)) {
            family.add(sample);
        }
    }
    family.into_iter().for_each(|last| last.show(visitor));
}

/// A line of the text.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(String, String)>,
    value: &'a str,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (series, rest) = split_series(line)?;
        let (name, labels) = parse_series(series)?;
        // A time and an exemplar may follow the value.
        let value = rest.split_whitespace().next()?;
        Some(Self { name, labels, value })
    }
}

/// Splits a line behind the series. Label values can contain spaces and braces.
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

pub(super) fn kind(text: &str) -> Kind {
    match text {
        "counter" => Kind::Counter,
        "gauge" => Kind::Gauge,
        "histogram" => Kind::Histogram,
        "info" => Kind::Info,
        _ => Kind::Unknown,
    }
}

/// A family while its lines are parsed.
struct Reading {
    name: String,
    help: String,
    unit: String,
    kind: Kind,
    series: Vec<OwnedSeries>,
}

struct OwnedSeries {
    labels: Vec<(String, String)>,
    value: OwnedValue,
}

impl Reading {
    fn new(name: &str, help: String, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            help,
            unit: String::new(),
            kind,
            series: Vec::new(),
        }
    }

    fn add(&mut self, sample: Sample<'_>) {
        let Some(suffix) = sample.name.strip_prefix(&*self.name) else {
            return;
        };
        let number = match (sample.value.parse::<u64>(), sample.value.parse::<f64>()) {
            (Ok(whole), _) => Number::Whole(whole),
            (_, Ok(real)) => Number::Real(real),
            _ => return,
        };
        let mut labels = sample.labels;
        match (self.kind, suffix) {
            (Kind::Counter, "_total") | (Kind::Info, "_info") | (Kind::Gauge | Kind::Unknown, "") => {
                let value = OwnedValue::Number(number);
                self.series.push(OwnedSeries { labels, value });
            }
            (Kind::Histogram, "_bucket") => {
                let Some(le) = labels.iter().position(|(name, _)| name == "le") else {
                    return;
                };
                let bound = labels.remove(le).1;
                let histogram = self.histogram(labels);
                if let (Number::Whole(count), Ok(bound)) = (number, bound.parse::<f64>()) {
                    histogram.counts.push(count);
                    if bound.is_finite() {
                        histogram.bounds.push(bound);
                    }
                }
            }
            (Kind::Histogram, "_sum") => self.histogram(labels).sum = number.as_f64(),
            _ => {}
        }
    }

    fn histogram(&mut self, labels: Vec<(String, String)>) -> &mut OwnedHistogram {
        // The lines of a series follow each other.
        if self.series.last().is_none_or(|last| last.labels != labels) {
            let value = OwnedValue::Histogram(OwnedHistogram::default());
            self.series.push(OwnedSeries { labels, value });
        }
        match self.series.last_mut().map(|last| &mut last.value) {
            Some(OwnedValue::Histogram(histogram)) => histogram,
            _ => unreachable!("a family of histograms has histograms only"),
        }
    }

    fn show(self, visitor: &mut dyn Visitor) {
        let head = Head {
            name: &self.name,
            help: &self.help,
            unit: &self.unit,
            kind: self.kind,
            original: None,
        };
        let mut has_begun = false;
        for OwnedSeries { labels, mut value } in self.series {
            if let OwnedValue::Histogram(histogram) = &mut value {
                let mut below = 0;
                for count in &mut histogram.counts {
                    (*count, below) = (count.saturating_sub(below), *count);
                }
                if histogram.counts.len() != histogram.bounds.len() + 1 {
                    continue;
                }
            }
            if !has_begun {
                visitor.family(&head);
                has_begun = true;
            }
            let mut text = String::new();
            for (name, value) in &labels {
                push_label(&mut text, name, value);
            }
            let series = Series {
                open: "",
                closed: &text,
                attributes: Some(&labels),
                value: value.as_value(self.kind),
            };
            visitor.series(&head, &series);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::super::{Metrics, TextFormat};

    #[test]
    fn metrics_of_prometheus_client_are_in_both_formats() {
        let metrics = Metrics::new();
        let jobs = Family::<Vec<(String, String)>, Counter>::default();
        let heat = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        let time =
            Family::<Vec<(String, String)>, Histogram>::new_with_constructor(|| Histogram::new([0.5, 2.0]));
        metrics.register(|registry| {
            let registry = registry.prometheus();
            registry.register("jobs", "Jobs by \"kind\"", jobs.clone());
            registry.register_with_unit("heat", "Heat", Unit::Celsius, heat.clone());
            registry.register_with_unit("time", "Time", Unit::Seconds, time.clone());
            registry.register("built", "Built", Info::new([("by", "us")]));
        });
        let label = vec![("kind".to_owned(), "a \"b\\c} d\n".to_owned())];
        jobs.get_or_create(&label).inc_by(3);
        heat.set(21.5);
        for value in [0.1, 0.2, 1.0, 7.0] {
            time.get_or_create(&label).observe(value);
        }
        let open_metrics = metrics.encode();
        assert!(open_metrics.contains("# UNIT time_seconds seconds\n"));
        assert!(open_metrics.ends_with("# EOF\n") && open_metrics.matches("# EOF").count() == 1);
        assert_eq!(
            metrics.encode_as(TextFormat::Prometheus),
            "# HELP jobs_total Jobs by \"kind\".\n\
             # TYPE jobs_total counter\n\
             jobs_total{kind=\"a \\\"b\\\\c} d\\n\"} 3\n\
             # HELP heat_celsius Heat.\n\
             # TYPE heat_celsius gauge\n\
             heat_celsius 21.5\n\
             # HELP time_seconds Time.\n\
             # TYPE time_seconds histogram\n\
             time_seconds_bucket{kind=\"a \\\"b\\\\c} d\\n\",le=\"0.5\"} 2\n\
             time_seconds_bucket{kind=\"a \\\"b\\\\c} d\\n\",le=\"2.0\"} 3\n\
             time_seconds_bucket{kind=\"a \\\"b\\\\c} d\\n\",le=\"+Inf\"} 4\n\
             time_seconds_sum{kind=\"a \\\"b\\\\c} d\\n\"} 8.3\n\
             time_seconds_count{kind=\"a \\\"b\\\\c} d\\n\"} 4\n\
             # HELP built_info Built.\n\
             # TYPE built_info gauge\n\
             built_info{by=\"us\"} 1\n"
        );
    }
}
