//! The second step of handling an event: what follows from the states of a job.

use std::time::Duration;

use anyhow::Result;
use dalston_engine_sdk::protocol::{EventKind, QueuedTask, TaskRequestData, Timestamp};
use dalston_engine_sdk::stage::{Stage, StageName};
use dalston_engine_sdk::store::key;
use dalston_telemetry::audit::{AuditAction, AuditEvent};
use dalston_telemetry::metrics::Status;
use dalston_telemetry::services::MessageContext;
use dalston_telemetry::services::orchestrator::{
    EndedJob, ExecutionProfile, JobStatus as EndStatus, PlannedJob, ScheduledTask,
};
use rusqlite::Transaction;
use tracing::info;

use super::Orchestrator;
use super::plan::Plan;
use super::request::{measured_audio, request, responses, timeout};
use super::transcript;
use crate::config::TENANT;
use crate::db::{Job, JobStatus, Task, TaskStatus};
use crate::wire::job_event;

impl Orchestrator {
    /// Plans a job that has not started, and queues its first task.
    pub(super) async fn start(&self, job_id: &str) -> Result<()> {
        let Some(job) = self.job(job_id).await? else {
            return Ok(());
        };
        if job.status == JobStatus::Pending {
            if job.retried_at.is_some() {
                // Engines pass over the tasks of a cancelled or failed run.
                self.platform.wire.withdraw_cancel(job_id).await?;
            }
            let engines = self.platform.wire.engines().await?;
            if Plan::new(&job, &engines).is_err() && !self.has_waited(&job) {
                info!("job_waits_for_engine");
                return Ok(());
            }
            let build = || Plan::new(&job, &engines);
            match self.steps.build_dag(job_id, build, describe) {
                Ok(plan) => self.insert(&job, plan).await?,
                Err(error) => return self.fail(&job, &[], error.to_string()).await,
            }
        }
        self.advance(job_id).await
    }

    /// Whether a job has waited long enough for its engines.
    pub(super) fn has_waited(&self, job: &Job) -> bool {
        Timestamp::now().seconds_since(job.run_at()) > self.engine_wait.as_secs_f64()
    }

    async fn insert(&self, job: &Job, plan: Plan) -> Result<()> {
        let job_id = job.id.clone();
        let insert = move |db: &Transaction<'_>| {
            let mut transcriptions = 0;
            if !Job::start(db, &job_id, &plan.engine_id)? {
                return Ok(transcriptions);
            }
            for (position, task) in (0..).zip(&plan.tasks) {
                // A job that runs again keeps the stages that are completed.
                if !task.insert(db, position)? {
                    continue;
                }
                transcriptions += usize::from(is_transcription(task));
                if task.status == TaskStatus::Ready {
                    Task::make_ready(db, &task.id, 0)?;
                }
            }
            Ok(transcriptions)
        };
        let transcriptions = self.platform.db.write(insert).await?;
        (0..transcriptions).for_each(|_| self.pipeline.requested());
        Ok(())
    }

    /// Does what follows from the states of a job: queues the tasks that are ready, and ends the
    /// job after its last one. May be repeated at any time.
    pub(super) async fn advance(&self, job_id: &str) -> Result<()> {
        let Some((job, tasks)) = self.unlock(job_id).await? else {
            return Ok(());
        };
        let is = |status| move |task: &&Task| task.status == status;
        let has_running = tasks.iter().any(|task| task.status == TaskStatus::Running);
        match job.status {
            JobStatus::Cancelling if !has_running => {
                self.end(&job, &tasks, JobStatus::Cancelled, None, None).await
            }
            JobStatus::Running => {
                if let Some(failed) = tasks.iter().find(is(TaskStatus::Failed)) {
                    let error = failed.error.as_deref().unwrap_or("Unknown error");
                    let error = format!("Task {} failed: {error}", failed.stage);
                    return self.fail(&job, &tasks, error).await;
                }
                if tasks.iter().all(|task| task.status == TaskStatus::Completed) {
                    return self.complete(&job, &tasks).await;
                }
                let is_new = |task: &&Task| task.status == TaskStatus::Ready && task.message_id.is_none();
                let new: Vec<&Task> = tasks.iter().filter(is_new).collect();
                self.queue(&job, &tasks, &new).await
            }
            _ => Ok(()),
        }
    }

    /// The job with its tasks, of which those are ready by now whose dependencies are completed.
    async fn unlock(&self, job_id: &str) -> Result<Option<(Job, Vec<Task>)>> {
        let job_id = job_id.to_owned();
        let unlock = move |db: &Transaction<'_>| {
            let Some(job) = Job::find(db, &job_id)? else {
                return Ok(None);
            };
            let tasks = Task::of_job(db, &job_id)?;
            let is_done = |stage: &String| {
                let mut tasks = tasks.iter();
                tasks.any(|task| task.stage == *stage && task.status == TaskStatus::Completed)
            };
            let waiting = tasks.iter().filter(|task| task.status == TaskStatus::Pending);
            for task in waiting.filter(|_| job.status == JobStatus::Running) {
                if task.depends_on.iter().all(is_done) {
                    Task::make_ready(db, &task.id, 0)?;
                }
            }
            Ok(Some((job, Task::of_job(db, &job_id)?)))
        };
        self.platform.db.write(unlock).await
    }

    /// Queues some of the tasks of a job.
    pub(super) async fn queue(&self, job: &Job, tasks: &[Task], new: &[&Task]) -> Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        let responses = responses(&self.platform.store, tasks).await?;
        for task in new {
            let request = request(job, task, &responses)?;
            let scheduled = ScheduledTask {
                task_id: &task.id,
                job_id: &job.id,
                stage: &task.stage,
                engine_id: &task.engine_id,
                profile: ExecutionProfile::Container,
                retry_count: task.retries,
            };
            let queue = |message| self.queue_one(job, task, &request, message);
            self.steps.schedule_task(&scheduled, queue).await?;
        }
        Ok(())
    }

    async fn queue_one(
        &self,
        job: &Job,
        task: &Task,
        request: &TaskRequestData,
        message: MessageContext,
    ) -> Result<()> {
        let request_key = key::task_request(&job.id, &task.id);
        self.platform.store.write(&request_key, request.to_vec()).await?;
        let mut queued = QueuedTask::new(
            request,
            &*task.stage,
            &*task.engine_id,
            Timestamp::now(),
            timeout(job, self.task_timeout),
        );
        queued.trace_context = message.trace_context;
        // An engine that hands on no request id must not end the search by it.
        queued.request_id = message.request_id.or_else(|| job.request_id.clone());
        let entry = self.platform.wire.queue(&queued, task.retries).await?;
        let (task_id, deadline) = (task.id.clone(), queued.enqueued_at + queued.timeout);
        let keep = move |db: &Transaction<'_>| Task::queued(db, &task_id, &entry, &deadline);
        self.platform.db.write(keep).await
    }

    async fn complete(&self, job: &Job, tasks: &[Task]) -> Result<()> {
        let responses = responses(&self.platform.store, tasks).await?;
        let document = match transcript::assemble(job, &responses) {
            Ok(document) => document,
            Err(error) => {
                let error = format!("Transcript assembly failed: {error:#}");
                return self.fail(job, tasks, error).await;
            }
        };
        let bytes = serde_json::to_vec_pretty(&document)?;
        self.platform
            .store
            .write(&key::transcript(&job.id), bytes)
            .await?;
        let audio = measured_audio(&responses);
        self.end(job, tasks, JobStatus::Completed, None, audio).await
    }

    async fn fail(&self, job: &Job, tasks: &[Task], error: String) -> Result<()> {
        // The other tasks of the job would work for nothing.
        self.platform.wire.cancel(&job.id).await?;
        self.end(job, tasks, JobStatus::Failed, Some(error), None).await
    }

    async fn end(
        &self,
        job: &Job,
        tasks: &[Task],
        status: JobStatus,
        error: Option<String>,
        audio: Option<Duration>,
    ) -> Result<()> {
        let age = Timestamp::now().seconds_since(job.run_at());
        let model = job.parameters.model.as_deref().unwrap_or_default();
        let ended = EndedJob {
            job_id: &job.id,
            status: match status {
                JobStatus::Completed => EndStatus::Completed,
                JobStatus::Failed => EndStatus::Failed,
                _ => EndStatus::Cancelled,
            },
            engine_id: job.engine_id.as_deref(),
            model,
            stage_count: tasks.len(),
            time: Duration::try_from_secs_f64(age).unwrap_or_default(),
            audio,
        };
        let mark = async {
            let (action, kind) = match status {
                JobStatus::Completed => (Some(AuditAction::JobCompleted), EventKind::JobCompleted),
                JobStatus::Failed => (Some(AuditAction::JobFailed), EventKind::JobFailed),
                _ => (None, EventKind::JobCancelled),
            };
            // Before the change of the state: a process that is killed in between does it again.
            if let Some(action) = action {
                let mut record = AuditEvent::new(action, TENANT, &job.id).model(model);
                if let Some(audio) = audio {
                    record = record.audio_seconds(audio.as_secs_f64());
                }
                self.platform.audit.record(record);
            }
            let mut event = job_event(kind, &job.id, &MessageContext::current());
            event.error.clone_from(&error);
            self.platform.wire.publish(&event).await?;
            let (job_id, error) = (job.id.clone(), error.clone());
            let end = move |db: &Transaction<'_>| {
                Task::cancel_waiting(db, &job_id)?;
                Job::end(db, &job_id, status, error.as_deref())
            };
            self.platform.db.write(end).await
        };
        if self.steps.mark_job_ended(&ended, mark).await? {
            self.measure(job, tasks, &ended);
        }
        info!(status = status.as_str(), error, "job_ended");
        Ok(())
    }

    /// Records how long the job and its transcriptions took.
    fn measure(&self, job: &Job, tasks: &[Task], ended: &EndedJob<'_>) {
        if matches!(ended.status, EndStatus::Completed) {
            self.pipeline.end_to_end(ended.time);
        }
        let asked = job.parameters.model.as_deref();
        for task in tasks.iter().filter(|task| is_transcription(task)) {
            let status = match task.status {
                TaskStatus::Completed => Status::Success,
                TaskStatus::Failed => Status::Failure,
                _ => continue,
            };
            let since = |time: Option<Timestamp>| {
                let seconds = task.completed_at?.seconds_since(time?);
                Duration::try_from_secs_f64(seconds).ok()
            };
            if let Some(latency) = since(task.ready_at) {
                self.pipeline.latency(latency);
            }
            // A task that no engine took has transcribed nothing.
            if let Some(time) = since(task.started_at) {
                self.pipeline
                    .transcribed(asked.unwrap_or(&task.engine_id), status, time);
            }
        }
    }

    async fn job(&self, id: &str) -> Result<Option<Job>> {
        let id = id.to_owned();
        self.platform.db.read(move |db| Job::find(db, &id)).await
    }
}

fn is_transcription(task: &Task) -> bool {
    let name = task.stage.parse::<StageName>();
    name.is_ok_and(|name| *name.stage() == Stage::Transcribe)
}

fn describe(plan: &Plan) -> PlannedJob {
    PlannedJob {
        stages: plan.tasks.iter().map(|task| task.stage.clone()).collect(),
        engine_id: plan.engine_id.clone(),
        model: plan.model.clone(),
    }
}
