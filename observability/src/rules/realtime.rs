//! Alerts about realtime sessions.

use super::{Alert, Component, Severity};
use crate::settings::{FAILURES, FINAL_LATENCY_SECONDS, LAG_SECONDS, SESSION_FAILURE_RATIO, UTTERANCES};

const BOARD: &str = "dalston-realtime";
const FINALS: &str = "dalston_realtime_final_latency_seconds";
const ENDS: &str = "dalston_realtime_session_ends_total";

pub(crate) fn alerts() -> Vec<Alert> {
    vec![
        Alert {
            name: "RealtimeNoCapacity",
            severity: Severity::Critical,
            component: Component::Realtime,
            expr: "sum(increase(dalston_realtime_sessions_rejected_total{reason=\"no_capacity\"}[5m])) > 0".to_owned(),
            hold: "5m",
            summary: "Realtime sessions are refused for lack of capacity",
            description: "Realtime workers refused {{ $value | printf \"%.0f\" }} sessions in 5 minutes, because all of their places are \
                 taken."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "RealtimeSessionsFailing",
            severity: Severity::Warning,
            component: Component::Realtime,
            expr: format!(
                "sum(increase({ENDS}{{reason=~\"error|aborted|lag\"}}[15m])) / (sum(increase({ENDS}[15m])) > 0) > {SESSION_FAILURE_RATIO}\n\
                 and\n\
                 sum(increase({ENDS}{{reason=~\"error|aborted|lag\"}}[15m])) >= {FAILURES}"
            ),
            hold: "0m",
            summary: "{{ $value | humanizePercentage }} of the realtime sessions fail",
            description: format!(
                "{{{{ $value | humanizePercentage }}}} of the sessions of 15 minutes, and at least {FAILURES}, ended with an error, were \
                 aborted, or lagged too far behind. Sessions that their clients ended do not count."
            ),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "RealtimeLatencyHigh",
            severity: Severity::Warning,
            component: Component::Realtime,
            expr: format!(
                "histogram_quantile(0.95, sum by (model, le) (rate({FINALS}_bucket[10m]))) > {FINAL_LATENCY_SECONDS}\n\
                 and on (model)\n\
                 sum by (model) (increase({FINALS}_count[10m])) >= {UTTERANCES}"
            ),
            hold: "10m",
            summary: "Final transcripts of model {{ $labels.model }} take {{ $value | humanizeDuration }}",
            description: "The 95th percentile of the time from the end of speech to its final transcript is \
                 {{ $value | humanizeDuration }} with model {{ $labels.model }}."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "RealtimeLagHigh",
            severity: Severity::Warning,
            component: Component::Realtime,
            expr: format!(
                "histogram_quantile(0.95, sum by (model, le) (rate(dalston_realtime_lag_seconds_bucket[5m]))) > {LAG_SECONDS}"
            ),
            hold: "5m",
            summary: "Realtime sessions of model {{ $labels.model }} lag {{ $value | humanizeDuration }} behind",
            description: "The 95th percentile of the audio that waits for its transcription is {{ $value | humanizeDuration }} with model \
                 {{ $labels.model }}. Sessions that lag further are terminated."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
    ]
}
