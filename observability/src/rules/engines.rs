//! Alerts about engines, their storage and their GPUs.

use super::{Alert, Component, Severity};
use crate::settings::{
    BATCH_SPLITS, COLD_START_RATIO, COLD_STARTS, ENGINE_JOBS, FAILURES, GPU_CELSIUS, GPU_IDLE_RATIO,
    GPU_MEMORY_RATIO, GPU_WORK_RATIO, REDELIVERIES, SPEED, STORAGE_SECONDS, TASK_FAILURE_RATIO,
};

const BOARD: &str = "dalston-engine-performance";

pub(crate) fn alerts() -> Vec<Alert> {
    tasks().into_iter().chain(speed()).chain(gpus()).collect()
}

fn tasks() -> [Alert; 4] {
    [
        Alert {
            name: "EngineErrorRateHigh",
            severity: Severity::Critical,
            component: Component::Engine,
            expr: format!(
                "dalston:engine_task_failures:ratio_rate10m > {TASK_FAILURE_RATIO}\n\
                 and on (engine_id)\n\
                 sum by (engine_id) (increase(dalston_engine_tasks_processed_total{{status=\"failure\"}}[10m])) >= {FAILURES}"
            ),
            hold: "5m",
            summary: "Engine {{ $labels.engine_id }} error rate at {{ $value | humanizePercentage }}",
            description: format!(
                "Engine {{{{ $labels.engine_id }}}} has failed {{{{ $value | humanizePercentage }}}} of its tasks over the last \
                 10 minutes, and at least {FAILURES} of them. Check the log lines of the failed tasks and the model."
            ),
            board: BOARD,
            variable: Some("engine_id"),
        },
        Alert {
            name: "EngineDown",
            severity: Severity::Critical,
            component: Component::Engine,
            expr: format!("up{{job=~\"{ENGINE_JOBS}\"}} == 0"),
            hold: "3m",
            summary: "{{ $labels.job }} at {{ $labels.instance }} is down",
            description: "Prometheus can't scrape {{ $labels.instance }}: up is {{ $value }}. The process has ended, or its port does \
                 not answer."
                .to_owned(),
            board: "service-details",
            variable: None,
        },
        Alert {
            name: "TasksRedelivered",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!(
                "sum by (stage) (increase(dalston_engine_task_redelivery_total{{reason=\"engine_crash\"}}[15m])) > {REDELIVERIES}"
            ),
            hold: "0m",
            summary: "Workers of stage {{ $labels.stage }} crash during tasks",
            description: "{{ $value | printf \"%.0f\" }} tasks of stage {{ $labels.stage }} were delivered again in 15 minutes, because \
                 their worker disappeared. One recording may crash each worker that reads it."
                .to_owned(),
            board: "audio-orchestrator-overview",
            variable: None,
        },
        Alert {
            name: "BatchesSplit",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!(
                "sum by (engine_id, reason) (increase(dalston_engine_batch_splits_total[15m])) > {BATCH_SPLITS}"
            ),
            hold: "0m",
            summary: "Batches of engine {{ $labels.engine_id }} are split: {{ $labels.reason }}",
            description: "{{ $value | printf \"%.0f\" }} batches of engine {{ $labels.engine_id }} were processed again in smaller ones \
                 in 15 minutes. The reason is {{ $labels.reason }}."
                .to_owned(),
            board: BOARD,
            variable: Some("engine_id"),
        },
    ]
}

fn speed() -> [Alert; 3] {
    [
        Alert {
            name: "ColdStartShareHigh",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!(
                "dalston:engine_cold_start:ratio_rate30m > {COLD_START_RATIO}\n\
                 and on (engine_id)\n\
                 sum by (engine_id) (increase(dalston_engine_model_load_seconds_count[30m])) >= {COLD_STARTS}"
            ),
            hold: "10m",
            summary: "Engine {{ $labels.engine_id }} spends much of its time on loading models",
            description: "Engine {{ $labels.engine_id }} spent {{ $value | humanizePercentage }} of its working time of 30 minutes on \
                 loading models."
                .to_owned(),
            board: BOARD,
            variable: Some("engine_id"),
        },
        Alert {
            name: "SlowerThanRealtime",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!("dalston:engine_speed:ratio_rate30m < {SPEED}"),
            hold: "10m",
            summary: "Engine {{ $labels.engine_id }} is slower than real time",
            description: "A thread of engine {{ $labels.engine_id }} processes {{ $value | printf \"%.2f\" }} s of audio in a second. \
                 Queues grow unless audio arrives more slowly."
                .to_owned(),
            board: BOARD,
            variable: Some("engine_id"),
        },
        Alert {
            name: "StorageSlow",
            severity: Severity::Warning,
            component: Component::Storage,
            expr: format!(
                "{}\nor\n{}",
                slow_transfers("download"),
                slow_transfers("upload")
            ),
            hold: "10m",
            summary: "Storage is slow for engine {{ $labels.engine_id }}",
            description: "The 95th percentile of the downloads or uploads of engine {{ $labels.engine_id }} is \
                 {{ $value | humanizeDuration }}."
                .to_owned(),
            board: BOARD,
            variable: Some("engine_id"),
        },
    ]
}

fn slow_transfers(direction: &str) -> String {
    format!(
        "histogram_quantile(0.95, sum by (engine_id, le) (rate(dalston_engine_s3_{direction}_seconds_bucket[30m]))) > {STORAGE_SECONDS}"
    )
}

fn gpus() -> [Alert; 3] {
    [
        Alert {
            name: "GpuMemoryNearlyFull",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!(
                "dalston_engine_gpu_memory_used_bytes / dalston_engine_gpu_memory_total_bytes > {GPU_MEMORY_RATIO}"
            ),
            hold: "10m",
            summary: "GPU {{ $labels.gpu }} of {{ $labels.instance }} is nearly full",
            description: "{{ $value | humanizePercentage }} of the memory of GPU {{ $labels.gpu }} is in use.".to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "GpuHot",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!("dalston_engine_gpu_temperature_celsius > {GPU_CELSIUS}"),
            hold: "5m",
            summary: "GPU {{ $labels.gpu }} of {{ $labels.instance }} is hot",
            description: "GPU {{ $labels.gpu }} has {{ $value }} °C. Its driver reduces its speed.".to_owned(),
            board: BOARD,
            variable: None,
        },
        Alert {
            name: "GpuIdleWithWork",
            severity: Severity::Warning,
            component: Component::Engine,
            expr: format!(
                "max by (job, instance) (dalston_engine_gpu_utilization_ratio) < {GPU_IDLE_RATIO}\n\
                 and on (job, instance)\n\
                 max by (job, instance) (dalston_engine_inference_busy_ratio) > {GPU_WORK_RATIO}"
            ),
            hold: "10m",
            summary: "{{ $labels.instance }} works without its GPU",
            description: "Inference of {{ $labels.instance }} is busy, and {{ $value | humanizePercentage }} of its GPU are in use. The \
                 engine probably computes on the CPU."
                .to_owned(),
            board: BOARD,
            variable: None,
        },
    ]
}
