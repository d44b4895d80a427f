//! The first step of handling an event: the change of states.

use anyhow::Result;
use dalston_engine_sdk::protocol::{Event, EventKind};
use dalston_telemetry::metrics::Status;
use dalston_telemetry::services::MessageContext;
use dalston_telemetry::services::orchestrator::{
    EndedTask, EventDecision, EventType, ExecutionProfile, ReceivedEvent,
};
use rusqlite::Transaction;
use tracing::{info, warn};

use super::Orchestrator;
use crate::db::{Job, JobStatus, Task, TaskStatus, remember_event};
use crate::wire::MAX_RETRIES;

/// Errors with one of these words, because of a missing library, are the same at each attempt.
const MISSING_LIBRARY: &str = "is not found or cannot be loaded";
const CUDA_LIBRARIES: [&str; 4] = ["libcublas", "libcudnn", "libcuda", "libnvrtc"];

impl Orchestrator {
    /// Handles an event of a known type, in its span.
    pub(super) async fn handle(&self, id: &str, kind: EventType, event: &Event) -> Result<()> {
        let message = MessageContext::new(event.trace_context.as_deref(), event.request_id.as_deref());
        let task = match &event.task_id {
            None => None,
            Some(task_id) => {
                let task_id = task_id.clone();
                self.platform.db.read(move |db| Task::find(db, &task_id)).await?
            }
        };
        let job_id = task
            .as_ref()
            .map(|task| task.job_id.as_str())
            .or(event.job_id.as_deref());
        let job_id = job_id.unwrap_or_default();
        let received = ReceivedEvent {
            kind,
            job_id,
            task_id: event.task_id.as_deref(),
            message,
        };
        match (&event.kind, &task) {
            (EventKind::JobCreated, _) => self.steps.handle(&received, self.start(job_id)).await,
            (EventKind::JobCancelRequested, _) => self.steps.handle(&received, self.cancel(job_id)).await,
            (EventKind::TaskStarted, Some(task)) => self.steps.handle(&received, self.started(task)).await,
            (EventKind::TaskCompleted, Some(task)) => {
                let ended = ended(task, Status::Success);
                let work = self.ended(id, task, None);
                self.steps.handle_task_ended(&received, ended, work).await
            }
            (EventKind::TaskFailed, Some(task)) => {
                let error = event.error.as_deref().unwrap_or("Unknown error");
                let ended = ended(task, Status::Failure);
                let work = self.ended(id, task, Some(error));
                self.steps.handle_task_ended(&received, ended, work).await
            }
            // The orchestrator's own, or about a job that was deleted meanwhile.
            _ => {
                self.steps.metrics().event(kind, EventDecision::Ack);
                Ok(())
            }
        }
    }

    async fn started(&self, task: &Task) -> Result<()> {
        let id = task.id.clone();
        self.platform.db.write(move |db| Task::start(db, &id)).await
    }

    /// A task has completed, or failed with an error.
    async fn ended(&self, event_id: &str, task: &Task, error: Option<&str>) -> Result<()> {
        let (event_id, task_id) = (event_id.to_owned(), task.id.clone());
        let error = error.map(str::to_owned);
        let change = move |db: &Transaction<'_>| {
            if remember_event(db, &event_id)? {
                apply_end(db, &task_id, error.as_deref())?;
            }
            Ok(())
        };
        self.platform.db.write(change).await?;
        self.advance(&task.job_id).await
    }

    pub(super) async fn cancel(&self, job_id: &str) -> Result<()> {
        let id = job_id.to_owned();
        let job = self.platform.db.read(move |db| Job::find(db, &id)).await?;
        if job.is_none_or(|job| job.status != JobStatus::Cancelling) {
            // The job has ended, and may run again by now.
            return self.advance(job_id).await;
        }
        // First, so that no engine starts a task that the database calls cancelled.
        self.platform.wire.cancel(job_id).await?;
        let id = job_id.to_owned();
        let change = move |db: &Transaction<'_>| {
            let job = Job::find(db, &id)?;
            match job.is_some_and(|job| job.status == JobStatus::Cancelling) {
                true => Task::cancel_waiting(db, &id),
                false => Ok(()),
            }
        };
        self.platform.db.write(change).await?;
        self.advance(job_id).await
    }
}

fn ended(task: &Task, status: Status) -> EndedTask<'_> {
    EndedTask {
        engine_id: &task.engine_id,
        profile: ExecutionProfile::Container,
        status,
    }
}

/// Applies the platform's rules for the end of a task. A failure before the start counts as any
/// other, so that no task can fail without end.
fn apply_end(db: &Transaction<'_>, task_id: &str, error: Option<&str>) -> rusqlite::Result<()> {
    let Some(task) = Task::find(db, task_id)? else {
        return Ok(());
    };
    if !matches!(task.status, TaskStatus::Ready | TaskStatus::Running) {
        warn!(status = task.status.as_str(), "task_event_ignored");
        return Ok(());
    }
    let Some(error) = error else {
        return Task::end(db, task_id, TaskStatus::Completed, None);
    };
    let is_cancelling = Job::find(db, &task.job_id)?.is_some_and(|job| job.status == JobStatus::Cancelling);
    if is_retryable(error) && task.retries < MAX_RETRIES && !is_cancelling {
        info!(retry = task.retries + 1, error, "task_retried");
        return Task::make_ready(db, task_id, task.retries + 1);
    }
    Task::end(db, task_id, TaskStatus::Failed, Some(error))
}

fn is_retryable(error: &str) -> bool {
    !(error.contains(MISSING_LIBRARY) && CUDA_LIBRARIES.iter().any(|library| error.contains(library)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_cuda_library_is_not_retried() {
        assert!(is_retryable("disk full"));
        assert!(is_retryable("model tiny is not found or cannot be loaded"));
        assert!(!is_retryable(
            "Library libcublas.so.12 is not found or cannot be loaded"
        ));
    }
}
