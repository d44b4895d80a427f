//! Instance names that a deployment gives to its workers, and that two processes may have at the
//! same time.

use std::time::Duration;

use redis::RedisResult;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use super::scripts::RESERVE_NAME;
use super::server::RedisServer;
use crate::protocol::{Timestamp, keys};

/// A live process renews its record within this part of the record's lifetime: 12 s of 60 s, and
/// every kind of engine sends a heartbeat every 10 s.
const WAIT_DIVISOR: u32 = 5;
/// How often the record of the other process is read.
const POLLS_PER_WAIT: u32 = 24;

/// A process that starts under a name of which it does not know whether it is free.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    pub(crate) server: &'a RedisServer,
    /// Identifies the process in its registry record.
    pub(crate) start_nonce: &'a str,
    pub(crate) hostname: &'a str,
    /// How long a record lives without a heartbeat.
    pub(crate) lifetime: Duration,
}

/// The record of another process with the same name.
#[derive(Debug)]
struct Other {
    start_nonce: String,
    last_heartbeat: String,
    hostname: String,
    record_ttl: Option<Duration>,
}

impl Starting<'_> {
    /// Reserves the instance name. Returns `false` if another process that is alive has it, or if
    /// Redis could not be asked.
    ///
    /// A record that is not renewed while this waits is that of a predecessor, whose tasks the
    /// caller takes over.
    pub(crate) async fn reserve(&self, instance: &str) -> bool {
        match self.try_reserve(instance).await {
            Ok(None) => true,
            Ok(Some(other)) => {
                warn!(
                    instance,
                    host = other.hostname,
                    advice = "a random name takes its place; give each worker a DALSTON_WORKER_ID of its own, or none",
                    "instance_name_in_use"
                );
                false
            }
            Err(error) => {
                let advice = "a random name takes its place";
                warn!(instance, address = self.server.address(), %error, advice, "instance_name_not_checked");
                false
            }
        }
    }

    /// Returns the other process if it is alive.
    async fn try_reserve(&self, instance: &str) -> RedisResult<Option<Other>> {
        let Some(seen) = self.ask(instance, None).await? else {
            return Ok(None);
        };
        let wait = self.lifetime / WAIT_DIVISOR;
        let silent_for = seen.record_ttl.map(|ttl| self.lifetime.saturating_sub(ttl));
        let give_up = Instant::now() + wait.saturating_sub(silent_for.unwrap_or_default());
        info!(instance, host = seen.hostname, "instance_name_is_registered");
        while Instant::now() < give_up {
            sleep((wait / POLLS_PER_WAIT).min(give_up.saturating_duration_since(Instant::now()))).await;
            match self.ask(instance, None).await? {
                None => return Ok(None),
                Some(now) if now.is_later_than(&seen) => return Ok(Some(now)),
                Some(_) => {}
            }
        }
        let other = self.ask(instance, Some(&seen)).await?;
        if other.is_none() {
            info!(
                instance,
                host = seen.hostname,
                "instance_took_over_from_its_predecessor"
            );
        }
        Ok(other)
    }

    /// Reserves the name if no other process has it, or if that is the `dead` one.
    async fn ask(&self, instance: &str, dead: Option<&Other>) -> RedisResult<Option<Other>> {
        let mut script = RESERVE_NAME.key(keys::instance(instance));
        script
            .arg(self.start_nonce)
            .arg(self.hostname)
            .arg(Timestamp::now().to_string())
            .arg(u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX));
        if let Some(dead) = dead {
            script.arg(&dead.start_nonce).arg(&dead.last_heartbeat);
        }
        let reply: Option<(String, String, String, i64)> =
            script.invoke_async(&mut self.server.shared()).await?;
        Ok(
            reply.map(|(start_nonce, last_heartbeat, hostname, ttl_ms)| Other {
                start_nonce,
                last_heartbeat,
                hostname,
                record_ttl: u64::try_from(ttl_ms).ok().map(Duration::from_millis),
            }),
        )
    }
}

impl Other {
    fn is_later_than(&self, seen: &Self) -> bool {
        self.start_nonce != seen.start_nonce || self.last_heartbeat != seen.last_heartbeat
    }
}

/// A suffix that no other process has.
pub(crate) fn random_suffix() -> String {
    Uuid::new_v4().simple().to_string()
}
