//! One delivery of one task: [`Attempt`].

use std::sync::OnceLock;
use std::time::Duration;

use dalston_telemetry::opentelemetry::Context;
use tokio::time::Instant;

use super::lease::{Confirmed, Stop};
use super::retry::retry;
use super::status::TaskGuard;
use super::worker::{Origin, Worker};
use crate::broker::{Claim, Delivery, EventContext, Ownership, RedeliveryReason, TaskMetadata};
use crate::context::CancelReason;
use crate::error::{TaskError, chain};
use crate::model_id::ModelId;
use crate::protocol::Timestamp;
use crate::spans::TaskSpans;
use crate::stage::StageName;
use crate::task::TaskInfo;

/// One delivery of one task that should be done.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) origin: &'a Origin,
    pub(super) hand: &'a TaskGuard,
    pub(super) claim: &'a Claim,
    pub(super) metadata: Option<TaskMetadata>,
    pub(super) redelivery: Option<RedeliveryReason>,
    pub(super) info: TaskInfo,
    pub(super) event: EventContext,
    pub(super) spans: TaskSpans,
    pub(super) stop: Stop,
    pub(super) confirmed: Confirmed,
    /// Known once `request.json` was read.
    pub(super) model: OnceLock<ModelId>,
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
    /// By how much the deadline had passed already when the task was read.
    pub(super) late: Option<Duration>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        origin: &'a Origin,
        hand: &'a TaskGuard,
        delivery: &'a Delivery,
        metadata: Option<TaskMetadata>,
        carried: Context,
        read_at: Timestamp,
    ) -> Self {
        let claim = &delivery.claim;
        let stage = metadata.as_ref().and_then(|metadata| metadata.stage.parse().ok());
        let begun = Instant::now();
        let left = delivery.timeout_at.map(|at| at.seconds_since(read_at));
        let left_or_default = left.unwrap_or(worker.config.task_timeout.as_secs_f64());
        let info = TaskInfo {
            task_id: claim.task_id.clone(),
            job_id: claim.job_id.clone(),
            stage: stage.unwrap_or_else(|| StageName::from(worker.stage.clone())),
            engine_id: claim.consumer.engine_id.clone(),
            instance: claim.consumer.instance.clone(),
            request_id: metadata.as_ref().and_then(|metadata| metadata.request_id.clone()),
            model: ModelId::default(),
            attempt: claim.delivery_count,
            enqueued_at: delivery.enqueued_at.or_else(|| metadata.as_ref()?.enqueued_at),
            audio_seconds: None,
        };
        let spans = TaskSpans::open(
            &worker.telemetry,
            &worker.interruption,
            carried,
            &info,
            origin.queue,
        );
        let event = EventContext {
            request_id: info.request_id.clone(),
            trace_context: spans.carrier(),
        };
        Self {
            worker,
            origin,
            hand,
            claim,
            metadata,
            redelivery: delivery.redelivery,
            info,
            event,
            spans,
            stop: Stop::default(),
            confirmed: Confirmed::at(delivery.asked_at.map_or(begun, Instant::from_std)),
            model: OnceLock::new(),
            begun,
            deadline: begun + bounded_seconds(left_or_default),
            late: left
                .filter(|left| *left <= 0.0)
                .map(|left| bounded_seconds(-left)),
        }
    }

    /// Asks the broker if it has been silent for so long that a peer may have taken the task over. A process that stood still
    /// would otherwise write over the result of whoever has finished the task meanwhile.
    pub(super) async fn still_ours(&self) -> Result<(), TaskError> {
        if self.confirmed.elapsed() < self.origin.broker.lease() / 2 {
            return Ok(());
        }
        self.ask_whether_ours().await
    }

    /// Asks the broker, and renews the lease with that.
    pub(super) async fn ask_whether_ours(&self) -> Result<(), TaskError> {
        let asked = Instant::now();
        match retry("renewing a lease", || self.origin.broker.renew(self.claim)).await {
            Ok(Ownership::Held) => {
                self.confirmed.again(asked);
                Ok(())
            }
            Ok(Ownership::Lost) => {
                self.stop.set(CancelReason::LeaseLost);
                Err(CancelReason::LeaseLost.into_error())
            }
            Err(error) => Err(TaskError::retryable("broker", chain(&error))),
        }
    }
}

/// Seconds that came from outside, as a duration that can be added to the clock.
pub(super) fn bounded_seconds(seconds: f64) -> Duration {
    const LONGEST: f64 = 30.0 * 86_400.0;
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
}
