//! Asynchronous work of an engine, on the runtime of its worker.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

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
    run(async {
        tokio::select! {
            biased;
            reason = stopped => Err(reason.into_error()),
            output = future => Ok(output),
        }
    })
}

/// Polls a future to its end. `Handle::block_on` would panic if the engine has called it already.
fn run<F: Future>(future: F) -> F::Output {
    let signal = Arc::new(Signal {
        thread: thread::current(),
        woken: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&signal));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        while !signal.woken.swap(false, Ordering::AcqRel) {
            thread::park();
        }
    }
}

/// Wakes a thread. The future may park the thread itself, so its token alone could get lost.
struct Signal {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Restores [`MAY_BLOCK`], also after a panic of the future.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        MAY_BLOCK.set(self.0);
    }
}
