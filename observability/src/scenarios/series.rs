//! Series as the programs expose them and Prometheus stores them, with values in the notation of
//! `promtool test rules`.

fn of_engine(name: &str, further: &str, values: &str) -> String {
    format!(
        r#"{name}{{engine_id="whisper",{further}instance_type="g5.xlarge",job="engine-whisper",instance="w1:9100"}} = {values}"#
    )
}

pub(super) fn tasks(status: &str, values: &str) -> String {
    let further = format!(r#"model="tiny",execution_profile="container",status="{status}","#);
    of_engine("dalston_engine_tasks_processed_total", &further, values)
}

/// A histogram of an engine without a label for the model: its count, and tasks up to a bound.
pub(super) fn wait_count(values: &str) -> String {
    of_engine(
        "dalston_engine_queue_wait_seconds_count",
        r#"execution_profile="container","#,
        values,
    )
}

pub(super) fn waits_up_to(bound: &str, values: &str) -> String {
    let further = format!(r#"execution_profile="container",le="{bound}","#);
    of_engine("dalston_engine_queue_wait_seconds_bucket", &further, values)
}

pub(super) fn transfers_up_to(direction: &str, bound: &str, values: &str) -> String {
    let name = format!("dalston_engine_s3_{direction}_seconds_bucket");
    let further = format!(r#"execution_profile="container",le="{bound}","#);
    of_engine(&name, &further, values)
}

/// Of `dalston_engine_task_duration_seconds` or `dalston_engine_model_load_seconds`.
pub(super) fn of_model(name: &str, values: &str) -> String {
    of_engine(name, r#"model="tiny",execution_profile="container","#, values)
}

pub(super) fn audio_sum(values: &str) -> String {
    of_engine("dalston_engine_audio_duration_seconds_sum", "", values)
}

pub(super) fn busy(instance: &str, values: &str) -> String {
    format!(
        r#"dalston_engine_inference_busy_ratio{{engine_id="whisper",slot="0",job="engine-whisper",instance="{instance}"}} = {values}"#
    )
}

pub(super) fn gpu(figure: &str, values: &str) -> String {
    format!(r#"dalston_engine_gpu_{figure}{{gpu="0",job="engine-whisper",instance="w1:9100"}} = {values}"#)
}

pub(super) fn redelivered(reason: &str, values: &str) -> String {
    format!(
        r#"dalston_engine_task_redelivery_total{{stage="transcribe",reason="{reason}",job="engine-whisper",instance="w1:9100"}} = {values}"#
    )
}

/// Of the queue exporter, by its instance: `dalston_queue_depth` and the like.
pub(super) fn of_queue(name: &str, exporter: &str, values: &str) -> String {
    format!(r#"{name}{{engine_id="whisper",job="queue-exporter",instance="{exporter}"}} = {values}"#)
}

pub(super) fn of_exporter(name: &str, exporter: &str, values: &str) -> String {
    format!(r#"{name}{{job="queue-exporter",instance="{exporter}"}} = {values}"#)
}

pub(super) fn up(job: &str, instance: &str, values: &str) -> String {
    format!(r#"up{{job="{job}",instance="{instance}"}} = {values}"#)
}

pub(super) fn jobs_created(values: &str) -> String {
    format!(
        r#"dalston_gateway_jobs_created_total{{tenant_id="default",job="gateway",instance="g1:8000"}} = {values}"#
    )
}

pub(super) fn jobs(status: &str, values: &str) -> String {
    format!(
        r#"dalston_orchestrator_jobs_total{{status="{status}",job="orchestrator",instance="o1:9100"}} = {values}"#
    )
}

pub(super) fn requests(status_code: &str, values: &str) -> String {
    format!(
        r#"dalston_gateway_requests_total{{method="POST",endpoint="/v1/audio/transcriptions",status_code="{status_code}",job="gateway",instance="g1:8000"}} = {values}"#
    )
}

pub(super) fn decisions(decision: &str, reason: &str, values: &str) -> String {
    format!(
        r#"dalston_orchestrator_event_decisions_total{{decision="{decision}",failure_reason="{reason}",event_type="task.completed",job="orchestrator",instance="o1:9100"}} = {values}"#
    )
}

pub(super) fn scans(status: &str, values: &str) -> String {
    format!(
        r#"dalston_orchestrator_scanner_scans_total{{status="{status}",job="orchestrator",instance="o1:9100"}} = {values}"#
    )
}

pub(super) fn webhooks(status: &str, values: &str) -> String {
    format!(
        r#"dalston_webhook_deliveries_total{{status="{status}",job="orchestrator",instance="o1:9100"}} = {values}"#
    )
}

/// Of a realtime worker, with its own labels.
pub(super) fn of_realtime(name: &str, labels: &str, values: &str) -> String {
    format!(r#"{name}{{{labels}job="engine-whisper",instance="w1:9100"}} = {values}"#)
}

pub(super) fn batch_splits(reason: &str, values: &str) -> String {
    format!(
        r#"dalston_engine_batch_splits_total{{engine_id="whisper",reason="{reason}",job="engine-whisper",instance="w1:9100"}} = {values}"#
    )
}

/// Of any service, here the gateway, with its own labels.
pub(super) fn of_gateway(name: &str, labels: &str, values: &str) -> String {
    format!(r#"{name}{{{labels}job="gateway",instance="g1:8000"}} = {values}"#)
}
