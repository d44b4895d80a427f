//! The queue exporter: metrics of a deployment's queues (feature `queue-exporter`).
//!
//! [`QueueExporter`] polls Redis every 15 s and updates the [`QueueMetrics`] of a registry. A
//! scrape reads only these, so it never waits for Redis. Run the exporter inside a service, or as
//! the program `dalston-queue-exporter`, which serves `/metrics` and `/health`.
//!
//! ```no_run
//! use dalston_telemetry::metrics::{Metrics, MetricsServer};
//! use dalston_telemetry::queue_exporter::{QueueExporter, QueueExporterConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Metrics::new();
//! let _server = MetricsServer::start("0.0.0.0:9100", metrics.clone())?;
//! let config = QueueExporterConfig::new("redis://localhost:6379")?;
//! let exporter = QueueExporter::spawn(config, &metrics);
//! // …
//! exporter.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Metrics
//!
//! A queue is a stream `dalston:stream:{engine_id}` of any engine. `SCAN` finds the queues, 100 000
//! keys of the server in a poll. With a million keys, a new queue may take ten polls to be found.
//!
//! - **Depth** is the number of tasks that the consumer group `engines` has not received yet, or
//!   all entries if there is no group. Up to 100 tasks are counted one by one. Beyond that, it is
//!   the lag that Redis reports. Redis reports none after a task in the middle was removed with
//!   `XDEL`. In that case, and if the lag is impossible, tasks are counted up to 10 000, which is
//!   then the largest depth. A wrong lag that is possible can't be recognised: a server that was a
//!   replica before can report one, if more than 100 tasks wait behind entries that were never
//!   trimmed.
//! - **Pending** is the number of tasks that were delivered and not acknowledged.
//! - **Age** is the age of the oldest task that was not delivered, since its `enqueued_at`,
//!   otherwise since the time in its id.
//!
//! # Without a connection
//!
//! While Redis can't be read, `dalston_redis_connected` is 0 and Redis is polled every second. The
//! values of the queues stay for a minute after the poll that failed
//! ([`QueueExporterConfig::keep`]), which is enough for a restart or a fail-over. Then their series
//! end: a depth of zero would have workers removed, and an old depth would be wrong. So combine
//! each alert on a queue with one on `dalston_redis_connected == 0`.
//!
//! # Permissions
//!
//! The user of Redis needs `+@connection +scan +xinfo +xlen +xrange`, and `%R~dalston:*` for keys.
//! `SCAN` also returns the names of other keys.

mod config;
mod poll;

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use self::config::QueueExporterConfig;
use self::poll::{PollError, QueuePoll};
use crate::metrics::Metrics;
use crate::redact;
use crate::services::queue::QueueMetrics;

/// The longest duration of a poll.
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// The pause after a failed poll.
const RETRY: Duration = Duration::from_secs(1);

/// Updates the [`QueueMetrics`] of a registry until it is shut down or dropped. Then their series
/// end.
#[derive(Debug)]
#[must_use = "the exporter ends when this is dropped"]
pub struct QueueExporter {
    task: JoinHandle<()>,
    metrics: QueueMetrics,
}

impl QueueExporter {
    /// Starts the exporter. Redis need not be reachable yet. A registry has one exporter.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(config: QueueExporterConfig, metrics: &Metrics) -> Self {
        // `keep` starts at the poll that fails, which is an interval after the last one.
        let metrics = QueueMetrics::register(metrics, config.keep + config.interval);
        metrics.unreachable();
        let updated = UpdatedMetrics(metrics.clone());
        let task = tokio::spawn(async move { updated.run(config).await });
        Self { task, metrics }
    }

    /// The metrics that the exporter updates.
    #[must_use]
    pub fn metrics(&self) -> &QueueMetrics {
        &self.metrics
    }

    /// Ends the exporter. Does not wait for Redis.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // The task was cancelled, or has panicked, which the panic hook has reported.
        let _ = (&mut self.task).await;
    }
}

impl Drop for QueueExporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Removes the series at the end of the task, also after a panic.
struct UpdatedMetrics(QueueMetrics);

impl Drop for UpdatedMetrics {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl UpdatedMetrics {
    async fn run(&self, config: QueueExporterConfig) {
        let mut poll = QueuePoll::new(&config);
        let mut was_connected = None;
        loop {
            let polled = match timeout(LONGEST_POLL, poll.run()).await {
                Ok(polled) => polled,
                Err(_) => Err(PollError::timeout(LONGEST_POLL)),
            };
            let connected = polled.is_ok();
            match polled {
                Ok(samples) => {
                    let queues = samples.queues.len();
                    self.0.update(samples);
                    if was_connected != Some(true) {
                        info!(redis = %config.address(), queues, "redis_connected");
                    }
                }
                Err(error) => {
                    self.0.unreachable();
                    if was_connected != Some(false) {
                        let error = error.to_string();
                        warn!(redis = %config.address(), error = %redact::text(&error), "redis_unreachable");
                    }
                }
            }
            was_connected = Some(connected);
            sleep(if connected {
                config.interval
            } else {
                config.interval.min(RETRY)
            })
            .await;
        }
    }
}
