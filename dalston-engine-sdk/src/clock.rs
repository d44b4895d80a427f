//! The clock of this machine beside that of Redis: [`ClockDifference`].
//!
//! Records, events and spans carry times of this machine. The platform compares them with its own:
//! it takes an instance whose heartbeats are 60 s old for dead.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::error::chain;
use crate::log_limit::is_logged;
use crate::redis::RedisServer;

/// How often the clocks are compared. A machine that was suspended has the wrong time until it is
/// synchronised again.
const INTERVAL: Duration = Duration::from_secs(60);
/// Seconds. Waits and lines of several machines are hard to compare from here on.
const TOLERANCE: f64 = 5.0;
pub(crate) const ADVICE: &str =
    "synchronise the clocks of both machines with NTP: the platform ignores a worker that is 60 s behind";

/// The last known difference. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ClockDifference(Arc<AtomicU64>);

impl ClockDifference {
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }

    /// How far the clock of this machine is ahead, in seconds.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let seconds = f64::from_bits(self.0.load(Ordering::Relaxed));
        (!seconds.is_nan()).then_some(seconds)
    }

    /// Compares the clocks again and again, and logs when they differ.
    pub(crate) async fn watch(&self, server: &RedisServer) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut times_different = 0;
        loop {
            ticks.tick().await;
            let seconds = match server.clock_difference().await {
                Ok(seconds) => seconds,
                Err(error) => {
                    debug!(error = chain(&error), "clocks_not_compared");
                    continue;
                }
            };
            self.0.store(seconds.to_bits(), Ordering::Relaxed);
            match problem(seconds, server) {
                Some(problem) => {
                    times_different += 1;
                    if is_logged(times_different) {
                        warn!(problem, advice = ADVICE, "clock_differs_from_redis");
                    }
                }
                None => {
                    if times_different > 0 {
                        info!(seconds, "clock_agrees_with_redis");
                    }
                    times_different = 0;
                }
            }
        }
    }
}

/// What is wrong with a difference of `seconds`.
pub(crate) fn problem(seconds: f64, server: &RedisServer) -> Option<String> {
    let side = if seconds < 0.0 { "behind" } else { "ahead of" };
    let (seconds, address) = (seconds.abs(), server.address());
    (seconds > TOLERANCE)
        .then(|| format!("the clock of this machine is {seconds:.1} s {side} that of Redis at {address}"))
}
