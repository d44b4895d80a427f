//! Which tasks may be between the start of their inference and their end at the same time:
//! [`RunLock`].
//!
//! A task whose inference has killed a worker may kill this one. It runs alone, so that a second
//! crash is charged to no other task.

use std::sync::Arc;

use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Gives its guards in the order in which they are asked for.
#[derive(Debug, Default)]
pub(super) struct RunLock(Arc<RwLock<()>>);

/// The right of a task to run. Clones share it.
#[derive(Debug, Clone)]
pub(super) enum RunGuard {
    Shared { _guard: Arc<OwnedRwLockReadGuard<()>> },
    Exclusive { _guard: Arc<OwnedRwLockWriteGuard<()>> },
}

/// The right to run that the tasks of a batch share. They are admitted one after the other, and an
/// exclusive task that waits in between would otherwise wait for the first ones and block the last
/// ones.
pub(super) type BatchGuard = OnceCell<RunGuard>;

impl RunLock {
    /// Waits until no task runs exclusively, and with `exclusive` until no task runs.
    pub(super) async fn lock(&self, exclusive: bool, batch: &BatchGuard) -> RunGuard {
        let locked = batch.get_or_init(|| async {
            let lock = Arc::clone(&self.0);
            match exclusive {
                false => RunGuard::Shared {
                    _guard: Arc::new(lock.read_owned().await),
                },
                true => RunGuard::Exclusive {
                    _guard: Arc::new(lock.write_owned().await),
                },
            }
        });
        locked.await.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn batch_does_not_wait_for_a_task_that_waits_for_it() {
        let (lock, batch, alone) = (RunLock::default(), BatchGuard::default(), BatchGuard::default());
        let first = lock.lock(false, &batch).await;
        let mut exclusive = Box::pin(lock.lock(true, &alone));
        assert!(exclusive.as_mut().now_or_never().is_none());
        let second = lock.lock(false, &batch).now_or_never();
        assert!(matches!(second, Some(RunGuard::Shared { .. })));
        // Another batch comes after the exclusive task.
        let later = BatchGuard::default();
        assert!(lock.lock(false, &later).now_or_never().is_none());
        drop((first, second, batch));
        assert!(matches!(exclusive.await, RunGuard::Exclusive { .. }));
    }
}
