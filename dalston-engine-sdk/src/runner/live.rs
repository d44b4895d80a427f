//! The audio of realtime sessions on the inference threads: [`Live`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::metrics::Metrics;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::class::Class;
use super::forming::Candidate;
use super::inference::STUCK_LIMIT;
use super::slot::{Answer, TelemetryScope, Work};
use super::status::RunnerStatus;
use super::stop::{Stop, StopOnDrop};
use super::sweep;
use super::worker::Worker;
use crate::audio::{Audio, AudioFormat, VoiceDetector};
use crate::context::{CancelReason, TaskContext};
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::protocol::{TaskRequestData, Timestamp};
use crate::stage::{Stage, StageName};
use crate::store::Store;
use crate::stream::StreamStep;
use crate::task::{TaskInfo, TaskRequest};
use crate::task_dir::TaskFiles;

/// How long the transcription of an utterance may take, beside the wait for a thread.
const LONGEST: Duration = Duration::from_secs(120);

/// Transcribes audio of sessions on the inference threads of a runner. Such a task has no permit,
/// no lease and no upload. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live {
    worker: Arc<Worker>,
}

/// A stretch of audio of a session.
#[derive(Debug)]
pub(crate) struct LiveTask {
    pub(crate) session_id: Arc<str>,
    /// Unique in the session.
    pub(crate) number: u64,
    pub(crate) class: Class,
    /// `None` for the default model.
    pub(crate) model: Option<ModelId>,
    pub(crate) config: Map<String, Value>,
    /// One channel in the rate of [`Live::format`].
    pub(crate) samples: Vec<f32>,
    /// For an engine that streams natively.
    pub(crate) step: Option<StreamStep>,
}

impl Live {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    pub(crate) fn engine_id(&self) -> &str {
        &self.worker.consumer.engine_id
    }

    pub(crate) fn instance(&self) -> &str {
        &self.worker.consumer.instance
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.worker.registry
    }

    pub(crate) fn status(&self) -> &RunnerStatus {
        &self.worker.status
    }

    /// The model for sessions that name none.
    pub(crate) fn default_model(&self) -> Option<&ModelId> {
        self.worker.default_model.as_ref()
    }

    /// The format of the engine.
    pub(crate) fn format(&self) -> AudioFormat {
        self.worker.audio.unwrap_or(AudioFormat::MONO_16K)
    }

    /// The files of the deployment.
    pub(crate) fn store(&self) -> &Store {
        &self.worker.origin.store
    }

    /// Tracks the removal of files.
    pub(crate) fn removals(&self) -> &TaskTracker {
        &self.worker.removals
    }

    /// A voice detector for a session.
    pub(crate) fn voice_detector(&self) -> Box<dyn VoiceDetector + Send> {
        (self.worker.voice_detector)()
    }

    /// Cancelled when the worker drains: no session begins any more.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.worker.drain.begun
    }

    /// Cancelled at the end of the drain: sessions are terminated.
    pub(crate) fn drained(&self) -> &CancellationToken {
        &self.worker.drain.over
    }

    /// Keeps the drain waiting until it is dropped.
    pub(crate) fn track(&self) -> TaskTrackerToken {
        self.worker.sessions.token()
    }

    /// Transcribes audio and returns the `data` of the answer. Dropping the future withdraws the
    /// task, or tells the engine to stop.
    pub(crate) async fn transcribe(&self, task: LiveTask) -> Result<Value, TaskError> {
        let stop = Stop::default();
        let _stop_engine = StopOnDrop(stop.clone());
        let (sender, answered) = oneshot::channel();
        let worker = Arc::clone(&self.worker);
        let format = self.format();
        let work = async move {
            let _ = sender.send(run(&worker, format, task, &stop).await);
        };
        // A task of its own: an engine that does not stop must be watched after the session.
        tokio::spawn(work.in_current_span().with_current_subscriber());
        let lost = || TaskError::retryable("worker_failed", "the transcription of an utterance panicked");
        answered.await.map_err(|_| lost())?
    }
}

async fn run(worker: &Worker, format: AudioFormat, task: LiveTask, stop: &Stop) -> Result<Value, TaskError> {
    let LiveTask {
        session_id,
        number,
        class,
        model,
        config,
        samples,
        step,
    } = task;
    let audio = Audio::from_samples(interleaved(samples, format.channels), format);
    let task_id = format!("{session_id}-{number}");
    let info = TaskInfo {
        task_id: task_id.clone(),
        job_id: session_id.to_string(),
        stage: StageName::from(Stage::Transcribe),
        engine_id: worker.consumer.engine_id.clone(),
        instance: worker.consumer.instance.clone(),
        request_id: None,
        model: model.or_else(|| worker.default_model.clone()).unwrap_or_default(),
        attempt: 1,
        enqueued_at: Some(Timestamp::now()),
        audio_seconds: Some(audio.duration().as_secs_f64()),
    };
    let mut data = TaskRequestData::new(&task_id, &*session_id);
    data.config = config;
    let mut request = TaskRequest::new(info.stage.clone(), data, Vec::new());
    request.set_audio(audio);
    let files = TaskFiles::new(sweep::TASK, &worker.config.temp_root, &worker.removals);

    let now = Instant::now();
    let mut entry = worker.pool.enqueue(Candidate {
        class,
        model: info.model.clone(),
        // Utterances do not wait for a batch.
        key: None,
        audio: info.audio_seconds.unwrap_or_default(),
        since: now,
        ripe_at: now,
    });
    let thread = stop
        .unless(entry.thread())
        .await
        .map_err(CancelReason::into_error)?;
    let thread = thread
        .ok_or_else(|| TaskError::retryable("worker_failed", "the worker has no inference thread left"))?;
    worker.metrics.slot_wait(thread.waited());
    let deadline = Instant::now() + LONGEST;
    let cx = TaskContext::new(
        info,
        deadline.into_std(),
        files.dir(),
        stop.flag(),
        worker.on_progress.clone(),
        worker.registry.clone(),
        Handle::current(),
    );
    let scope = TelemetryScope::with_span();
    let request = Arc::new(request);
    let mut running = worker.pool.begin(thread, |answer| Work {
        request,
        cx: cx.clone(),
        scope,
        gpu: worker.status.gpu_reading().clone(),
        answer,
        step,
    });
    let answer = tokio::select! {
        biased;
        answer = running.answer() => answer,
        reason = async {
            tokio::select! {
                reason = stop.stopped() => reason,
                () = tokio::time::sleep_until(deadline) => CancelReason::DeadlineExceeded,
            }
        } => {
            stop.set(reason);
            running.leave(Instant::now() + STUCK_LIMIT, files);
            return Err(reason.into_error());
        }
    };
    let Answer { result, model, .. } = answer;
    let id = &cx.info().model;
    worker.model_used(&worker.metrics.model(id.as_str()), model);
    let processed = result?;
    worker.status.worked(id);
    Ok(processed.data)
}

/// The samples for as many channels.
fn interleaved(samples: Vec<f32>, channels: u16) -> Vec<f32> {
    match channels {
        0 | 1 => samples,
        channels => samples
            .into_iter()
            .flat_map(|sample| std::iter::repeat_n(sample, usize::from(channels)))
            .collect(),
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("consumer", &self.worker.consumer)
            .finish_non_exhaustive()
    }
}
