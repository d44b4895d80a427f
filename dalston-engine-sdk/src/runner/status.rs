//! What a runner is doing, as others may want to know: the registry, a health check.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    gpu: GpuReading,
}

#[derive(Default)]
struct State {
    /// The last number that was given to a task or a thread.
    last: u64,
    tasks: BTreeMap<u64, Task>,
    threads: BTreeMap<u64, Thread>,
    last_tick: Option<Instant>,
    /// The model that worked last.
    model: Option<ModelId>,
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

/// Where a runner is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunnerPhase {
    /// It takes no tasks yet: its models are loading, or it was not started.
    Starting,
    /// It takes tasks.
    Running,
    /// It finishes what it has.
    Draining,
    /// It has ended.
    Stopped,
}

/// A task that a runner has in its hands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// The task.
    pub task_id: Arc<str>,
    /// What is done with it now.
    pub phase: TaskPhase,
    /// How long ago it was taken.
    pub age: Duration,
}

/// What is done with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskPhase {
    /// It is looked up, its input is fetched and decoded.
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

/// How often the control loop shows that it goes round.
const TICK: Duration = Duration::from_millis(500);

impl RunnerStatus {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                phase: AtomicU8::new(RunnerPhase::Starting as u8),
                state: Mutex::default(),
                gpu: GpuReading::default(),
            }),
        }
    }

    /// Where the runner is in its life.
    #[must_use]
    pub fn phase(&self) -> RunnerPhase {
        let phase = self.shared.phase.load(Ordering::Acquire);
        [RunnerPhase::Starting, RunnerPhase::Running, RunnerPhase::Draining]
            .into_iter()
            .find(|known| *known as u8 == phase)
            .unwrap_or(RunnerPhase::Stopped)
    }

    /// How many tasks it has in its hands: read, waiting, running or being stored.
    #[must_use]
    pub fn active_tasks(&self) -> usize {
        self.state().tasks.len()
    }

    /// How many of them still need an inference thread, or have one. May be more than there are threads, as tasks are read
    /// ahead.
    #[must_use]
    pub fn unprocessed_tasks(&self) -> usize {
        let state = self.state();
        let unprocessed = state
            .tasks
            .values()
            .filter(|task| task.phase != TaskPhase::Saving);
        unprocessed.count()
    }

    /// The tasks in its hands, oldest first.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        let status = |task: &Task| TaskStatus {
            task_id: Arc::clone(&task.id),
            phase: task.phase,
            age: task.since.elapsed(),
        };
        self.state().tasks.values().map(status).collect()
    }

    /// How long ago the control loop went round, which it does twice a second. `None` if it never did.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.state().last_tick.map(|last| last.elapsed())
    }

    /// The model that worked last; if it is not in memory any more, another one that is.
    #[must_use]
    pub fn model(&self) -> Option<ModelId> {
        let loaded = self.models();
        let last = self.state().model.clone();
        last.filter(|last| loaded.contains(last))
            .or_else(|| loaded.into_iter().next())
    }

    /// The models that are in memory, each once, however many threads have it. Models without a name are left out.
    #[must_use]
    pub fn models(&self) -> Vec<ModelId> {
        named(self.state().threads.values().flat_map(|thread| &thread.loaded))
    }

    /// The models that are being loaded.
    #[must_use]
    pub fn loading(&self) -> Vec<ModelId> {
        named(self.state().threads.values().flat_map(|thread| &thread.loading))
    }

    /// The memory of the GPU, as the driver told it within the last half minute. `None` where there is no NVIDIA driver, or
    /// it does not answer.
    #[must_use]
    pub fn gpu_memory(&self) -> Option<GpuMemory> {
        self.shared.gpu.memory()
    }

    pub(crate) fn gpu_reading(&self) -> &GpuReading {
        &self.shared.gpu
    }

    /// Later phases stay.
    pub(super) fn enter(&self, phase: RunnerPhase) {
        self.shared.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn worked(&self, model: &ModelId) {
        let mut state = self.state();
        if state.model.as_ref() != Some(model) {
            state.model = Some(model.clone());
        }
    }

    /// Counts a task until the guard is dropped.
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

    /// Goes round for as long as it is polled.
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

/// One task in hand.
pub(super) struct TaskGuard {
    status: RunnerStatus,
    number: u64,
}

impl TaskGuard {
    pub(super) fn enter(&self, phase: TaskPhase) {
        self.status.enter_task(self.number, phase);
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.status.state().tasks.remove(&self.number);
    }
}

/// One inference thread.
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
