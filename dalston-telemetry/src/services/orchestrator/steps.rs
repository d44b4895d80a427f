//! The steps of the orchestrator, each as a span with its metrics: [`OrchestratorSteps`].

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::metrics::{
    EventDecision, EventType, ExecutionProfile, FailureReason, JobStatus, OrchestratorMetrics,
};
use super::spans::{attr, span};
use crate::logs::context::WithLogContext;
use crate::metrics::Status;
use crate::services::message::MessageContext;
use crate::services::names::attr as shared;
use crate::services::{SpanNames, step};

/// The steps of the orchestrator. Each runs in its span, and counts in [`OrchestratorMetrics`].
/// Cheap to clone.
///
/// ```
/// use dalston_telemetry::services::MessageContext;
/// use dalston_telemetry::services::orchestrator::{
///     ExecutionProfile, OrchestratorSteps, ReceivedEvent, ScheduledTask,
/// };
///
/// # type Error = std::io::Error;
/// # async fn push(task_id: &str, message: MessageContext) -> Result<(), Error> { Ok(()) }
/// async fn job_created(steps: &OrchestratorSteps, event: &ReceivedEvent<'_>) -> Result<(), Error> {
///     steps
///         .handle(event, async {
///             let task = ScheduledTask {
///                 task_id: "t-1",
///                 job_id: event.job_id,
///                 stage: "transcribe",
///                 engine_id: "faster-whisper",
///                 profile: ExecutionProfile::Container,
///                 retry_count: 0,
///             };
///             steps.schedule_task(&task, |message| push("t-1", message)).await
///         })
///         .await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct OrchestratorSteps {
    metrics: OrchestratorMetrics,
    names: SpanNames,
}

/// An event that was read.
#[derive(Clone, Debug)]
pub struct ReceivedEvent<'a> {
    /// Its type.
    pub kind: EventType,
    /// The job.
    pub job_id: &'a str,
    /// The task, of an event about one.
    pub task_id: Option<&'a str>,
    /// What the event carries for telemetry.
    pub message: MessageContext,
}

/// A task that is queued.
#[derive(Clone, Copy, Debug)]
pub struct ScheduledTask<'a> {
    /// The task.
    pub task_id: &'a str,
    /// Its job.
    pub job_id: &'a str,
    /// Its stage, with the suffix of a channel if it has one.
    pub stage: &'a str,
    /// The engine whose queue it enters.
    pub engine_id: &'a str,
    /// How the platform runs the engine.
    pub profile: ExecutionProfile,
    /// How often it was queued before.
    pub retry_count: u32,
}

/// The tasks of a job, as planned.
#[derive(Clone, Debug, Default)]
pub struct PlannedJob {
    /// The stages, in the order of their tasks.
    pub stages: Vec<String>,
    /// The engine that transcribes.
    pub engine_id: String,
    /// The model that it uses; empty for the default.
    pub model: String,
}

/// A task that an engine has ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedTask<'a> {
    /// The engine.
    pub engine_id: &'a str,
    /// How the platform runs the engine.
    pub profile: ExecutionProfile,
    /// Whether the task succeeded.
    pub status: Status,
}

/// A job that has ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedJob<'a> {
    /// The job.
    pub job_id: &'a str,
    /// Its end.
    pub status: JobStatus,
    /// The engine that transcribed; `None` if none was selected.
    pub engine_id: Option<&'a str>,
    /// The model that it used; empty for the default.
    pub model: &'a str,
    /// The number of its stages.
    pub stage_count: usize,
    /// The time since its creation.
    pub time: Duration,
    /// The length of its audio, if it is known.
    pub audio: Option<Duration>,
}

impl OrchestratorSteps {
    /// Steps that count in `metrics`.
    #[must_use]
    pub fn new(metrics: OrchestratorMetrics) -> Self {
        Self {
            metrics,
            names: SpanNames::default(),
        }
    }

    /// Sets the names of the spans.
    #[must_use]
    pub fn names(mut self, names: SpanNames) -> Self {
        self.names = names;
        self
    }

    /// The metrics, for what is no step: events without a handler, scans, and the number of jobs.
    #[must_use]
    pub fn metrics(&self) -> &OrchestratorMetrics {
        &self.metrics
    }

    /// Handles an event in its span, below the span that published it. All log lines of the work
    /// have its job, task and request. Counts the event: as acknowledged, or with an error as one
    /// that is tried again.
    ///
    /// `job.created` is `orchestrator.handle_job`, other types are
    /// `orchestrator.handle_task_completed` and so on.
    ///
    /// # Errors
    ///
    /// The error of `work`, which the span records.
    pub async fn handle<T, E: Display>(
        &self,
        event: &ReceivedEvent<'_>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = self.event_span(event);
        let log = event
            .message
            .log_context()
            .job_id(event.job_id)
            .task_id(event.task_id.unwrap_or_default());
        let result = step::run(span.clone(), work).with_log_context(log).await;
        let decision = match &result {
            Ok(_) => EventDecision::Ack,
            Err(_) => EventDecision::Retry(FailureReason::HandlerException),
        };
        span.in_scope(|| self.metrics.event(event.kind, decision));
        result
    }

    /// Handles `task.completed` or `task.failed`, as [`handle`](Self::handle), and counts the task:
    /// `dalston_orchestrator_tasks_completed_total`.
    ///
    /// # Errors
    ///
    /// The error of `work`, which the span records. The task is not counted then, because the event
    /// comes again.
    pub async fn handle_task_ended<T, E: Display>(
        &self,
        event: &ReceivedEvent<'_>,
        task: EndedTask<'_>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let counted = async {
            let span = Span::current();
            step::set_texts(&span, [(shared::ENGINE_ID, Some(task.engine_id))]);
            let done = work.await?;
            self.metrics
                .engine(task.engine_id, task.profile)
                .task_completed(task.status);
            Ok(done)
        };
        self.handle(event, counted).await
    }

    /// Plans the tasks of a job, in the span `orchestrator.build_dag`. `describe` tells the result.
    ///
    /// # Errors
    ///
    /// The error of `build`, which the span records.
    pub fn build_dag<T, E: Display>(
        &self,
        job_id: &str,
        build: impl FnOnce() -> Result<T, E>,
        describe: impl FnOnce(&T) -> PlannedJob,
    ) -> Result<T, E> {
        let span = match self.names {
            SpanNames::Guide => info_span!(span::BUILD_DAG),
            SpanNames::Live => info_span!(span::LIVE_BUILD_DAG),
        };
        step::set_texts(&span, [(shared::JOB_ID, Some(job_id))]);
        let began = Instant::now();
        let result = span.in_scope(|| {
            let result = build();
            self.metrics.dag_built(began.elapsed());
            result
        });
        match &result {
            Ok(dag) if !span.is_disabled() => {
                let planned = describe(dag);
                let stages = planned.stages.join(",");
                let texts = [
                    (shared::ENGINE_ID, Some(&*planned.engine_id)),
                    (shared::MODEL, Some(&*planned.model)),
                    (attr::DAG_STAGES, Some(&*stages)),
                ];
                step::set_texts(&span, texts);
                let count = i64::try_from(planned.stages.len()).unwrap_or(i64::MAX);
                span.set_attribute(attr::DAG_TASK_COUNT, count);
            }
            Ok(_) => {}
            Err(error) => step::record_error(&span, error),
        }
        result
    }

    /// Queues a task, in the span `orchestrator.schedule_task`, and counts it:
    /// `dalston_orchestrator_tasks_scheduled_total`. The task gets the context of that span, so the
    /// span of the engine is below it.
    ///
    /// # Errors
    ///
    /// The error of `queue`, which the span records.
    pub async fn schedule_task<T, E: Display, F: Future<Output = Result<T, E>>>(
        &self,
        task: &ScheduledTask<'_>,
        queue: impl FnOnce(MessageContext) -> F,
    ) -> Result<T, E> {
        let span = info_span!(span::SCHEDULE_TASK, otel.kind = "producer");
        let texts = [
            (shared::TASK_ID, Some(task.task_id)),
            (shared::JOB_ID, Some(task.job_id)),
            (shared::STAGE, Some(task.stage)),
            (shared::ENGINE_ID, Some(task.engine_id)),
        ];
        step::set_texts(&span, texts);
        if task.retry_count > 0 {
            span.set_attribute(attr::RETRY_COUNT, i64::from(task.retry_count));
        }
        let queueing = span.in_scope(|| queue(MessageContext::current()));
        let queued = step::run(span.clone(), queueing).await?;
        let engine = self.metrics.engine(task.engine_id, task.profile);
        span.in_scope(|| engine.task_scheduled(task.stage));
        Ok(queued)
    }

    /// Marks a job as ended, in the span `orchestrator.mark_job_completed` (`_failed`,
    /// `_cancelled`), and counts it: `dalston_orchestrator_jobs_total`, its duration, and the
    /// length of its audio.
    ///
    /// # Errors
    ///
    /// The error of `mark`, which the span records. The job is not counted then.
    pub async fn mark_job_ended<T, E: Display>(
        &self,
        job: &EndedJob<'_>,
        mark: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = match job.status {
            JobStatus::Completed => info_span!(span::MARK_JOB_COMPLETED),
            JobStatus::Failed => info_span!(span::MARK_JOB_FAILED),
            JobStatus::Cancelled => info_span!(span::MARK_JOB_CANCELLED),
        };
        let texts = [
            (shared::JOB_ID, Some(job.job_id)),
            (attr::STATUS, Some(job.status.as_str())),
        ];
        step::set_texts(&span, texts);
        let marked = step::run(span.clone(), mark).await?;
        span.in_scope(|| match job.engine_id {
            None => self.metrics.job_ended(job.status),
            Some(engine_id) => {
                let jobs = self.metrics.jobs_of(engine_id, job.model, job.stage_count);
                jobs.ended(job.status, job.time);
                if let Some(audio) = job.audio {
                    jobs.audio_duration(audio);
                }
            }
        });
        Ok(marked)
    }

    fn event_span(&self, event: &ReceivedEvent<'_>) -> Span {
        let kind = event.kind.as_str();
        let name = match (self.names, event.kind) {
            (SpanNames::Guide, EventType::JobCreated) => span::HANDLE_JOB.to_owned(),
            (SpanNames::Guide, _) => format!("orchestrator.handle_{}", kind.replace('.', "_")),
            (SpanNames::Live, _) => format!("orchestrator.handle_{kind}"),
        };
        let span = info_span!(parent: None, "orchestrator.handle", otel.name = name, otel.kind = "consumer");
        // Fails only without an OpenTelemetry layer, and then there are no spans.
        let _ = span.set_parent(event.message.context());
        let texts = [
            (attr::EVENT_TYPE, Some(kind)),
            (shared::JOB_ID, Some(event.job_id)),
            (shared::TASK_ID, event.task_id),
            (shared::REQUEST_ID, event.message.request_id.as_deref()),
        ];
        step::set_texts(&span, texts);
        span
    }
}
