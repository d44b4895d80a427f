use super::panel::{Link, heatmap, series, stacked, stat};
use super::query::{ENGINE, average, engine, max, of, quantile, quantiles, rate, share, sum, work};
use super::{Board, Row, row};

const DURATION: &str = "dalston_engine_task_duration_seconds";
const LOAD: &str = "dalston_engine_model_load_seconds";
const COST: Link = Link::Board("dalston-cost");

pub(super) fn board() -> Board {
    Board {
        uid: "dalston-engine-performance",
        title: "Engine Performance",
        description: "How fast engines work, and where the time of a task goes.",
        price: false,
        rows: vec![
            speed(),
            time(),
            row("Cold starts", [
                series("Cold-start share", "percentunit", "The share of model loads in the working time of an engine. Above 30 %, keep models loaded.")
                    .target(cold_share(), "{{engine_id}}"),
                series("Model load time", "s", "The 95th percentile of the time to load a model.")
                    .target(quantile("0.95", "engine_id, model", LOAD, ENGINE), "{{engine_id}} {{model}}").exemplars(),
                series("Cache hits", "percentunit", "The share of tasks whose model was loaded already.")
                    .target(
                        share("engine_id", &engine("dalston_engine_model_cache_hits_total", ""), &engine("dalston_engine_model_acquire_seconds_count", "")),
                        "{{engine_id}}",
                    ),
            ]),
            row("Batches", [
                series("Batch size", "short", "The average number of tasks that an engine gets at once, of engines that take batches.")
                    .target(average("engine_id", "dalston_engine_batch_size", ENGINE), "{{engine_id}}"),
                stacked("Batches by reason", "ops", "Calls with several tasks, by the reason why they had no more: full, cost (too much audio), waited (no more tasks).")
                    .target(sum("reason", &rate(&engine("dalston_engine_batch_dispatch_total", ""))), "{{reason}}"),
                series("Batch wait", "s", "The average time that an idle inference thread waited for a full batch.")
                    .target(average("engine_id", "dalston_engine_batch_wait_seconds", ENGINE), "{{engine_id}}"),
                series("Batches split", "ops", "Calls that were processed again in smaller ones, by reason. Above 0 for long, lower the size.")
                    .target(sum("engine_id, reason", &rate(&engine("dalston_engine_batch_splits_total", ""))), "{{engine_id}} {{reason}}"),
            ]),
            gpu(),
            row("Failures and requests", [
                series("Failure rate by engine", "percentunit", "The share of tasks that failed, by model. 0 while none fails.")
                    .target(
                        share("engine_id, model", &engine("dalston_engine_tasks_processed_total", r#"status="failure""#), &engine("dalston_engine_tasks_processed_total", "")),
                        "{{engine_id}} {{model}}",
                    ),
                series("Direct requests", "reqps", "HTTP requests for a transcript that bypass the queue, by status.")
                    .target(sum("endpoint, status_code", &rate(&engine("dalston_engine_direct_requests_total", ""))), "{{endpoint}} {{status_code}}"),
                series("Speech segments", "short", "The average number of speech segments in the audio of a task, of engines that count them.")
                    .target(average("engine_id", "dalston_engine_vad_segment_count", ENGINE), "{{engine_id}}").link(Link::Board("audio-pipeline")),
            ]),
        ],
    }
}

fn speed() -> Row {
    let audio = engine("dalston_engine_audio_duration_seconds_sum", "");
    // An engine that reads no audio has no speed.
    let speed = |by| format!("({} > 0) / ({} > 0)", sum(by, &rate(&audio)), work(by));
    row("Speed", [
        series("Speed (x realtime)", "short", "Audio time divided by processing time: 10 means that a minute of audio takes 6 s. Higher is faster.")
            .target(speed("engine_id"), "{{engine_id}}").link(COST),
        series("Speed by instance type", "short", "Audio time divided by processing time, by hardware.")
            .target(speed("engine_id, instance_type"), "{{engine_id}} {{instance_type}}").link(COST),
        heatmap("Realtime factor", "short", "Processing time divided by audio time of each task: lower is faster. The inverse of speed.")
            .target(sum("le", &format!("increase({}[$__rate_interval])", engine("dalston_engine_realtime_factor_ratio_bucket", ""))), "{{le}}").link(COST),
        series("Realtime factor by device", "short", "The median of processing time divided by audio time. A factor on cpu where cuda is expected explains slow tasks.")
            .target(quantile("0.5", "engine_id, device", "dalston_engine_realtime_factor_ratio", ENGINE), "{{engine_id}} {{device}}").link(COST),
        heatmap("Task duration", "s", "Durations of the inference of tasks.")
            .target(sum("le", &format!("increase({}[$__rate_interval])", engine(&format!("{DURATION}_bucket"), ""))), "{{le}}").exemplars(),
        series("Processing time by engine", "s", "Duration of the inference of a task, as quantiles by engine and model. Waits, loads and transfers are not in it.")
            .targets(quantiles("engine_id, model", DURATION, ENGINE)).exemplars(),
        series("Inference by device", "s", "The average duration of an inference, by device.")
            .target(average("engine_id, device", "dalston_engine_recognize_seconds", ENGINE), "{{engine_id}} {{device}}"),
        series("Busy ratio", "percentunit", "The share of the last minute in which inference threads were busy.")
            .target(format!("avg by (engine_id, instance) ({})", engine("dalston_engine_inference_busy_ratio", "")), "{{engine_id}} {{instance}}"),
        series("Task throughput", "ops", "Tasks that have ended, per second and status.")
            .target(sum("engine_id, status", &rate(&engine("dalston_engine_tasks_processed_total", ""))), "{{engine_id}} {{status}}"),
    ])
}

fn time() -> Row {
    let part = |name: &str| sum("", &rate(&engine(&format!("{name}_sum"), "")));
    let mut stack = stacked(
        "Time of tasks",
        "s",
        "Seconds that tasks spend in each step, per second: the tallest step is the one to improve. Queue and slot wait are waits for a worker and for a thread.",
    );
    for (name, legend) in [
        ("dalston_engine_queue_wait_seconds", "queue wait"),
        ("dalston_engine_s3_download_seconds", "download"),
        ("dalston_engine_slot_wait_seconds", "slot wait"),
        (LOAD, "model load"),
        (DURATION, "process"),
        ("dalston_engine_s3_upload_seconds", "upload"),
    ] {
        stack = stack.target(part(name), legend);
    }
    let p95 = |name: &str| quantile("0.95", "engine_id", name, ENGINE);
    row(
        "Time of a task",
        [
            stack.wide(),
            series(
                "Waits (p95)",
                "s",
                "The 95th percentiles of the wait for a worker and of the wait for an inference thread.",
            )
            .target(p95("dalston_engine_queue_wait_seconds"), "{{engine_id}} queue")
            .target(p95("dalston_engine_slot_wait_seconds"), "{{engine_id}} slot")
            .wide()
            .exemplars(),
            series(
                "Transfers (p95)",
                "s",
                "The 95th percentiles of downloads and uploads. Above 30 s, an alert fires.",
            )
            .target(
                p95("dalston_engine_s3_download_seconds"),
                "{{engine_id}} download",
            )
            .target(p95("dalston_engine_s3_upload_seconds"), "{{engine_id}} upload")
            .wide()
            .exemplars(),
            series(
                "Length of audio",
                "s",
                "The median and the 95th percentile of the length of a task's audio.",
            )
            .target(
                quantile(
                    "0.5",
                    "engine_id",
                    "dalston_engine_audio_duration_seconds",
                    ENGINE,
                ),
                "{{engine_id}} p50",
            )
            .target(
                quantile(
                    "0.95",
                    "engine_id",
                    "dalston_engine_audio_duration_seconds",
                    ENGINE,
                ),
                "{{engine_id}} p95",
            )
            .wide(),
        ],
    )
}

fn cold_share() -> String {
    let load = sum("engine_id", &rate(&engine(&format!("{LOAD}_sum"), "")));
    let work = sum("engine_id", &rate(&engine(&format!("{DURATION}_sum"), "")));
    format!("{load} / ({load} + {work} > 0)")
}

fn gpu() -> Row {
    let figure = |name: &str| max("instance, gpu", &of(&format!("dalston_engine_gpu_{name}"), ""));
    row("GPU", [
        series("GPU utilization", "percentunit", "The share of the driver's last sample period in which a kernel ran. Near 0 with busy threads, the engine computes on the CPU.")
            .target(figure("utilization_ratio"), "{{instance}} {{gpu}}"),
        series("GPU memory", "bytes", "GPU memory in use by all processes, beside the total.")
            .target(figure("memory_used_bytes"), "{{instance}} {{gpu}} used")
            .target(figure("memory_total_bytes"), "{{instance}} {{gpu}} total"),
        series("GPU temperature", "celsius", "Above 85 °C the driver reduces the clock.")
            .target(figure("temperature_celsius"), "{{instance}} {{gpu}}"),
        series("GPU power", "watt", "Power draw of each GPU.")
            .target(figure("power_watts"), "{{instance}} {{gpu}}").link(COST),
        stat("GPU memory in use", "percentunit", "The share of the memory of the fullest GPU that is in use.")
            .target(
                format!(
                    "max({} / {})",
                    figure("memory_used_bytes"),
                    figure("memory_total_bytes")
                ),
                "",
            ),
    ])
}
