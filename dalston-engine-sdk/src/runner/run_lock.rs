//! Which tasks may be between the start of their inference and their end at the same time:
//! [`RunLock`].
//!
//! A task whose inference has killed a worker may kill this one. It runs alone, so that a second
//! crash is charged to no other task.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Gives its guards in the order in which they are asked for.
#[derive(Debug, Default)]
pub(super) struct RunLock(RwLock<()>);

/// The right of a task to run.
#[derive(Debug)]
pub(super) enum RunGuard<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Exclusive { _guard: RwLockWriteGuard<'a, ()> },
}

impl RunLock {
    /// Waits until no task runs exclusively, and with `exclusive` until no task runs.
    pub(super) async fn lock(&self, exclusive: bool) -> RunGuard<'_> {
        match exclusive {
            false => RunGuard::Shared {
                _guard: self.0.read().await,
            },
            true => RunGuard::Exclusive {
                _guard: self.0.write().await,
            },
        }
    }
}
