//! The models of one inference thread: cached by id, dropped by age, by number and after a failure.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{TaskError, TaskErrorKind, WorkerFault};
use crate::model_id::ModelId;

/// How long a failed load is not repeated. Doubled with every further failure, up to a limit.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Names come from tasks, so the list of failures must not grow with them.
const FAILURES_KEPT: usize = 32;

/// The cache. Its callers pass the time: the clock of leases and deadlines is not that of the
/// inference thread.
pub(super) struct Models<M> {
    capacity: usize,
    ttl: Duration,
    /// Most recently used last.
    cached: VecDeque<CachedModel<M>>,
    failed: VecDeque<Failed>,
}

struct CachedModel<M> {
    id: ModelId,
    model: M,
    used_at: Instant,
}

struct Failed {
    id: ModelId,
    pause: Duration,
    retry_at: Instant,
    kind: TaskErrorKind,
    code: &'static str,
    message: String,
    /// What the worker lacked, for example its storage. Not the fault of a model: one task alone
    /// may have named that.
    fault: Option<WorkerFault>,
}

impl<M> Models<M> {
    pub(super) fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            capacity: capacity.max(1),
            ttl,
            cached: VecDeque::new(),
            failed: VecDeque::new(),
        }
    }

    /// The model, if it is loaded. It counts as just used.
    pub(super) fn hit(&mut self, id: &ModelId, now: Instant) -> Option<&mut M> {
        let at = self.cached.iter().position(|cached| cached.id == *id)?;
        let cached = self.cached.remove(at)?;
        self.cached.push_back(cached);
        let cached = self.cached.back_mut()?;
        cached.used_at = now;
        Some(&mut cached.model)
    }

    /// Whether the model may be loaded now.
    ///
    /// A load that has just failed is not repeated for every task of a full queue. They get the
    /// same error at once.
    pub(super) fn may_load(&self, id: &ModelId, now: Instant) -> Result<(), TaskError> {
        match self
            .failed
            .iter()
            .find(|failed| failed.id == *id && failed.retry_at > now)
        {
            None => Ok(()),
            Some(failed) => {
                let wait = (failed.retry_at - now).as_secs_f64();
                let text = format!("{} (tried a moment ago, next try in {wait:.1} s)", failed.message);
                let error = TaskError::new(failed.kind, failed.code, text);
                Err(match failed.fault {
                    Some(fault) => error.with_fault(fault),
                    None => error,
                })
            }
        }
    }

    /// Makes room for one more model. The caller drops the returned models before the load: the
    /// memory may not hold both.
    pub(super) fn make_room(&mut self) -> Vec<M> {
        let surplus = (self.cached.len() + 1).saturating_sub(self.capacity);
        self.cached.drain(..surplus).map(|cached| cached.model).collect()
    }

    pub(super) fn loaded(&mut self, id: ModelId, model: M, now: Instant) {
        self.failed.retain(|failed| failed.id != id);
        self.cached.push_back(CachedModel {
            id,
            model,
            used_at: now,
        });
    }

    pub(super) fn load_failed(&mut self, id: ModelId, error: &TaskError, now: Instant) {
        let before = self.failed.iter().position(|failed| failed.id == id);
        let pause = before
            .and_then(|at| self.failed.remove(at))
            .map_or(FIRST_PAUSE, |earlier| (earlier.pause * 2).min(LONGEST_PAUSE));
        if self.failed.len() == FAILURES_KEPT {
            self.failed.pop_front();
        }
        self.failed.push_back(Failed {
            id,
            pause,
            retry_at: now + pause,
            kind: error.kind(),
            code: error.code(),
            message: error.to_string(),
            fault: error.worker_fault().filter(|fault| *fault != WorkerFault::Model),
        });
    }

    /// Takes a model out that must not be used any more.
    pub(super) fn remove(&mut self, id: &ModelId) -> Option<M> {
        let at = self.cached.iter().position(|cached| cached.id == *id)?;
        self.cached.remove(at).map(|cached| cached.model)
    }

    /// Takes out the models that were not used for their time to live.
    pub(super) fn take_idle(&mut self, now: Instant) -> Vec<M> {
        let idle = |cached: &&CachedModel<M>| now.saturating_duration_since(cached.used_at) >= self.ttl;
        let count = self.cached.iter().take_while(idle).count();
        self.cached.drain(..count).map(|cached| cached.model).collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<M> {
        self.cached.drain(..).map(|cached| cached.model).collect()
    }

    pub(super) fn ids(&self) -> Vec<ModelId> {
        self.cached.iter().map(|cached| cached.id.clone()).collect()
    }
}

impl<M> fmt::Debug for Models<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models")
            .field("cached", &self.ids())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(capacity: usize) -> (Models<&'static str>, Instant) {
        (Models::new(capacity, Duration::from_secs(60)), Instant::now())
    }

    fn load(models: &mut Models<&'static str>, name: &'static str, now: Instant) -> Vec<&'static str> {
        let dropped = models.make_room();
        models.loaded(name.into(), name, now);
        dropped
    }

    #[test]
    fn the_least_recently_used_model_makes_room() {
        let (mut models, now) = cache(2);
        assert!(load(&mut models, "a", now).is_empty());
        assert!(load(&mut models, "b", now).is_empty());
        assert_eq!(models.hit(&"a".into(), now), Some(&mut "a"));
        assert_eq!(load(&mut models, "c", now), ["b"]);
        assert_eq!(models.ids(), ["a".into(), "c".into()]);
    }

    #[test]
    fn an_idle_model_is_taken_and_use_restarts_its_time() {
        let (mut models, start) = cache(3);
        let at = |seconds| start + Duration::from_secs(seconds);
        load(&mut models, "a", start);
        load(&mut models, "b", start);
        assert!(models.hit(&"a".into(), at(40)).is_some());
        assert_eq!(models.take_idle(at(59)), Vec::<&str>::new());
        assert_eq!(models.take_idle(at(60)), ["b"]);
        assert_eq!(models.take_idle(at(99)), Vec::<&str>::new());
        assert_eq!(models.take_idle(at(100)), ["a"]);
    }

    #[test]
    fn a_failed_load_waits_twice_as_long_each_time_up_to_a_minute() {
        let (mut models, mut now) = cache(2);
        let id = ModelId::from("a");
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(models.may_load(&id, now).is_ok());
            models.load_failed(
                id.clone(),
                &TaskError::permanent("model_corrupt", "bad header"),
                now,
            );
            let error = models
                .may_load(&id, now + Duration::from_secs(pause) / 2)
                .unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (TaskErrorKind::Permanent, "model_corrupt")
            );
            assert!(
                error
                    .to_string()
                    .starts_with("bad header (tried a moment ago, next try in "),
                "{error}"
            );
            now += Duration::from_secs(pause);
        }
        assert!(models.may_load(&id, now).is_ok());
    }

    #[test]
    fn repeated_error_of_a_load_keeps_the_fault_of_the_worker() {
        let (mut models, now) = cache(2);
        for (fault, expected) in [
            (WorkerFault::Storage, Some(WorkerFault::Storage)),
            (WorkerFault::Model, None),
        ] {
            let error = TaskError::retryable("model_download_failed", "cut off").with_fault(fault);
            models.load_failed("a".into(), &error, now);
            let repeated = models.may_load(&"a".into(), now).unwrap_err();
            assert_eq!(repeated.worker_fault(), expected);
        }
    }

    #[test]
    fn a_successful_load_forgets_earlier_failures() {
        let (mut models, now) = cache(2);
        let id = ModelId::from("a");
        let error = || TaskError::retryable("io", "disk");
        models.load_failed(id.clone(), &error(), now);
        models.load_failed(id.clone(), &error(), now);
        models.loaded(id.clone(), "a", now);
        models.remove(&id);
        assert!(models.may_load(&id, now).is_ok());
        models.load_failed(id.clone(), &error(), now);
        assert!(models.may_load(&id, now + FIRST_PAUSE).is_ok());
    }

    #[test]
    fn failures_of_unknown_models_do_not_pile_up() {
        let (mut models, now) = cache(2);
        for n in 0..1000 {
            let error = TaskError::permanent("model_not_found", "no");
            models.load_failed(format!("model-{n}").into(), &error, now);
        }
        assert_eq!(models.failed.len(), FAILURES_KEPT);
    }
}
