//! Inference, seen from the control loop: waiting for a thread, admission, and the answer.

use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::services::engine::{Device, InMemory, ModelMetrics};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::attempt::Attempt;
use super::class::Class;
use super::forming::Candidate;
use super::prepare::Prepared;
use super::retry::retry;
use super::run_lock::BatchGuard;
use super::slot::{Answer, ModelUse, Processed, TelemetryScope, Work};
use super::status::TaskPhase;
use super::worker::Worker;
use crate::broker::Ownership;
use crate::context::{CancelReason, OutputFile, TaskContext};
use crate::error::{TaskError, chain};
use crate::stage::language_tag;
use crate::task::TaskRequest;
use crate::task_dir::TaskFiles;

/// How long a cancelled engine gets to return before its task ends without it.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// How long an inference thread may go on after the end of its task before another one takes its
/// place.
pub(super) const STUCK_LIMIT: Duration = Duration::from_secs(10);

/// The code of a task whose start could not be reported. It goes back to the queue.
pub(super) const NOT_STARTED: &str = "start_not_reported";

/// The result of inference.
pub(super) struct Inferred {
    pub(super) processed: Processed,
    pub(super) files: TaskFiles,
    pub(super) outputs: Vec<OutputFile>,
    pub(super) audio_seconds: Option<f64>,
    pub(super) process: Duration,
    /// The task's part of that time, of which the tasks of a batch share one.
    pub(super) share: Duration,
    pub(super) device: Device,
    /// The metrics of the model.
    pub(super) metrics: ModelMetrics,
}

impl Worker {
    /// Counts how a task got its model.
    pub(super) fn model_used(&self, metrics: &ModelMetrics, model: ModelUse) {
        match model {
            ModelUse::Loaded(took) => {
                metrics.model_load(took);
                metrics.model_acquire(InMemory::No, took);
            }
            ModelUse::Cached => {
                metrics.model_cache_hit();
                metrics.model_acquire(InMemory::Yes, Duration::ZERO);
            }
            ModelUse::None => {}
        }
        if !matches!(model, ModelUse::None) {
            self.breaker.loaded();
        }
    }
}

impl Attempt<'_> {
    /// Has the task processed on an inference thread.
    pub(super) async fn infer(&self, prepared: Prepared) -> Result<Inferred, TaskError> {
        let Prepared { request, info, files } = prepared;
        let cx = TaskContext::new(
            info,
            self.deadline.into_std(),
            files.dir(),
            self.stop.flag(),
            self.worker.on_progress.clone(),
            self.worker.registry.clone(),
            Handle::current(),
        );
        let mut entry = self.worker.pool.enqueue(self.candidate(&request, &cx));
        let admitted = async {
            let thread = entry.thread().await.ok_or_else(|| {
                TaskError::retryable("worker_failed", "the worker has no inference thread left")
            })?;
            self.admit(thread.guard()).await?;
            Ok::<_, TaskError>(thread)
        };
        let thread = self.before_inference(admitted).await??;
        let waited = thread.waited();
        self.worker.metrics.slot_wait(waited);
        self.spans.slot_wait(waited);
        self.status.enter(TaskPhase::Processing);
        let mut running = self.worker.pool.begin(thread, |answer| Work {
            request: Arc::clone(&request),
            cx: cx.clone(),
            scope: TelemetryScope::of(&self.spans),
            gpu: self.worker.status.gpu_reading().clone(),
            answer,
            #[cfg(feature = "realtime")]
            step: None,
        });
        let answer = match self.stop.unless(running.answer()).await {
            Ok(answer) => answer,
            Err(reason) => {
                // A deadline is kept exactly. Other reasons leave the engine a moment to end its
                // spans.
                let in_time = match reason {
                    CancelReason::DeadlineExceeded => None,
                    _ => timeout(CANCEL_GRACE, running.answer()).await.ok(),
                };
                let Some(answer) = in_time else {
                    running.leave(self.deadline.max(Instant::now()) + STUCK_LIMIT, files);
                    return Err(reason.into_error());
                };
                answer
            }
        };
        let Answer {
            result,
            model,
            process,
            share,
            device,
        } = answer;
        let info = cx.info();
        let metrics = self.worker.metrics.model(info.model.as_str());
        self.worker.model_used(&metrics, model);
        let reported = cx.take_reported();
        if let Some(count) = reported.speech_segments {
            self.worker.metrics.vad_segments(count);
        }
        let language = result
            .as_ref()
            .ok()
            .and_then(|processed| processed.language.clone())
            .or(reported.language);
        if let Some(language) = language
            .as_deref()
            .or(request.requested_language())
            .and_then(language_tag)
        {
            self.spans.language(language);
        }
        let processed = result?;
        self.worker.status.worked(&info.model);
        // A finished result is kept when the worker shuts down, but not if it is of no use any
        // more.
        match self.stop.reason() {
            None | Some(CancelReason::Shutdown) => {}
            Some(reason) => return Err(reason.into_error()),
        }
        Ok(Inferred {
            processed,
            files,
            outputs: reported.artifacts,
            audio_seconds: info.audio_seconds,
            process: process.unwrap_or_default(),
            share,
            device,
            metrics,
        })
    }

    /// The task as batches see it.
    fn candidate(&self, request: &TaskRequest, cx: &TaskContext) -> Candidate {
        let now = Instant::now();
        let batches = match self.runs_alone() {
            true => None,
            false => self.worker.batches.as_ref(),
        };
        // A late start must not cost the task its deadline.
        let wait = batches.map_or(Duration::ZERO, |batches| batches.limits.wait);
        let ripe_at = (now + wait).min(self.deadline - self.deadline.duration_since(now) / 2);
        Candidate {
            class: Class::Batch,
            model: cx.info().model.clone(),
            key: batches.and_then(|batches| (batches.key)(request)).map(Arc::from),
            audio: cx.info().audio_seconds.unwrap_or_default(),
            since: now,
            ripe_at,
        }
    }

    /// Whether the task has killed a worker, perhaps.
    fn runs_alone(&self) -> bool {
        self.inference_starts() > 0
    }

    /// Admits the task to the inference thread that is assigned to it. The thread waits for the
    /// answer, and goes to the next task if this one is refused.
    ///
    /// Everything that happens once per start and before inference belongs here. The start is
    /// reported only now: the platform treats a task that only waits differently from a running
    /// one.
    async fn admit(&self, batch: &BatchGuard) -> Result<(), TaskError> {
        if let Some(reason) = self.stop.reason() {
            return Err(reason.into_error());
        }
        let guard = self.worker.run_lock.lock(self.runs_alone(), batch).await;
        let broker = &self.origin.broker;
        self.reports_start();
        let started = retry("reporting the start of a task", || {
            broker.started(self.claim, &self.event)
        });
        match started.await {
            Ok(Ownership::Held | Ownership::Unrecorded) => {
                self.keep(guard);
                fault_point!(Started);
                Ok(())
            }
            Ok(Ownership::Lost) => {
                self.stop.set(CancelReason::LeaseLost);
                Err(CancelReason::LeaseLost.into_error())
            }
            Err(error) => Err(TaskError::retryable(NOT_STARTED, chain(&error))),
        }
    }
}
