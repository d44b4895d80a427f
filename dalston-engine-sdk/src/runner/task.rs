//! The lifecycle of one task, from its delivery to the report of its outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::propagate;
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;
use tokio::time::Instant;
use tracing::Instrument;

use super::attempt::{Attempt, bounded_seconds};
use super::files;
use super::inference::{Inferred, NOT_STARTED};
use super::lease;
use super::retry::retry;
use super::slot::message_of;
use super::status::{TaskGuard, TaskPhase};
use super::stop::StopOnDrop;
use super::worker::{Origin, Worker};
use crate::broker::{Delivery, EventContext, Lookup, Outcome};
use crate::context::CancelReason;
use crate::error::{TaskError, TaskErrorKind};
use crate::protocol::{ArtifactReference, TaskResponseData, Timestamp};
use crate::spans::{QueueWait, record_failure};

/// How long a result may take to be stored after the worker was told to stop. Together with the
/// grace of the engine it leaves some of the last seconds for reporting the task, or handing it
/// back.
const SAVE_GRACE: Duration = Duration::from_millis(1_500);

/// Bounds how many tasks the worker holds whose inference has not ended.
pub(super) type TaskPermit = OwnedSemaphorePermit;

/// Looks up a delivered task and, unless it must be skipped, takes it through all its steps.
pub(super) async fn handle(
    worker: Arc<Worker>,
    origin: Arc<Origin>,
    delivery: Delivery,
    permit: TaskPermit,
    status: TaskGuard,
) {
    fault_point!(Received);
    let (read_at, began) = (Timestamp::now(), Instant::now());
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
    let (metadata, metadata_error) = match lookup {
        Lookup::Task(metadata) => (Some(*metadata), None),
        Lookup::Missing => {
            let text = "nothing is known about the task: its metadata is gone";
            (None, Some(TaskError::retryable("metadata_missing", text)))
        }
        Lookup::Malformed { metadata, problem } => {
            let error = TaskError::permanent("invalid_metadata", problem);
            (Some(*metadata), Some(error))
        }
        Lookup::Lost => return,
        skipped @ (Lookup::Cancelled { .. } | Lookup::Blocked(_)) => {
            return skip(&worker, &origin, &delivery, skipped)
                .with_log_context(log)
                .await;
        }
    };
    fault_point!(LookedUp);
    let waited = metadata.as_ref().and_then(|metadata| metadata.waited);
    let waited = waited.map(|waited| waited.saturating_sub(began.elapsed()));
    let parent_context = metadata
        .as_ref()
        .and_then(|metadata| metadata.trace_context.as_deref())
        .map_or_else(Context::new, propagate::extract_json);
    let request_id = metadata.as_ref().and_then(|metadata| metadata.request_id.clone());
    let log = log
        .request_id(request_id.unwrap_or_default())
        .carrier(parent_context.clone());

    let attempt = Attempt::new(
        &worker,
        &origin,
        &status,
        &delivery,
        metadata,
        parent_context,
        read_at,
    );
    let work = async {
        attempt.record_delivery(&delivery, read_at, waited);
        let stop_engine = StopOnDrop(attempt.stop.clone());
        let steps = async {
            tokio::select! {
                biased;
                () = attempt.run(metadata_error, permit) => {}
                never = lease::watch(&attempt.lease, attempt.deadline, &worker.drain) => match never {},
            }
        };
        // Without a report, the task would come back when its lease ends, to a worker with the same
        // bug.
        if let Err(panic) = AssertUnwindSafe(steps).catch_unwind().await {
            let text = format!("the handling of the task panicked: {}", message_of(&*panic));
            attempt
                .failed(TaskError::new(TaskErrorKind::Panic, "panic", text))
                .await;
        }
        drop(stop_engine);
        attempt.spans.end();
    };
    work.instrument(attempt.spans.task().clone())
        .with_log_context(log)
        .await;
}

/// Logs a panic of [`handle`]. The task is delivered again when its lease ends.
pub(super) fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "task_handling_panicked");
    }
}

/// Removes a task from the queue that must not be done.
async fn skip(worker: &Worker, origin: &Origin, delivery: &Delivery, reason: Lookup) {
    let outcome = match reason {
        Lookup::Blocked(reason) => {
            tracing::info!(reason, "task_skipped_blocked");
            Outcome::Skipped
        }
        reason => {
            worker.metrics.task_skipped_cancelled();
            tracing::info!("task_skipped_job_cancelled");
            // An earlier owner may have reported the start of the task, and then the job waits for
            // its end.
            let is_running = matches!(reason, Lookup::Cancelled { is_running: true });
            match is_running || delivery.redelivery.is_some() {
                true => Outcome::Cancelled,
                false => Outcome::Skipped,
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
    /// `waited` is the time until the read by the clock of the broker, if that is known.
    fn record_delivery(&self, delivery: &Delivery, read_at: Timestamp, waited: Option<Duration>) {
        tracing::info!(delivery_count = self.info.attempt, stage = %self.info.stage, "task_received");
        // A redelivered task waits from the end of its earlier delivery.
        let wait = match (delivery.requeued_at, waited) {
            (None, Some(waited)) => QueueWait::measured(waited, self.info.enqueued_at, read_at),
            (requeued_at, _) => requeued_at
                .or(self.info.enqueued_at)
                .and_then(|queued_at| QueueWait::between(queued_at, read_at)),
        };
        if let Some(wait) = wait {
            self.spans.queue_wait(&self.info, wait);
            self.worker.metrics.queue_wait(bounded_seconds(wait.seconds));
        }
        if let Some(reason) = self.redelivery {
            self.worker.metrics.task_redelivery(reason);
        }
    }

    /// Does the task, and reports its outcome. With `metadata_error` that is the outcome.
    async fn run(&self, metadata_error: Option<TaskError>, permit: TaskPermit) {
        // Such an error says more than a reason to stop that came up meanwhile.
        if let Err(error) = metadata_error.map_or_else(|| self.check(), Err) {
            return self.failed(error).await;
        }
        let result = self.work(permit).await;
        // An engine that is told to stop may fail in any way. The reason to stop is the cause then.
        let result = match self.stop.reason() {
            Some(reason) => result.map_err(|_| reason.into_error()),
            None => result,
        };
        match (result, self.stop.reason()) {
            (Ok((inferred, artifacts)), _) => self.completed(inferred, artifacts).await,
            (Err(_), Some(CancelReason::Shutdown)) => self.hand_back().await,
            (Err(_), Some(CancelReason::LeaseLost)) => self.lost(),
            (Err(error), None) if error.code() == NOT_STARTED => self.hand_back().await,
            (Err(error), Some(CancelReason::Requested)) => self.cancelled(&error).await,
            // A job that is being cancelled needs no further attempt after any error.
            (Err(error), _) if self.is_cancelled().await => self.cancelled(&error).await,
            (Err(error), _) => self.not_done(error).await,
        }
    }

    async fn work(&self, permit: TaskPermit) -> Result<(Inferred, Vec<ArtifactReference>), TaskError> {
        let prepared = self.before_inference(self.download()).await??;
        fault_point!(Downloaded);
        self.status.enter(TaskPhase::Waiting);
        let mut inferred = self.infer(prepared).await?;
        fault_point!(Inferred);
        self.status.enter(TaskPhase::Saving);
        let saving = async {
            // The result of a direct task stays in memory and does not wait for a slow store.
            let _uploading = match self.origin.queue {
                Some(_) => Some(self.worker.uploads.acquire().await),
                None => None,
            };
            // The next task may be read as soon as the upload of this result begins.
            drop(permit);
            self.upload(&mut inferred).await
        };
        let saved = self.stop.unless_unwanted(SAVE_GRACE, saving).await;
        let artifacts = saved.map_err(CancelReason::into_error)??;
        Ok((inferred, artifacts))
    }

    async fn upload(&self, inferred: &mut Inferred) -> Result<Vec<ArtifactReference>, TaskError> {
        let span = self.spans.upload_output();
        let begun_at = Instant::now();
        let outputs = std::mem::take(&mut inferred.outputs);
        let data = std::mem::take(&mut inferred.processed.data);
        let took = self.begun_at.elapsed();
        let response = TaskResponseData::new(&*self.info.task_id, Timestamp::now(), took, data);
        let result = files::upload(
            &self.origin.store,
            self.claim,
            &self.info.stage,
            outputs,
            response,
            &self.lease,
            &self.worker.removals,
        )
        .instrument(span.clone())
        .await;
        self.worker.metrics.s3_upload(begun_at.elapsed());
        result.inspect_err(|error| record_failure(&span, error))
    }
}
