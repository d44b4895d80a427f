use super::series::{decisions, jobs, jobs_created, of_exporter, requests, scans, webhooks};
use super::{Scenario, fires, silent};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = completed();
    scenarios.extend(failed());
    scenarios.extend(events());
    scenarios.extend(delivered());
    scenarios
}

fn completed() -> Vec<Scenario> {
    const NONE: &str = "NoJobsProcessed";
    const ABSENT: &str = "OrchestratorMetricsAbsent";
    let until_ten = || {
        [
            jobs_created("0+1x700"),
            jobs("completed", "0+1x600 600+0x200"),
            jobs("failed", "0+0x800"),
        ]
    };
    let none_at_all = || [jobs_created("0+1x4000"), jobs("completed", "0+0x4000")];
    vec![
        fires(
            NONE,
            "the orchestrator is down, without any series (3.1)",
            "10h40m",
            &[],
            "30",
        )
        .with([jobs_created("0+1x700")]),
        fires(NONE, "all jobs fail (3.2)", "10h40m", &[], "30").with([
            jobs_created("0+1x700"),
            jobs("completed", "0+0x700"),
            jobs("failed", "0+1x700"),
        ]),
        silent(NONE, "no job was submitted (3.3)", "10h40m").with([
            jobs_created("50+0x700"),
            jobs("completed", "50+0x700"),
            jobs("failed", "0+0x700"),
        ]),
        fires(NONE, "17:55 (3.4)", "17h55m", &[], "30").with(none_at_all()),
        silent(NONE, "18:45 (3.4)", "18h45m").with(none_at_all()),
        silent(NONE, "07:55 (3.4)", "7h55m").with(none_at_all()),
        silent(NONE, "Saturday (3.4)", "58h40m").with(none_at_all()),
        silent(NONE, "jobs stop at 10:00; it is 10:34 (3.5)", "10h34m").with(until_ten()),
        fires(NONE, "jobs stop at 10:00; it is 10:36 (3.5)", "10h36m", &[], "30").with(until_ten()),
        silent(NONE, "jobs are completed", "10h40m").with([
            jobs_created("0+1x700"),
            jobs("completed", "0+1x700"),
            jobs("failed", "0+0x700"),
        ]),
        fires(ABSENT, "the orchestrator is down (3.1)", "10m", &[], "").with([jobs_created("0+1x20")]),
        silent(ABSENT, "no job has ended since its start", "10m")
            .with([jobs("completed", "0+0x20"), jobs("failed", "0+0x20")]),
    ]
}

fn failed() -> Vec<Scenario> {
    const JOBS: &str = "JobFailureRateHigh";
    const GATEWAY: &str = "GatewayErrorRateHigh";
    vec![
        fires(JOBS, "a fifth of the jobs fail", "25m", &[], "20%")
            .with([jobs("completed", "0+4x30"), jobs("failed", "0+1x30")]),
        silent(JOBS, "one failure of two jobs", "10m")
            .with([jobs("completed", "0 1+0x30"), jobs("failed", "0 1+0x30")]),
        silent(JOBS, "all jobs are cancelled", "25m").with([
            jobs("completed", "0+0x30"),
            jobs("failed", "0+0x30"),
            jobs("cancelled", "0+5x30"),
        ]),
        silent(JOBS, "no failure, which is 0 %", "25m")
            .with([jobs("completed", "0+4x30"), jobs("failed", "0+0x30")])
            .sample(
                "dalston:job_failures:ratio_rate15m",
                "dalston:job_failures:ratio_rate15m",
                0.0,
            ),
        fires(GATEWAY, "a tenth of the requests fail", "15m", &[], "10%")
            .with([requests("200", "0+9x30"), requests("500", "0+1x30")]),
        fires(GATEWAY, "the storage fails: 503", "15m", &[], "50%").with([
            requests("200", "0+5x30"),
            requests("500", "0+0x30"),
            requests("503", "_ 5+5x30"),
        ]),
        silent(GATEWAY, "clients send invalid requests and disconnect", "15m").with([
            requests("200", "0+5x30"),
            requests("400", "0+5x30"),
            requests("499", "0+5x30"),
            requests("500", "0+0x30"),
        ]),
        silent(GATEWAY, "two errors", "10m")
            .with([requests("200", "0+1x30"), requests("500", "0+0x4 2+0x30")]),
    ]
}

fn events() -> Vec<Scenario> {
    const DLQ: &str = "EventsToDeadLetter";
    const PRESENT: &str = "DeadLettersPresent";
    const SCANS: &str = "ScannerNotRunning";
    const LETTERS: &str = "dalston_events_dead_letters";
    let labels = [
        ("event_type", "task.completed"),
        ("failure_reason", "handler_exception"),
    ];
    vec![
        fires(DLQ, "an event fails for the last time", "30m", &labels, "1")
            .with([decisions("dlq", "handler_exception", "0+0x19 1+0x20"), decisions("ack", "none", "0+1x40")]),
        silent(DLQ, "events are repeated with success", "30m").with([
            decisions("dlq", "handler_exception", "0+0x40"),
            decisions("retry", "handler_exception", "0+1x40"),
        ]),
        fires(PRESENT, "two events in the stream", "20m", &[], "2").with([of_exporter(LETTERS, "q1:9100", "2+0x20")]),
        silent(PRESENT, "the stream was emptied after ten minutes", "20m")
            .with([of_exporter(LETTERS, "q1:9100", "2+0x10 0+0x20")]),
        fires(SCANS, "each scan fails", "25m", &[], "0")
            .with([scans("success", "5+0x30"), scans("error", "0+1x30")]),
        silent(SCANS, "the orchestrator is down", "25m").with([jobs_created("0+1x30")]),
        silent(SCANS, "scans succeed", "25m").with([scans("success", "0+2x30"), scans("error", "0+0x30")]),
        silent(SCANS, "another orchestrator is the leader", "25m")
            .with([scans("skipped_not_leader", "0+2x30"), scans("success", "0+0x30")])
            .with([r#"dalston_orchestrator_scanner_scans_total{status="success",job="orchestrator",instance="o2:9100"} = 0+2x30"#.to_owned()]),
    ]
}

fn delivered() -> Vec<Scenario> {
    const WEBHOOKS: &str = "WebhooksFailing";
    vec![
        fires(
            WEBHOOKS,
            "a quarter of the webhooks are given up",
            "45m",
            &[],
            "25%",
        )
        .with([
            webhooks("success", "0+3x60"),
            webhooks("failed", "0+1x60"),
            webhooks("retried", "0+5x60"),
        ]),
        silent(WEBHOOKS, "all succeed after repetitions", "45m").with([
            webhooks("success", "0+3x60"),
            webhooks("failed", "0+0x60"),
            webhooks("retried", "0+5x60"),
        ]),
        silent(WEBHOOKS, "one of two is given up", "20m")
            .with([webhooks("success", "0 1+0x60"), webhooks("failed", "0 1+0x60")]),
    ]
}
