//! What a runner is doing, for the registry and the health check: [`RunnerStatus`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::gpu::{GpuMemory, GpuReading};
use crate::model_id::ModelId;

/// A view of a [`Runner`](super::Runner) that outlives it. Cheap to clone.
#[derive(Clone)]
pub struct RunnerStatus {
    shared: Arc<Shared>,
}

struct Shared {
    phase: AtomicU8,
    state: Mutex<State>,
    /// A task ended or needs no inference thread any more.
    less_to_process: Notify,
    gpu: GpuReading,
}

#[derive(Default)]
struct State {
    /// The last number that was given to a task or a thread.
    last: u64,
    tasks: BTreeMap<u64, Task>,
    threads: BTreeMap<u64, Thread>,
    last_tick: Option<Instant>,
    /// The model that was used last.
    model: Option<ModelId>,
    problem: Option<String>,
    failures: VecDeque<Failure>,
}

struct Failure {
    task_id: Arc<str>,
    code: &'static str,
    error: String,
    at: Instant,
}

struct Task {
    id: Arc<str>,
    since: Instant,
    phase: TaskPhase,
}

#[derive(Default)]
struct Thread {
    loaded: Vec<ModelId>,
    loading: Option<ModelId>,
}

/// The phase of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunnerPhase {
    /// It takes no tasks yet: it was not started, or its models are loading.
    Starting,
    /// It takes tasks.
    Running,
    /// It takes no more tasks and finishes those that it has.
    Draining,
    /// It has ended.
    Stopped,
}

/// A task that a runner holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// The id of the task.
    pub task_id: Arc<str>,
    /// Its phase.
    pub phase: TaskPhase,
    /// How long ago it was taken.
    pub age: Duration,
}

/// A task that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The id of the task.
    pub task_id: Arc<str>,
    /// The code of the error.
    pub code: &'static str,
    /// The error.
    pub error: String,
    /// How long ago it was.
    pub age: Duration,
}

/// The phase of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskPhase {
    /// It is looked up, and its input is downloaded and decoded.
    Preparing,
    /// It waits for an inference thread.
    Waiting,
    /// It is on an inference thread.
    Processing,
    /// Its result is stored and reported.
    Saving,
}

impl TaskPhase {
    /// The name of the phase, in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Waiting => "waiting",
            Self::Processing => "processing",
            Self::Saving => "saving",
        }
    }
}

/// How many failures are kept.
const MAX_FAILURES: usize = 10;
/// The length of the text of a failure.
const LONGEST_ERROR: usize = 300;
/// How often the control loop shows that it runs.
const TICK: Duration = Duration::from_millis(500);

impl RunnerStatus {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                phase: AtomicU8::new(RunnerPhase::Starting as u8),
                state: Mutex::default(),
                less_to_process: Notify::new(),
                gpu: GpuReading::default(),
            }),
        }
    }

    /// The phase of the runner.
    #[must_use]
    pub fn phase(&self) -> RunnerPhase {
        let phase = self.shared.phase.load(Ordering::Acquire);
        [RunnerPhase::Starting, RunnerPhase::Running, RunnerPhase::Draining]
            .into_iter()
            .find(|known| *known as u8 == phase)
            .unwrap_or(RunnerPhase::Stopped)
    }

    /// How many tasks it holds: read, waiting, running or being stored.
    #[must_use]
    pub fn active_tasks(&self) -> usize {
        self.state().tasks.len()
    }

    /// How many of them need or have an inference thread. There may be more than threads, because
    /// tasks are read ahead.
    #[must_use]
    pub fn unprocessed_tasks(&self) -> usize {
        let state = self.state();
        let unprocessed = state
            .tasks
            .values()
            .filter(|task| task.phase != TaskPhase::Saving);
        unprocessed.count()
    }

    /// The tasks that it holds, oldest first.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        let status = |task: &Task| TaskStatus {
            task_id: Arc::clone(&task.id),
            phase: task.phase,
            age: task.since.elapsed(),
        };
        self.state().tasks.values().map(status).collect()
    }

    /// The last tasks that failed, up to ten, newest first.
    #[must_use]
    pub fn failures(&self) -> Vec<TaskFailure> {
        let shown = |failure: &Failure| TaskFailure {
            task_id: Arc::clone(&failure.task_id),
            code: failure.code,
            error: failure.error.clone(),
            age: failure.at.elapsed(),
        };
        self.state().failures.iter().map(shown).collect()
    }

    /// How long ago the control loop showed that it runs, which it does twice a second. `None` if
    /// it never did.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.state().last_tick.map(|last| last.elapsed())
    }

    /// Why it takes no tasks from the queue although it should: a dependency is broken. `None`
    /// while it takes tasks.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// The model that was used last, or another loaded one if that was dropped.
    #[must_use]
    pub fn model(&self) -> Option<ModelId> {
        let loaded = self.models();
        let last = self.state().model.clone();
        last.filter(|last| loaded.contains(last))
            .or_else(|| loaded.into_iter().next())
    }

    /// The loaded models, each once. Models without a name are left out.
    #[must_use]
    pub fn models(&self) -> Vec<ModelId> {
        named(self.state().threads.values().flat_map(|thread| &thread.loaded))
    }

    /// The models that are being loaded.
    #[must_use]
    pub fn loading(&self) -> Vec<ModelId> {
        named(self.state().threads.values().flat_map(|thread| &thread.loading))
    }

    /// The memory of the GPU, as the driver reported it within the last 30 s. `None` if there is no
    /// NVIDIA driver, or it does not answer.
    #[must_use]
    pub fn gpu_memory(&self) -> Option<GpuMemory> {
        self.shared.gpu.memory()
    }

    /// Waits until fewer than this many tasks need or have an inference thread.
    pub(super) async fn has_fewer_than(&self, tasks: usize) {
        loop {
            let changed = self.shared.less_to_process.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.unprocessed_tasks() < tasks {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn gpu_reading(&self) -> &GpuReading {
        &self.shared.gpu
    }

    /// Enters a phase, unless the runner is in a later one.
    pub(super) fn enter(&self, phase: RunnerPhase) {
        self.shared.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn set_problem(&self, problem: Option<&str>) {
        self.state().problem = problem.map(str::to_owned);
    }

    pub(super) fn failed(&self, task_id: &str, code: &'static str, error: &str) {
        let failures = &mut self.state().failures;
        failures.truncate(MAX_FAILURES - 1);
        failures.push_front(Failure {
            task_id: task_id.into(),
            code,
            error: error.chars().take(LONGEST_ERROR).collect(),
            at: Instant::now(),
        });
    }

    pub(super) fn worked(&self, model: &ModelId) {
        let mut state = self.state();
        if state.model.as_ref() != Some(model) {
            state.model = Some(model.clone());
        }
    }

    /// Shows a task until the guard is dropped.
    pub(super) fn task(&self, id: &str) -> TaskGuard {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.tasks.insert(
            number,
            Task {
                id: id.into(),
                since: Instant::now(),
                phase: TaskPhase::Preparing,
            },
        );
        drop(state);
        TaskGuard {
            status: self.clone(),
            number,
        }
    }

    /// Shows the models of an inference thread until the guard is dropped.
    pub(super) fn thread(&self) -> ThreadGuard {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.threads.insert(number, Thread::default());
        drop(state);
        ThreadGuard {
            status: self.clone(),
            number,
        }
    }

    /// Shows that the control loop runs, for as long as it is polled.
    pub(super) async fn tick(&self) -> std::convert::Infallible {
        loop {
            self.state().last_tick = Some(Instant::now());
            tokio::time::sleep(TICK).await;
        }
    }

    fn enter_task(&self, number: u64, phase: TaskPhase) {
        if let Some(task) = self.state().tasks.get_mut(&number) {
            task.phase = phase;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RunnerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerStatus")
            .field("phase", &self.phase())
            .field("active_tasks", &self.active_tasks())
            .finish_non_exhaustive()
    }
}

fn named<'a>(models: impl Iterator<Item = &'a ModelId>) -> Vec<ModelId> {
    let mut found: Vec<ModelId> = Vec::new();
    for model in models {
        if !model.is_unnamed() && !found.contains(model) {
            found.push(model.clone());
        }
    }
    found
}

/// Shows one task. Dropping it removes the task from the status.
pub(super) struct TaskGuard {
    status: RunnerStatus,
    number: u64,
}

impl TaskGuard {
    pub(super) fn enter(&self, phase: TaskPhase) {
        self.status.enter_task(self.number, phase);
        self.status.shared.less_to_process.notify_waiters();
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.status.state().tasks.remove(&self.number);
        self.status.shared.less_to_process.notify_waiters();
    }
}

/// Shows the models of one inference thread. Dropping it removes them from the status.
pub(super) struct ThreadGuard {
    status: RunnerStatus,
    number: u64,
}

impl ThreadGuard {
    pub(super) fn loading(&self, model: Option<&ModelId>) {
        if let Some(thread) = self.status.state().threads.get_mut(&self.number) {
            thread.loading = model.cloned();
        }
    }

    pub(super) fn holds(&self, models: &[ModelId]) {
        if let Some(thread) = self.status.state().threads.get_mut(&self.number)
            && thread.loaded != models
        {
            thread.loaded = models.to_vec();
        }
    }
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        self.status.state().threads.remove(&self.number);
    }
}
