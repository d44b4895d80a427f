//! Alerts about jobs, the orchestrator, the gateway and webhooks.

use super::{Alert, Component, Severity};
use crate::settings::{
    BUSINESS_DAYS, BUSINESS_HOURS, FAILURES, GATEWAY_ERROR_RATIO, JOB_FAILURE_RATIO, WEBHOOK_FAILURE_RATIO,
};

const BOARD: &str = "audio-orchestrator-overview";

pub(crate) fn alerts() -> Vec<Alert> {
    let mut alerts = jobs();
    alerts.extend(events());
    alerts
}

fn jobs() -> Vec<Alert> {
    let (first_hour, end_hour) = BUSINESS_HOURS;
    let (first_day, last_day) = BUSINESS_DAYS;
    vec![
        Alert {
            name: "NoJobsProcessed",
            severity: Severity::Warning,
            component: Component::Jobs,
            expr: format!(
                "(\n  sum(increase(dalston_gateway_jobs_created_total[30m])) > 0\n  unless\n  \
                 sum(increase(dalston_orchestrator_jobs_total{{status=\"completed\"}}[30m])) > 0\n)\n\
                 and on () (hour() >= {first_hour} and hour() < {end_hour})\n\
                 and on () (day_of_week() >= {first_day} and day_of_week() <= {last_day})"
            ),
            hold: "5m",
            summary: "No jobs completed in the last 30 minutes during business hours",
            description: format!(
                "{{{{ $value | printf \"%.0f\" }}}} jobs were accepted in 30 minutes, and none was completed, during business hours \
                 ({first_hour:02}:00–{end_hour:02}:00 UTC). Check orchestrator, Redis, and engine health."
            ),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "OrchestratorMetricsAbsent",
            severity: Severity::Critical,
            component: Component::Jobs,
            expr: "absent(dalston_orchestrator_jobs_total)".to_owned(),
            hold: "5m",
            summary: "No metrics of the orchestrator",
            description: "No process exposes dalston_orchestrator_jobs_total: the orchestrator does not run or is not scraped.".to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "JobFailureRateHigh",
            severity: Severity::Critical,
            component: Component::Jobs,
            expr: format!(
                "dalston:job_failures:ratio_rate15m > {JOB_FAILURE_RATIO}\n\
                 and on ()\n\
                 sum(increase(dalston_orchestrator_jobs_total{{status=\"failed\"}}[15m])) >= {FAILURES}"
            ),
            hold: "5m",
            summary: "{{ $value | humanizePercentage }} of the jobs fail",
            description: format!(
                "{{{{ $value | humanizePercentage }}}} of the jobs that ended in the last 15 minutes have failed, and at least \
                 {FAILURES} of them."
            ),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "GatewayErrorRateHigh",
            severity: Severity::Critical,
            component: Component::Gateway,
            expr: format!(
                "dalston:gateway_errors:ratio_rate5m > {GATEWAY_ERROR_RATIO}\n\
                 and on ()\n\
                 sum(increase(dalston_gateway_requests_total{{status_code=~\"5..\"}}[5m])) >= {FAILURES}"
            ),
            hold: "5m",
            summary: "{{ $value | humanizePercentage }} of the requests fail",
            description: "The gateway answered {{ $value | humanizePercentage }} of the requests of the last 5 minutes with a server \
                 error."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
    ]
}

fn events() -> Vec<Alert> {
    vec![
        Alert {
            name: "EventsToDeadLetter",
            severity: Severity::Warning,
            component: Component::Jobs,
            expr: "sum by (event_type, failure_reason) (increase(dalston_orchestrator_event_decisions_total{decision=\"dlq\"}[15m])) > 0"
                .to_owned(),
            hold: "0m",
            summary: "The orchestrator gives up events of type {{ $labels.event_type }}",
            description: "{{ $value | printf \"%.0f\" }} events of type {{ $labels.event_type }} went to the dead-letter stream in 15 \
                 minutes: {{ $labels.failure_reason }}."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "DeadLettersPresent",
            severity: Severity::Warning,
            component: Component::Queue,
            expr: "max(dalston_events_dead_letters) > 0".to_owned(),
            hold: "15m",
            summary: "{{ $value }} events wait in the dead-letter stream",
            description: "The dead-letter stream holds {{ $value }} events. Their jobs do not proceed until a person has looked.".to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "ScannerNotRunning",
            severity: Severity::Warning,
            component: Component::Jobs,
            expr: "sum(increase(dalston_orchestrator_scanner_scans_total{status=\"success\"}[15m])) == 0".to_owned(),
            hold: "5m",
            summary: "The orchestrator does not scan for stuck tasks",
            description: "{{ $value }} scans have succeeded in 15 minutes. Tasks whose events are lost stay as they are.".to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "WebhooksFailing",
            severity: Severity::Warning,
            component: Component::Jobs,
            expr: format!(
                "dalston:webhook_failures:ratio_rate30m > {WEBHOOK_FAILURE_RATIO}\n\
                 and on ()\n\
                 sum(increase(dalston_webhook_deliveries_total{{status=\"failed\"}}[30m])) >= {FAILURES}"
            ),
            hold: "5m",
            summary: "{{ $value | humanizePercentage }} of the webhooks fail",
            description: "{{ $value | humanizePercentage }} of the webhooks of 30 minutes were given up after their last attempt.".to_owned(),
            board: BOARD,
            variable: None,
        },
    ]
}
