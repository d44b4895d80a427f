//! What goes on beside a task while it is worked on: the lease is renewed, and whatever ends the task early is noticed.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, Claim, Ownership};
use crate::context::{CancelFlag, CancelReason};

/// How often the broker is asked whether the job was cancelled. The engine hears of it within a second.
const CANCEL_POLL: Duration = Duration::from_millis(500);

/// The end of a task that comes from outside: set once, seen by the engine and by the control loop.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop {
    flag: CancelFlag,
    token: CancellationToken,
}

impl Stop {
    pub(super) fn set(&self, reason: CancelReason) {
        self.flag.set(reason);
        // Also where the loading of a model has set the flag before, which knows nothing of the token.
        self.token.cancel();
    }

    pub(super) fn reason(&self) -> Option<CancelReason> {
        self.flag.reason()
    }

    pub(super) fn flag(&self) -> CancelFlag {
        self.flag.clone()
    }

    /// Waits for the reason to stop.
    pub(super) async fn stopped(&self) -> CancelReason {
        self.token.cancelled().await;
        match self.flag.reason() {
            Some(reason) => reason,
            // The flag is set before the token.
            None => pending().await,
        }
    }

    /// Runs `work` unless there is a reason to stop, which then is the error.
    pub(super) async fn unless<F: Future>(&self, work: F) -> Result<F::Output, CancelReason> {
        tokio::select! {
            biased;
            reason = self.stopped() => Err(reason),
            output = work => Ok(output),
        }
    }

    /// Runs `work` unless nobody wants what comes of it. A worker that shuts down is no such reason, but then `work` gets
    /// no longer than `grace`.
    pub(super) async fn unless_unwanted<F: Future>(
        &self,
        grace: Duration,
        work: F,
    ) -> Result<F::Output, CancelReason> {
        let mut work = pin!(work);
        if self.reason().is_none()
            && let Some(output) = at_once(work.as_mut()).await
        {
            return Ok(output);
        }
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

/// What `work` comes to if it need not wait: much does not, and then nothing has to be set up beside it.
pub(super) async fn at_once<F: Future>(mut work: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The engine has to stop also when the task's future is dropped, with the whole runner.
impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set(CancelReason::Shutdown);
    }
}

pub(super) struct StopOnDrop(pub(super) Stop);

/// Two steps to the end of a worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Drain {
    /// No task begins any more; those that wait go back.
    pub(super) begun: CancellationToken,
    /// Tasks that still run are stopped.
    pub(super) over: CancellationToken,
}

/// When the broker last confirmed that the task is ours. It can't be anyone else's before a lease has passed since.
#[derive(Debug)]
pub(super) struct Confirmed(Mutex<Instant>);

impl Confirmed {
    pub(super) fn at(asked: Instant) -> Self {
        Self(Mutex::new(asked))
    }

    /// Counted from the question: its answer may have been long on the way.
    pub(super) fn again(&self, asked: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Keeps a claim alive and watches for the end of the task. Never returns.
pub(super) async fn keep(
    broker: &dyn Broker,
    claim: &Claim,
    deadline: Instant,
    confirmed: &Confirmed,
    stop: &Stop,
    drain: &Drain,
) -> Infallible {
    let begun = Instant::now();
    let period = (broker.lease() / 3).max(Duration::from_millis(1));
    let watch_deadline = async {
        sleep_until(deadline).await;
        stop.set(CancelReason::DeadlineExceeded);
    };
    let watch_drain = async {
        drain.over.cancelled().await;
        stop.set(CancelReason::Shutdown);
    };
    let watch_time = async {
        // Most tasks are over before anything of it is due: until then one timer does for all.
        sleep_until(deadline.min(begun + period.min(CANCEL_POLL))).await;
        // Each on its own: a broker that hangs in one call must not hold up the deadline.
        tokio::join!(
            watch_deadline,
            renew(broker, claim, confirmed, stop, begun, period),
            watch_cancel(broker, claim, stop, begun)
        );
    };
    tokio::join!(watch_drain, watch_time);
    pending().await
}

async fn renew(
    broker: &dyn Broker,
    claim: &Claim,
    confirmed: &Confirmed,
    stop: &Stop,
    begun: Instant,
    period: Duration,
) {
    let mut ticks = interval_at(begun + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        match timeout(period, broker.renew(claim)).await {
            Ok(Ok(Ownership::Held)) => confirmed.again(asked),
            Ok(Ok(Ownership::Lost)) => {
                stop.set(CancelReason::LeaseLost);
                return;
            }
            // Whoever owns the task is decided when it is finished; an outage alone is no reason to throw work away.
            Ok(Err(error)) => tracing::warn!(error = %crate::error::chain(&error), "lease_renewal_failed"),
            Err(_) => tracing::warn!("lease_renewal_timed_out"),
        }
    }
}

async fn watch_cancel(broker: &dyn Broker, claim: &Claim, stop: &Stop, begun: Instant) {
    let mut ticks = interval_at(begun + CANCEL_POLL, CANCEL_POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(CANCEL_POLL, broker.is_cancelled(claim)).await {
            Ok(Ok(true)) => {
                stop.set(CancelReason::Requested);
                return;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::debug!(error = %crate::error::chain(&error), "cancel_check_failed"),
            Err(_) => tracing::debug!("cancel_check_timed_out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn a_reason_that_comes_second_still_stops_what_waits_and_the_first_one_stays() {
        let stop = Stop::default();
        stop.flag().set(CancelReason::Shutdown);
        stop.set(CancelReason::DeadlineExceeded);
        assert_eq!(stop.unless(ready(())).await, Err(CancelReason::Shutdown));
    }
}
