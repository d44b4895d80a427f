//! The families of an engine's metrics, which all engines of a process share.

use super::busy::BusyRatio;
use super::labels::{BatchDispatch, BatchSplit, Device, InMemory, RedeliveryReason};
use crate::metrics::{
    BoundedFamily, Counter, DurationCounter, Histogram, Metrics, OpenLabel, Registry, Status, Unit, buckets,
};

/// The cap of the label `slot`.
const MAX_SLOTS: usize = 64;

#[derive(Clone)]
pub(super) struct Families {
    pub(super) tasks_processed: BoundedFamily<4, Status, Counter>,
    pub(super) task_duration: BoundedFamily<4, (), Histogram>,
    pub(super) model_load: BoundedFamily<4, (), Histogram>,
    pub(super) model_cache_hits: BoundedFamily<2, (), Counter>,
    pub(super) model_acquire: BoundedFamily<2, InMemory, Histogram>,
    pub(super) recognize: BoundedFamily<2, Device, Histogram>,
    pub(super) vad_segments: BoundedFamily<1, (), Histogram>,
    pub(super) realtime_factor: BoundedFamily<2, Device, Histogram>,
    pub(super) queue_wait: BoundedFamily<3, (), Histogram>,
    pub(super) slot_wait: BoundedFamily<3, (), Histogram>,
    pub(super) s3_download: BoundedFamily<3, (), Histogram>,
    pub(super) s3_upload: BoundedFamily<3, (), Histogram>,
    pub(super) audio_duration: BoundedFamily<2, (), Histogram>,
    pub(super) redelivery: BoundedFamily<1, RedeliveryReason, Counter>,
    pub(super) skipped_cancelled: BoundedFamily<1, (), Counter>,
    pub(super) busy: BoundedFamily<2, (), BusyRatio>,
    pub(super) inference: BoundedFamily<4, (), DurationCounter>,
    pub(super) batch_size: BoundedFamily<1, (), Histogram>,
    pub(super) batch_wait: BoundedFamily<1, (), Histogram>,
    pub(super) batch_dispatch: BoundedFamily<1, BatchDispatch, Counter>,
    pub(super) batch_splits: BoundedFamily<1, BatchSplit, Counter>,
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
    /// The families of a registry, which the first call registers.
    pub(super) fn register(metrics: &Metrics) -> Self {
        let open = OpenEngineLabels::of(metrics);
        metrics.set(|registry| Self::register_in(registry, &open))
    }

    fn register_in(registry: &mut Registry, open: &OpenEngineLabels) -> Self {
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
            slot_wait: BoundedFamily::with_room_for(room, per_engine, traced(buckets::QUEUE_WAIT)),
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
            inference: BoundedFamily::with_room_for(room, per_model, DurationCounter::default),
            batch_size: BoundedFamily::with_room_for(room, [engine_id], histogram(buckets::BATCH_SIZE)),
            batch_wait: BoundedFamily::with_room_for(room, [engine_id], histogram(buckets::QUEUE_WAIT)),
            batch_dispatch: BoundedFamily::with_room_for(room, [engine_id], Counter::default),
            batch_splits: BoundedFamily::with_room_for(room, [engine_id], Counter::default),
        };
        let mut registry = registry.with_prefix("dalston_engine");
        registry.register(
            "tasks_processed",
            "Tasks that have ended, by status",
            this.tasks_processed.clone(),
        );
        registry.register_with_unit(
            "task_duration",
            "Duration of the inference of a task, without model load and data transfer",
            Unit::Seconds,
            this.task_duration.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time from the queueing of a task to its read",
            Unit::Seconds,
            this.queue_wait.clone(),
        );
        registry.register_with_unit(
            "slot_wait",
            "Time that a prepared task waited for an inference thread",
            Unit::Seconds,
            this.slot_wait.clone(),
        );
        registry.register_with_unit(
            "s3_download",
            "Time to download the request and the inputs of a task",
            Unit::Seconds,
            this.s3_download.clone(),
        );
        registry.register_with_unit(
            "s3_upload",
            "Time to upload the result of a task",
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
            "Inference time of a task divided by the length of its audio: below 1 is faster than real time",
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
            "Tasks whose model was loaded already",
            this.model_cache_hits.clone(),
        );
        registry.register_with_unit(
            "model_acquire",
            "Time that a task waits for its model on the inference thread",
            Unit::Seconds,
            this.model_acquire.clone(),
        );
        registry.register_with_unit(
            "recognize",
            "Duration of the inference of a task, by device",
            Unit::Seconds,
            this.recognize.clone(),
        );
        registry.register(
            "vad_segment_count",
            "Segments of speech in the audio of a task",
            this.vad_segments.clone(),
        );
        registry.register(
            "task_redelivery",
            "Tasks that were delivered again, by reason",
            this.redelivery.clone(),
        );
        registry.register(
            "tasks_skipped_cancelled",
            "Tasks that were not started or not finished because their job was cancelled",
            this.skipped_cancelled.clone(),
        );
        registry.register(
            "inference_busy_ratio",
            "Share of the last minute in which an inference thread was busy",
            this.busy.clone(),
        );
        registry.register_with_unit(
            "inference",
            "Time in the engine of the tasks whose audio is counted, that of a batch divided among its tasks: the denominator of speed",
            Unit::Seconds,
            this.inference.clone(),
        );
        registry.register(
            "batch_size",
            "Tasks that the engine got at once",
            this.batch_size.clone(),
        );
        registry.register_with_unit(
            "batch_wait",
            "Time that an idle inference thread waited for a full batch",
            Unit::Seconds,
            this.batch_wait.clone(),
        );
        registry.register(
            "batch_dispatch",
            "Batches, by the reason why they had no more tasks",
            this.batch_dispatch.clone(),
        );
        registry.register(
            "batch_splits",
            "Batches that were processed again in smaller ones, by reason",
            this.batch_splits.clone(),
        );
        this
    }
}
