use super::panel::{Link, heatmap, series, stacked, stat, table};
use super::query::{ENGINE, average, engine, max, of, quantiles, rate, sessions_of_workers, share, sum};
use super::{Board, row};

const OPERATIONS: Link = Link::Board("audio-orchestrator-overview");
const ENGINES: Link = Link::Board("dalston-engine-performance");

pub(super) fn board() -> Board {
    let requests = "dalston_gateway_requests_total";
    let jobs = "dalston_orchestrator_jobs_total";
    let tasks = "dalston_engine_tasks_processed_total";
    let wait = "dalston_engine_queue_wait_seconds";
    Board {
        uid: "dalston-overview",
        title: "Dalston Overview",
        description: "Whether the platform works: objective, requests, jobs, engines, sessions, and the health of its parts.",
        price: false,
        rows: vec![
            row("Objective", [
                stat("Error budget left", "percentunit", "The part of the error budget of 30 days that is left. The objective: 95 % of the tasks are read within 60 s. Below 0 it is missed.")
                    .target("min(dalston:queue_wait_error_budget:remaining)", "").narrow().link(ENGINES),
                series("Error budget burn", "short", "How many times faster than allowed the error budget is spent. Above 1 for long, the objective is missed.")
                    .target(r#"dalston:queue_wait_bad:ratio_rate1h{engine_id=~"$engine_id"} / (1 - 0.95)"#, "{{engine_id}} 1h")
                    .target(r#"dalston:queue_wait_bad:ratio_rate6h{engine_id=~"$engine_id"} / (1 - 0.95)"#, "{{engine_id}} 6h").link(ENGINES),
                stat("Job success", "percentunit", "The share of jobs that were completed, of those that were completed or failed.")
                    .target(share("", &of(jobs, r#"status="completed""#), &of(jobs, r#"status=~"completed|failed""#)), "").narrow().link(OPERATIONS),
                table("Firing alerts", "short", "The alerts that fire now. Watchdog always fires.")
                    .target(r#"sum by (alertname, severity, component) (ALERTS{alertstate="firing"})"#, "").link(Link::Alerts),
            ]),
            row("Request Overview", [
                series("Requests/sec", "reqps", "Answered HTTP requests of the gateway.")
                    .target(sum("", &rate(&of(requests, ""))), "requests").link(OPERATIONS),
                series("Error rate (%)", "percentunit", "The share of requests with a status of 500 or above. 0 while none fails.")
                    .target(share("", &of(requests, r#"status_code=~"5..""#), &of(requests, "")), "errors").link(OPERATIONS),
                series("Avg latency", "s", "The average time from the headers of a request to its answer. Uploads count as long as they last.")
                    .target(average("", "dalston_gateway_request_duration_seconds", ""), "average").link(OPERATIONS),
            ]),
            row("Batch Pipeline", [
                stat("Jobs in progress", "short", "Jobs that were started and have not ended.")
                    .target(max("", &of("dalston_orchestrator_jobs_in_progress", "")), "").link(OPERATIONS),
                stat("Queue oldest task age", "s", "The age of the oldest task that waits. It matters more than the depth.")
                    .target(max("", &engine("dalston_queue_oldest_task_age_seconds", "")), "").link(OPERATIONS),
                stat("Engines up", "short", "Engine processes that Prometheus can scrape.")
                    .target(r#"sum(up{job=~"engine-.*",instance=~"$instance"})"#, "").link(ENGINES),
                stat("Audio per hour", "h", "Hours of audio that engines process in an hour.")
                    .target(sum("", &rate(&engine("dalston_engine_audio_duration_seconds_sum", ""))), "").link(Link::Board("dalston-cost")),
                series("Queue depth by engine", "short", "Tasks that wait, by engine.")
                    .target(max("engine_id", &engine("dalston_queue_depth", "")), "{{engine_id}}").link(OPERATIONS),
                series("Job completion rate", "ops", "Jobs that were completed, per second.")
                    .target(sum("", &rate(&of(jobs, r#"status="completed""#))), "completed").link(OPERATIONS),
                stacked("Jobs by status", "ops", "Jobs that have ended, per second and status.")
                    .target(sum("status", &rate(&of(jobs, ""))), "{{status}}").link(OPERATIONS),
            ]),
            row("Engine Performance", [
                series("Processing time by engine", "s", "Duration of the inference of a task, as quantiles. Without model load and transfers.")
                    .targets(quantiles("engine_id", "dalston_engine_task_duration_seconds", ENGINE)).exemplars(),
                series("Task throughput", "ops", "Tasks that have ended, per second and engine.")
                    .target(sum("engine_id", &rate(&engine(tasks, ""))), "{{engine_id}}").link(ENGINES),
                series("Failure rate by engine", "percentunit", "The share of tasks that failed. 0 while none fails.")
                    .target(share("engine_id", &engine(tasks, r#"status="failure""#), &engine(tasks, "")), "{{engine_id}}").link(ENGINES),
                series("Queue wait", "s", "Time from the queueing of a task to its read, as quantiles. More than 60 s is late.")
                    .targets(quantiles("engine_id", wait, ENGINE)).exemplars(),
                series("GPU utilization", "percentunit", "The share of time in which a kernel ran on a GPU.")
                    .target(max("instance, gpu", &of("dalston_engine_gpu_utilization_ratio", "")), "{{instance}} {{gpu}}").link(ENGINES),
            ]),
            row("Real-time Sessions", [
                stat("Active sessions", "short", "Realtime sessions that are open.")
                    .target(sum("", &sessions_of_workers()), ""),
                stat("Workers healthy/total", "short", "Realtime workers with a recent heartbeat, beside all registered ones.")
                    .target(max("", &of("dalston_session_router_workers_healthy", "")), "healthy")
                    .target(max("", &of("dalston_session_router_workers_registered", "")), "registered"),
                heatmap("Session duration distribution", "s", "Lengths of realtime sessions.")
                    .target(sum("le", &format!("increase({}[$__rate_interval])", of("dalston_realtime_session_duration_seconds_bucket", ""))), "{{le}}"),
            ]),
            row("System Health", [
                stat("Redis connectivity", "bool_yes_no", "Whether a queue exporter can read Redis.")
                    .target(max("", &of("dalston_redis_connected", "")), "").link(OPERATIONS),
                series("Error logs/sec", "ops", "Log lines of the level error, per second and service.")
                    .target(sum("job", &rate(&of("dalston_log_messages_total", r#"level="error""#))), "{{job}}"),
            ]),
        ],
    }
}
