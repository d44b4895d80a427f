use super::panel::{Link, series, stacked, stat, table};
use super::query::{ENGINE, max, of, quantile, rate, share, sum};
use super::{Board, row};

const OPERATIONS: Link = Link::Board("audio-orchestrator-overview");

pub(super) fn board() -> Board {
    let logs = "dalston_log_messages_total";
    Board {
        uid: "service-details",
        title: "Service Details",
        description: "One service: select it with the variables. The figures come from the text of its /metrics.",
        price: false,
        rows: vec![
            row("Service", [
                table("Build", "short", "The services and their versions.")
                    .target(sum("service, version, job, instance", &of("dalston_build_info", "")), "").link(OPERATIONS),
                series("Target", "bool_yes_no", "Whether Prometheus can scrape the process.")
                    .target(max("job, instance", &of("up", "")), "{{job}} {{instance}}").link(OPERATIONS),
                stat("Uptime", "s", "Time since the start of the process that started last.")
                    .target(format!("time() - {}", max("", &of("process_start_time_seconds", ""))), "").link(OPERATIONS),
            ]),
            row("Per-service detailed metrics", [
                stacked("Log lines by level", "ops", "Log lines that were written, by level.")
                    .target(sum("level", &rate(&of(logs, ""))), "{{level}}").link(OPERATIONS),
                series("Error tracking", "ops", "Log lines of the levels error and warning, by process.")
                    .target(sum("job, instance, level", &rate(&of(logs, r#"level=~"error|warning""#))), "{{job}} {{instance}} {{level}}").link(OPERATIONS),
                series("Spans dropped", "ops", "Spans that were not delivered, by reason.")
                    .target(sum("reason", &rate(&of("dalston_telemetry_spans_dropped_total", ""))), "{{reason}}").link(OPERATIONS),
                series("Label values folded", "short", "Label values beyond a cap, which are counted as __other__, and metrics that were left out.")
                    .target(sum("label", &of("dalston_telemetry_label_values_folded_total", "")), "{{label}}").link(OPERATIONS),
            ]),
            row("Process", [
                series("Resource utilization: CPU", "short", "CPU cores in use, by process.")
                    .target(sum("job, instance", &rate(&of("process_cpu_seconds_total", ""))), "{{job}} {{instance}}").link(OPERATIONS),
                series("Resource utilization: memory", "bytes", "Resident memory, by process.")
                    .target(max("job, instance", &of("process_resident_memory_bytes", "")), "{{job}} {{instance}}").link(OPERATIONS),
                series("Open descriptors", "percentunit", "The share of the allowed file descriptors that is open. At 1 nothing can be opened.")
                    .target(
                        max("job, instance", &format!("{} / {}", of("process_open_fds", ""), of("process_max_fds", ""))),
                        "{{job}} {{instance}}",
                    ).link(OPERATIONS),
                series("Container CPU", "short", "CPU cores in use, by container.")
                    .target("sum by (container) (rate(container_cpu_usage_seconds_total[$__rate_interval]))", "{{container}}").link(OPERATIONS),
                series("Container memory", "percentunit", "Memory that can't be freed, as a share of the limit. At 1 the kernel ends the container.")
                    .target(
                        "max by (container) (container_memory_working_set_bytes) / (max by (container) (container_spec_memory_limit_bytes) > 0)",
                        "{{container}}",
                    ).link(OPERATIONS),
            ]),
            row("Dependency health", [
                stat("Redis", "bool_yes_no", "Whether a queue exporter can read Redis.")
                    .target(max("", &of("dalston_redis_connected", "")), "").link(OPERATIONS),
                series("Storage", "s", "The 95th percentiles of downloads and uploads of engines.")
                    .target(quantile("0.95", "", "dalston_engine_s3_download_seconds", ENGINE), "download")
                    .target(quantile("0.95", "", "dalston_engine_s3_upload_seconds", ENGINE), "upload").exemplars(),
                series("Collector", "ops", "Failed attempts to deliver spans, metrics and logs.")
                    .target(sum("signal", &rate(&of("dalston_telemetry_export_failures_total", ""))), "{{signal}}").link(OPERATIONS),
                series("Webhook receivers", "percentunit", "The share of webhooks that were given up.")
                    .target(
                        share("", &of("dalston_webhook_deliveries_total", r#"status="failed""#), &of("dalston_webhook_deliveries_total", r#"status=~"success|failed""#)),
                        "failed",
                    ).link(OPERATIONS),
            ]),
            row("Custom metrics", [
                series("Custom metrics from /metrics", "short", "The number of samples in each scrape. All of them can be queried under their own names, also those of a program itself.")
                    .target(max("job, instance", &of("scrape_samples_scraped", "")), "{{job}} {{instance}}").link(OPERATIONS),
                series("Duration of a scrape", "s", "The time to read /metrics.")
                    .target(max("job, instance", &of("scrape_duration_seconds", "")), "{{job}} {{instance}}").link(OPERATIONS),
            ]),
        ],
    }
}
