//! How an instance makes itself known to a deployment: [`Registry`] and [`join`].
//!
//! The platform chooses engines by their records (section 2.5 of the protocol), and takes an
//! instance without a record for dead. A broker brings its own registry;
//! [`RedisRegistry`](crate::redis::RedisRegistry) is that of the live platform.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::log_limit::is_logged;
use crate::protocol::{HEARTBEAT_SECONDS, RECORD_TTL_SECONDS};
pub use crate::protocol::{Heartbeat, RegistryRecord};

/// The records of all running instances of a deployment.
///
/// Registering, renewing and repairing are one operation, [`renew`](Self::renew): a record that is
/// gone or incomplete is written whole. So an instance comes back by itself after the registry lost
/// its data.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug + 'static {
    /// How long a record lives without being renewed. [`join`] renews it six times in that time.
    fn lifetime(&self) -> Duration;

    /// Renews the record of an instance, or writes it if it is not there or not complete.
    ///
    /// # Errors
    ///
    /// If the registry can't be reached.
    async fn renew(&self, record: &RegistryRecord, heartbeat: &Heartbeat) -> Result<Renewal, RegistryError>;

    /// Removes the record of an instance.
    ///
    /// # Errors
    ///
    /// If the registry can't be reached. The record then ends when its lifetime is over.
    async fn remove(&self, record: &RegistryRecord) -> Result<(), RegistryError>;

    /// Removes what instances of the same engine left that ended without removing their records,
    /// and returns their number.
    ///
    /// By default there is nothing to remove.
    ///
    /// # Errors
    ///
    /// If the registry can't be reached.
    async fn remove_stale_instances(&self, _record: &RegistryRecord) -> Result<u64, RegistryError> {
        Ok(0)
    }
}

/// What [`Registry::renew`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The record was there and is renewed.
    Renewed,
    /// The record was missing or incomplete and is written whole.
    Written,
}

/// A registry could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct RegistryError {
    operation: String,
    source: Box<dyn Error + Send + Sync>,
}

impl RegistryError {
    /// `operation` says what was tried, and where: `removing the record of my-asr-1 from Redis at
    /// localhost:6379`.
    pub fn new(operation: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            operation: operation.into(),
            source: source.into(),
        }
    }
}

/// How soon the registry hears of a change, and of the instance after the registry was away.
const CHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// How many renewals may be lost, one after the other, before the record ends.
const RENEWALS_PER_LIFETIME: u32 = (RECORD_TTL_SECONDS / HEARTBEAT_SECONDS) as u32;
/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Registers an instance and keeps it registered until [`Membership::leave`]. `state` says what the
/// instance is doing.
///
/// A registry that can't be reached is no error: the next heartbeat tries again.
pub async fn join(
    registry: Arc<dyn Registry>,
    record: RegistryRecord,
    state: impl Fn() -> Heartbeat + Send + Sync + 'static,
) -> Membership {
    let member = Member {
        registry,
        record,
        failures: AtomicU64::new(0),
    };
    let heartbeat = state();
    let registered = member.renew(&heartbeat).await;
    if registered {
        info!(instance = %member.record.instance, "engine_registered");
    }
    let (stop, stopped) = oneshot::channel();
    let heartbeats = tokio::spawn(async move {
        member
            .send_heartbeats(state, heartbeat, registered, stopped)
            .await;
        member
    });
    Membership {
        stop: Some(stop),
        heartbeats,
    }
}

/// An instance and the registry that has its record.
struct Member {
    registry: Arc<dyn Registry>,
    record: RegistryRecord,
    /// How many renewals failed in a row.
    failures: AtomicU64,
}

impl Member {
    /// Renews the record at its interval, and soon after a change or a failure, until `stopped`. A
    /// renewal that is under way is finished first: it must not arrive after the removal of the
    /// record.
    async fn send_heartbeats(
        &self,
        state: impl Fn() -> Heartbeat,
        mut last: Heartbeat,
        mut registered: bool,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let lifetime = self.registry.lifetime();
        let mut renewals = every(lifetime / RENEWALS_PER_LIFETIME);
        renewals.tick().await;
        // An instance that was killed is known as such when its record ends.
        let mut removals = every(lifetime);
        let mut changes = every(CHANGE_INTERVAL);
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                _ = renewals.tick() => last = state(),
                _ = removals.tick() => {
                    self.remove_stale_instances().await;
                    continue;
                }
                _ = changes.tick() => {
                    let now = state();
                    if registered && now == last {
                        continue;
                    }
                    last = now;
                }
            }
            registered = self.renew(&last).await;
        }
    }

    async fn renew(&self, heartbeat: &Heartbeat) -> bool {
        let renewed = self.registry.renew(&self.record, heartbeat).await;
        match &renewed {
            Ok(_) => self.failures.store(0, Ordering::Relaxed),
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                if is_logged(failures) {
                    warn!(%error, failures, "heartbeat_failed");
                }
            }
        }
        renewed.is_ok()
    }

    async fn remove_stale_instances(&self) {
        match self.registry.remove_stale_instances(&self.record).await {
            Ok(0) => {}
            Ok(removed) => debug!(removed, "dead_instances_removed"),
            Err(error) => warn!(%error, "dead_instances_not_removed"),
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// An instance that is registered. If this is dropped without [`leave`](Self::leave), the
/// heartbeats stop and the record ends when its lifetime is over.
#[derive(Debug)]
#[must_use]
pub struct Membership {
    stop: Option<oneshot::Sender<()>>,
    heartbeats: JoinHandle<Member>,
}

impl Membership {
    /// Ends the heartbeats and removes the record. Call it last: until then the tasks of the
    /// instance must not look abandoned.
    ///
    /// # Errors
    ///
    /// If the record is not removed within 5 s.
    pub async fn leave(mut self) -> Result<(), RegistryError> {
        drop(self.stop.take());
        let left = async {
            let member = (&mut self.heartbeats)
                .await
                .map_err(|source| RegistryError::new("leaving the registry", source))?;
            member.registry.remove(&member.record).await
        };
        match timeout(LEAVE_TIMEOUT, left).await {
            Ok(left) => left,
            Err(elapsed) => Err(RegistryError::new("leaving the registry", elapsed)),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("registry", &self.registry)
            .field("instance", &self.record.instance)
            .finish()
    }
}
