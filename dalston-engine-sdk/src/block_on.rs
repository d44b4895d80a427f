//! Asynchronous work of an engine, on the runtime of its worker.

use std::cell::Cell;
use std::future::Future;

use tokio::runtime::{EnterGuard, Handle};

use crate::context::CancelReason;
use crate::error::TaskError;

thread_local! {
    /// Whether this is an inference thread that polls no future.
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Makes the runtime the current one of this inference thread. An engine can then make timers and
/// sockets outside of a future, for example as the argument of [`block_on`].
pub(crate) fn enter(runtime: &Handle) -> EnterGuard<'_> {
    MAY_BLOCK.set(true);
    runtime.enter()
}

/// Runs a future on this thread until it ends or `stopped` does. Its timers and sockets are those
/// of the runtime, which has other threads to serve them.
pub(crate) fn block_on<F: Future>(
    runtime: &Handle,
    stopped: impl Future<Output = CancelReason>,
    future: F,
) -> Result<F::Output, TaskError> {
    // A thread of the runtime may be the only one that serves it.
    if Handle::try_current().is_ok() && !MAY_BLOCK.get() {
        let text = "block_on was called inside a Tokio runtime, perhaps inside another block_on: \
            use .await there";
        return Err(TaskError::permanent("nested_block_on", text));
    }
    let _nested = Restore(MAY_BLOCK.replace(false));
    let _entered = runtime.enter();
    // `Handle::block_on` would panic if the engine has called it already.
    pollster::block_on(async {
        tokio::select! {
            biased;
            reason = stopped => Err(reason.into_error()),
            output = future => Ok(output),
        }
    })
}

/// Restores [`MAY_BLOCK`], also after a panic of the future.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        MAY_BLOCK.set(self.0);
    }
}
