//! Reporting the outcome of a task.

use dalston_telemetry::metrics::Status;
use dalston_telemetry::redact;
use tokio::time::timeout;

use super::attempt::{Attempt, bounded_seconds};
use super::breaker::MAX_HAND_BACKS;
use super::inference::Inferred;
use super::retry::{BROKER_CALL, retry};
use crate::broker::{BrokerError, HandBack, Outcome, Ownership};
use crate::context::CancelReason;
use crate::error::{TaskError, TaskErrorKind, WorkerFault, chain, shorten, without_directories};
use crate::protocol::ArtifactReference;
use crate::spans::record_failure;

/// Characters of an error. Errors become part of events and documents.
const LONGEST_ERROR: usize = 2_000;

impl Attempt<'_> {
    pub(super) async fn completed(&self, inferred: Inferred, artifacts: Vec<ArtifactReference>) {
        let factor = inferred.audio_seconds.filter(|audio| *audio > 0.0);
        let factor = factor.map(|audio| inferred.process.as_secs_f64() / audio);
        if let Some(factor) = factor {
            self.spans.realtime_factor(factor);
        }
        drop(inferred.files);
        let outcome = Outcome::Completed { artifacts };
        if !self.finish("completing a task", &outcome).await {
            return;
        }
        if self.origin.queue.is_some() {
            self.worker.breaker.completed();
        }
        let metrics = inferred.metrics;
        metrics.task_processed(Status::Success);
        metrics.task_duration(inferred.process);
        metrics.recognize(inferred.device, inferred.process);
        if let Some(seconds) = inferred.audio_seconds {
            let audio = bounded_seconds(seconds);
            self.worker.metrics.audio_duration(audio);
            // Speed is one divided by the other, so both are about the same tasks.
            metrics.inference(inferred.share);
            metrics.realtime_factor(inferred.device, inferred.process, audio);
        }
        let seconds = self.begun_at.elapsed().as_secs_f64();
        tracing::info!(seconds, realtime_factor = factor, "task_completed");
    }

    /// Ends a task whose work failed: hands it to a peer if the cause is this worker, else fails
    /// it.
    pub(super) async fn not_done(&self, error: TaskError) {
        let Some(fault) = self.worker_fault(&error) else {
            return self.failed(error).await;
        };
        let (text, cause) = (public_text(&error), fault.as_str());
        // First, so that the same worker does not read the task again.
        self.worker.breaker.failed(text.clone());
        fault_point!(BeforeRelease);
        let broker = &self.origin.broker;
        let handed_back = retry("handing a task back", || {
            broker.hand_back(self.claim, cause, MAX_HAND_BACKS)
        });
        match handed_back.await {
            Ok(HandBack::Done) => {
                fault_point!(AfterRelease);
                record_failure(self.spans.task(), &error);
                let code = error.code();
                tracing::warn!(error = text, code, cause, "task_released_after_local_failure");
            }
            Ok(HandBack::Refused) => self.failed(error).await,
            Ok(HandBack::Lost) => self.lost(),
            Err(error) => self.unreported(&error),
        }
    }

    /// The fault of this worker that the error shows. A direct task has no peers to go to.
    fn worker_fault(&self, error: &TaskError) -> Option<WorkerFault> {
        self.origin.queue?;
        let worker = self.worker;
        let is_own_model = self.model.get().is_some_and(|model| {
            worker.default_model.as_ref() == Some(model) || worker.config.preload.contains(model)
        });
        worker.breaker.judge(error, &self.info.task_id, is_own_model)
    }

    pub(super) async fn failed(&self, error: TaskError) {
        record_failure(self.spans.task(), &error);
        let text = public_text(&error);
        tracing::error!(error = text, code = error.code(), "task_failed");
        self.worker.status.failed(&self.info.task_id, error.code(), &text);
        let retryable = !matches!(error.kind(), TaskErrorKind::Permanent | TaskErrorKind::Cancelled);
        let outcome = Outcome::Failed {
            // It is shown to the users of a deployment, who have no use for paths of this machine.
            error: match self.origin.queue {
                Some(_) if !self.origin.store.has_local_files() => without_directories(&text),
                _ => text,
            },
            code: error.code(),
            retryable,
        };
        if self.finish("failing a task", &outcome).await {
            let model = self.model.get().cloned().unwrap_or_default();
            let metrics = self.worker.metrics.model(model.as_str());
            metrics.task_processed(Status::Failure);
        }
    }

    pub(super) async fn cancelled(&self, error: &TaskError) {
        record_failure(self.spans.task(), error);
        tracing::info!("task_cancelled");
        // This worker or an earlier one may have reported the start of the task, and then the job
        // waits for its end.
        let outcome = match self.may_be_started() || self.redelivery.is_some() {
            true => Outcome::Cancelled,
            false => Outcome::Skipped,
        };
        if self.finish("ending a cancelled task", &outcome).await {
            self.worker.metrics.task_skipped_cancelled();
        }
    }

    /// Asks the broker whether the job was cancelled.
    pub(super) async fn is_cancelled(&self) -> bool {
        matches!(
            timeout(BROKER_CALL, self.origin.broker.is_cancelled(self.claim)).await,
            Ok(Ok(true))
        )
    }

    /// Gives the task back to the queue, for a peer.
    pub(super) async fn hand_back(&self) {
        fault_point!(BeforeRelease);
        match retry("handing a task back", || self.origin.broker.release(self.claim)).await {
            Ok(Ownership::Held) => {
                fault_point!(AfterRelease);
                tracing::info!("task_handed_back");
            }
            Ok(Ownership::Lost) => self.lost(),
            Ok(Ownership::Unrecorded) => tracing::warn!(
                advice = "the queue lost its entry of the task; unless the platform queues it again, submit the job again",
                "task_not_handed_back"
            ),
            Err(error) => self.unreported(&error),
        }
    }

    pub(super) fn lost(&self) {
        record_failure(self.spans.task(), &CancelReason::LeaseLost.into_error());
        tracing::warn!("task_lost_to_another_worker");
    }

    /// Returns whether the broker has taken the outcome.
    async fn finish(&self, doing: &'static str, outcome: &Outcome) -> bool {
        fault_point!(BeforeFinish);
        let broker = &self.origin.broker;
        match retry(doing, || broker.finish(self.claim, outcome, &self.event)).await {
            Ok(Ownership::Held | Ownership::Unrecorded) => {
                fault_point!(AfterFinish);
                true
            }
            Ok(Ownership::Lost) => {
                self.lost();
                false
            }
            Err(error) => {
                self.unreported(&error);
                false
            }
        }
    }

    /// Records that the broker did not take the outcome. The task is delivered again when its lease
    /// ends.
    fn unreported(&self, error: &BrokerError) {
        let text = chain(error);
        record_failure(self.spans.task(), &TaskError::retryable("broker", text.clone()));
        tracing::error!(error = text, "critical_event_may_be_lost");
    }
}

/// The text of an error that leaves the worker, with an event or with the health check.
pub(super) fn public_text(error: &TaskError) -> String {
    shorten(&redact::text(&error.to_string()), LONGEST_ERROR)
}
