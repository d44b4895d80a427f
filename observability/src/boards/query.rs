//! The forms of expressions on boards.

/// A series of the selected processes, with further matchers.
pub(super) fn of(name: &str, matchers: &str) -> String {
    let comma = if matchers.is_empty() { "" } else { "," };
    format!(r#"{name}{{job=~"$job",instance=~"$instance"{comma}{matchers}}}"#)
}

/// A series of the selected engines.
pub(super) fn engine(name: &str, matchers: &str) -> String {
    let comma = if matchers.is_empty() { "" } else { "," };
    of(name, &format!(r#"engine_id=~"$engine_id"{comma}{matchers}"#))
}

/// Per second. The interval is at least `$interval`, which is the step of each panel.
pub(super) fn rate(series: &str) -> String {
    format!("rate({series}[$__rate_interval])")
}

pub(super) fn sum(by: &str, expr: &str) -> String {
    aggregate("sum", by, expr)
}

pub(super) fn max(by: &str, expr: &str) -> String {
    aggregate("max", by, expr)
}

fn aggregate(function: &str, by: &str, expr: &str) -> String {
    match by {
        "" => format!("{function}({expr})"),
        by => format!("{function} by ({by}) ({expr})"),
    }
}

/// The share of `part` in `all`: 0 while nothing of it happens, no sample while nothing happens at
/// all.
pub(super) fn share(by: &str, part: &str, all: &str) -> String {
    let (part, all) = (sum(by, &rate(part)), sum(by, &rate(all)));
    format!("({part} or 0 * {all}) / ({all} > 0)")
}

/// One sum per second for each of another: an average of a histogram, or a speed.
pub(super) fn per(by: &str, over: &str, under: &str) -> String {
    format!("{} / ({} > 0)", sum(by, &rate(over)), sum(by, &rate(under)))
}

/// The time in engines per second of the tasks whose audio is counted. Engines of the Python SDK
/// have only the durations of tasks, which overlap in a batch.
pub(super) fn work(by: &str) -> String {
    let inference = sum(by, &rate(&engine("dalston_engine_inference_seconds_total", "")));
    let tasks = sum(by, &rate(&engine("dalston_engine_task_duration_seconds_sum", "")));
    format!("({inference} or {tasks})")
}

/// The sessions of each realtime worker. Each gateway counts all of them.
pub(super) fn sessions_of_workers() -> String {
    max("worker_id", &of("dalston_session_router_sessions_active", ""))
}

/// The average of a histogram, whose series is given without its suffix.
pub(super) fn average(by: &str, name: &str, matchers: &str) -> String {
    per(
        by,
        &of(&format!("{name}_sum"), matchers),
        &of(&format!("{name}_count"), matchers),
    )
}

/// A quantile of a histogram.
pub(super) fn quantile(quantile: &str, by: &str, name: &str, matchers: &str) -> String {
    let by = if by.is_empty() {
        "le".to_owned()
    } else {
        format!("{by}, le")
    };
    let buckets = sum(&by, &rate(&of(&format!("{name}_bucket"), matchers)));
    format!("histogram_quantile({quantile}, {buckets})")
}

/// The three quantiles of a panel, with their legends.
pub(super) fn quantiles(by: &str, name: &str, matchers: &str) -> [(String, String); 3] {
    [("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")].map(|(number, label)| {
        let labels = by.split(", ").filter(|by| !by.is_empty());
        let labels: String = labels.map(|by| format!("{{{{{by}}}}} ")).collect();
        (quantile(number, by, name, matchers), labels + label)
    })
}

pub(super) const ENGINE: &str = r#"engine_id=~"$engine_id""#;
