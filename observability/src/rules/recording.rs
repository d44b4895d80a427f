//! Ratios that alerts and boards share.
//!
//! A ratio has a sample of 0 while nothing has failed, and none while nothing happens: dividing by
//! zero would be NaN, which spoils every sum over it.

use crate::settings::{OBJECTIVE, OBJECTIVE_DAYS, PROMISED_WAIT_SECONDS};

/// The windows of the burn rates that are computed at each evaluation, and those that read so many
/// samples that they have an interval of their own.
const WINDOWS: [&str; 5] = ["5m", "30m", "1h", "2h", "6h"];
const LONG_WINDOWS: [&str; 2] = ["1d", "3d"];

/// Less than half of the time for which Prometheus takes a sample as current.
const LONG_INTERVAL: &str = "2m";

/// A group of rules.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// `None` is that of the server.
    pub(crate) interval: Option<&'static str>,
    /// Names and expressions.
    pub(crate) rules: Vec<(String, String)>,
}

pub(crate) fn groups() -> [Group; 2] {
    [
        Group {
            name: "dalston-recording",
            interval: None,
            rules: current(),
        },
        Group {
            name: "dalston-recording-long",
            interval: Some(LONG_INTERVAL),
            rules: long(),
        },
    ]
}

fn current() -> Vec<(String, String)> {
    let ratios = [
        (
            "engine_task_failures:ratio_rate10m",
            ratio(
                "engine_id",
                r#"dalston_engine_tasks_processed_total{status="failure"}[10m]"#,
                "dalston_engine_tasks_processed_total[10m]",
            ),
        ),
        (
            "job_failures:ratio_rate15m",
            ratio(
                "",
                r#"dalston_orchestrator_jobs_total{status="failed"}[15m]"#,
                r#"dalston_orchestrator_jobs_total{status=~"completed|failed"}[15m]"#,
            ),
        ),
        (
            "gateway_errors:ratio_rate5m",
            ratio(
                "",
                r#"dalston_gateway_requests_total{status_code=~"5.."}[5m]"#,
                "dalston_gateway_requests_total[5m]",
            ),
        ),
        (
            "webhook_failures:ratio_rate30m",
            ratio(
                "",
                r#"dalston_webhook_deliveries_total{status="failed"}[30m]"#,
                r#"dalston_webhook_deliveries_total{status=~"success|failed"}[30m]"#,
            ),
        ),
        (
            "engine_speed:ratio_rate30m",
            // Both sides are about the same tasks. Engines of the Python SDK have only the
            // durations of tasks, which overlap in a batch. An engine that reads no audio has no
            // speed.
            "(sum by (engine_id) (rate(dalston_engine_audio_duration_seconds_sum[30m])) > 0)\n/\n(\n  (\n    \
             sum by (engine_id) (rate(dalston_engine_inference_seconds_total[30m]))\n    or\n    \
             sum by (engine_id) (rate(dalston_engine_task_duration_seconds_sum[30m]))\n  ) > 0\n)"
                .to_owned(),
        ),
        (
            "engine_cold_start:ratio_rate30m",
            "sum by (engine_id) (rate(dalston_engine_model_load_seconds_sum[30m]))\n/\n(\n  \
             sum by (engine_id) (rate(dalston_engine_model_load_seconds_sum[30m]))\n  \
             + sum by (engine_id) (rate(dalston_engine_task_duration_seconds_sum[30m])) > 0\n)"
                .to_owned(),
        ),
    ];
    let ratios = ratios.map(|(name, expr)| (format!("dalston:{name}"), expr));
    ratios.into_iter().chain(WINDOWS.map(bad_waits)).collect()
}

fn long() -> Vec<(String, String)> {
    let period = format!("{OBJECTIVE_DAYS}d");
    let mut rules: Vec<_> = LONG_WINDOWS
        .into_iter()
        .chain([period.as_str()])
        .map(bad_waits)
        .collect();
    rules.push((
        "dalston:queue_wait_error_budget:remaining".to_owned(),
        format!("1 - dalston:queue_wait_bad:ratio_rate{period} / (1 - {OBJECTIVE})"),
    ));
    rules
}

/// The share of `part` in `all`, of which one side may lack series.
fn ratio(by: &str, part: &str, all: &str) -> String {
    let sum = match by {
        "" => "sum".to_owned(),
        label => format!("sum by ({label}) "),
    };
    format!("(\n  {sum}(rate({part}))\n  or\n  0 * {sum}(rate({all}))\n)\n/\n({sum}(rate({all})) > 0)")
}

/// The share of tasks that waited longer than promised. Prometheus 3 writes `le="60.0"` and
/// Prometheus 2 writes `le` as the exporter does, so both forms match.
fn bad_waits(window: &str) -> (String, String) {
    let name = format!("dalston:queue_wait_bad:ratio_rate{window}");
    let good =
        format!("dalston_engine_queue_wait_seconds_bucket{{le=~\"{PROMISED_WAIT_SECONDS}(\\\\.0)?\"}}");
    let all = "dalston_engine_queue_wait_seconds_count";
    let expr = format!(
        "1 - sum by (engine_id) (rate({good}[{window}]))\n/\n(sum by (engine_id) (rate({all}[{window}])) > 0)"
    );
    (name, expr)
}
