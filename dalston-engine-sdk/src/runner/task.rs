//! The way of one task, from the moment it was read to the moment that nobody needs to know of it any more.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::metrics::Outcome as Status;
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::services::engine::{self, Device, InMemory, ModelMetrics};
use dalston_telemetry::{propagate, redact};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

#[cfg(feature = "audio")]
use super::decode::decode;
use super::files;
use super::lease::{Confirmed, Stop, StopOnDrop, at_once, keep};
use super::retry::{BROKER_CALL, retry};
use super::slot::{Answer, ModelUse, Processed, TelemetryScope, Work};
use super::status::{TaskGuard, TaskPhase};
use super::sweep;
use super::worker::{Origin, Worker};
use crate::broker::{
    BrokerError, Claim, Delivery, EventContext, Lookup, Outcome, Ownership, RedeliveryReason, TaskMetadata,
};
use crate::context::{CancelReason, OutputFile, TaskContext};
use crate::error::{TaskError, TaskErrorKind, chain, shorten};
use crate::model_id::ModelId;
use crate::protocol::{TaskResponseData, Timestamp};
use crate::spans::{QueueWait, TaskSpans, record_failure, within};
use crate::stage::{StageName, language_tag};
use crate::store::key;
use crate::task::{TaskInfo, TaskRequest};
use crate::task_dir::TaskFiles;

/// How long a cancelled engine gets to return before its task is closed without it.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// How long a result may take to be stored after the worker should have stopped. Together with the grace of the engine it
/// leaves some of the last seconds for reporting the task, or handing it back.
const SAVE_GRACE: Duration = Duration::from_millis(1_500);
/// How long an inference thread may go on after the end of its task before another one takes its place.
const STUCK_PATIENCE: Duration = Duration::from_secs(10);
/// Errors become part of events and documents.
const LONGEST_ERROR: usize = 2_000;

/// The right to have a task before its inference ends: what bounds the tasks that are in hand.
pub(super) type Turn = OwnedSemaphorePermit;

/// Looks a delivered task up, and works on it if it should be worked on.
pub(super) async fn handle(
    worker: Arc<Worker>,
    origin: Arc<Origin>,
    delivery: Delivery,
    turn: Turn,
    hand: TaskGuard,
) {
    fault_point!(Received);
    let read_at = Timestamp::now();
    let claim = &delivery.claim;
    let log = LogContext::new()
        .task_id(&*claim.task_id)
        .job_id(&*claim.job_id)
        .engine_id(&*claim.consumer.engine_id);
    let lookup = retry("looking up a task", || origin.broker.lookup(claim));
    let Ok(lookup) = lookup.with_log_context(log.clone()).await else {
        // The task comes back when its lease ends.
        return;
    };
    let (metadata, ignorance) = match lookup {
        Lookup::Task(metadata) => (Some(*metadata), None),
        Lookup::Missing => {
            let nothing = "nothing is known about the task: its metadata is gone";
            (None, Some(TaskError::retryable("metadata_missing", nothing)))
        }
        Lookup::Malformed { metadata, problem } => {
            let problem = TaskError::permanent("invalid_metadata", problem);
            (Some(*metadata), Some(problem))
        }
        Lookup::Lost => return,
        skipped @ (Lookup::Cancelled | Lookup::Blocked(_)) => {
            return skip(&worker, &origin, &delivery, skipped)
                .with_log_context(log)
                .await;
        }
    };
    fault_point!(LookedUp);
    let carried = metadata
        .as_ref()
        .and_then(|metadata| metadata.trace_context.as_deref());
    let carried = carried.map_or_else(Context::new, propagate::extract_json);
    let request_id = metadata.as_ref().and_then(|metadata| metadata.request_id.clone());
    let log = log
        .request_id(request_id.unwrap_or_default())
        .carrier(carried.clone());

    let attempt = Attempt::new(&worker, &origin, &hand, &delivery, metadata, carried, read_at);
    // Boxed, here and below: a future is moved with everything that it will ever hold, and those of a task are large.
    let work = Box::pin(async {
        attempt.note_arrival(&delivery, read_at);
        let stop_the_engine = StopOnDrop(attempt.stop.clone());
        tokio::select! {
            biased;
            () = attempt.run(ignorance, turn) => {}
            never = keep(&*origin.broker, claim, attempt.deadline, &attempt.confirmed, &attempt.stop, &worker.drain) => match never {},
        }
        drop(stop_the_engine);
        attempt.spans.end();
    });
    within(attempt.spans.task(), work).with_log_context(log).await;
}

pub(super) fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // Its lease ends, and then the task is delivered again.
        tracing::error!(%error, "task_handling_panicked");
    }
}

/// Removes a task that nobody wants from the queue.
async fn skip(worker: &Worker, origin: &Origin, delivery: &Delivery, why: Lookup) {
    let outcome = match why {
        Lookup::Blocked(reason) => {
            tracing::info!(reason, "task_skipped_blocked");
            Outcome::Skipped
        }
        _ => {
            worker.metrics.task_skipped_cancelled();
            tracing::info!("task_skipped_job_cancelled");
            // Whoever had it before may have announced it, and then the job waits for its end.
            match delivery.redelivery {
                Some(_) => Outcome::Cancelled,
                None => Outcome::Skipped,
            }
        }
    };
    let event = EventContext::default();
    let _ = retry("removing a task", || {
        origin.broker.finish(&delivery.claim, &outcome, &event)
    })
    .await;
}

/// One delivery of one task that should be done.
pub(super) struct Attempt<'a> {
    worker: &'a Worker,
    origin: &'a Origin,
    hand: &'a TaskGuard,
    claim: &'a Claim,
    metadata: Option<TaskMetadata>,
    redelivery: Option<RedeliveryReason>,
    info: TaskInfo,
    event: EventContext,
    spans: TaskSpans,
    stop: Stop,
    confirmed: Confirmed,
    /// Known once `request.json` was read.
    model: OnceLock<ModelId>,
    begun: Instant,
    deadline: Instant,
    /// By how much the deadline had passed already when the task was read.
    late: Option<Duration>,
}

/// What a task needs to be processed.
struct Prepared {
    request: Arc<TaskRequest>,
    info: TaskInfo,
    files: TaskFiles,
}

/// What came of processing a task.
struct Done {
    processed: Processed,
    files: TaskFiles,
    outputs: Vec<OutputFile>,
    audio_seconds: Option<f64>,
    process: Duration,
    device: Device,
    /// Those of its model.
    metrics: Arc<ModelMetrics>,
}

impl<'a> Attempt<'a> {
    fn new(
        worker: &'a Worker,
        origin: &'a Origin,
        hand: &'a TaskGuard,
        delivery: &'a Delivery,
        metadata: Option<TaskMetadata>,
        carried: Context,
        read_at: Timestamp,
    ) -> Self {
        let claim = &delivery.claim;
        let stage = metadata.as_ref().and_then(|metadata| metadata.stage.parse().ok());
        let begun = Instant::now();
        let left = delivery.timeout_at.map(|at| at.seconds_since(read_at));
        let left_or_default = left.unwrap_or(worker.config.task_timeout.as_secs_f64());
        let info = TaskInfo {
            task_id: claim.task_id.clone(),
            job_id: claim.job_id.clone(),
            stage: stage.unwrap_or_else(|| StageName::from(worker.stage.clone())),
            engine_id: claim.consumer.engine_id.clone(),
            instance: claim.consumer.instance.clone(),
            request_id: metadata.as_ref().and_then(|metadata| metadata.request_id.clone()),
            model: ModelId::default(),
            attempt: claim.delivery_count,
            enqueued_at: delivery.enqueued_at.or_else(|| metadata.as_ref()?.enqueued_at),
            audio_seconds: None,
        };
        let spans = TaskSpans::open(
            &worker.telemetry,
            &worker.interruption,
            carried,
            &info,
            origin.queue,
        );
        let event = EventContext {
            request_id: info.request_id.clone(),
            trace_context: spans.carrier(),
        };
        Self {
            worker,
            origin,
            hand,
            claim,
            metadata,
            redelivery: delivery.redelivery,
            info,
            event,
            spans,
            stop: Stop::default(),
            confirmed: Confirmed::at(delivery.asked_at.map_or(begun, Instant::from_std)),
            model: OnceLock::new(),
            begun,
            deadline: begun + bounded_seconds(left_or_default),
            late: left
                .filter(|left| *left <= 0.0)
                .map(|left| bounded_seconds(-left)),
        }
    }

    fn note_arrival(&self, delivery: &Delivery, read_at: Timestamp) {
        tracing::info!(delivery_count = self.info.attempt, stage = %self.info.stage, "task_received");
        // What a second delivery waited for begins where the first one ended.
        let queued_at = delivery.requeued_at.or(self.info.enqueued_at);
        if let Some(wait) = queued_at.and_then(|queued_at| QueueWait::between(queued_at, read_at)) {
            self.spans.queue_wait(&self.info, wait);
            self.worker.metrics.queue_wait(bounded_seconds(wait.seconds));
        }
        if let Some(reason) = self.redelivery {
            self.worker.metrics.task_redelivery(match reason {
                RedeliveryReason::EngineCrash => engine::RedeliveryReason::EngineCrash,
                RedeliveryReason::Deferred => engine::RedeliveryReason::Deferred,
            });
        }
    }

    /// Reports the start of the task, does it, and reports what came of it. With `ignorance`, nothing can be done but to
    /// say so.
    async fn run(&self, ignorance: Option<TaskError>, turn: Turn) {
        // A failure without a start before it is taken for a replay by the orchestrator, and the job would hang.
        match retry("reporting the start of a task", || {
            self.origin.broker.started(self.claim, &self.event)
        })
        .await
        {
            Ok(Ownership::Held) => {}
            Ok(Ownership::Lost) => return self.lost(),
            Err(_) => return self.hand_back().await,
        }
        fault_point!(Started);
        // What makes a task hopeless says more than a reason to stop that came up meanwhile.
        if let Err(error) = ignorance.map_or_else(|| self.refuse_hopeless(), Err) {
            return self.failed(error).await;
        }
        let result = Box::pin(self.work(turn)).await;
        // An engine that is told to stop may fail in any way; the reason that it was told is the truth.
        let result = match self.stop.reason() {
            Some(reason) => result.map_err(|_| reason.into_error()),
            None => result,
        };
        match (result, self.stop.reason()) {
            (Ok((done, artifacts)), _) => self.completed(done, Outcome::Completed { artifacts }).await,
            (Err(_), Some(CancelReason::Shutdown)) => self.hand_back().await,
            (Err(_), Some(CancelReason::LeaseLost)) => self.lost(),
            (Err(error), Some(CancelReason::Requested)) => self.cancelled(&error).await,
            // Whatever it failed of, a job that is being cancelled wants no further attempt.
            (Err(error), _) if self.is_cancelled().await => self.cancelled(&error).await,
            (Err(error), _) => self.failed(error).await,
        }
    }

    async fn work(&self, turn: Turn) -> Result<(Done, Vec<crate::protocol::ArtifactReference>), TaskError> {
        let prepared = self.before_inference(Box::pin(self.download())).await??;
        fault_point!(Downloaded);
        self.hand.enter(TaskPhase::Waiting);
        let mut done = self.infer(prepared).await?;
        fault_point!(Inferred);
        self.hand.enter(TaskPhase::Saving);
        // The next task may be read as soon as this one's result is sure to be on its way.
        let saving = async {
            // What a direct task gives is kept in memory, and has no need to wait for a slow store.
            let _uploading = match self.origin.queue {
                Some(_) => Some(self.worker.uploads.acquire().await),
                None => None,
            };
            drop(turn);
            let outputs = std::mem::take(&mut done.outputs);
            Box::pin(self.upload(&mut done, outputs)).await
        };
        let saved = self.stop.unless_unwanted(SAVE_GRACE, saving).await;
        let artifacts = saved.map_err(CancelReason::into_error)??;
        Ok((done, artifacts))
    }

    /// Finds what makes it pointless to begin.
    fn refuse_hopeless(&self) -> Result<(), TaskError> {
        let (deliveries, limit) = (self.claim.delivery_count, self.worker.config.max_deliveries);
        if deliveries > limit && self.redelivery == Some(RedeliveryReason::EngineCrash) {
            let text = format!(
                "the task was delivered {deliveries} times (limit {limit}) and no worker survived it or finished it in time"
            );
            return Err(TaskError::permanent("too_many_deliveries", text));
        }
        if let Some(Err(error)) = self
            .metadata
            .as_ref()
            .map(|metadata| metadata.stage.parse::<StageName>())
        {
            return Err(TaskError::permanent("invalid_stage", error));
        }
        for id in [&self.claim.job_id, &self.claim.task_id] {
            if !key::is_plain_name(id) {
                return Err(TaskError::permanent(
                    "invalid_id",
                    format!("{id:?} can't be the id of a task or a job"),
                ));
            }
        }
        if let Some(late) = self.late {
            let text = format!("the task was read {:.1} s after its deadline", late.as_secs_f64());
            return Err(TaskError::new(
                TaskErrorKind::DeadlineExceeded,
                "deadline_exceeded",
                text,
            ));
        }
        Ok(())
    }

    /// Runs a step that comes before inference. When the worker drains, the task goes back instead.
    async fn before_inference<F: Future>(&self, step: F) -> Result<F::Output, TaskError> {
        let mut step = pin!(step);
        if self.stop.reason().is_none()
            && !self.worker.drain.begun.is_cancelled()
            && let Some(output) = at_once(step.as_mut()).await
        {
            return Ok(output);
        }
        let drained = async {
            self.worker.drain.begun.cancelled().await;
            self.stop.set(CancelReason::Shutdown);
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            reason = self.stop.stopped() => Err(reason.into_error()),
            never = drained => match never {},
            output = step => Ok(output),
        }
    }

    /// Brings `request.json` and the inputs here, and decodes the audio.
    async fn download(&self) -> Result<Prepared, TaskError> {
        let span = self.spans.download_input();
        let begun = Instant::now();
        let result = within(&span, self.fetch()).await;
        self.worker.metrics.s3_download(begun.elapsed());
        let prepared = result.inspect_err(|error| record_failure(&span, error))?;
        if let Some(seconds) = prepared.info.audio_seconds {
            self.spans.audio_seconds(seconds);
        }
        Ok(prepared)
    }

    async fn fetch(&self) -> Result<Prepared, TaskError> {
        let worker = self.worker;
        let metadata = self.metadata.as_ref();
        let data = files::read_request(&self.origin.store, self.claim).await?;
        fault_point!(RequestRead);
        let model = metadata.and_then(|metadata| metadata.model.clone());
        let model = model.map(ModelId::from);
        let model = model.or_else(|| Some(ModelId::from(data.config.get("loaded_model_id")?.as_str()?)));
        let model = model.or_else(|| worker.default_model.clone()).unwrap_or_default();
        self.spans.model(model.as_str());
        let _ = self.model.set(model.clone());

        let files = TaskFiles::new(sweep::TASK, &worker.config.temp_root, &worker.removals)
            .with_input(self.origin.files.clone());
        let stage = self.info.stage.clone();
        let request = Box::pin(files::fetch_inputs(
            &self.origin.store,
            stage,
            data,
            metadata,
            &files,
        ))
        .await?;
        #[cfg(feature = "audio")]
        let request = decode(request, worker.audio, &files).await?;
        let mut info = self.info.clone();
        info.model = model;
        info.audio_seconds = request.audio_seconds();
        Ok(Prepared {
            request: Arc::new(request),
            info,
            files,
        })
    }

    /// Has the task processed on an inference thread.
    async fn infer(&self, prepared: Prepared) -> Result<Done, TaskError> {
        let Prepared { request, info, files } = prepared;
        let cx = TaskContext::new(
            info,
            self.deadline.into_std(),
            files.dir(),
            self.stop.flag(),
            self.worker.on_progress.clone(),
            self.worker.registry.clone(),
        );
        let mut entry = self.worker.pool.enqueue(&cx.info().model);
        let admitted = async {
            let thread = entry.thread().await.ok_or_else(|| {
                TaskError::retryable("worker_failed", "the worker has no inference thread left")
            })?;
            self.admit().await?;
            Ok::<_, TaskError>(thread)
        };
        let thread = self.before_inference(admitted).await??;
        self.hand.enter(TaskPhase::Processing);
        let mut running = self.worker.pool.begin(thread, |answer| Work {
            request: Arc::clone(&request),
            cx: cx.clone(),
            scope: TelemetryScope::of(&self.spans),
            gpu: self.worker.status.gpu_reading().clone(),
            answer,
        });
        let answer = self.stop.unless(running.answer()).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                // The deadline is a promise; other reasons leave the engine a moment to end its spans.
                let in_time = match reason {
                    CancelReason::DeadlineExceeded => None,
                    _ => timeout(CANCEL_GRACE, running.answer()).await.ok(),
                };
                let Some(answer) = in_time else {
                    running.leave(self.deadline.max(Instant::now()) + STUCK_PATIENCE, files);
                    return Err(reason.into_error());
                };
                answer
            }
        };
        let Answer {
            result,
            model,
            process,
            device,
            ..
        } = answer;
        let info = cx.info();
        let metrics = self.worker.model_metrics(&info.model);
        match model {
            ModelUse::Loaded(took) => {
                metrics.model_load(took);
                metrics.model_acquire(InMemory::No, took);
            }
            ModelUse::Kept => {
                metrics.model_cache_hit();
                metrics.model_acquire(InMemory::Yes, Duration::ZERO);
            }
            ModelUse::None => {}
        }
        let said = cx.take_said();
        let language = result
            .as_ref()
            .ok()
            .and_then(|processed| processed.language.clone())
            .or(said.language);
        if let Some(language) = language
            .as_deref()
            .or(request.requested_language())
            .and_then(language_tag)
        {
            self.spans.language(language);
        }
        let processed = result?;
        self.worker.status.worked(&info.model);
        // Work that is done is kept when the worker shuts down, but not if nobody wants it or someone else has it.
        match self.stop.reason() {
            None | Some(CancelReason::Shutdown) => {}
            Some(reason) => return Err(reason.into_error()),
        }
        Ok(Done {
            processed,
            files,
            outputs: said.artifacts,
            audio_seconds: info.audio_seconds,
            process: process.unwrap_or_default(),
            device,
            metrics,
        })
    }

    /// Admits the task to the inference thread that is assigned to it and waits for it.
    ///
    /// This is the place for everything that must happen once per start and before inference: counting starts, reporting
    /// them to the platform, measuring the wait for a slot, forming batches. A task that is refused gives its thread to the
    /// next one. Today only a task that is not wanted any more is refused.
    async fn admit(&self) -> Result<(), TaskError> {
        match self.stop.reason() {
            Some(reason) => Err(reason.into_error()),
            None => Ok(()),
        }
    }

    async fn upload(
        &self,
        done: &mut Done,
        outputs: Vec<OutputFile>,
    ) -> Result<Vec<crate::protocol::ArtifactReference>, TaskError> {
        let span = self.spans.upload_output();
        let begun = Instant::now();
        let data = std::mem::take(&mut done.processed.data);
        let response =
            TaskResponseData::new(&*self.info.task_id, Timestamp::now(), self.begun.elapsed(), data);
        let upload = files::upload(
            &self.origin.store,
            self.claim,
            &self.info.stage,
            outputs,
            response,
            self,
        );
        let result = within(&span, upload).await;
        self.worker.metrics.s3_upload(begun.elapsed());
        result.inspect_err(|error| record_failure(&span, error))
    }

    /// Asks the broker if it has been silent for so long that a peer may have taken the task over. A process that stood still
    /// would otherwise write over the result of whoever has finished the task meanwhile.
    pub(super) async fn still_ours(&self) -> Result<(), TaskError> {
        if self.confirmed.elapsed() < self.origin.broker.lease() / 2 {
            return Ok(());
        }
        self.ask_whether_ours().await
    }

    /// Asks the broker, and renews the lease with that.
    pub(super) async fn ask_whether_ours(&self) -> Result<(), TaskError> {
        let asked = Instant::now();
        match retry("renewing a lease", || self.origin.broker.renew(self.claim)).await {
            Ok(Ownership::Held) => {
                self.confirmed.again(asked);
                Ok(())
            }
            Ok(Ownership::Lost) => {
                self.stop.set(CancelReason::LeaseLost);
                Err(CancelReason::LeaseLost.into_error())
            }
            Err(error) => Err(TaskError::retryable("broker", chain(&error))),
        }
    }

    async fn completed(&self, done: Done, outcome: Outcome) {
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

    async fn is_cancelled(&self) -> bool {
        matches!(
            timeout(BROKER_CALL, self.origin.broker.is_cancelled(self.claim)).await,
            Ok(Ok(true))
        )
    }

    async fn cancelled(&self, error: &TaskError) {
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

    async fn failed(&self, error: TaskError) {
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
    async fn hand_back(&self) {
        fault_point!(BeforeRelease);
        match retry("handing a task back", || self.origin.broker.release(self.claim)).await {
            Ok(_) => {
                fault_point!(AfterRelease);
                tracing::info!("task_handed_back");
            }
            Err(error) => self.unreported(&error),
        }
    }

    fn lost(&self) {
        record_failure(self.spans.task(), &CancelReason::LeaseLost.into_error());
        tracing::warn!("task_lost_to_another_worker");
    }

    /// The broker did not take the outcome. The task is delivered again when its lease ends.
    fn unreported(&self, error: &BrokerError) {
        let text = chain(error);
        record_failure(self.spans.task(), &TaskError::retryable("broker", text.clone()));
        tracing::error!(error = text, "critical_event_may_be_lost");
    }
}

/// Seconds that came from outside, as a duration that can be added to the clock.
fn bounded_seconds(seconds: f64) -> Duration {
    const LONGEST: f64 = 30.0 * 86_400.0;
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
}
