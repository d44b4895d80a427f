use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::busy::BusyRatio;
use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Histogram, Metrics, OpenLabel, Outcome, Registry, Unit,
    buckets,
};

/// Inference threads of one engine.
const MAX_SLOTS: usize = 64;

crate::label! {
    /// What inference ran on.
    pub enum Device = "device" {
        Cpu => "cpu",
        Cuda => "cuda",
        /// Apple's GPUs.
        Mps => "mps",
        Unknown => "unknown",
    }
}

crate::label! {
    /// Whether a task found its model in memory.
    pub enum InMemory = "in_memory" {
        No => "false",
        Yes => "true",
    }
}

crate::label! {
    /// Why a task was delivered again.
    pub enum RedeliveryReason = "reason" {
        /// The engine that had it died.
        EngineCrash => "engine_crash",
        /// An engine handed it back.
        Deferred => "deferred",
    }
}

/// What all metrics of an engine have in common.
#[derive(Clone, Debug)]
pub struct EngineLabels {
    engine_id: String,
    stage: String,
    instance_type: String,
    execution_profile: String,
}

impl EngineLabels {
    /// Labels of an engine that works for a stage, such as `transcribe`. The stage is the registered one, without
    /// the suffix of a channel.
    #[must_use]
    pub fn new(engine_id: impl Into<String>, stage: impl Into<String>) -> Self {
        Self {
            engine_id: engine_id.into(),
            stage: stage.into(),
            instance_type: "unknown".to_owned(),
            execution_profile: "container".to_owned(),
        }
    }

    /// The hardware, such as `g5.xlarge`; `unknown` unless set.
    #[must_use]
    pub fn instance_type(mut self, instance_type: impl Into<String>) -> Self {
        self.instance_type = instance_type.into();
        self
    }

    /// How the platform runs the engine: `container` unless set, else `inproc` or `venv`.
    #[must_use]
    pub fn execution_profile(mut self, profile: impl Into<String>) -> Self {
        self.execution_profile = profile.into();
        self
    }
}

/// The metrics of one engine. Cheap to clone.
///
/// Names, labels and meaning are those of the platform's engines, so that one dashboard shows both. Methods are
/// named after their metric, `dalston_engine_` left out. What is recorded while a sampled span is entered gets that span
/// as its [exemplar](Exemplar): tasks, their durations and waits, downloads, uploads and loads.
#[derive(Clone)]
pub struct EngineMetrics {
    families: Families,
    labels: Arc<EngineLabels>,
    queue_wait: DenseFamily<(), Histogram>,
    s3_download: DenseFamily<(), Histogram>,
    s3_upload: DenseFamily<(), Histogram>,
    audio_duration: DenseFamily<(), Histogram>,
    vad_segments: DenseFamily<(), Histogram>,
    redelivery: DenseFamily<RedeliveryReason, Counter>,
    skipped_cancelled: DenseFamily<(), Counter>,
}

impl EngineMetrics {
    /// The handles for this engine; the families are registered when the first engine of a registry asks.
    #[must_use]
    pub fn register(metrics: &Metrics, labels: &EngineLabels) -> Self {
        let open = OpenEngineLabels::of(metrics);
        let families = metrics.set(|registry| Families::register(registry, &open));
        let EngineLabels {
            engine_id,
            stage,
            instance_type,
            execution_profile,
        } = labels;
        let engine = [engine_id.as_str(), execution_profile, instance_type];
        Self {
            queue_wait: families.queue_wait.with(engine),
            s3_download: families.s3_download.with(engine),
            s3_upload: families.s3_upload.with(engine),
            audio_duration: families.audio_duration.with([engine_id, instance_type]),
            vad_segments: families.vad_segments.with([engine_id]),
            redelivery: families.redelivery.with([stage]),
            skipped_cancelled: families.skipped_cancelled.with([stage]),
            labels: Arc::new(labels.clone()),
            families,
        }
    }

    /// The metrics that have a model. Its counters exist at zero from now on; of more than 100 models the later
    /// ones share [`OTHER`](crate::metrics::OTHER).
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
        }
    }

    /// The metrics of an inference thread, counted from 0.
    #[must_use]
    pub fn slot(&self, slot: usize) -> SlotMetrics {
        let slot = slot.to_string();
        SlotMetrics {
            busy: self.families.busy.with([&self.labels.engine_id, &slot]),
        }
    }

    /// Records how long a task was queued before it was read.
    pub fn queue_wait(&self, wait: Duration) {
        self.queue_wait
            .with(())
            .observe_duration_in(wait, Exemplar::current());
    }

    /// Records how long it took to fetch a task's request and inputs.
    pub fn s3_download(&self, time: Duration) {
        self.s3_download
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records how long it took to store a task's result.
    pub fn s3_upload(&self, time: Duration) {
        self.s3_upload
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the length of a task's audio.
    pub fn audio_duration(&self, length: Duration) {
        self.audio_duration.with(()).observe_duration(length);
    }

    /// Records in how many stretches of speech voice activity detection has cut a task's audio
    /// (`dalston_engine_vad_segment_count`): for engines that do so.
    pub fn vad_segments(&self, segments: usize) {
        self.vad_segments.with(()).observe(segments as f64);
    }

    /// Counts a task that was delivered before.
    pub fn task_redelivery(&self, reason: RedeliveryReason) {
        self.redelivery.with(reason).inc_in(Exemplar::current());
    }

    /// Counts a task that was not begun or not finished because its job was cancelled.
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

/// The metrics of one model of an engine. Made by [`EngineMetrics::model`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    tasks_processed: DenseFamily<Outcome, Counter>,
    task_duration: DenseFamily<(), Histogram>,
    model_load: DenseFamily<(), Histogram>,
    model_cache_hits: DenseFamily<(), Counter>,
    model_acquire: DenseFamily<InMemory, Histogram>,
    recognize: DenseFamily<Device, Histogram>,
    realtime_factor: DenseFamily<Device, Histogram>,
}

impl ModelMetrics {
    /// Counts a task that has ended.
    #[doc(alias = "inc_engine_tasks")]
    pub fn task_processed(&self, outcome: Outcome) {
        self.tasks_processed.with(outcome).inc_in(Exemplar::current());
    }

    /// Records how long inference took: only that, neither loading the model nor moving data.
    #[doc(alias = "observe_engine_task_duration")]
    pub fn task_duration(&self, time: Duration) {
        self.task_duration
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the same by what inference ran on.
    pub fn recognize(&self, device: Device, time: Duration) {
        self.recognize.with(device).observe_duration(time);
    }

    /// Records how long a task waited for its model on its inference thread: no time at all if it was there.
    pub fn model_acquire(&self, in_memory: InMemory, time: Duration) {
        self.model_acquire.with(in_memory).observe_duration(time);
    }

    /// Records how long loading the model took.
    pub fn model_load(&self, time: Duration) {
        self.model_load
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Counts a task that found its model loaded.
    pub fn model_cache_hit(&self) {
        self.model_cache_hits.with(()).inc();
    }

    /// Records processing time divided by audio time. Nothing is recorded for a task without audio.
    pub fn realtime_factor(&self, device: Device, processing: Duration, audio: Duration) {
        if !audio.is_zero() {
            self.realtime_factor
                .with(device)
                .observe(processing.as_secs_f64() / audio.as_secs_f64());
        }
    }
}

/// The metrics of one inference thread. Made by [`EngineMetrics::slot`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct SlotMetrics {
    busy: DenseFamily<(), BusyRatio>,
}

impl SlotMetrics {
    /// The thread is at work until the guard is dropped.
    ///
    /// A guard whose thread is stuck for ever does no harm: the next call ends its stretch.
    pub fn busy(&self) -> BusyGuard {
        let turn = self.busy.with(()).begin(Instant::now());
        BusyGuard {
            slot: self.clone(),
            turn,
        }
    }

    /// The part of the last minute that the thread was at work, from 0 to 1.
    #[must_use]
    pub fn busy_ratio(&self) -> f64 {
        self.busy.with(()).ratio(Instant::now())
    }
}

/// Marks an inference thread as busy. Made by [`SlotMetrics::busy`].
#[derive(Debug)]
#[must_use = "the thread counts as idle as soon as the guard is dropped"]
pub struct BusyGuard {
    slot: SlotMetrics,
    turn: u64,
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.slot.busy.with(()).end(self.turn, Instant::now());
    }
}

#[derive(Clone)]
struct Families {
    tasks_processed: BoundedFamily<4, Outcome, Counter>,
    task_duration: BoundedFamily<4, (), Histogram>,
    model_load: BoundedFamily<4, (), Histogram>,
    model_cache_hits: BoundedFamily<2, (), Counter>,
    model_acquire: BoundedFamily<2, InMemory, Histogram>,
    recognize: BoundedFamily<2, Device, Histogram>,
    vad_segments: BoundedFamily<1, (), Histogram>,
    realtime_factor: BoundedFamily<2, Device, Histogram>,
    queue_wait: BoundedFamily<3, (), Histogram>,
    s3_download: BoundedFamily<3, (), Histogram>,
    s3_upload: BoundedFamily<3, (), Histogram>,
    audio_duration: BoundedFamily<2, (), Histogram>,
    redelivery: BoundedFamily<1, RedeliveryReason, Counter>,
    skipped_cancelled: BoundedFamily<1, (), Counter>,
    busy: BoundedFamily<2, (), BusyRatio>,
}

struct OpenEngineLabels {
    engine_id: OpenLabel,
    model: OpenLabel,
    execution_profile: OpenLabel,
    instance_type: OpenLabel,
    stage: OpenLabel,
    slot: OpenLabel,
    room: usize,
}

impl OpenEngineLabels {
    fn of(metrics: &Metrics) -> Self {
        Self {
            engine_id: metrics.label("engine_id"),
            model: metrics.label("model"),
            execution_profile: metrics.label("execution_profile"),
            instance_type: metrics.label("instance_type"),
            stage: metrics.label("stage"),
            slot: metrics.open_label("slot", MAX_SLOTS),
            room: metrics.combinations(),
        }
    }
}

impl Families {
    fn register(registry: &mut Registry, open: &OpenEngineLabels) -> Self {
        let OpenEngineLabels {
            engine_id,
            model,
            execution_profile,
            instance_type,
            stage,
            slot,
            room,
        } = open;
        let room = *room;
        let per_model = [engine_id, model, execution_profile, instance_type];
        let per_engine = [engine_id, execution_profile, instance_type];
        let histogram = |bounds: &'static [f64]| move || Histogram::new(bounds);
        let traced = |bounds: &'static [f64]| move || Histogram::with_exemplars(bounds);
        let this = Self {
            tasks_processed: BoundedFamily::with_room_for(room, per_model, Counter::default),
            task_duration: BoundedFamily::with_room_for(room, per_model, traced(buckets::TASK_DURATION)),
            model_load: BoundedFamily::with_room_for(room, per_model, traced(buckets::MODEL_LOAD)),
            model_cache_hits: BoundedFamily::with_room_for(room, [engine_id, model], Counter::default),
            model_acquire: BoundedFamily::with_room_for(
                room,
                [engine_id, model],
                histogram(buckets::MODEL_ACQUIRE),
            ),
            recognize: BoundedFamily::with_room_for(
                room,
                [engine_id, model],
                histogram(buckets::TASK_DURATION),
            ),
            vad_segments: BoundedFamily::with_room_for(room, [engine_id], histogram(buckets::VAD_SEGMENTS)),
            realtime_factor: BoundedFamily::with_room_for(
                room,
                [engine_id, model],
                histogram(buckets::REALTIME_FACTOR),
            ),
            queue_wait: BoundedFamily::with_room_for(room, per_engine, traced(buckets::QUEUE_WAIT)),
            s3_download: BoundedFamily::with_room_for(room, per_engine, traced(buckets::STORAGE)),
            s3_upload: BoundedFamily::with_room_for(room, per_engine, traced(buckets::STORAGE)),
            audio_duration: BoundedFamily::with_room_for(
                room,
                [engine_id, instance_type],
                histogram(buckets::AUDIO_DURATION),
            ),
            redelivery: BoundedFamily::with_room_for(room, [stage], Counter::default),
            skipped_cancelled: BoundedFamily::with_room_for(room, [stage], Counter::default),
            busy: BoundedFamily::with_room_for(room, [engine_id, slot], BusyRatio::default),
        };
        let mut registry = registry.with_prefix("dalston_engine");
        registry.register(
            "tasks_processed",
            "Tasks that have ended",
            this.tasks_processed.clone(),
        );
        registry.register_with_unit(
            "task_duration",
            "Time that inference took, without loading the model and without moving data",
            Unit::Seconds,
            this.task_duration.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time between a task being queued and being read",
            Unit::Seconds,
            this.queue_wait.clone(),
        );
        registry.register_with_unit(
            "s3_download",
            "Time to fetch the request and the inputs of a task",
            Unit::Seconds,
            this.s3_download.clone(),
        );
        registry.register_with_unit(
            "s3_upload",
            "Time to store the result of a task",
            Unit::Seconds,
            this.s3_upload.clone(),
        );
        registry.register_with_unit(
            "audio_duration",
            "Length of the audio of a task",
            Unit::Seconds,
            this.audio_duration.clone(),
        );
        registry.register(
            "realtime_factor_ratio",
            "Processing time divided by audio time",
            this.realtime_factor.clone(),
        );
        registry.register_with_unit(
            "model_load",
            "Time to load a model",
            Unit::Seconds,
            this.model_load.clone(),
        );
        registry.register(
            "model_cache_hits",
            "Tasks that found their model loaded",
            this.model_cache_hits.clone(),
        );
        registry.register_with_unit(
            "model_acquire",
            "Time that a task waited for its model on its inference thread",
            Unit::Seconds,
            this.model_acquire.clone(),
        );
        registry.register_with_unit(
            "recognize",
            "Time that inference took, by what it ran on",
            Unit::Seconds,
            this.recognize.clone(),
        );
        registry.register(
            "vad_segment_count",
            "Stretches of speech in which the audio of a task was cut",
            this.vad_segments.clone(),
        );
        registry.register(
            "task_redelivery",
            "Tasks that had been delivered before",
            this.redelivery.clone(),
        );
        registry.register(
            "tasks_skipped_cancelled",
            "Tasks that were not begun or not finished because their job was cancelled",
            this.skipped_cancelled.clone(),
        );
        registry.register(
            "inference_busy_ratio",
            "Part of the last minute that an inference thread was at work",
            this.busy.clone(),
        );
        this
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
    fn one_task_moves_exactly_its_series() {
        let metrics = Metrics::new();
        let engine = engine(&metrics);
        let model = engine.model("tiny");
        let before = metrics.snapshot();

        engine.queue_wait(Duration::from_millis(250));
        engine.s3_download(Duration::from_millis(20));
        engine.s3_upload(Duration::from_millis(10));
        engine.audio_duration(Duration::from_secs(10));
        model.model_load(Duration::from_secs(2));
        model.task_duration(Duration::from_secs(1));
        model.realtime_factor(Device::Cpu, Duration::from_secs(1), Duration::from_secs(10));
        model.task_processed(Outcome::Success);

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
            format!("dalston_engine_task_duration_seconds_count{{{per_model}}}: 0 -> 1"),
            format!("dalston_engine_task_duration_seconds_sum{{{per_model}}}: 0 -> 1"),
            format!(r#"dalston_engine_tasks_processed_total{{{per_model},status="success"}}: 0 -> 1"#),
        ];
        assert_eq!(moved, expected);
    }

    #[test]
    fn counters_exist_at_zero_before_the_first_task() {
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
    fn engines_of_one_process_share_the_families() {
        let metrics = Metrics::new();
        for id in ["a", "b"] {
            let engine = EngineMetrics::register(&metrics, &EngineLabels::new(id, "transcribe"));
            engine.model("tiny").task_processed(Outcome::Failure);
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
    fn a_flood_of_models_is_folded_and_counted() {
        let metrics = Metrics::new();
        let engine = engine(&metrics);
        for model in 0..Metrics::LABEL_VALUES + 50 {
            engine
                .model(&format!("model-{model}"))
                .task_processed(Outcome::Success);
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
        assert_eq!(
            series.count(),
            (Metrics::LABEL_VALUES + 1) * Outcome::VALUES.len()
        );
    }
}
