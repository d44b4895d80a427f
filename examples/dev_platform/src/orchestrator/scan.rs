//! Looks for what no event will ever tell: the database knows all open jobs.

use std::time::Duration;

use anyhow::Result;
use dalston_engine_sdk::protocol::Timestamp;
use dalston_telemetry::context::WithLogContext;
use dalston_telemetry::opentelemetry::context::FutureExt;
use dalston_telemetry::services::orchestrator::{EventType, ReceivedEvent};
use rusqlite::Transaction;
use tracing::warn;

use super::Orchestrator;
use super::plan::Plan;
use crate::db::{Job, JobStatus, Task, TaskStatus};

/// How long the event of a new or retried job may be on its way.
const CREATED_GRACE: Duration = Duration::from_secs(2);
/// How long the event of a task that ended at its deadline may be on its way: a tenth of its time,
/// within these bounds.
const DEADLINE_GRACE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(30)];

impl Orchestrator {
    /// Repairs every open job.
    pub(super) async fn scan(&self) -> Result<()> {
        let jobs = self.platform.db.read(|db| Job::open(db)).await?;
        self.steps.metrics().jobs_in_progress(jobs.len());
        for job in &jobs {
            // Spans of repairs belong to the trace of the job.
            let message = job.message();
            let log = message.log_context().job_id(&*job.id);
            let repair = self.repair(job).with_context(message.context());
            repair.with_log_context(log).await?;
        }
        Ok(())
    }

    async fn repair(&self, job: &Job) -> Result<()> {
        match job.status {
            JobStatus::Pending => self.repair_pending(job).await,
            JobStatus::Cancelling => self.cancel(&job.id).await,
            _ => {
                self.end_late_tasks(job).await?;
                self.queue_lost_tasks(job).await?;
                self.advance(&job.id).await
            }
        }
    }

    /// The event of the job was lost, or no engine was there.
    async fn repair_pending(&self, job: &Job) -> Result<()> {
        if Timestamp::now().seconds_since(job.run_at()) < CREATED_GRACE.as_secs_f64() {
            return Ok(());
        }
        let engines = self.platform.wire.engines().await?;
        if Plan::new(job, &engines).is_err() && !self.has_waited(job) {
            return Ok(());
        }
        let created = ReceivedEvent {
            kind: EventType::JobCreated,
            job_id: &job.id,
            task_id: None,
            message: job.message(),
        };
        self.steps.handle(&created, self.start(&job.id)).await
    }

    /// Fails tasks whose engine did not end them in time.
    async fn end_late_tasks(&self, job: &Job) -> Result<()> {
        let now = Timestamp::now();
        let [least, most] = DEADLINE_GRACE;
        let grace = (self.task_timeout / 10).clamp(least, most).as_secs_f64();
        let is_late = move |task: &Task| {
            let late = task
                .deadline_at
                .map_or(0.0, |deadline| now.seconds_since(deadline));
            is_queued(task) && late > grace
        };
        let job_id = job.id.clone();
        let end = move |db: &Transaction<'_>| {
            let late: Vec<Task> = Task::of_job(db, &job_id)?.into_iter().filter(is_late).collect();
            for task in &late {
                let error = match task.status {
                    TaskStatus::Ready => "No engine took the task before its deadline",
                    _ => "Task exceeded configured timeout",
                };
                Task::end(db, &task.id, TaskStatus::Failed, Some(error))?;
            }
            Ok(late)
        };
        for task in self.platform.db.write(end).await? {
            warn!(task_id = task.id, stage = task.stage, "task_timed_out");
            self.steps.metrics().stage(&task.stage).task_timed_out();
        }
        Ok(())
    }

    /// Queues tasks again that Redis has lost.
    async fn queue_lost_tasks(&self, job: &Job) -> Result<()> {
        let job_id = job.id.clone();
        let tasks = self.platform.db.read(move |db| Task::of_job(db, &job_id)).await?;
        let mut lost = Vec::new();
        for task in tasks.iter().filter(|task| is_queued(task)) {
            if !self.platform.wire.is_queued(&task.id, &task.engine_id).await? {
                warn!(task_id = task.id, stage = task.stage, "task_lost_by_redis");
                lost.push(task);
            }
        }
        self.queue(job, &tasks, &lost).await
    }
}

fn is_queued(task: &Task) -> bool {
    task.message_id.is_some() && matches!(task.status, TaskStatus::Ready | TaskStatus::Running)
}
