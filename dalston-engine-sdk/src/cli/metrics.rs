//! The metrics that changed, as a table.

use dalston_telemetry::metrics::MetricChange;

/// One line per series: name, change, labels. The two series of a histogram are one line with the
/// number of observations and their average.
pub(super) fn table(changes: &[MetricChange]) -> String {
    let rows: Vec<(&str, String, &str)> = changes.iter().filter_map(|change| row(change, changes)).collect();
    let width = |column: fn(&(&str, String, &str)) -> usize| rows.iter().map(column).max().unwrap_or(0);
    let (names, values) = (width(|row| row.0.len()), width(|row| row.1.chars().count()));
    rows.iter().fold(String::new(), |table, (name, value, labels)| {
        let line = format!("  {name:names$}  {value:>values$}  {labels}");
        table + line.trim_end() + "\n"
    })
}

fn row<'a>(change: &'a MetricChange, all: &[MetricChange]) -> Option<(&'a str, String, &'a str)> {
    let (name, labels) = split(&change.series);
    let moved = change.after - change.before;
    let sibling = |from: &str, to: &str| {
        let base = name.strip_suffix(from)?;
        let found = all
            .iter()
            .find(|other| split(&other.series) == (format!("{base}{to}").as_str(), labels))?;
        Some((base, found.after - found.before))
    };
    if let Some((base, sum)) = sibling("_count", "_sum") {
        let average = sum / moved;
        let average = if base.ends_with("_seconds") {
            time(average)
        } else {
            figure(average)
        };
        return Some((base, format!("{moved} x {average}"), labels));
    }
    if sibling("_sum", "_count").is_some() {
        return None;
    }
    let sign = if name.ends_with("_total") { "+" } else { "" };
    let value = if name.ends_with("_total") {
        moved
    } else {
        change.after
    };
    Some((name, format!("{sign}{}", figure(value)), labels))
}

fn split(series: &str) -> (&str, &str) {
    series.find('{').map_or((series, ""), |at| series.split_at(at))
}

fn time(seconds: f64) -> String {
    match seconds.abs() {
        1.0.. => format!("{} s", figure(seconds)),
        0.001.. => format!("{} ms", figure(seconds * 1e3)),
        _ => format!("{} us", figure(seconds * 1e6)),
    }
}

/// Three significant digits; whole numbers as they are.
fn figure(value: f64) -> String {
    if value == value.trunc() || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    let digits = usize::try_from(2 - magnitude).unwrap_or(0);
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dalston_telemetry::metrics::{Metrics, Status};
    use dalston_telemetry::services::engine::{EngineLabels, EngineMetrics};

    use super::*;

    #[test]
    fn counters_show_growth_and_histograms_their_average() {
        let metrics = Metrics::new();
        let engine = EngineMetrics::register(&metrics, &EngineLabels::new("my-asr", "transcribe"));
        let before = metrics.snapshot();
        engine.model("tiny").task_processed(Status::Success);
        engine.queue_wait(Duration::from_millis(10));
        engine.queue_wait(Duration::from_millis(15));
        let table = table(&metrics.snapshot().diff(&before));
        let lines: Vec<&str> = table
            .lines()
            .map(|line| line.split('{').next().unwrap_or(line).trim_end())
            .collect();
        assert_eq!(
            lines,
            [
                "  dalston_engine_queue_wait_seconds     2 x 12.5 ms",
                "  dalston_engine_tasks_processed_total           +1",
            ]
        );
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in [
            (2.0, "2"),
            (0.000_522_341, "0.000522"),
            (12.345, "12.3"),
            (98_765.4, "98765"),
        ] {
            assert_eq!(figure(value), expected);
        }
    }
}
