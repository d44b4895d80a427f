//! Reporting the outcome of a task.

use dalston_telemetry::metrics::Status;
use dalston_telemetry::redact;
use tokio::time::timeout;

use super::attempt::{Attempt, bounded_seconds};
use super::inference::Inferred;
use super::retry::{BROKER_CALL, retry};
use crate::broker::{BrokerError, Outcome, Ownership};
use crate::context::CancelReason;
use crate::error::{TaskError, TaskErrorKind, chain, shorten};
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
        let metrics = inferred.metrics;
        metrics.task_processed(Status::Success);
        metrics.task_duration(inferred.process);
        metrics.recognize(inferred.device, inferred.process);
        if let Some(seconds) = inferred.audio_seconds {
            let audio = bounded_seconds(seconds);
            self.worker.metrics.audio_duration(audio);
            metrics.realtime_factor(inferred.device, inferred.process, audio);
        }
        let seconds = self.begun_at.elapsed().as_secs_f64();
        tracing::info!(seconds, realtime_factor = factor, "task_completed");
    }

    pub(super) async fn failed(&self, error: TaskError) {
        record_failure(self.spans.task(), &error);
        // The text leaves the worker with the event.
        let text = shorten(&redact::text(&error.to_string()), LONGEST_ERROR);
        tracing::error!(error = text, code = error.code(), "task_failed");
        let retryable = !matches!(error.kind(), TaskErrorKind::Permanent | TaskErrorKind::Cancelled);
        let outcome = Outcome::Failed {
            error: text,
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
        if self.finish("ending a cancelled task", &Outcome::Cancelled).await {
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
            Ok(Ownership::Forgotten) => tracing::warn!(
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
            Ok(Ownership::Held | Ownership::Forgotten) => {
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
