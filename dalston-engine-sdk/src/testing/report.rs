//! The outcome of a task in a test: [`TaskReport`].

use std::fmt;

use dalston_telemetry::metrics::{MetricChange, MetricsSnapshot};
use dalston_telemetry::testing::SpanTree;
use dalston_telemetry::{CollectedSpan, Waterfall};
use serde_json::Value;

use crate::local::LocalOutcome;
use crate::protocol::TaskResponseData;
use crate::stage::Transcript;

/// A task that has ended: its outcome, its spans, and the metrics that moved.
///
/// It prints as its outcome and its waterfall, for messages of assertions.
#[derive(Debug, Clone)]
pub struct TaskReport {
    pub(super) task_id: String,
    pub(super) outcome: LocalOutcome,
    pub(super) spans: Vec<CollectedSpan>,
    pub(super) before: MetricsSnapshot,
    pub(super) after: MetricsSnapshot,
}

impl TaskReport {
    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.task_id
    }

    /// Its outcome.
    #[must_use]
    pub fn outcome(&self) -> &LocalOutcome {
        &self.outcome
    }

    /// The `response.json` of the task.
    ///
    /// # Panics
    ///
    /// If the task failed.
    #[must_use]
    #[track_caller]
    pub fn response(&self) -> &TaskResponseData {
        match &self.outcome {
            LocalOutcome::Completed(response) => response,
            LocalOutcome::Failed { .. } => panic!("the task failed: {self}"),
        }
    }

    /// The answer of the engine.
    ///
    /// # Panics
    ///
    /// If the task failed.
    #[must_use]
    #[track_caller]
    pub fn output(&self) -> &Value {
        &self.response().data
    }

    /// The answer of a transcribe engine.
    ///
    /// # Panics
    ///
    /// If the task failed or the answer is not a transcript.
    #[must_use]
    #[track_caller]
    pub fn transcript(&self) -> Transcript {
        match serde_json::from_value(self.output().clone()) {
            Ok(transcript) => transcript,
            Err(error) => panic!("the answer is not a transcript: {error}: {}", self.output()),
        }
    }

    /// The text of the error with which the task failed.
    ///
    /// # Panics
    ///
    /// If it did not fail.
    #[must_use]
    #[track_caller]
    pub fn error(&self) -> &str {
        match &self.outcome {
            LocalOutcome::Failed { error, .. } => error,
            LocalOutcome::Completed(_) => panic!("the task did not fail: {self}"),
        }
    }

    /// The code of the error with which the task failed.
    ///
    /// # Panics
    ///
    /// If it did not fail.
    #[must_use]
    #[track_caller]
    pub fn error_code(&self) -> &'static str {
        match &self.outcome {
            LocalOutcome::Failed { code, .. } => code,
            LocalOutcome::Completed(_) => panic!("the task did not fail: {self}"),
        }
    }

    /// The spans of the task, by start time.
    #[must_use]
    pub fn spans(&self) -> &[CollectedSpan] {
        &self.spans
    }

    /// The only span of this name.
    ///
    /// # Panics
    ///
    /// If there is none or more than one.
    #[must_use]
    #[track_caller]
    pub fn span(&self, name: &str) -> &CollectedSpan {
        let mut named = self.spans.iter().filter(|span| span.name == name);
        match (named.next(), named.next()) {
            (Some(span), None) => span,
            _ => panic!("there is not exactly one span {name:?}: {self}"),
        }
    }

    /// The spans of the task as a tree, to be compared with a literal.
    #[must_use]
    pub fn tree(&self) -> SpanTree {
        SpanTree::of(&self.spans)
    }

    /// The change of a metric while the task ran, summed over its labels. 0 if it did not change.
    ///
    /// A histogram has `…_count` and `…_sum`. Tasks that ran at the same time are included.
    #[must_use]
    pub fn moved(&self, name: &str) -> f64 {
        self.after.sum(name, &[]) - self.before.sum(name, &[])
    }

    /// Every series that changed while the task ran.
    #[must_use]
    pub fn metrics(&self) -> Vec<MetricChange> {
        self.after.diff(&self.before)
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            LocalOutcome::Completed(response) => writeln!(f, "completed with {}", response.data)?,
            LocalOutcome::Failed {
                error,
                code,
                retryable,
            } => {
                let again = if *retryable { "retryable" } else { "permanent" };
                writeln!(f, "failed ({code}, {again}): {error}")?;
            }
        }
        f.write_str(&Waterfall::new().fold_after(0).render(&self.spans))
    }
}
