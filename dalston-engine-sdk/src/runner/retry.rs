//! Calls to the broker that are repeated until it answers.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::broker::BrokerError;
use crate::error::chain;
use crate::log_limit::is_logged;

/// The time limit of one call to the broker.
pub(super) const BROKER_CALL: Duration = Duration::from_secs(10);
/// How long a broker that fails is called again, and the longest pause between two calls.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Calls the broker until it answers, for a minute at most: after that the lease has ended and a
/// peer may have the task.
///
/// A broker that fails over is back in seconds, and the result of a task may have cost hours of a
/// GPU.
pub(super) async fn retry<T, F>(doing: &'static str, mut call: impl FnMut() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let give_up = Instant::now() + GIVE_UP_AFTER;
    let mut pause = Duration::from_millis(100);
    let mut failures = 0;
    loop {
        let error = match timeout(BROKER_CALL, call()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(elapsed) => BrokerError::new(doing, elapsed),
        };
        failures += 1;
        if is_logged(failures) {
            tracing::warn!(doing, error = chain(&error), failures, "broker_call_failed");
        }
        if Instant::now() + pause > give_up {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
