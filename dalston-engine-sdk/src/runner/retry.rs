//! Calls to the broker that are repeated until it answers.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::broker::BrokerError;
use crate::error::chain;

/// Nobody waits longer for one call to the broker.
pub(super) const BROKER_CALL: Duration = Duration::from_secs(10);
/// How long a broker that fails is asked again, and the longest pause between two calls.
const BROKER_PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Calls the broker until it answers, for a minute at most: then its tasks are free for others anyway. What a task is worth may
/// be hours of a GPU, and a broker that fails over is back in seconds.
pub(super) async fn retry<T, F>(doing: &'static str, mut call: impl FnMut() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let give_up = Instant::now() + BROKER_PATIENCE;
    let mut pause = Duration::from_millis(100);
    loop {
        let error = match timeout(BROKER_CALL, call()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(elapsed) => BrokerError::new(doing, elapsed),
        };
        tracing::warn!(doing, error = chain(&error), "broker_call_failed");
        if Instant::now() + pause > give_up {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
