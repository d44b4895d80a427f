//! The registry of the live platform: a hash for each instance, and sets of their names.

use std::time::Duration;

use async_trait::async_trait;
use redis::RedisError;

use super::scripts::{HEARTBEAT, REMOVE_STALE_INSTANCES};
use super::server::RedisServer;
use crate::protocol::{Heartbeat, RECORD_TTL_SECONDS, RegistryRecord, Timestamp, keys};
use crate::registry::{Registry, RegistryError, Renewal};

/// How many names of instances one call looks at.
const STALE_INSTANCES_PER_CALL: u32 = 100;

/// The registry of a live deployment, section 2.5 of the protocol.
///
/// [`remove_stale_instances`](Registry::remove_stale_instances) removes names from the platform's
/// sets, because the platform leaves them in two of the three. It removes only instances of this
/// SDK, which join again if they still run.
#[derive(Debug, Clone)]
pub struct RedisRegistry {
    server: RedisServer,
    lifetime: Duration,
}

impl RedisRegistry {
    /// The registry on this server. Records live 60 s without a heartbeat, which is what the
    /// platform counts on.
    #[must_use]
    pub fn new(server: RedisServer) -> Self {
        Self {
            server,
            lifetime: Duration::from_secs(RECORD_TTL_SECONDS),
        }
    }

    /// Sets how long a record lives without a heartbeat.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    fn failed(&self, operation: &str, record: &RegistryRecord, source: RedisError) -> RegistryError {
        let (instance, address) = (&record.instance, self.server.address());
        RegistryError::new(format!("{operation} {instance} on Redis at {address}"), source)
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    fn lifetime(&self) -> Duration {
        self.lifetime
    }

    async fn renew(&self, record: &RegistryRecord, heartbeat: &Heartbeat) -> Result<Renewal, RegistryError> {
        let now = Timestamp::now();
        let renewal = record.heartbeat(heartbeat, now);
        let mut script = HEARTBEAT.key(keys::instance(&record.instance));
        for set in sets(record) {
            script.key(set);
        }
        script
            .arg(&record.instance)
            .arg(u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX))
            .arg(renewal.len() * 2);
        for (name, value) in renewal.into_iter().chain(record.complete(heartbeat, now)) {
            script.arg(name).arg(value);
        }
        match script.invoke_async(&mut self.server.shared()).await {
            Ok(true) => Ok(Renewal::Renewed),
            Ok(false) => Ok(Renewal::Written),
            Err(source) => Err(self.failed("renewing the registry record of", record, source)),
        }
    }

    async fn remove(&self, record: &RegistryRecord) -> Result<(), RegistryError> {
        let mut removal = redis::pipe();
        removal.atomic().del(keys::instance(&record.instance)).ignore();
        for set in sets(record) {
            removal.srem(set, &record.instance).ignore();
        }
        let removed = removal.query_async(&mut self.server.shared()).await;
        removed.map_err(|source| self.failed("removing the registry record of", record, source))
    }

    async fn remove_stale_instances(&self, record: &RegistryRecord) -> Result<u64, RegistryError> {
        let [own, platform @ ..] = sets(record);
        let mut script = REMOVE_STALE_INSTANCES.key(own);
        for set in platform {
            script.key(set);
        }
        script.arg(keys::instance("")).arg(STALE_INSTANCES_PER_CALL);
        let removed = script.invoke_async(&mut self.server.shared()).await;
        removed.map_err(|source| self.failed("removing stale instances beside", record, source))
    }
}

/// The set of the SDK's own instances, and the sets of the platform.
fn sets(record: &RegistryRecord) -> [String; 4] {
    let own = keys::rejoining_instances(&record.capabilities.engine_id);
    let [all, of_engine, of_stage] = record.index_sets();
    [own, all, of_engine, of_stage]
}
