//! Several tasks in one call of an engine: [`Batch`], and its limits: [`Batching`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::context::TaskContext;
use crate::error::TaskError;
use crate::scope::Scope;
use crate::task::TaskRequest;

/// More tasks than any accelerator takes at once.
pub(crate) const MAX_TASKS: usize = 256;

/// How many tasks an engine takes at once, for
/// [`EngineInfo::batching`](crate::EngineInfo::batching).
///
/// ```
/// use dalston_engine_sdk::Batching;
///
/// let limits = Batching::up_to(8).audio_seconds(240.0);
/// assert_eq!((limits.max_tasks, limits.wait.as_secs()), (8, 0));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Batching {
    /// The most tasks of a batch, from 1 to 256. `DALSTON_MAX_BATCH` lowers it.
    pub max_tasks: usize,
    /// The most audio of a batch in seconds: the length of its longest recording times the number
    /// of its tasks, because an accelerator pads the others. A longer recording runs alone. Default
    /// no limit.
    pub max_audio_seconds: Option<f64>,
    /// How long an idle inference thread waits for a full batch. It never waits past the deadline
    /// of a task. Default zero: a batch is what waits already. `DALSTON_BATCH_WAIT_SECONDS`
    /// replaces it.
    pub wait: Duration,
}

impl Batching {
    /// Batches of at most so many tasks.
    #[must_use]
    pub fn up_to(tasks: usize) -> Self {
        Self {
            max_tasks: tasks.clamp(1, MAX_TASKS),
            max_audio_seconds: None,
            wait: Duration::ZERO,
        }
    }

    /// Sets the most padded audio of a batch, in seconds.
    #[must_use]
    pub fn audio_seconds(mut self, seconds: f64) -> Self {
        self.max_audio_seconds = Some(seconds);
        self
    }

    /// Sets how long an idle inference thread waits for a full batch.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// Tasks with the same model and the same [`batch_key`](crate::Engine::batch_key), for
/// [`Engine::process_batch`](crate::Engine::process_batch). `O` is the output of the engine.
///
/// The tasks that remain in it at the end of the call are not finished.
pub struct Batch<'a, O> {
    items: Vec<BatchItem<'a, O>>,
}

impl<'a, O> Batch<'a, O> {
    pub(crate) fn new(items: Vec<BatchItem<'a, O>>) -> Self {
        Self { items }
    }

    /// The number of tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether all tasks were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The tasks, in the order in which they waited.
    pub fn iter(&self) -> std::slice::Iter<'_, BatchItem<'a, O>> {
        self.items.iter()
    }

    /// Takes all tasks out of the batch.
    #[must_use = "tasks that are dropped are not finished"]
    pub fn take_all(&mut self) -> Vec<BatchItem<'a, O>> {
        std::mem::take(&mut self.items)
    }

    /// Ends the tasks that were cancelled or whose deadline has passed. A long engine calls it
    /// between its steps.
    pub fn drop_cancelled(&mut self) {
        let (kept, cancelled) = self
            .take_all()
            .into_iter()
            .partition(|item| item.cx.cancel_reason().is_none());
        self.items = kept;
        let cancelled: Vec<BatchItem<'_, O>> = cancelled;
        for item in cancelled {
            if let Err(error) = item.cx.check_cancelled() {
                item.finish(Err(error));
            }
        }
    }

    /// The length of the longest recording times the number of tasks, in seconds.
    #[must_use]
    pub fn padded_audio_seconds(&self) -> f64 {
        let seconds = self.iter().filter_map(|item| item.cx.info().audio_seconds);
        seconds.fold(0.0, f64::max) * self.len() as f64
    }
}

impl<'b, 'a, O> IntoIterator for &'b Batch<'a, O> {
    type Item = &'b BatchItem<'a, O>;
    type IntoIter = std::slice::Iter<'b, BatchItem<'a, O>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<O> fmt::Debug for Batch<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.items).finish()
    }
}

/// One task of a [`Batch`].
#[must_use = "a task that is dropped is not finished"]
pub struct BatchItem<'a, O> {
    task: Arc<TaskRequest>,
    cx: TaskContext,
    scope: Scope,
    finish: Box<Finish<'a, O>>,
}

/// Takes the result of a task.
type Finish<'a, O> = dyn FnOnce(Result<O, TaskError>) + Send + 'a;

impl<'a, O> BatchItem<'a, O> {
    pub(crate) fn new(
        task: Arc<TaskRequest>,
        cx: TaskContext,
        scope: Scope,
        finish: impl FnOnce(Result<O, TaskError>) + Send + 'a,
    ) -> Self {
        Self {
            task,
            cx,
            scope,
            finish: Box::new(finish),
        }
    }

    /// The task, as [`Engine::process`](crate::Engine::process) gets it.
    #[must_use]
    pub fn task(&self) -> &TaskRequest {
        &self.task
    }

    /// Its context, as [`Engine::process`](crate::Engine::process) gets it.
    #[must_use]
    pub fn cx(&self) -> &TaskContext {
        &self.cx
    }

    /// The span and the log fields of the task, for work on it alone. Otherwise those of the batch
    /// are current.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Calls `hook` before the task ends with a result.
    #[cfg(feature = "cli")]
    pub(crate) fn before_finish(self, hook: impl FnOnce() + Send + 'a) -> Self
    where
        O: 'a,
    {
        let finish = self.finish;
        let finish = move |result| {
            hook();
            finish(result);
        };
        Self {
            finish: Box::new(finish),
            ..self
        }
    }

    /// Ends the task with its result. Its upload begins at once, while the engine goes on with the
    /// others.
    pub fn finish(self, result: Result<O, TaskError>) {
        let Self {
            task,
            cx,
            scope,
            finish,
        } = self;
        // They may hold files and a span of the task, which ends now.
        drop((task, cx, scope));
        finish(result);
    }
}

impl<O> fmt::Debug for BatchItem<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchItem")
            .field("task_id", &self.cx.info().task_id)
            .finish_non_exhaustive()
    }
}
