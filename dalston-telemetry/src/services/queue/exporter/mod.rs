//! How full the queues of a deployment are (feature `queue-exporter`).
//!
//! [`QueueExporter`] looks at Redis every 15 s and keeps the [`QueueMetrics`] of a registry up to date. A scrape
//! only reads these: it never waits for Redis. Run it inside a service, or on its own as the program
//! `dalston-queue-exporter`, which serves `/metrics` and `/health`.
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
//! # What is counted
//!
//! A queue is a stream `dalston:stream:{engine_id}`, whoever's engine that is. They are found by `SCAN`, 100 000 keys of the
//! server in one look, so among a million keys a new queue may take ten looks to be found.
//!
//! **Depth** is what the consumer group `engines` was not given yet; without the group, all entries. Up to 100 tasks are counted one
//! by one. Beyond that, it is the lag that Redis tells, unless it tells none, which is so after a task in the middle was
//! removed with `XDEL`, or one that can't be right: then tasks are counted up to 10 000, and a queue that is longer shows as 10 000.
//! One wrong lag can't be told from a right one: that of a server that was a replica before, with more than 100 tasks waiting behind
//! entries that were never trimmed. **Pending** is what was given to an engine and not acknowledged. The **age** is that of the
//! oldest task that nobody was given: since its `enqueued_at`, or else since the time in its id.
//!
//! # When Redis is away
//!
//! Then `dalston_redis_connected` is 0, and it is asked again every second. What was known of the queues stays for a minute
//! ([`QueueExporterConfig::keep`]) after it should have been read anew, in which a restart or a fail-over should be over, and then goes: it is neither zero, which
//! would have workers removed, nor a number that was true an hour ago. So pair every alert on a queue
//! with one on `dalston_redis_connected == 0`. Each look is a connection of its own, so that the exporter is always where the name
//! in the URL leads to.
//!
//! # Rights
//!
//! A user of Redis who may only read is enough: `+@connection +scan +xinfo +xlen +xrange`, and `%R~dalston:*` for keys. `SCAN` shows names of
//! other keys to whoever may use it, here as anywhere.

mod config;
mod look;

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use self::config::QueueExporterConfig;
use self::look::{Look, LookError};
use crate::metrics::Metrics;
use crate::redact;
use crate::services::queue::QueueMetrics;

/// The longest that one look at all queues may take.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// How soon Redis is asked again after it could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the [`QueueMetrics`] of a registry up to date until it is shut down or dropped. Their series end with it.
#[derive(Debug)]
#[must_use = "the exporter ends when this is dropped"]
pub struct QueueExporter {
    task: JoinHandle<()>,
    metrics: QueueMetrics,
}

impl QueueExporter {
    /// Starts to look. Redis need not be there yet. A registry has one exporter.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(config: QueueExporterConfig, metrics: &Metrics) -> Self {
        // Figures outlive the pause before the next look, too.
        let metrics = QueueMetrics::register(metrics, config.keep + config.interval);
        metrics.unreachable();
        let shown = Shown(metrics.clone());
        let task = tokio::spawn(async move { shown.keep_up_to_date(config).await });
        Self { task, metrics }
    }

    /// What it shows.
    #[must_use]
    pub fn metrics(&self) -> &QueueMetrics {
        &self.metrics
    }

    /// Ends it, whatever Redis does.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // It was cancelled, or has panicked, which was reported where it happened.
        let _ = (&mut self.task).await;
    }
}

impl Drop for QueueExporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes the series away when the task ends in whatever way.
struct Shown(QueueMetrics);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.ended();
    }
}

impl Shown {
    async fn keep_up_to_date(&self, config: QueueExporterConfig) {
        let mut look = Look::new(&config);
        let mut before = None;
        loop {
            let seen = match timeout(LONGEST_LOOK, look.at_all()).await {
                Ok(seen) => seen,
                Err(_) => Err(LookError::too_long(LONGEST_LOOK)),
            };
            let connected = seen.is_ok();
            match seen {
                Ok(seen) => {
                    let queues = seen.queues.len();
                    self.0.seen(seen);
                    if before != Some(true) {
                        info!(redis = %config.address(), queues, "redis_connected");
                    }
                }
                Err(error) => {
                    self.0.unreachable();
                    if before != Some(false) {
                        let error = error.to_string();
                        warn!(redis = %config.address(), error = %redact::text(&error), "redis_unreachable");
                    }
                }
            }
            before = Some(connected);
            sleep(if connected {
                config.interval
            } else {
                config.interval.min(RETRY)
            })
            .await;
        }
    }
}
