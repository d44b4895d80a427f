//! One delivery of one task: [`Attempt`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dalston_telemetry::opentelemetry::Context;
use tokio::time::Instant;

use super::lease::Lease;
use super::run_lock::RunGuard;
use super::status::TaskGuard;
use super::stop::Stop;
use super::worker::{Origin, Worker};
use crate::broker::{Claim, Delivery, EventContext, RedeliveryReason, TaskMetadata};
use crate::error::{TaskError, TaskErrorKind};
use crate::model_id::ModelId;
use crate::protocol::Timestamp;
use crate::spans::TaskSpans;
use crate::stage::StageName;
use crate::store::key;
use crate::task::TaskInfo;

/// One delivery of one task. Each step of its lifecycle is a method, in a file of its own.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) origin: &'a Origin,
    pub(super) status: &'a TaskGuard,
    pub(super) claim: &'a Claim,
    pub(super) metadata: Option<TaskMetadata>,
    pub(super) redelivery: Option<RedeliveryReason>,
    pub(super) info: TaskInfo,
    pub(super) event: EventContext,
    pub(super) spans: TaskSpans,
    pub(super) stop: Stop,
    pub(super) lease: Lease<'a>,
    /// Known once `request.json` was read.
    pub(super) model: OnceLock<ModelId>,
    /// Held from the admission to the end of the task.
    run_guard: Mutex<Option<RunGuard>>,
    may_be_started: AtomicBool,
    pub(super) begun_at: Instant,
    pub(super) deadline: Instant,
    /// How long the deadline had passed already when the task was read.
    overdue: Option<Duration>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        origin: &'a Origin,
        status: &'a TaskGuard,
        delivery: &'a Delivery,
        metadata: Option<TaskMetadata>,
        parent_context: Context,
        read_at: Timestamp,
    ) -> Self {
        let claim = &delivery.claim;
        let stage = metadata.as_ref().and_then(|metadata| metadata.stage.parse().ok());
        let begun_at = Instant::now();
        let left = delivery.timeout_at.map(|timeout_at| {
            let age = metadata.as_ref().and_then(|metadata| metadata.age);
            match (delivery.enqueued_at, age) {
                // Each difference is by the clock of one machine.
                (Some(enqueued_at), Some(age)) => timeout_at.seconds_since(enqueued_at) - age.as_secs_f64(),
                _ => timeout_at.seconds_since(read_at),
            }
        });
        let left_or_default = left.unwrap_or(worker.config.task_timeout.as_secs_f64());
        let earlier = metadata
            .as_ref()
            .map_or(0, |metadata| metadata.earlier_deliveries);
        let requeued = (earlier > 0).then_some(RedeliveryReason::Deferred);
        let info = TaskInfo {
            task_id: claim.task_id.clone(),
            job_id: claim.job_id.clone(),
            stage: stage.unwrap_or_else(|| StageName::from(worker.stage.clone())),
            engine_id: claim.consumer.engine_id.clone(),
            instance: claim.consumer.instance.clone(),
            request_id: metadata.as_ref().and_then(|metadata| metadata.request_id.clone()),
            model: ModelId::default(),
            attempt: claim.delivery_count.saturating_add(earlier),
            enqueued_at: delivery.enqueued_at.or_else(|| metadata.as_ref()?.enqueued_at),
            audio_seconds: None,
        };
        let spans = TaskSpans::open(
            &worker.telemetry,
            &worker.interruption,
            parent_context,
            &info,
            origin.queue,
        );
        let event = EventContext {
            request_id: info.request_id.clone(),
            trace_context: spans.carrier(),
        };
        let stop = Stop::default();
        let asked_at = delivery.asked_at.map_or(begun_at, Instant::from_std);
        Self {
            worker,
            origin,
            status,
            claim,
            metadata,
            redelivery: delivery.redelivery.or(requeued),
            info,
            event,
            spans,
            lease: Lease::new(&*origin.broker, claim, asked_at, stop.clone()),
            stop,
            model: OnceLock::new(),
            run_guard: Mutex::default(),
            may_be_started: AtomicBool::new(false),
            begun_at,
            deadline: begun_at + bounded_seconds(left_or_default),
            overdue: left
                .filter(|left| *left <= 0.0)
                .map(|left| bounded_seconds(-left)),
        }
    }

    /// How many times inference of the task began on a worker that did not report its end.
    pub(super) fn inference_starts(&self) -> u32 {
        let metadata = self.metadata.as_ref();
        metadata.map_or(0, |metadata| metadata.inference_starts)
    }

    /// Keeps the right of the task to run until the attempt is dropped.
    pub(super) fn keep(&self, guard: RunGuard) {
        *self.run_guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    /// From now on, the broker may know the start of the task, even if it did not answer.
    pub(super) fn reports_start(&self) {
        self.may_be_started.store(true, Ordering::Relaxed);
    }

    pub(super) fn may_be_started(&self) -> bool {
        self.may_be_started.load(Ordering::Relaxed)
    }

    /// Finds the reasons for which the task can't be done at all.
    pub(super) fn check(&self) -> Result<(), TaskError> {
        let (starts, limit) = (self.inference_starts(), self.worker.config.max_deliveries);
        if starts >= limit {
            let text = format!(
                "inference of the task began {starts} times (limit {limit}) and no worker survived it or finished it in time"
            );
            return Err(TaskError::permanent("too_many_deliveries", text));
        }
        let (deliveries, limit) = (
            self.claim.delivery_count,
            limit.saturating_mul(DELIVERIES_PER_START),
        );
        if deliveries > limit && self.redelivery == Some(RedeliveryReason::EngineCrash) {
            let text = format!(
                "the task was delivered {deliveries} times (limit {limit}) and no worker got as far as its inference"
            );
            return Err(TaskError::permanent("too_many_deliveries", text));
        }
        if let Some(Err(error)) = self
            .metadata
            .as_ref()
            .map(|metadata| metadata.stage.parse::<StageName>())
        {
            return Err(TaskError::permanent("invalid_stage", error));
        }
        for id in [&self.claim.job_id, &self.claim.task_id] {
            if !key::is_plain_name(id) {
                return Err(TaskError::permanent(
                    "invalid_id",
                    format!("{id:?} can't be the id of a task or a job"),
                ));
            }
        }
        if let Some(overdue) = self.overdue {
            let text = format!(
                "the task was read {:.1} s after its deadline",
                overdue.as_secs_f64()
            );
            return Err(TaskError::new(
                TaskErrorKind::DeadlineExceeded,
                "deadline_exceeded",
                text,
            ));
        }
        Ok(())
    }
}

/// How many deliveries count as one start of inference. A task can kill its workers before its
/// inference, but most tasks that are delivered so often only waited in workers that died.
const DELIVERIES_PER_START: u32 = 10;

/// Seconds from outside, as a duration that can be added to the clock.
pub(super) fn bounded_seconds(seconds: f64) -> Duration {
    const LONGEST: f64 = 30.0 * 86_400.0;
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
}
