//! Claims: entries of the pending list that their consumer no longer renews.

use std::time::{Duration, SystemTime};

use redis::RedisResult;
use tokio::time::Instant;
use tracing::{info, warn};

use super::held::{HeldTasks, RELEASED, milliseconds};
use super::message::{Fields, Message};
use super::scripts;
use crate::broker::{Consumer, Delivery, RedeliveryReason};
use crate::protocol::{RECORD_TTL_SECONDS, Timestamp, keys};

/// How many entries of the pending list one look sees.
pub(super) const WINDOW: usize = 32;
/// Among how many stale entries those are looked for that waited longest.
const MOST_STALE: usize = 1_000;

/// An entry of the pending list that was not renewed for a while.
#[derive(Debug)]
pub(super) struct StaleEntry {
    pub(super) id: String,
    pub(super) consumer: String,
    idle: Duration,
    delivery_count: u32,
    /// Time that the consumer's registry record has left. Negative if it has no end, or if there is
    /// no record.
    record_ttl_ms: i64,
    status: String,
    last_heartbeat: String,
    /// For how long the process has the consumer's name, if that is known.
    process_age: Option<Duration>,
}

/// Where to look for stale entries.
#[derive(Debug)]
pub(super) struct Search<'a> {
    /// How many entries are left out, of those that waited longest.
    pub(super) skipped: usize,
    /// Only entries that were not renewed for so long.
    pub(super) idle: Duration,
    /// Only entries of this consumer.
    pub(super) consumer: Option<&'a str>,
}

impl StaleEntry {
    /// Up to [`WINDOW`] entries, the longest idle first.
    pub(super) async fn find(held: &HeldTasks, stream: &str, search: Search<'_>) -> RedisResult<Vec<Self>> {
        type Row = (String, String, u64, u32, i64, String, String, i64);
        let mut script = scripts::STALE_ENTRIES.key(stream);
        script
            .arg(keys::TASK_GROUP)
            .arg(search.skipped)
            .arg(milliseconds(search.idle))
            .arg(WINDOW)
            .arg(search.consumer.unwrap_or_default())
            .arg(keys::instance(""))
            .arg(MOST_STALE);
        let rows: Vec<Row> = script.invoke_async(&mut held.server.shared()).await?;
        let entries = rows.into_iter().map(
            |(id, consumer, idle, delivery_count, record_ttl_ms, status, last_heartbeat, age)| Self {
                id,
                consumer,
                idle: Duration::from_millis(idle),
                delivery_count,
                record_ttl_ms,
                status,
                last_heartbeat,
                process_age: u64::try_from(age).ok().map(Duration::from_millis),
            },
        );
        Ok(entries.collect())
    }

    pub(super) fn is_released(&self) -> bool {
        self.consumer == RELEASED
    }

    /// The platform's rule, with two additions: a record that the server itself will drop within a
    /// minute was renewed within the last minute, even if the clocks of the two hosts differ. And
    /// the process with this name may be the next one, which does not take over what the first one
    /// held while its own surroundings are broken.
    pub(super) fn owner_is_dead(&self, now: Timestamp) -> bool {
        if self.process_age.is_some_and(|age| age < self.idle) {
            return true;
        }
        if self.status.is_empty() || self.status == "offline" {
            return true;
        }
        let Ok(heartbeat) = self.last_heartbeat.parse::<Timestamp>() else {
            return true;
        };
        let fresh = now.seconds_since(heartbeat) < RECORD_TTL_SECONDS as f64;
        !fresh && self.record_ttl_ms <= 0
    }

    /// Claims the entry for a consumer, if it was still not renewed for `idle`.
    pub(super) async fn claim(
        self,
        held: &HeldTasks,
        stream: &str,
        consumer: &Consumer,
        idle: Duration,
    ) -> RedisResult<Option<Delivery>> {
        let asked_at = Instant::now();
        let mut script = scripts::CLAIM.key(stream);
        script
            .arg(keys::TASK_GROUP)
            .arg(&self.id)
            .arg(&consumer.instance)
            .arg(self.delivery_count)
            .arg(&self.consumer)
            .arg(milliseconds(idle))
            .arg(keys::UNUSED_STREAM);
        let fields: Option<Fields> = script.invoke_async(&mut held.server.shared()).await?;
        let (released, id) = (self.is_released(), self.id);
        let Some(fields) = fields else { return Ok(None) };
        if fields.is_empty() {
            warn!(stream, message_id = %id, action = "removed", "pending_entry_without_message");
            return Ok(None);
        }
        let message = Message {
            id,
            delivery_count: self.delivery_count + 1,
            fields,
        };
        let delivery = message.into_delivery(&held.server, consumer, asked_at).await;
        let Some(mut delivery) = delivery else {
            return Ok(None);
        };
        if !released {
            fault_point!(TakenOver);
        }
        delivery.redelivery = Some(match released {
            true => RedeliveryReason::Deferred,
            false => RedeliveryReason::EngineCrash,
        });
        // Other workers could have claimed it since its lease ended or it was released.
        let idle_when_free = match released {
            true => held.idle_when_released(),
            false => held.lease,
        };
        let free_for = self.idle.saturating_sub(idle_when_free);
        let now = SystemTime::now();
        delivery.requeued_at = Some(Timestamp::from(now.checked_sub(free_for).unwrap_or(now)));
        info!(
            task_id = %delivery.claim.task_id,
            job_id = %delivery.claim.job_id,
            from = %self.consumer,
            delivery_count = delivery.claim.delivery_count,
            "claimed_stale_task"
        );
        Ok(Some(delivery))
    }
}

#[cfg(test)]
mod tests {
    use testbed::TestRedis;

    use super::*;
    use crate::broker::{Broker, Claim, Ownership};
    use crate::redis::{RedisBroker, RedisServer};

    const STREAM: &str = "dalston:stream:my-asr";
    const IDLE: Duration = Duration::from_secs(60);

    fn consumer(instance: &str) -> Consumer {
        Consumer {
            engine_id: "my-asr".to_owned(),
            instance: instance.to_owned(),
        }
    }

    /// A task of a consumer that did not renew it for an hour, as a peer found it.
    async fn found(server: &TestRedis, broker: &RedisBroker, peer: &HeldTasks) -> (Claim, StaleEntry) {
        let message = ["XADD", STREAM, "*", "task_id", "T", "job_id", "J"];
        let _: String = server.send(&message).await;
        let taken = broker.receive(&consumer("a"), IDLE).await.unwrap();
        let claim = taken.unwrap().claim;
        age(server, &claim, &[]).await;
        let search = Search {
            skipped: 0,
            idle: IDLE,
            consumer: None,
        };
        let mut found = StaleEntry::find(peer, STREAM, search).await.unwrap();
        assert_eq!(found.len(), 1);
        (claim, found.remove(0))
    }

    async fn age(server: &TestRedis, claim: &Claim, more: &[&str]) {
        let words = [
            "XCLAIM",
            STREAM,
            "engines",
            "a",
            "0",
            &claim.message_id,
            "IDLE",
            "3600000",
        ];
        let () = server.send(&[&words[..], more, &["JUSTID"]].concat()).await;
    }

    async fn claims(entry: StaleEntry, peer: &HeldTasks) -> bool {
        let claimed = entry.claim(peer, STREAM, &consumer("b"), IDLE).await;
        claimed.unwrap().is_some()
    }

    #[tokio::test]
    async fn entry_is_only_claimed_as_it_was_found() {
        let server = TestRedis::start().await;
        let url = RedisServer::new(&server.url()).unwrap();
        let broker = RedisBroker::new(url.clone());
        let peer = HeldTasks::new(url, IDLE);

        let (claim, entry) = found(&server, &broker, &peer).await;
        assert_eq!(broker.renew(&claim).await.unwrap(), Ownership::Held);
        assert!(!claims(entry, &peer).await, "renewed meanwhile");
        let () = server.send(&["DEL", STREAM]).await;

        let (claim, entry) = found(&server, &broker, &peer).await;
        age(&server, &claim, &["RETRYCOUNT", "2"]).await;
        assert!(!claims(entry, &peer).await, "delivered again meanwhile");
        let () = server.send(&["DEL", STREAM]).await;

        let (_, entry) = found(&server, &broker, &peer).await;
        assert!(claims(entry, &peer).await);
    }
}
