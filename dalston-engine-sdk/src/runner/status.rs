//! What a runner is doing, as others may want to know: the registry, a health check.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::ModelId;

/// A view of a [`Runner`](super::Runner) that outlives it. Cheap to clone.
#[derive(Clone)]
pub struct RunnerStatus {
    shared: Arc<Shared>,
}

struct Shared {
    phase: AtomicU8,
    active: AtomicUsize,
    last_tick: Mutex<Option<Instant>>,
    model: Mutex<Option<ModelId>>,
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

/// How often the control loop shows that it goes round.
const TICK: Duration = Duration::from_millis(500);

impl RunnerStatus {
    pub(super) fn new() -> Self {
        let phase = AtomicU8::new(RunnerPhase::Starting as u8);
        let (last_tick, model) = (Mutex::default(), Mutex::default());
        Self {
            shared: Arc::new(Shared {
                phase,
                active: AtomicUsize::new(0),
                last_tick,
                model,
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

    /// How many tasks it has in its hands: read, waiting, running or being uploaded.
    #[must_use]
    pub fn active_tasks(&self) -> usize {
        self.shared.active.load(Ordering::Acquire)
    }

    /// How long ago the control loop went round, which it does twice a second. `None` if it never did.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        let last = *self
            .shared
            .last_tick
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }

    /// The model that worked last, if one did.
    #[must_use]
    pub fn model(&self) -> Option<ModelId> {
        self.shared
            .model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Later phases stay.
    pub(super) fn enter(&self, phase: RunnerPhase) {
        self.shared.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn worked(&self, model: &ModelId) {
        let model = (!model.is_unnamed()).then(|| model.clone());
        *self.shared.model.lock().unwrap_or_else(PoisonError::into_inner) = model;
    }

    /// Counts a task until the guard is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.shared.active.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// Goes round for as long as it is polled.
    pub(super) async fn tick(&self) -> std::convert::Infallible {
        loop {
            let now = Some(Instant::now());
            *self
                .shared
                .last_tick
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = now;
            tokio::time::sleep(TICK).await;
        }
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

/// One task in hand.
pub(super) struct Busy(RunnerStatus);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.shared.active.fetch_sub(1, Ordering::AcqRel);
    }
}
