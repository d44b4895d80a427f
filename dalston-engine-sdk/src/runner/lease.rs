//! The lease of a task: [`Lease`], and the watch over a task while it is worked on: [`watch`].

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::retry::retry;
use super::stop::{Drain, Stop};
use crate::broker::{Broker, Claim, Ownership};
use crate::context::CancelReason;
use crate::error::{TaskError, chain};

/// How often the broker is asked whether the job was cancelled. The engine hears of it within a
/// second.
const CANCEL_POLL: Duration = Duration::from_millis(500);

/// The lease of one task.
pub(super) struct Lease<'a> {
    broker: &'a dyn Broker,
    claim: &'a Claim,
    stop: Stop,
    /// When the broker was asked for the lease that it confirmed last. Its answer may have taken
    /// long.
    confirmed_at: Mutex<Instant>,
}

impl<'a> Lease<'a> {
    /// A lease that the broker was asked for at `asked_at`. Its loss is set on `stop`.
    pub(super) fn new(broker: &'a dyn Broker, claim: &'a Claim, asked_at: Instant, stop: Stop) -> Self {
        Self {
            broker,
            claim,
            stop,
            confirmed_at: Mutex::new(asked_at),
        }
    }

    /// Makes sure that the task is still ours.
    ///
    /// The broker is asked if it confirmed the lease more than half a lease ago. A process that
    /// stood still would otherwise overwrite the result of a peer that has finished the task
    /// meanwhile.
    pub(super) async fn ensure_held(&self) -> Result<(), TaskError> {
        if self.confirmed_at().elapsed() < self.broker.lease() / 2 {
            return Ok(());
        }
        self.renew().await
    }

    /// Asks the broker whether the task is still ours, and renews the lease with that.
    pub(super) async fn renew(&self) -> Result<(), TaskError> {
        let asked_at = Instant::now();
        match retry("renewing a lease", || self.broker.renew(self.claim)).await {
            Ok(Ownership::Held | Ownership::Unrecorded) => {
                self.confirm(asked_at);
                Ok(())
            }
            Ok(Ownership::Lost) => {
                self.stop.set(CancelReason::LeaseLost);
                Err(CancelReason::LeaseLost.into_error())
            }
            Err(error) => Err(TaskError::retryable("broker", chain(&error))),
        }
    }

    async fn renew_until_lost(&self, begun_at: Instant) {
        let period = (self.broker.lease() / 3).max(Duration::from_millis(1));
        let mut ticks = interval_at(begun_at + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked_at = Instant::now();
            match timeout(period, self.broker.renew(self.claim)).await {
                Ok(Ok(Ownership::Held | Ownership::Unrecorded)) => self.confirm(asked_at),
                Ok(Ok(Ownership::Lost)) => {
                    self.stop.set(CancelReason::LeaseLost);
                    return;
                }
                // The broker decides who owns the task when it is finished. An outage alone is no
                // reason to throw work away.
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "lease_renewal_failed"),
                Err(_) => tracing::warn!("lease_renewal_timed_out"),
            }
        }
    }

    async fn watch_cancel(&self, begun_at: Instant) {
        let mut ticks = interval_at(begun_at + CANCEL_POLL, CANCEL_POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(CANCEL_POLL, self.broker.is_cancelled(self.claim)).await {
                Ok(Ok(true)) => {
                    self.stop.set(CancelReason::Requested);
                    return;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::debug!(error = chain(&error), "cancel_check_failed"),
                Err(_) => tracing::debug!("cancel_check_timed_out"),
            }
        }
    }

    fn confirmed_at(&self) -> Instant {
        *self.confirmed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, asked_at: Instant) {
        *self.confirmed_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
    }
}

/// Renews the lease of a task and sets the reason to stop when it is lost, the job is cancelled,
/// the deadline passes or the time for draining is over. Never returns.
pub(super) async fn watch(lease: &Lease<'_>, deadline: Instant, drain: &Drain) -> Infallible {
    let begun_at = Instant::now();
    let deadline = async {
        sleep_until(deadline).await;
        lease.stop.set(CancelReason::DeadlineExceeded);
    };
    let drain = async {
        drain.over.cancelled().await;
        lease.stop.set(CancelReason::Shutdown);
    };
    // Each on its own: a broker that hangs in one call must not hold up the deadline.
    tokio::join!(
        deadline,
        drain,
        lease.renew_until_lost(begun_at),
        lease.watch_cancel(begun_at)
    );
    pending().await
}
