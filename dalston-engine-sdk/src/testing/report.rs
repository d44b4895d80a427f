//! The outcome of a task in a test: [`TaskReport`].

use std::fmt;

use bytes::Bytes;
use dalston_telemetry::metrics::{MetricChange, MetricsSnapshot};
use dalston_telemetry::services::engine::spans::span;
use dalston_telemetry::testing::{LogLine, SpanTree};
use dalston_telemetry::{CollectedSpan, Waterfall};
use serde_json::Value;

use super::moved::Moved;
use crate::local::LocalOutcome;
use crate::protocol::{ArtifactReference, TaskResponseData};
use crate::stage::Transcript;

/// A task that has ended: its outcome, its files, its spans and log lines, and the metrics that
/// moved.
///
/// It prints as its outcome and its waterfall, for messages of assertions.
#[derive(Debug, Clone)]
pub struct TaskReport {
    pub(super) task_id: String,
    pub(super) outcome: LocalOutcome,
    pub(super) files: Vec<StoredFile>,
    pub(super) logs: Vec<LogLine>,
    pub(super) spans: Vec<CollectedSpan>,
    pub(super) before: MetricsSnapshot,
    pub(super) after: MetricsSnapshot,
}

/// An output file of a task.
#[derive(Debug, Clone)]
pub(super) struct StoredFile {
    /// The name that the engine gave it.
    name: String,
    /// The name under which it was stored, which has a suffix.
    stored_as: String,
    content: Bytes,
}

impl StoredFile {
    pub(super) fn new(task_id: &str, reference: &ArtifactReference, content: Bytes) -> Self {
        let id = &reference.artifact_id;
        let name = id.strip_prefix(task_id).and_then(|name| name.strip_prefix(':'));
        let stored_as = reference.storage_locator.rsplit('/').next();
        Self {
            name: name.unwrap_or(id).to_owned(),
            stored_as: stored_as.unwrap_or_default().to_owned(),
            content,
        }
    }
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

    /// The content of an output file, by the name of its [`OutputFile`](crate::OutputFile), or by
    /// the name under which it was stored. Its kind, role and channel are in
    /// [`response`](Self::response).
    ///
    /// # Panics
    ///
    /// If the task failed or has no such file.
    #[must_use]
    #[track_caller]
    pub fn artifact(&self, name: &str) -> &[u8] {
        let _ = self.response();
        let named = |file: &&StoredFile| file.name == name || file.stored_as == name;
        match self.files.iter().find(named) {
            Some(file) => &file.content,
            None => {
                let names: Vec<_> = self.files.iter().map(|file| &file.stored_as).collect();
                panic!("the task has no output file {name:?}, only {names:?}")
            }
        }
    }

    /// The log lines of the task from level `INFO` up, oldest first. They are those with its
    /// `task_id`: lines of a helper thread need a [`Scope`](crate::Scope).
    #[must_use]
    pub fn logs(&self) -> &[LogLine] {
        &self.logs
    }

    /// The only log line of this event.
    ///
    /// # Panics
    ///
    /// If there is none or more than one.
    #[must_use]
    #[track_caller]
    pub fn log(&self, event: &str) -> &LogLine {
        let mut lines = self.logs.iter().filter(|line| line.event() == event);
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            _ => {
                let events: Vec<_> = self.logs.iter().map(LogLine::event).collect();
                panic!("there is not exactly one log line {event:?}, but {events:?}")
            }
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

    /// The spans of the task as a tree, to be compared with a literal. The wait for an inference
    /// thread is left out: a slow machine has spans of short waits.
    #[must_use]
    pub fn tree(&self) -> SpanTree {
        let spans = self.spans.iter().filter(|span| span.name != span::SLOT_WAIT);
        SpanTree::of(&spans.cloned().collect::<Vec<_>>())
    }

    /// The change of a metric while the task ran, summed over its labels. 0 if it did not change.
    ///
    /// A histogram has `…_count` and `…_sum`. Tasks that ran at the same time are included.
    ///
    /// ```
    /// # use dalston_engine_sdk::testing::TaskReport;
    /// # fn check(report: &TaskReport) {
    /// let loads = report.moved("dalston_engine_model_load_seconds_count");
    /// assert_eq!(loads, 2.0);
    /// assert_eq!(loads.with("model", "tiny"), 1.0);
    /// # }
    /// ```
    #[must_use]
    pub fn moved(&self, name: &str) -> Moved {
        let mut series = self.metrics();
        series.retain(|change| change.name() == name);
        Moved::new(series)
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
