use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::busy::SlotMetrics;
use super::families::Families;
use super::labels::{BatchDispatch, BatchSplit, Device, EngineLabels, InMemory, RedeliveryReason};
use crate::metrics::{Counter, DenseFamily, DurationCounter, Exemplar, Histogram, Metrics, Status};

/// The metrics of one engine. Cheap to clone.
///
/// Names, labels and meaning are those of the platform's engines, so that a dashboard can show
/// both. A method has the name of its metric without `dalston_engine_`. The durations of tasks,
/// waits, downloads, uploads and loads have the current sampled span as their [exemplar](Exemplar).
#[derive(Clone)]
pub struct EngineMetrics {
    families: Families,
    labels: Arc<EngineLabels>,
    queue_wait: DenseFamily<(), Histogram>,
    slot_wait: DenseFamily<(), Histogram>,
    s3_download: DenseFamily<(), Histogram>,
    s3_upload: DenseFamily<(), Histogram>,
    audio_duration: DenseFamily<(), Histogram>,
    vad_segments: DenseFamily<(), Histogram>,
    redelivery: DenseFamily<RedeliveryReason, Counter>,
    skipped_cancelled: DenseFamily<(), Counter>,
    batch_size: DenseFamily<(), Histogram>,
    batch_wait: DenseFamily<(), Histogram>,
    batch_dispatch: DenseFamily<BatchDispatch, Counter>,
    batch_splits: DenseFamily<BatchSplit, Counter>,
}

impl EngineMetrics {
    /// The handles of this engine. The first call for a registry registers the families.
    #[must_use]
    pub fn register(metrics: &Metrics, labels: &EngineLabels) -> Self {
        let families = Families::register(metrics);
        let EngineLabels {
            engine_id,
            stage,
            instance_type,
            execution_profile,
        } = labels;
        let engine = [engine_id.as_str(), execution_profile, instance_type];
        Self {
            queue_wait: families.queue_wait.with(engine),
            slot_wait: families.slot_wait.with(engine),
            s3_download: families.s3_download.with(engine),
            s3_upload: families.s3_upload.with(engine),
            audio_duration: families.audio_duration.with([engine_id, instance_type]),
            vad_segments: families.vad_segments.with([engine_id]),
            redelivery: families.redelivery.with([stage]),
            skipped_cancelled: families.skipped_cancelled.with([stage]),
            batch_size: families.batch_size.with([engine_id]),
            batch_wait: families.batch_wait.with([engine_id]),
            batch_dispatch: families.batch_dispatch.with([engine_id]),
            batch_splits: families.batch_splits.with([engine_id]),
            labels: Arc::new(labels.clone()),
            families,
        }
    }

    /// The metrics of a model, whose counters exist at zero after the call. Models beyond the cap
    /// of 100 share [`OTHER`](crate::metrics::OTHER).
    #[must_use]
    pub fn model(&self, model: &str) -> ModelMetrics {
        let EngineLabels {
            engine_id,
            instance_type,
            execution_profile,
            ..
        } = &*self.labels;
        let labels = [engine_id.as_str(), model, execution_profile, instance_type];
        ModelMetrics {
            tasks_processed: self.families.tasks_processed.with(labels),
            task_duration: self.families.task_duration.with(labels),
            model_load: self.families.model_load.with(labels),
            model_cache_hits: self.families.model_cache_hits.with([engine_id, model]),
            model_acquire: self.families.model_acquire.with([engine_id, model]),
            recognize: self.families.recognize.with([engine_id, model]),
            realtime_factor: self.families.realtime_factor.with([engine_id, model]),
            inference: self.families.inference.with(labels),
        }
    }

    /// The metrics of an inference thread, by its number from 0.
    #[must_use]
    pub fn slot(&self, slot: usize) -> SlotMetrics {
        let slot = slot.to_string();
        SlotMetrics {
            busy: self.families.busy.with([&self.labels.engine_id, &slot]),
        }
    }

    /// Records the time from the queueing of a task to its read.
    pub fn queue_wait(&self, wait: Duration) {
        self.queue_wait
            .with(())
            .observe_duration_in(wait, Exemplar::current());
    }

    /// Records the time that a prepared task waited for an inference thread.
    pub fn slot_wait(&self, wait: Duration) {
        self.slot_wait
            .with(())
            .observe_duration_in(wait, Exemplar::current());
    }

    /// Records the duration of the download of a task's request and inputs.
    pub fn s3_download(&self, time: Duration) {
        self.s3_download
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the duration of the upload of a task's result.
    pub fn s3_upload(&self, time: Duration) {
        self.s3_upload
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the length of a task's audio.
    pub fn audio_duration(&self, length: Duration) {
        self.audio_duration.with(()).observe_duration(length);
    }

    /// Records the number of speech segments of a task's audio
    /// (`dalston_engine_vad_segment_count`), for engines with voice activity detection.
    pub fn vad_segments(&self, segments: usize) {
        self.vad_segments.with(()).observe(segments as f64);
    }

    /// Records a batch: its number of tasks, why it has no more, and how long an idle inference
    /// thread waited for it.
    pub fn batch(&self, tasks: usize, reason: BatchDispatch, waited: Duration) {
        self.batch_size.with(()).observe(tasks as f64);
        self.batch_wait.with(()).observe_duration(waited);
        self.batch_dispatch.with(reason).inc();
    }

    /// Counts a batch whose tasks are processed again in smaller ones.
    pub fn batch_split(&self, reason: BatchSplit) {
        self.batch_splits.with(reason).inc();
    }

    /// Counts a redelivered task.
    pub fn task_redelivery(&self, reason: RedeliveryReason) {
        self.redelivery.with(reason).inc_in(Exemplar::current());
    }

    /// Counts a task that was not started or not finished because its job was cancelled.
    pub fn task_skipped_cancelled(&self) {
        self.skipped_cancelled.with(()).inc();
    }
}

impl fmt::Debug for EngineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineMetrics")
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// The metrics of one model of an engine. Returned by [`EngineMetrics::model`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    tasks_processed: DenseFamily<Status, Counter>,
    task_duration: DenseFamily<(), Histogram>,
    model_load: DenseFamily<(), Histogram>,
    model_cache_hits: DenseFamily<(), Counter>,
    model_acquire: DenseFamily<InMemory, Histogram>,
    recognize: DenseFamily<Device, Histogram>,
    realtime_factor: DenseFamily<Device, Histogram>,
    inference: DenseFamily<(), DurationCounter>,
}

impl ModelMetrics {
    /// Counts a task that has ended.
    #[doc(alias = "inc_engine_tasks")]
    pub fn task_processed(&self, status: Status) {
        self.tasks_processed.with(status).inc_in(Exemplar::current());
    }

    /// Records the duration of the inference, without model load and data transfer.
    #[doc(alias = "observe_engine_task_duration")]
    pub fn task_duration(&self, time: Duration) {
        self.task_duration
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the duration of the inference by device.
    pub fn recognize(&self, device: Device, time: Duration) {
        self.recognize.with(device).observe_duration(time);
    }

    /// Records the wait of a task for its model on the inference thread, which is zero if the model
    /// was loaded.
    pub fn model_acquire(&self, in_memory: InMemory, time: Duration) {
        self.model_acquire.with(in_memory).observe_duration(time);
    }

    /// Records the duration of the load of the model.
    pub fn model_load(&self, time: Duration) {
        self.model_load
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Counts a task whose model was loaded already.
    pub fn model_cache_hit(&self) {
        self.model_cache_hits.with(()).inc();
    }

    /// Adds the time in the engine of a task whose [audio](EngineMetrics::audio_duration) is
    /// recorded, or its part of the time of a batch (`dalston_engine_inference_seconds_total`).
    pub fn inference(&self, time: Duration) {
        self.inference.with(()).add(time);
    }

    /// Records processing time divided by audio time. Tasks without audio are not recorded.
    pub fn realtime_factor(&self, device: Device, processing: Duration, audio: Duration) {
        if !audio.is_zero() {
            self.realtime_factor
                .with(device)
                .observe(processing.as_secs_f64() / audio.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Label;

    fn engine(metrics: &Metrics) -> EngineMetrics {
        EngineMetrics::register(
            metrics,
            &EngineLabels::new("asr", "transcribe").instance_type("g5.xlarge"),
        )
    }

    #[test]
    fn a_task_changes_exactly_its_series() {
        let metrics = Metrics::new();
        let engine = engine(&metrics);
        let model = engine.model("tiny");
        let before = metrics.snapshot();

        engine.queue_wait(Duration::from_millis(250));
        engine.slot_wait(Duration::from_millis(500));
        engine.s3_download(Duration::from_millis(20));
        engine.s3_upload(Duration::from_millis(10));
        engine.audio_duration(Duration::from_secs(10));
        model.model_load(Duration::from_secs(2));
        model.task_duration(Duration::from_secs(1));
        model.realtime_factor(Device::Cpu, Duration::from_secs(1), Duration::from_secs(10));
        model.task_processed(Status::Success);

        let moved: Vec<_> = metrics
            .snapshot()
            .diff(&before)
            .iter()
            .map(ToString::to_string)
            .collect();
        let per_engine = r#"engine_id="asr",execution_profile="container",instance_type="g5.xlarge""#;
        let per_model = format!(r#"{per_engine},model="tiny""#);
        let expected = [
            r#"dalston_engine_audio_duration_seconds_count{engine_id="asr",instance_type="g5.xlarge"}: 0 -> 1"#.into(),
            r#"dalston_engine_audio_duration_seconds_sum{engine_id="asr",instance_type="g5.xlarge"}: 0 -> 10"#.into(),
            format!("dalston_engine_model_load_seconds_count{{{per_model}}}: 0 -> 1"),
            format!("dalston_engine_model_load_seconds_sum{{{per_model}}}: 0 -> 2"),
            format!("dalston_engine_queue_wait_seconds_count{{{per_engine}}}: 0 -> 1"),
            format!("dalston_engine_queue_wait_seconds_sum{{{per_engine}}}: 0 -> 0.25"),
            r#"dalston_engine_realtime_factor_ratio_count{device="cpu",engine_id="asr",model="tiny"}: 0 -> 1"#.into(),
            r#"dalston_engine_realtime_factor_ratio_sum{device="cpu",engine_id="asr",model="tiny"}: 0 -> 0.1"#.into(),
            format!("dalston_engine_s3_download_seconds_count{{{per_engine}}}: 0 -> 1"),
            format!("dalston_engine_s3_download_seconds_sum{{{per_engine}}}: 0 -> 0.02"),
            format!("dalston_engine_s3_upload_seconds_count{{{per_engine}}}: 0 -> 1"),
            format!("dalston_engine_s3_upload_seconds_sum{{{per_engine}}}: 0 -> 0.01"),
            format!("dalston_engine_slot_wait_seconds_count{{{per_engine}}}: 0 -> 1"),
            format!("dalston_engine_slot_wait_seconds_sum{{{per_engine}}}: 0 -> 0.5"),
            format!("dalston_engine_task_duration_seconds_count{{{per_model}}}: 0 -> 1"),
            format!("dalston_engine_task_duration_seconds_sum{{{per_model}}}: 0 -> 1"),
            format!(r#"dalston_engine_tasks_processed_total{{{per_model},status="success"}}: 0 -> 1"#),
        ];
        assert_eq!(moved, expected);
    }

    #[test]
    fn counters_are_zero_before_the_first_task() {
        let metrics = Metrics::new();
        let engine = engine(&metrics);
        let _model = engine.model("tiny");
        let snapshot = metrics.snapshot();
        let per_model = [
            ("engine_id", "asr"),
            ("model", "tiny"),
            ("execution_profile", "container"),
            ("instance_type", "g5.xlarge"),
        ];
        for status in ["success", "failure"] {
            let labels = [&per_model[..], &[("status", status)]].concat();
            assert_eq!(
                snapshot.value("dalston_engine_tasks_processed_total", &labels),
                Some(0.0)
            );
        }
        for reason in ["engine_crash", "deferred"] {
            let labels = [("stage", "transcribe"), ("reason", reason)];
            assert_eq!(
                snapshot.value("dalston_engine_task_redelivery_total", &labels),
                Some(0.0)
            );
        }
        let stage = [("stage", "transcribe")];
        assert_eq!(
            snapshot.value("dalston_engine_tasks_skipped_cancelled_total", &stage),
            Some(0.0)
        );
        let hits = [("engine_id", "asr"), ("model", "tiny")];
        assert_eq!(
            snapshot.value("dalston_engine_model_cache_hits_total", &hits),
            Some(0.0)
        );
    }

    #[test]
    fn engines_of_a_process_share_the_families() {
        let metrics = Metrics::new();
        for id in ["a", "b"] {
            let engine = EngineMetrics::register(&metrics, &EngineLabels::new(id, "transcribe"));
            engine.model("tiny").task_processed(Status::Failure);
            engine.task_skipped_cancelled();
        }
        let text = metrics.encode();
        assert_eq!(
            text.matches("# TYPE dalston_engine_tasks_processed counter")
                .count(),
            1
        );
        let snapshot = metrics.snapshot();
        assert_eq!(
            snapshot.sum("dalston_engine_tasks_processed_total", &[("status", "failure")]),
            2.0
        );
        assert_eq!(
            snapshot.sum("dalston_engine_tasks_skipped_cancelled_total", &[]),
            2.0
        );
    }

    #[test]
    fn models_beyond_the_cap_are_folded_and_counted() {
        let metrics = Metrics::new();
        let engine = engine(&metrics);
        for model in 0..Metrics::LABEL_VALUES + 50 {
            engine
                .model(&format!("model-{model}"))
                .task_processed(Status::Success);
        }
        let snapshot = metrics.snapshot();
        let other = [("model", crate::metrics::OTHER), ("status", "success")];
        assert_eq!(snapshot.sum("dalston_engine_tasks_processed_total", &other), 50.0);
        assert_eq!(snapshot.sum("dalston_engine_tasks_processed_total", &[]), 150.0);
        assert!(
            snapshot.sum(
                "dalston_telemetry_label_values_folded_total",
                &[("label", "model")]
            ) >= 50.0
        );
        let series = snapshot
            .iter()
            .filter(|(name, _)| name.starts_with("dalston_engine_tasks_processed_total"));
        assert_eq!(series.count(), (Metrics::LABEL_VALUES + 1) * Status::VALUES.len());
    }
}
