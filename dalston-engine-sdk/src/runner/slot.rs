//! An inference thread: it loads models and runs the engine, one task after the other, and survives
//! their panics. `slot/batch.rs` has what it does with several tasks at once.

mod batch;
mod output;
#[cfg(feature = "realtime")]
mod stream;

use std::any::{Any, TypeId};
use std::convert::Infallible;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant as ThreadInstant};

use dalston_telemetry::services::engine::{Device, EngineMetrics, SlotMetrics};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use self::batch::BatchSizes;
use self::output::conclude;
use super::models::Models;
use super::run_queue::{Next, RunQueue, ThreadHandle};
use super::status::ThreadGuard;
use crate::block_on;
use crate::context::{CancelFlag, TaskContext};
use crate::engine::Engine;
use crate::error::{TaskError, TaskErrorKind, says_out_of_memory};
use crate::gpu::GpuReading;
use crate::load::LoadContext;
use crate::model_id::ModelId;
use crate::models::{LoadStop, LocalModel};
use crate::scope::Scope;
use crate::spans::{self, SpanOpener, TaskSpans};
#[cfg(feature = "realtime")]
use crate::stream::StreamStep;
use crate::task::TaskRequest;

/// There are no streams without realtime sessions.
#[cfg(not(feature = "realtime"))]
type StreamStep = Infallible;

/// Models to load before the first task.
pub(super) struct Preload {
    pub(super) models: Vec<ModelId>,
    pub(super) scope: TelemetryScope,
    /// Gets the error of the first model that could not be loaded.
    pub(super) done: oneshot::Sender<Option<TaskError>>,
}

impl Preload {
    /// No models, for a thread that replaces another one.
    pub(super) fn none() -> Self {
        Self {
            models: Vec::new(),
            scope: TelemetryScope::current(),
            done: oneshot::channel().0,
        }
    }
}

/// A task for an inference thread.
pub(super) struct Work {
    pub(super) request: Arc<TaskRequest>,
    pub(super) cx: TaskContext,
    pub(super) scope: TelemetryScope,
    pub(super) gpu: GpuReading,
    pub(super) answer: oneshot::Sender<Answer>,
    /// The call of a realtime session's stream, instead of [`Engine::process`].
    #[cfg(feature = "realtime")]
    pub(super) step: Option<StreamStep>,
}

/// The span and log fields of a piece of work, for the thread that does it.
#[derive(Clone)]
pub(super) struct TelemetryScope {
    scope: Scope,
    opener: SpanOpener,
}

impl TelemetryScope {
    /// That of the caller, without a span.
    pub(super) fn current() -> Self {
        Self {
            scope: Scope::with_span(Span::none()),
            opener: SpanOpener::default(),
        }
    }

    /// That of the caller, with its span.
    #[cfg(feature = "realtime")]
    pub(super) fn with_span() -> Self {
        Self {
            scope: Scope::current(),
            opener: SpanOpener::default(),
        }
    }

    /// That of the caller, with the task's span as the current one.
    pub(super) fn of(task: &TaskSpans) -> Self {
        Self {
            scope: Scope::with_span(task.task().clone()),
            opener: task.opener().clone(),
        }
    }

    fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.scope.run(work)
    }

    fn span(&self) -> &Span {
        self.scope.span()
    }
}

/// The result of a task, and what it cost.
pub(super) struct Answer {
    pub(super) result: Result<Processed, TaskError>,
    pub(super) model: ModelUse,
    /// The device that the model computes on.
    pub(super) device: Device,
    /// How long [`Engine::process`] took, if it was called.
    pub(super) process: Option<Duration>,
    /// The task's part of that time: a part of the time of a batch, else all of it.
    pub(super) share: Duration,
}

/// How a task got its model.
#[derive(Debug, Clone, Copy)]
pub(super) enum ModelUse {
    /// It was loaded for the task, in this time.
    Loaded(Duration),
    /// It was loaded already.
    Cached,
    /// The engine has no models, or the task ended before that.
    None,
}

/// The result of a task, checked and ready to be written.
pub(super) struct Processed {
    pub(super) data: Value,
    pub(super) language: Option<String>,
}

/// How many models an inference thread keeps, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelLimits {
    pub(super) max_models: usize,
    pub(super) ttl: Duration,
}

/// Starts an inference thread that serves the run queue. The returned channel fails when the thread
/// has ended.
pub(super) fn spawn<E: Engine>(
    config: ThreadConfig<E>,
    queue: Arc<RunQueue<Work>>,
    handle: Arc<ThreadHandle>,
    preload: Preload,
) -> io::Result<oneshot::Receiver<Infallible>> {
    let (alive, ended) = oneshot::channel();
    let runtime = Handle::try_current().map_err(io::Error::other)?;
    let name = format!("inference-{}", config.load_context.slot());
    let builder = thread::Builder::new().name(name).stack_size(STACK_BYTES);
    builder.spawn(move || {
        let _entered = block_on::enter(&runtime);
        let ThreadConfig {
            engine,
            load_context,
            draining,
            limits,
            metrics,
            status,
        } = config;
        let slot = metrics.slot;
        let models = Models::new(limits.max_models, limits.ttl);
        let mut thread = InferenceThread {
            takes_batches: engine.info().batching.is_some(),
            engine,
            load_context,
            draining,
            models,
            loaded: Arc::new([]),
            sizes: BatchSizes::default(),
            metrics: metrics.engine,
            status,
        };
        let mut failure = None;
        if !preload.models.is_empty() {
            let _busy = slot.busy();
            failure = thread.preload(&preload);
        }
        queue.idle(&handle, &thread.loaded);
        let _ = preload.done.send(failure);
        loop {
            let next = queue.next(&handle);
            let _busy = slot.busy();
            match next {
                Next::Work(dispatched) => thread.dispatch(dispatched, |loaded| queue.idle(&handle, loaded)),
                Next::Sweep(now) => {
                    thread.sweep(now);
                    queue.idle(&handle, &thread.loaded);
                }
                Next::End => break,
            }
        }
        thread.drop_all();
        drop(alive);
    })?;
    Ok(ended)
}

/// What an inference thread is started with.
pub(super) struct ThreadConfig<E> {
    pub(super) engine: Arc<E>,
    pub(super) load_context: LoadContext,
    /// Cancelled when the worker drains: no model is downloaded any more.
    pub(super) draining: CancellationToken,
    pub(super) limits: ModelLimits,
    pub(super) metrics: ThreadMetrics,
    pub(super) status: ThreadGuard,
}

/// The metrics that a thread records itself.
pub(super) struct ThreadMetrics {
    pub(super) slot: SlotMetrics,
    pub(super) engine: EngineMetrics,
}

/// Native libraries expect the stack of a main thread. Pages that are not touched take no memory.
const STACK_BYTES: usize = 8 * 1024 * 1024;

struct InferenceThread<E: Engine> {
    engine: Arc<E>,
    takes_batches: bool,
    load_context: LoadContext,
    /// Cancelled when the worker drains: no model is downloaded any more.
    draining: CancellationToken,
    models: Models<Loaded<E::Model>>,
    /// The ids of the models.
    loaded: Arc<[ModelId]>,
    sizes: BatchSizes,
    metrics: EngineMetrics,
    status: ThreadGuard,
}

/// A model, and the handles that keep its files on the disk. They are dropped after it.
struct Loaded<M> {
    model: M,
    _files: Vec<Arc<LocalModel>>,
}

/// What to do when one more model does not fit into the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// Drop the other models: a task waits.
    DropOthers,
    /// Keep the models that are loaded.
    KeepOthers,
}

impl<E: Engine> InferenceThread<E> {
    /// Returns the error of the first model that could not be loaded.
    fn preload(&mut self, preload: &Preload) -> Option<TaskError> {
        let scope = &preload.scope;
        let mut failure = None;
        for model in &preload.models {
            let now = Instant::now();
            if let Err(error) = scope.run(|| {
                let never = CancelFlag::default();
                self.ensure_loaded(model, now, WhenFull::KeepOthers, &scope.opener, never)
            }) {
                scope.run(|| tracing::warn!(%model, error = %error, "model_preload_failed"));
                if error.kind() != TaskErrorKind::Cancelled {
                    failure.get_or_insert(error);
                }
            }
        }
        // Their idle time begins when the last one is loaded.
        let now = Instant::now();
        for model in self.models.ids() {
            self.models.hit(&model, now);
        }
        self.show_models();
        failure
    }

    fn sweep(&mut self, now: Instant) {
        for model in self.models.take_idle(now) {
            drop_quietly(model);
        }
        self.show_models();
    }

    /// Shows the loaded models in the status.
    fn show_models(&mut self) {
        self.loaded = self.models.ids().into();
        self.status.holds(&self.loaded);
    }

    /// Calls `idle` before the end of the task is known anywhere.
    fn process(&mut self, work: Work, idle: impl FnOnce(&Arc<[ModelId]>)) {
        let now = Instant::now();
        let acquired = self.acquire(&work, now);
        self.process_with(work, acquired, now, idle);
    }

    /// Provides the model of a task.
    fn acquire(&mut self, work: &Work, now: Instant) -> Result<ModelUse, TaskError> {
        let Work { cx, scope, .. } = work;
        scope.run(|| {
            cx.check_cancelled()?;
            let cancelled = cx.cancel_flag();
            let id = &cx.info().model;
            let acquire = match has_no_model::<E>() {
                true => scope.opener.none(),
                false => spans::model_acquire(id.as_str(), &scope.opener),
            };
            let acquired = acquire
                .in_scope(|| self.ensure_loaded(id, now, WhenFull::DropOthers, &scope.opener, cancelled));
            spans::in_memory(&acquire, matches!(acquired, Ok(ModelUse::Cached)));
            acquired.map_err(TaskError::in_load)
        })
    }

    /// Processes a task whose model was acquired, and answers.
    fn process_with(
        &mut self,
        work: Work,
        acquired: Result<ModelUse, TaskError>,
        now: Instant,
        idle: impl FnOnce(&Arc<[ModelId]>),
    ) {
        let Work {
            request,
            cx,
            scope,
            gpu,
            answer,
            #[cfg(feature = "realtime")]
            step,
        } = work;
        #[cfg(not(feature = "realtime"))]
        let step = None;
        // The peak only appears on the span.
        let peak = match scope.span().is_disabled() {
            true => None,
            false => gpu.watch_peak(),
        };
        let mut process = None;
        let model = *acquired.as_ref().unwrap_or(&ModelUse::None);
        let result = scope.run(|| {
            acquired?;
            cx.check_cancelled()?;
            self.run_engine(&request, step.as_ref(), &cx, now, &scope.opener, &mut process)
        });
        // Its idle time begins now.
        self.models.hit(&cx.info().model, Instant::now());
        let device = self.load_context.device();
        if device == Device::Cuda
            && let Some(bytes) = peak.and_then(|peak| peak.bytes())
        {
            spans::gpu_memory_peak(scope.span(), bytes);
        }
        drop(request);
        drop(cx);
        self.show_models();
        // This may close a span, and so run foreign code. None may run once the thread counts as
        // idle.
        drop(scope);
        idle(&self.loaded);
        send(
            answer,
            Answer {
                result,
                model,
                device,
                process,
                share: process.unwrap_or_default(),
            },
        );
    }

    /// Loads the model unless it is loaded.
    fn ensure_loaded(
        &mut self,
        id: &ModelId,
        now: Instant,
        when_full: WhenFull,
        opener: &SpanOpener,
        cancelled: CancelFlag,
    ) -> Result<ModelUse, TaskError> {
        let has_no_model = has_no_model::<E>();
        if self.models.hit(id, now).is_some() {
            return Ok(if has_no_model {
                ModelUse::None
            } else {
                ModelUse::Cached
            });
        }
        self.models.may_load(id, now)?;
        for model in self.models.make_room() {
            drop_quietly(model);
        }
        let span = if has_no_model {
            opener.none()
        } else {
            spans::model_load(id.as_str(), opener)
        };
        self.status.loading(Some(id));
        let begun = ThreadInstant::now();
        let cx = self
            .load_context
            .for_load(LoadStop::new(cancelled, self.draining.clone()));
        let loaded = span.in_scope(|| catch(|| self.engine.load(id, &cx)));
        self.status.loading(None);
        let took = begun.elapsed();
        match loaded {
            Ok(model) => {
                let loaded = Loaded {
                    model,
                    _files: cx.take_held(),
                };
                self.models.loaded(id.clone(), loaded, now);
                if has_no_model {
                    return Ok(ModelUse::None);
                }
                span.in_scope(|| tracing::info!(model = %id, seconds = took.as_secs_f64(), "model_loaded"));
                Ok(ModelUse::Loaded(took))
            }
            Err(error) => {
                let error = error.context(format_args!("loading model {:?}", id.as_str()));
                spans::record_failure(&span, &error);
                let full = error.kind() == TaskErrorKind::OutOfMemory && when_full == WhenFull::DropOthers;
                // A load is not delayed after models were dropped for it, or after it was
                // interrupted.
                let interrupted = matches!(
                    error.kind(),
                    TaskErrorKind::Cancelled | TaskErrorKind::DeadlineExceeded
                );
                if !(interrupted || full && self.drop_all()) {
                    self.models.load_failed(id.clone(), &error, now);
                }
                Err(error)
            }
        }
    }

    fn run_engine(
        &mut self,
        request: &TaskRequest,
        step: Option<&StreamStep>,
        cx: &TaskContext,
        now: Instant,
        opener: &SpanOpener,
        took: &mut Option<Duration>,
    ) -> Result<Processed, TaskError> {
        let id = &cx.info().model;
        let Some(model) = self.models.hit(id, now) else {
            return Err(TaskError::retryable(
                "model_missing",
                "the model was dropped before it was used",
            ));
        };
        let engine = &*self.engine;
        let (result, elapsed) = match step {
            None => {
                let span = spans::process(opener);
                let begun = ThreadInstant::now();
                let output = span.in_scope(|| catch(|| engine.process(&mut model.model, request, cx)));
                let elapsed = begun.elapsed();
                (conclude(output, span, request, cx, elapsed), elapsed)
            }
            #[cfg(feature = "realtime")]
            Some(step) => stream::run(engine, &mut model.model, step, request, cx, opener),
            #[cfg(not(feature = "realtime"))]
            Some(step) => match *step {},
        };
        *took = Some(elapsed);
        if let Err(error) = &result
            && error.spoils_model()
        {
            if error.kind() == TaskErrorKind::OutOfMemory {
                self.drop_all();
            } else if let Some(model) = self.models.remove(id) {
                drop_quietly(model);
            }
        }
        result
    }

    /// Drops all models. Returns whether there were any.
    fn drop_all(&mut self) -> bool {
        let models = self.models.take_all();
        let any = !models.is_empty();
        for model in models {
            drop_quietly(model);
        }
        any
    }
}

/// Answers a task, which may have been given up meanwhile.
fn send(to: oneshot::Sender<Answer>, answer: Answer) {
    if let Err(answer) = to.send(answer) {
        drop_quietly(answer);
    }
}

/// Whether an engine needs no model.
fn has_no_model<E: Engine>() -> bool {
    TypeId::of::<E::Model>() == TypeId::of::<()>()
}

/// Runs foreign code. A panic becomes an error.
pub(super) fn catch<T>(work: impl FnOnce() -> Result<T, TaskError>) -> Result<T, TaskError> {
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(TaskError::classified),
        Err(payload) => {
            let text = message_of(&*payload);
            drop_quietly(payload);
            let (kind, code) = if says_out_of_memory(&text) {
                (TaskErrorKind::OutOfMemory, "out_of_memory")
            } else {
                (TaskErrorKind::Panic, "panic")
            };
            Err(TaskError::new(kind, code, format!("the engine panicked: {text}")))
        }
    }
}

/// Drops a foreign value. Its destructor may panic, and so may the destructor of the payload of
/// that panic.
fn drop_quietly<T>(value: T) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(payload);
    }
}

/// The message of a panic.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("its message is not text").to_owned()
}
