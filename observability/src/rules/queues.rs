//! Alerts about queues and the promised wait.

use super::{Alert, Component, Severity};
use crate::settings::{
    BURN_FAST, BURN_FAST_LONG, BURN_SLOW, BURN_SLOW_LONG, BURN_TASKS, BUSY_RATIO, OBJECTIVE,
    PROMISED_WAIT_SECONDS, QUEUE_DEPTH, UNSERVED_SECONDS,
};

pub(crate) fn alerts() -> Vec<Alert> {
    vec![
        Alert {
            name: "QueueWaitBudgetBurnFast",
            severity: Severity::Critical,
            component: Component::Queue,
            expr: burn([("1h", "5m", BURN_FAST), ("6h", "30m", BURN_FAST_LONG)], "6h"),
            hold: "2m",
            summary: "Tasks of engine {{ $labels.engine_id }} wait too long",
            description: format!(
                "{{{{ $value | humanizePercentage }}}} of the tasks of engine {{{{ $labels.engine_id }}}} waited longer than \
                 {PROMISED_WAIT_SECONDS} s. At this rate the error budget of the month is spent within days."
            ),
            board: "dalston-overview",
            variable: Some("engine_id"),
        },
        Alert {
            name: "QueueWaitBudgetBurnSlow",
            severity: Severity::Warning,
            component: Component::Queue,
            expr: burn([("1d", "2h", BURN_SLOW), ("3d", "6h", BURN_SLOW_LONG)], "1d"),
            hold: "15m",
            summary: "Tasks of engine {{ $labels.engine_id }} have waited too long for hours",
            description: format!(
                "{{{{ $value | humanizePercentage }}}} of the tasks of engine {{{{ $labels.engine_id }}}} waited longer than \
                 {PROMISED_WAIT_SECONDS} s. At this rate the error budget does not last for the month."
            ),
            board: "dalston-overview",
            variable: Some("engine_id"),
        },
        Alert {
            name: "QueueNotServed",
            severity: Severity::Critical,
            component: Component::Queue,
            // A long recording keeps an engine busy without a finished task.
            expr: format!(
                "max by (engine_id) (dalston_queue_oldest_task_age_seconds) > {UNSERVED_SECONDS}\n\
                 unless on (engine_id)\n\
                 sum by (engine_id) (increase(dalston_engine_tasks_processed_total[5m])) > 0\n\
                 unless on (engine_id)\n\
                 max by (engine_id) (dalston_engine_inference_busy_ratio) > 0"
            ),
            hold: "1m",
            summary: "No worker serves the queue of engine {{ $labels.engine_id }}",
            description: "The oldest task of engine {{ $labels.engine_id }} has waited for {{ $value | humanizeDuration }}. In the \
                 last 5 minutes no task of the engine has ended, and no inference thread was busy."
                .to_owned(),
            board: "audio-orchestrator-overview",
            variable: Some("engine_id"),
        },
        Alert {
            name: "QueueDepthHigh",
            severity: Severity::Warning,
            component: Component::Queue,
            expr: format!("max by (engine_id) (dalston_queue_depth) > {QUEUE_DEPTH}"),
            hold: "5m",
            summary: "Engine {{ $labels.engine_id }} queue depth at {{ $value }}",
            description: format!(
                "The queue of engine {{{{ $labels.engine_id }}}} has had more than {QUEUE_DEPTH} waiting tasks for 5 minutes, now \
                 {{{{ $value }}}}. Workers may be down or overloaded."
            ),
            board: "audio-orchestrator-overview",
            variable: Some("engine_id"),
        },
        Alert {
            name: "EnginesSaturated",
            severity: Severity::Warning,
            component: Component::Queue,
            expr: format!(
                "avg by (engine_id) (dalston_engine_inference_busy_ratio) > {BUSY_RATIO}\n\
                 and on (engine_id)\n\
                 max by (engine_id) (dalston_queue_depth) > 0"
            ),
            hold: "15m",
            summary: "All workers of engine {{ $labels.engine_id }} are busy",
            description: "The inference threads of engine {{ $labels.engine_id }} were busy for {{ $value | humanizePercentage }} of \
                 the last minute while tasks waited."
                .to_owned(),
            board: "dalston-engine-performance",
            variable: Some("engine_id"),
        },
        Alert {
            name: "QueueMetricsAbsent",
            severity: Severity::Critical,
            component: Component::Monitoring,
            // A platform without any queue is complete: it is new.
            expr: "absent(dalston_queue_depth)\nunless on ()\nmax(dalston_redis_connected) == 1".to_owned(),
            hold: "5m",
            summary: "No queue metrics",
            description: "The queue exporter does not run, is not scraped, or can't read Redis. Alerts about queues are blind."
                .to_owned(),
            board: "audio-orchestrator-overview",
            variable: None,
        },
    ]
}

/// The share of late tasks, where it exceeds a multiple of the error budget over both windows of a
/// pair. The short window ends the alert soon after the cause.
fn burn(pairs: [(&str, &str, f64); 2], period: &str) -> String {
    let pairs = pairs.map(|(long, short, rate)| {
        let [long, short] = [long, short]
            .map(|window| format!("dalston:queue_wait_bad:ratio_rate{window} > {rate} * (1 - {OBJECTIVE})"));
        format!("  (\n    {long}\n    and\n    {short}\n  )")
    });
    format!(
        "(\n{}\n)\nand on (engine_id)\n\
         sum by (engine_id) (increase(dalston_engine_queue_wait_seconds_count[{period}])) >= {BURN_TASKS}",
        pairs.join("\n  or\n")
    )
}
