//! Alerts about Redis, targets and the telemetry itself.

use super::{Alert, Component, Severity};
use crate::settings::TARGETS_DOWN_RATIO;

pub(crate) fn alerts() -> Vec<Alert> {
    vec![
        Alert {
            name: "RedisDown",
            severity: Severity::Critical,
            component: Component::Storage,
            expr: "max(dalston_redis_connected) == 0".to_owned(),
            hold: "1m",
            summary: "Redis does not answer",
            description: "dalston_redis_connected is {{ $value }} for every queue exporter. No task is queued, read or finished.".to_owned(),
            board: "audio-orchestrator-overview",
            variable: None,
        },
        Alert {
            name: "TargetDown",
            severity: Severity::Warning,
            component: Component::Monitoring,
            expr: format!("count by (job) (up == 0) / count by (job) (up) > {TARGETS_DOWN_RATIO}"),
            hold: "10m",
            summary: "Targets of job {{ $labels.job }} are down",
            description: "Prometheus can't scrape {{ $value | humanizePercentage }} of the targets of job {{ $labels.job }}. Alerts about \
                 them are blind."
                .to_owned(),
            board: "service-details",
            variable: None,
        },
        Alert {
            name: "TelemetryLost",
            severity: Severity::Warning,
            component: Component::Monitoring,
            expr: "sum by (job) (increase(dalston_telemetry_spans_dropped_total[15m])) > 0\n\
                 or\n\
                 sum by (job) (increase(dalston_log_lines_dropped_total[15m])) > 0"
                .to_owned(),
            hold: "0m",
            summary: "{{ $labels.job }} loses spans or log lines",
            description: "{{ $labels.job }} dropped {{ $value | printf \"%.0f\" }} spans or log lines in 15 minutes.".to_owned(),
            board: "service-details",
            variable: None,
        },
        Alert {
            name: "LabelValuesFolded",
            severity: Severity::Info,
            component: Component::Monitoring,
            // The counter of a label is born with its first folded value, so an increase misses it.
            expr: "sum by (job, label) (dalston_telemetry_label_values_folded_total) > 0".to_owned(),
            hold: "0m",
            summary: "{{ $labels.job }} has more values of {{ $labels.label }} than its cap",
            description: "{{ $value }} values of label {{ $labels.label }} were counted as __other__ since the start of {{ $labels.job }}."
                .to_owned(),
            board: "service-details",
            variable: None,
        },
        Alert {
            name: "Watchdog",
            severity: Severity::None,
            component: Component::Monitoring,
            expr: "vector(1)".to_owned(),
            hold: "0m",
            summary: "Alerting works",
            description: "This alert always fires. If its receiver hears nothing, Prometheus or Alertmanager does not work.".to_owned(),
            board: "dalston-overview",
            variable: None,
        },
    ]
}
