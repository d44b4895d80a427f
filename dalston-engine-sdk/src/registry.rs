//! How an instance makes itself known to a live deployment: [`Registry`].
//!
//! See section 2.5 of the protocol. Registering, renewing and healing are one command: a heartbeat that finds the record
//! gone, or cut short, writes the whole of it.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::broker::{BURY_SCRIPT, BrokerError, HEARTBEAT_SCRIPT, RedisServer};
use crate::protocol::{HEARTBEAT_SECONDS, Heartbeat, RECORD_TTL_SECONDS, RegistryRecord, Timestamp, keys};

/// The entry of one instance in the registry.
#[derive(Clone)]
pub struct Registry {
    server: RedisServer,
    record: RegistryRecord,
    lifetime: Duration,
}

/// What a heartbeat found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The record was there and is renewed.
    Renewed,
    /// It was not, or was incomplete, and is written again.
    Written,
}

impl Registry {
    /// An entry with this record. Nothing is written yet.
    #[must_use]
    pub fn new(server: RedisServer, record: RegistryRecord) -> Self {
        Self {
            server,
            record,
            lifetime: Duration::from_secs(RECORD_TTL_SECONDS),
        }
    }

    /// Sets how long the record lives without a heartbeat. There are six heartbeats in that time. Default 60 s, which is
    /// what the platform counts on.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &RegistryRecord {
        &self.record
    }

    /// Says that the instance lives and what it is doing; registers it if it is not registered.
    ///
    /// # Errors
    ///
    /// If the server can't be reached.
    pub async fn beat(&self, heartbeat: &Heartbeat) -> Result<Beat, BrokerError> {
        let now = Timestamp::now();
        let renewal = self.record.heartbeat(heartbeat, now);
        let mut script = HEARTBEAT_SCRIPT.key(keys::instance(&self.record.instance));
        for set in self.sets() {
            script.key(set);
        }
        script
            .arg(&self.record.instance)
            .arg(u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX))
            .arg(renewal.len() * 2);
        for (name, value) in renewal.into_iter().chain(self.record.complete(heartbeat, now)) {
            script.arg(name).arg(value);
        }
        let there: Result<bool, _> = script.invoke_async(&mut self.server.shared()).await;
        let there = there.map_err(|source| self.failed("renewing", source))?;
        Ok(if there { Beat::Renewed } else { Beat::Written })
    }

    /// Removes the record and its memberships.
    ///
    /// # Errors
    ///
    /// If the server can't be reached. The record then ends by itself when it got no heartbeat for its lifetime.
    pub async fn deregister(&self) -> Result<(), BrokerError> {
        let mut removal = redis::pipe();
        removal
            .atomic()
            .del(keys::instance(&self.record.instance))
            .ignore();
        for set in self.sets() {
            removal.srem(set, &self.record.instance).ignore();
        }
        let removed = removal.query_async(&mut self.server.shared()).await;
        removed.map_err(|source| self.failed("removing", source))
    }

    /// Removes instances of this engine from the platform's sets that died without a word: the platform itself leaves them in two of
    /// the three. Only instances of this SDK, which join again if they live after all. Some of them, if there are very many.
    ///
    /// # Errors
    ///
    /// If the server can't be reached.
    pub async fn bury(&self) -> Result<u64, BrokerError> {
        const LOOKED_AT: u32 = 100;
        let [own, sets @ ..] = self.sets();
        let mut script = BURY_SCRIPT.key(own);
        for set in sets {
            script.key(set);
        }
        script.arg(keys::instance("")).arg(LOOKED_AT);
        let removed = script.invoke_async(&mut self.server.shared()).await;
        removed.map_err(|source| self.failed("removing dead namesakes beside", source))
    }

    /// Our own, and those of the platform.
    fn sets(&self) -> [String; 4] {
        let own = keys::rejoining_instances(&self.record.capabilities.engine_id);
        let [all, of_engine, of_stage] = self.record.index_sets();
        [own, all, of_engine, of_stage]
    }

    /// Registers the instance and keeps it registered until the guard is [closed](Registered::leave).
    ///
    /// A server that can't be reached is no error here: the next heartbeat tries again.
    pub async fn join(self, state: impl Fn() -> Heartbeat + Send + Sync + 'static) -> Registered {
        let mut last = state();
        let mut joined = beat(&self, &last).await;
        if joined {
            info!(instance = %self.record.instance, "engine_registered");
        }
        let (stop, mut stopped) = oneshot::channel();
        let beats = tokio::spawn(async move {
            let mut ticks = interval((self.lifetime / HEARTBEATS).max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            // Who died is known when its record ends.
            let mut burials = interval(self.lifetime.max(Duration::from_millis(1)));
            burials.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut looks = interval(NOTICE);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = &mut stopped => return self,
                    _ = ticks.tick() => last = state(),
                    _ = burials.tick() => {
                        bury(&self).await;
                        continue;
                    }
                    // What changed is told sooner: the platform chooses engines by it.
                    _ = looks.tick() => {
                        let now = state();
                        if joined && now == last {
                            continue;
                        }
                        last = now;
                    }
                }
                joined = beat(&self, &last).await;
            }
        });
        Registered {
            stop: Some(stop),
            beats,
        }
    }

    fn failed(&self, doing: &str, source: redis::RedisError) -> BrokerError {
        BrokerError::new(
            format!("{doing} the registry record of {}", self.record.instance),
            source,
        )
    }
}

/// How soon the registry knows of a change, and of us when the server was away.
const NOTICE: Duration = Duration::from_secs(1);
/// How many heartbeats may be lost, one after the other, before the record ends.
const HEARTBEATS: u32 = (RECORD_TTL_SECONDS / HEARTBEAT_SECONDS) as u32;

async fn beat(registry: &Registry, heartbeat: &Heartbeat) -> bool {
    match registry.beat(heartbeat).await {
        Ok(_) => true,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            warn!(%error, cause, "heartbeat_failed");
            false
        }
    }
}

async fn bury(registry: &Registry) {
    match registry.bury().await {
        Ok(0) => {}
        Ok(removed) => debug!(removed, "dead_instances_removed"),
        Err(error) => warn!(%error, "dead_instances_not_removed"),
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("server", &self.server)
            .field("instance", &self.record.instance)
            .finish_non_exhaustive()
    }
}

/// An instance that is registered and heart-beats. If it is dropped without [`leave`](Self::leave), the record ends by itself.
#[derive(Debug)]
#[must_use]
pub struct Registered {
    stop: Option<oneshot::Sender<()>>,
    beats: JoinHandle<Registry>,
}

impl Registered {
    /// Ends the heartbeats and removes the record. The last thing that an instance does with the deployment: until then its
    /// tasks must not look abandoned.
    ///
    /// # Errors
    ///
    /// If the server can't be reached within 5 s.
    pub async fn leave(mut self) -> Result<(), BrokerError> {
        drop(self.stop.take());
        let left = async {
            let registry = (&mut self.beats)
                .await
                .map_err(|source| BrokerError::new("leaving the registry", source))?;
            registry.deregister().await
        };
        match timeout(Duration::from_secs(5), left).await {
            Ok(left) => left,
            Err(late) => Err(BrokerError::new("leaving the registry", late)),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.beats.abort();
    }
}
