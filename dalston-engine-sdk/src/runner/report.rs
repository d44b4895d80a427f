//! Reporting what came of a task.

use dalston_telemetry::metrics::Outcome as Status;
use dalston_telemetry::redact;
use tokio::time::timeout;

use super::attempt::{Attempt, bounded_seconds};
use super::inference::Done;
use super::retry::{BROKER_CALL, retry};
use crate::broker::{BrokerError, Outcome, Ownership};
use crate::context::CancelReason;
use crate::error::{TaskError, TaskErrorKind, chain, shorten};
use crate::spans::record_failure;

/// Errors become part of events and documents.
const LONGEST_ERROR: usize = 2_000;

impl Attempt<'_> {
    pub(super) async fn completed(&self, done: Done, outcome: Outcome) {
        let factor = done.audio_seconds.filter(|audio| *audio > 0.0);
        let factor = factor.map(|audio| done.process.as_secs_f64() / audio);
        if let Some(factor) = factor {
            self.spans.realtime_factor(factor);
        }
        drop(done.files);
        fault_point!(BeforeFinish);
        match retry("completing a task", || {
            self.origin.broker.finish(self.claim, &outcome, &self.event)
        })
        .await
        {
            Ok(Ownership::Held) => {}
            Ok(Ownership::Lost) => return self.lost(),
            Err(error) => return self.unreported(&error),
        }
        fault_point!(AfterFinish);
        let metrics = done.metrics;
        metrics.task_processed(Status::Success);
        metrics.task_duration(done.process);
        metrics.recognize(done.device, done.process);
        if let Some(seconds) = done.audio_seconds {
            let audio = bounded_seconds(seconds);
            self.worker.metrics.audio_duration(audio);
            metrics.realtime_factor(done.device, done.process, audio);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        tracing::info!(seconds, realtime_factor = factor, "task_completed");
    }

    pub(super) async fn is_cancelled(&self) -> bool {
        matches!(
            timeout(BROKER_CALL, self.origin.broker.is_cancelled(self.claim)).await,
            Ok(Ok(true))
        )
    }

    pub(super) async fn cancelled(&self, error: &TaskError) {
        record_failure(self.spans.task(), error);
        tracing::info!("task_cancelled");
        fault_point!(BeforeFinish);
        match retry("ending a cancelled task", || {
            self.origin
                .broker
                .finish(self.claim, &Outcome::Cancelled, &self.event)
        })
        .await
        {
            Ok(Ownership::Held) => {
                fault_point!(AfterFinish);
                self.worker.metrics.task_skipped_cancelled();
            }
            Ok(Ownership::Lost) => self.lost(),
            Err(error) => self.unreported(&error),
        }
    }

    pub(super) async fn failed(&self, error: TaskError) {
        record_failure(self.spans.task(), &error);
        // It goes to the broker, and from there to whoever asks for the job.
        let text = shorten(&redact::text(&error.to_string()), LONGEST_ERROR);
        tracing::error!(error = text, code = error.code(), "task_failed");
        let retryable = !matches!(error.kind(), TaskErrorKind::Permanent | TaskErrorKind::Cancelled);
        let outcome = Outcome::Failed {
            error: text,
            code: error.code(),
            retryable,
        };
        fault_point!(BeforeFinish);
        match retry("failing a task", || {
            self.origin.broker.finish(self.claim, &outcome, &self.event)
        })
        .await
        {
            Ok(Ownership::Held) => {
                fault_point!(AfterFinish);
                let model = self.model.get().cloned().unwrap_or_default();
                self.worker.model_metrics(&model).task_processed(Status::Failure);
            }
            Ok(Ownership::Lost) => self.lost(),
            Err(error) => self.unreported(&error),
        }
    }

    /// Gives the task back to the queue, for a peer.
    pub(super) async fn hand_back(&self) {
        fault_point!(BeforeRelease);
        match retry("handing a task back", || self.origin.broker.release(self.claim)).await {
            Ok(_) => {
                fault_point!(AfterRelease);
                tracing::info!("task_handed_back");
            }
            Err(error) => self.unreported(&error),
        }
    }

    pub(super) fn lost(&self) {
        record_failure(self.spans.task(), &CancelReason::LeaseLost.into_error());
        tracing::warn!("task_lost_to_another_worker");
    }

    /// The broker did not take the outcome. The task is delivered again when its lease ends.
    pub(super) fn unreported(&self, error: &BrokerError) {
        let text = chain(error);
        record_failure(self.spans.task(), &TaskError::retryable("broker", text.clone()));
        tracing::error!(error = text, "critical_event_may_be_lost");
    }
}
