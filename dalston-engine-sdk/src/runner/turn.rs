//! Which tasks may be between the start of their inference and their end at the same time:
//! [`Turns`].
//!
//! A task whose inference has killed a worker may kill this one. It runs alone, so that a second
//! crash is charged to no other task.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Gives turns in the order in which they are asked for.
#[derive(Debug, Default)]
pub(super) struct Turns(RwLock<()>);

/// The right of a task to run. Dropping it ends the turn.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

impl Turns {
    /// Waits until no task runs that needs to be alone, and with `alone` until no task runs.
    pub(super) async fn take(&self, alone: bool) -> Turn<'_> {
        match alone {
            false => Turn::Shared {
                _guard: self.0.read().await,
            },
            true => Turn::Alone {
                _guard: self.0.write().await,
            },
        }
    }
}
