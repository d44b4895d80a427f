//! The way of one task, from the moment it was read to the moment that nobody needs to know of it any more.

use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::metrics;
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::propagate;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::attempt::{Attempt, bounded_seconds};
use super::files;
use super::inference::Done;
use super::lease::{StopOnDrop, keep};
use super::retry::retry;
use super::status::{TaskGuard, TaskPhase};
use super::worker::{Origin, Worker};
use crate::broker::{Delivery, EventContext, Lookup, Outcome, Ownership, RedeliveryReason};
use crate::context::{CancelReason, OutputFile};
use crate::error::{TaskError, TaskErrorKind};
use crate::protocol::{ArtifactReference, TaskResponseData, Timestamp};
use crate::spans::{QueueWait, record_failure, within};
use crate::stage::StageName;
use crate::store::key;

/// How long a result may take to be stored after the worker should have stopped. Together with the grace of the engine it
/// leaves some of the last seconds for reporting the task, or handing it back.
const SAVE_GRACE: Duration = Duration::from_millis(1_500);

/// The right to have a task before its inference ends: what bounds the tasks that are in hand.
pub(super) type Turn = OwnedSemaphorePermit;

/// Looks a delivered task up, and works on it if it should be worked on.
pub(super) async fn handle(
    worker: Arc<Worker>,
    origin: Arc<Origin>,
    delivery: Delivery,
    turn: Turn,
    hand: TaskGuard,
) {
    fault_point!(Received);
    let read_at = Timestamp::now();
    let claim = &delivery.claim;
    let log = LogContext::new()
        .task_id(&*claim.task_id)
        .job_id(&*claim.job_id)
        .engine_id(&*claim.consumer.engine_id);
    let lookup = retry("looking up a task", || origin.broker.lookup(claim));
    let Ok(lookup) = lookup.with_log_context(log.clone()).await else {
        // The task comes back when its lease ends.
        return;
    };
    let (metadata, ignorance) = match lookup {
        Lookup::Task(metadata) => (Some(*metadata), None),
        Lookup::Missing => {
            let nothing = "nothing is known about the task: its metadata is gone";
            (None, Some(TaskError::retryable("metadata_missing", nothing)))
        }
        Lookup::Malformed { metadata, problem } => {
            let problem = TaskError::permanent("invalid_metadata", problem);
            (Some(*metadata), Some(problem))
        }
        Lookup::Lost => return,
        skipped @ (Lookup::Cancelled | Lookup::Blocked(_)) => {
            return skip(&worker, &origin, &delivery, skipped)
                .with_log_context(log)
                .await;
        }
    };
    fault_point!(LookedUp);
    let carried = metadata
        .as_ref()
        .and_then(|metadata| metadata.trace_context.as_deref());
    let carried = carried.map_or_else(Context::new, propagate::extract_json);
    let request_id = metadata.as_ref().and_then(|metadata| metadata.request_id.clone());
    let log = log
        .request_id(request_id.unwrap_or_default())
        .carrier(carried.clone());

    let attempt = Attempt::new(&worker, &origin, &hand, &delivery, metadata, carried, read_at);
    // Boxed, here and below: a future is moved with everything that it will ever hold, and those of a task are large.
    let work = Box::pin(async {
        attempt.note_arrival(&delivery, read_at);
        let stop_the_engine = StopOnDrop(attempt.stop.clone());
        tokio::select! {
            biased;
            () = attempt.run(ignorance, turn) => {}
            never = keep(&*origin.broker, claim, attempt.deadline, &attempt.confirmed, &attempt.stop, &worker.drain) => match never {},
        }
        drop(stop_the_engine);
        attempt.spans.end();
    });
    within(attempt.spans.task(), work).with_log_context(log).await;
}

pub(super) fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // Its lease ends, and then the task is delivered again.
        tracing::error!(%error, "task_handling_panicked");
    }
}

/// Removes a task that nobody wants from the queue.
async fn skip(worker: &Worker, origin: &Origin, delivery: &Delivery, why: Lookup) {
    let outcome = match why {
        Lookup::Blocked(reason) => {
            tracing::info!(reason, "task_skipped_blocked");
            Outcome::Skipped
        }
        _ => {
            worker.metrics.task_skipped_cancelled();
            tracing::info!("task_skipped_job_cancelled");
            // Whoever had it before may have announced it, and then the job waits for its end.
            match delivery.redelivery {
                Some(_) => Outcome::Cancelled,
                None => Outcome::Skipped,
            }
        }
    };
    let event = EventContext::default();
    let _ = retry("removing a task", || {
        origin.broker.finish(&delivery.claim, &outcome, &event)
    })
    .await;
}

impl Attempt<'_> {
    fn note_arrival(&self, delivery: &Delivery, read_at: Timestamp) {
        tracing::info!(delivery_count = self.info.attempt, stage = %self.info.stage, "task_received");
        // What a second delivery waited for begins where the first one ended.
        let queued_at = delivery.requeued_at.or(self.info.enqueued_at);
        if let Some(wait) = queued_at.and_then(|queued_at| QueueWait::between(queued_at, read_at)) {
            self.spans.queue_wait(&self.info, wait);
            self.worker.metrics.queue_wait(bounded_seconds(wait.seconds));
        }
        if let Some(reason) = self.redelivery {
            self.worker.metrics.task_redelivery(match reason {
                RedeliveryReason::EngineCrash => metrics::RedeliveryReason::EngineCrash,
                RedeliveryReason::Deferred => metrics::RedeliveryReason::Deferred,
            });
        }
    }

    /// Reports the start of the task, does it, and reports what came of it. With `ignorance`, nothing can be done but to
    /// say so.
    async fn run(&self, ignorance: Option<TaskError>, turn: Turn) {
        // A failure without a start before it is taken for a replay by the orchestrator, and the job would hang.
        match retry("reporting the start of a task", || {
            self.origin.broker.started(self.claim, &self.event)
        })
        .await
        {
            Ok(Ownership::Held) => {}
            Ok(Ownership::Lost) => return self.lost(),
            Err(_) => return self.hand_back().await,
        }
        fault_point!(Started);
        // What makes a task hopeless says more than a reason to stop that came up meanwhile.
        if let Err(error) = ignorance.map_or_else(|| self.refuse_hopeless(), Err) {
            return self.failed(error).await;
        }
        let result = Box::pin(self.work(turn)).await;
        // An engine that is told to stop may fail in any way; the reason that it was told is the truth.
        let result = match self.stop.reason() {
            Some(reason) => result.map_err(|_| reason.into_error()),
            None => result,
        };
        match (result, self.stop.reason()) {
            (Ok((done, artifacts)), _) => self.completed(done, Outcome::Completed { artifacts }).await,
            (Err(_), Some(CancelReason::Shutdown)) => self.hand_back().await,
            (Err(_), Some(CancelReason::LeaseLost)) => self.lost(),
            (Err(error), Some(CancelReason::Requested)) => self.cancelled(&error).await,
            // Whatever it failed of, a job that is being cancelled wants no further attempt.
            (Err(error), _) if self.is_cancelled().await => self.cancelled(&error).await,
            (Err(error), _) => self.failed(error).await,
        }
    }

    async fn work(&self, turn: Turn) -> Result<(Done, Vec<ArtifactReference>), TaskError> {
        let prepared = self.before_inference(Box::pin(self.download())).await??;
        fault_point!(Downloaded);
        self.hand.enter(TaskPhase::Waiting);
        let mut done = self.infer(prepared).await?;
        fault_point!(Inferred);
        self.hand.enter(TaskPhase::Saving);
        // The next task may be read as soon as this one's result is sure to be on its way.
        let saving = async {
            // What a direct task gives is kept in memory, and has no need to wait for a slow store.
            let _uploading = match self.origin.queue {
                Some(_) => Some(self.worker.uploads.acquire().await),
                None => None,
            };
            drop(turn);
            let outputs = std::mem::take(&mut done.outputs);
            Box::pin(self.upload(&mut done, outputs)).await
        };
        let saved = self.stop.unless_unwanted(SAVE_GRACE, saving).await;
        let artifacts = saved.map_err(CancelReason::into_error)??;
        Ok((done, artifacts))
    }

    /// Finds what makes it pointless to begin.
    fn refuse_hopeless(&self) -> Result<(), TaskError> {
        let (deliveries, limit) = (self.claim.delivery_count, self.worker.config.max_deliveries);
        if deliveries > limit && self.redelivery == Some(RedeliveryReason::EngineCrash) {
            let text = format!(
                "the task was delivered {deliveries} times (limit {limit}) and no worker survived it or finished it in time"
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
        if let Some(late) = self.late {
            let text = format!("the task was read {:.1} s after its deadline", late.as_secs_f64());
            return Err(TaskError::new(
                TaskErrorKind::DeadlineExceeded,
                "deadline_exceeded",
                text,
            ));
        }
        Ok(())
    }

    async fn upload(
        &self,
        done: &mut Done,
        outputs: Vec<OutputFile>,
    ) -> Result<Vec<ArtifactReference>, TaskError> {
        let span = self.spans.upload_output();
        let begun = Instant::now();
        let data = std::mem::take(&mut done.processed.data);
        let response =
            TaskResponseData::new(&*self.info.task_id, Timestamp::now(), self.begun.elapsed(), data);
        let upload = files::upload(
            &self.origin.store,
            self.claim,
            &self.info.stage,
            outputs,
            response,
            self,
        );
        let result = within(&span, upload).await;
        self.worker.metrics.s3_upload(begun.elapsed());
        result.inspect_err(|error| record_failure(&span, error))
    }
}
