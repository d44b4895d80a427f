//! The early end of a task: [`Stop`], and of a worker: [`Drain`].

use std::future::Future;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::{CancelFlag, CancelReason};

/// The reason to end a task early: set once, seen by the engine and by the control loop.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(CancelFlag);

impl Stop {
    /// Sets the reason. The first one stays.
    pub(super) fn set(&self, reason: CancelReason) {
        self.0.set(reason);
    }

    pub(super) fn reason(&self) -> Option<CancelReason> {
        self.0.reason()
    }

    /// The reason as the engine sees it.
    pub(super) fn flag(&self) -> CancelFlag {
        self.0.clone()
    }

    /// Waits for the reason to stop.
    pub(super) async fn stopped(&self) -> CancelReason {
        self.0.wait().await
    }

    /// Runs `work` unless there is a reason to stop, which then is the error.
    pub(super) async fn unless<F: Future>(&self, work: F) -> Result<F::Output, CancelReason> {
        tokio::select! {
            biased;
            reason = self.stopped() => Err(reason),
            output = work => Ok(output),
        }
    }

    /// Runs `work` unless its result is of no use. A shutdown of the worker is no such reason, but
    /// then `work` gets no longer than `grace`.
    pub(super) async fn unless_unwanted<F: Future>(
        &self,
        grace: Duration,
        work: F,
    ) -> Result<F::Output, CancelReason> {
        let unwanted = async {
            let reason = self.stopped().await;
            if reason == CancelReason::Shutdown {
                sleep(grace).await;
            }
            reason
        };
        tokio::select! {
            biased;
            reason = unwanted => Err(reason),
            output = work => Ok(output),
        }
    }
}

/// Stops the engine when the future of its task is dropped, with the whole runner.
pub(super) struct StopOnDrop(pub(super) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set(CancelReason::Shutdown);
    }
}

/// The two steps to the end of a worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Drain {
    /// No task begins any more; those that wait go back to the queue.
    pub(super) begun: CancellationToken,
    /// Tasks that still run are stopped.
    pub(super) over: CancellationToken,
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn a_second_reason_stops_the_work_and_the_first_one_stays() {
        let stop = Stop::default();
        stop.flag().set(CancelReason::Shutdown);
        stop.set(CancelReason::DeadlineExceeded);
        assert_eq!(stop.unless(ready(())).await, Err(CancelReason::Shutdown));
    }
}
