use super::panel::{Link, series, stacked, stat, traces};
use super::query::{
    ENGINE, average, engine, max, of, quantile, quantiles, rate, sessions_of_workers, share, sum,
};
use super::{Board, Row, row};

const ENGINES: Link = Link::Board("dalston-engine-performance");

pub(super) fn board() -> Board {
    Board {
        uid: "audio-orchestrator-overview",
        title: "Operations",
        description: "The parts of the platform side by side: services, queues, workers, orchestrator, gateway, Redis, webhooks, telemetry.",
        price: false,
        rows: vec![
            services(),
            queues(),
            workers(),
            orchestrator(),
            gateway(),
            others(),
            row(
                "Telemetry",
                [
                    series(
                        "Spans dropped",
                        "ops",
                        "Spans that were not delivered, by reason. Anything above 0 is a gap in traces.",
                    )
                    .target(
                        sum(
                            "job, reason",
                            &rate(&of("dalston_telemetry_spans_dropped_total", "")),
                        ),
                        "{{job}} {{reason}}",
                    ),
                    series(
                        "Export failures",
                        "ops",
                        "Failed attempts to deliver a batch. They are repeated.",
                    )
                    .target(
                        sum(
                            "job, signal",
                            &rate(&of("dalston_telemetry_export_failures_total", "")),
                        ),
                        "{{job}} {{signal}}",
                    ),
                    series(
                        "Log lines dropped",
                        "ops",
                        "Log lines that were lost, because the output did not take them.",
                    )
                    .target(
                        sum("job", &rate(&of("dalston_log_lines_dropped_total", ""))),
                        "{{job}}",
                    ),
                ],
            ),
            row(
                "Traces",
                [traces(
                    "Newest traces",
                    "The newest traces of the gateway. Each shows the way of a job through all services.",
                    "dalston-gateway",
                )],
            ),
        ],
    }
}

fn services() -> Row {
    let requests = "dalston_gateway_requests_total";
    row(
        "Services",
        [
            series(
                "Service health overview",
                "bool_yes_no",
                "Whether Prometheus can scrape the processes of a job: 1 if all answer.",
            )
            .target(
                r#"min by (job) (up{job=~"$job",instance=~"$instance"})"#,
                "{{job}}",
            ),
            series(
                "Request rates and latencies",
                "s",
                "The 95th percentile of the time of requests, by route. The dots are traces.",
            )
            .target(
                quantile("0.95", "endpoint", "dalston_gateway_request_duration_seconds", ""),
                "{{endpoint}}",
            )
            .exemplars(),
            series(
                "Error rates by service",
                "percentunit",
                "The share of failures: requests of the gateway, jobs, and tasks of engines.",
            )
            .target(
                share("", &of(requests, r#"status_code=~"5..""#), &of(requests, "")),
                "gateway",
            )
            .target(
                share(
                    "",
                    &of("dalston_orchestrator_jobs_total", r#"status="failed""#),
                    &of("dalston_orchestrator_jobs_total", ""),
                ),
                "jobs",
            )
            .target(
                share(
                    "engine_id",
                    &engine("dalston_engine_tasks_processed_total", r#"status="failure""#),
                    &engine("dalston_engine_tasks_processed_total", ""),
                ),
                "{{engine_id}}",
            ),
            series("CPU utilization", "short", "CPU cores in use, by container.")
                .target(
                    "sum by (container) (rate(container_cpu_usage_seconds_total[$__rate_interval]))",
                    "{{container}}",
                )
                .wide(),
            series(
                "Memory utilization",
                "bytes",
                "Memory in use that can't be freed, by container.",
            )
            .target(
                "sum by (container) (container_memory_working_set_bytes)",
                "{{container}}",
            )
            .wide(),
        ],
    )
}

fn queues() -> Row {
    let wait = "dalston_engine_queue_wait_seconds";
    row(
        "Queues",
        [
            series(
                "Queue depth by engine",
                "short",
                "Tasks that no engine has taken yet.",
            )
            .target(
                max("engine_id", &engine("dalston_queue_depth", "")),
                "{{engine_id}}",
            )
            .link(ENGINES),
            series(
                "Oldest task age",
                "s",
                "Age of the oldest task that waits. A growing age means that workers do not keep up.",
            )
            .target(
                max("engine_id", &engine("dalston_queue_oldest_task_age_seconds", "")),
                "{{engine_id}}",
            )
            .link(ENGINES),
            series(
                "Queue wait time (p95)",
                "s",
                "The 95th percentile of the time from the queueing of a task to its read.",
            )
            .target(quantile("0.95", "engine_id", wait, ENGINE), "{{engine_id}}")
            .exemplars(),
            series(
                "Tasks taken",
                "short",
                "Tasks that workers hold: two for each inference thread.",
            )
            .target(
                max("engine_id", &engine("dalston_queue_pending", "")),
                "{{engine_id}}",
            )
            .link(ENGINES),
            stat(
                "Queues left out",
                "short",
                "Queues beyond the limit of the exporter. Anything above 0 is invisible here.",
            )
            .target(max("", &of("dalston_queues_left_out", "")), ""),
            stat("Dead letters", "short", "Events that the orchestrator gave up.")
                .target(max("", &of("dalston_events_dead_letters", "")), ""),
        ],
    )
}

fn workers() -> Row {
    let tasks = "dalston_engine_tasks_processed_total";
    row("Workers", [
        stat("Workers up", "short", "Engine processes that Prometheus can scrape.")
            .target(r#"sum(up{job=~"engine-.*",instance=~"$instance"})"#, "").link(ENGINES),
        series("Busy ratio", "percentunit", "The share of the last minute in which inference threads were busy. 1 means that there is no reserve.")
            .target(format!("avg by (engine_id, instance) ({})", engine("dalston_engine_inference_busy_ratio", "")), "{{engine_id}} {{instance}}").link(ENGINES),
        series("Engine processing time", "s", "Duration of the inference of a task, as quantiles.")
            .targets(quantiles("engine_id", "dalston_engine_task_duration_seconds", ENGINE)).exemplars(),
        series("Error rate by engine", "percentunit", "The share of tasks that failed. 0 while none fails.")
            .target(share("engine_id", &engine(tasks, r#"status="failure""#), &engine(tasks, "")), "{{engine_id}}").link(ENGINES),
        series("Redeliveries", "ops", "Tasks that were delivered again. engine_crash: the worker disappeared.")
            .target(sum("stage, reason", &rate(&of("dalston_engine_task_redelivery_total", ""))), "{{stage}} {{reason}}").link(ENGINES),
        series("Tasks skipped", "ops", "Tasks that were not processed because their job was cancelled.")
            .target(sum("stage", &rate(&of("dalston_engine_tasks_skipped_cancelled_total", ""))), "{{stage}}").link(ENGINES),
    ])
}

fn orchestrator() -> Row {
    let jobs = "dalston_orchestrator_jobs_total";
    row(
        "Orchestrator",
        [
            series(
                "Job completion rate",
                "ops",
                "Jobs that were completed, per second.",
            )
            .target(sum("", &rate(&of(jobs, r#"status="completed""#))), "completed")
            .exemplars(),
            series(
                "Job duration",
                "s",
                "Time from the creation of a job to its end, as quantiles.",
            )
            .targets(quantiles("", "dalston_orchestrator_job_duration_seconds", ""))
            .exemplars(),
            stacked("Events", "ops", "Events that were read, by type.").target(
                sum(
                    "event_type",
                    &rate(&of("dalston_orchestrator_events_processed_total", "")),
                ),
                "{{event_type}}",
            ),
            series(
                "Decisions about events",
                "ops",
                "Decisions other than acknowledgement. dlq: the event was given up.",
            )
            .target(
                sum(
                    "decision, failure_reason",
                    &rate(&of(
                        "dalston_orchestrator_event_decisions_total",
                        r#"decision=~"retry|dlq""#,
                    )),
                ),
                "{{decision}} {{failure_reason}}",
            ),
            series("Tasks", "ops", "Tasks that were queued, completed, and too late.")
                .target(
                    sum(
                        "stage",
                        &rate(&of("dalston_orchestrator_tasks_scheduled_total", "")),
                    ),
                    "queued {{stage}}",
                )
                .target(
                    sum(
                        "status",
                        &rate(&of("dalston_orchestrator_tasks_completed_total", "")),
                    ),
                    "completed {{status}}",
                )
                .target(
                    sum(
                        "stage",
                        &rate(&of("dalston_orchestrator_tasks_timed_out_total", "")),
                    ),
                    "too late {{stage}}",
                ),
            series(
                "Scans",
                "ops",
                "Scans for stuck tasks. Without success for 15 minutes, an alert fires.",
            )
            .target(
                sum(
                    "status",
                    &rate(&of("dalston_orchestrator_scanner_scans_total", "")),
                ),
                "{{status}}",
            ),
            series(
                "Time to plan a job",
                "s",
                "The 95th percentile of the time to build the graph of tasks.",
            )
            .target(
                quantile("0.95", "", "dalston_orchestrator_dag_build_duration_seconds", ""),
                "p95",
            )
            .exemplars(),
        ],
    )
}

fn gateway() -> Row {
    let requests = "dalston_gateway_requests_total";
    row(
        "Gateway",
        [
            stacked("Requests by route", "reqps", "Answered requests, by route.").target(
                sum("method, endpoint", &rate(&of(requests, ""))),
                "{{method}} {{endpoint}}",
            ),
            series(
                "Errors by route",
                "percentunit",
                "The share of requests with a status of 500 or above, by route.",
            )
            .target(
                share(
                    "endpoint",
                    &of(requests, r#"status_code=~"5..""#),
                    &of(requests, ""),
                ),
                "{{endpoint}}",
            ),
            series(
                "Average time by route",
                "s",
                "The average time from the headers of a request to its answer.",
            )
            .target(
                average("endpoint", "dalston_gateway_request_duration_seconds", ""),
                "{{endpoint}}",
            )
            .exemplars(),
            series(
                "Open requests",
                "short",
                "Requests whose response has not ended, and open WebSockets.",
            )
            .target(sum("", &of("dalston_gateway_requests_active", "")), "requests")
            .target(
                sum("", &of("dalston_gateway_websocket_connections_active", "")),
                "WebSockets",
            ),
            series("Uploads", "Bps", "Received bytes of audio per second.").target(
                sum("", &rate(&of("dalston_gateway_upload_bytes_total", ""))),
                "audio",
            ),
            series(
                "Jobs by tenant",
                "ops",
                "Accepted jobs, by tenant. Those beyond the cap share __other__.",
            )
            .target(
                sum("tenant_id", &rate(&of("dalston_gateway_jobs_created_total", ""))),
                "{{tenant_id}}",
            ),
        ],
    )
}

fn others() -> Row {
    row(
        "Redis, sessions and webhooks",
        [
            stat(
                "Redis connected",
                "bool_yes_no",
                "Whether a queue exporter can read Redis.",
            )
            .target(max("", &of("dalston_redis_connected", "")), ""),
            stat("Active sessions", "short", "Realtime sessions that are open.")
                .target(sum("", &sessions_of_workers()), ""),
            series(
                "Webhooks",
                "ops",
                "Attempts to deliver a webhook, by result. failed: given up.",
            )
            .target(
                sum("status", &rate(&of("dalston_webhook_deliveries_total", ""))),
                "{{status}}",
            ),
            series(
                "Webhook duration",
                "s",
                "The 95th percentile of an attempt to deliver a webhook.",
            )
            .target(
                quantile("0.95", "", "dalston_webhook_delivery_duration_seconds", ""),
                "p95",
            ),
            series(
                "Audit records",
                "ops",
                "Audit records, by whether they were written.",
            )
            .target(
                sum("action, status", &rate(&of("dalston_audit_records_total", ""))),
                "{{action}} {{status}}",
            ),
        ],
    )
}
