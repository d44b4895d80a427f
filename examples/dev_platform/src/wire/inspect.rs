//! What Redis holds, for a person: queues, the tasks in hand, dead letters. Changes nothing.

use std::collections::BTreeMap;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use redis::{FromRedisValue, RedisResult, Value, pipe};

use super::Wire;

/// The most tasks of a queue that are listed.
const MAX_IN_HAND: usize = 200;
/// The most dead letters that are listed.
const MAX_DEAD_LETTERS: usize = 100;

type Fields = BTreeMap<String, String>;

/// The queue of an engine.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) engine_id: String,
    /// The tasks that no worker has taken.
    pub(crate) depth: u64,
    /// When the oldest of them was queued.
    pub(crate) oldest: Option<Timestamp>,
    /// The tasks that workers have taken and not ended.
    pub(crate) in_hand: u64,
}

/// A task that a worker has taken.
#[derive(Clone, Debug)]
pub(crate) struct InHand {
    pub(crate) instance: String,
    pub(crate) task_id: String,
    /// How often it was delivered.
    pub(crate) deliveries: u64,
}

/// An event that the orchestrator could not handle.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    fields: Fields,
}

impl DeadLetter {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Wire {
    /// The queue of an engine; `None` if no task was ever queued.
    pub(crate) async fn inspect(&self, engine_id: &str) -> RedisResult<Option<Queue>> {
        let stream = keys::task_stream(engine_id);
        let groups: RedisResult<Vec<BTreeMap<String, Value>>> = redis::cmd("XINFO")
            .arg(&["GROUPS", &stream])
            .query_async(&mut self.connection())
            .await;
        let groups = match groups {
            // There is no such key.
            Err(error) if error.code() == Some("ERR") => return Ok(None),
            groups => groups?,
        };
        let group = groups
            .into_iter()
            .find(|group| matches!(text(group, "name"), Some(name) if name == keys::TASK_GROUP));
        let group = group.unwrap_or_default();
        let last = text(&group, "last-delivered-id").unwrap_or_else(|| "0-0".to_owned());
        let (length, oldest): (u64, Vec<(String, Fields)>) = pipe()
            .cmd("XLEN")
            .arg(&stream)
            .cmd("XRANGE")
            .arg(&[&stream, &format!("({last}"), "+", "COUNT", "1"])
            .query_async(&mut self.connection())
            .await?;
        let oldest = oldest.into_iter().next();
        let depth = match &oldest {
            None => 0,
            // Redis does not know the lag of a group after some operations.
            Some(_) => number(&group, "lag").unwrap_or(length).max(1),
        };
        let queued_at = |(id, fields): (String, Fields)| {
            let written = fields.get("enqueued_at").and_then(|time| time.parse().ok());
            written.or_else(|| time_of(&id))
        };
        Ok(Some(Queue {
            engine_id: engine_id.to_owned(),
            depth,
            oldest: oldest.and_then(queued_at),
            in_hand: number(&group, "pending").unwrap_or(0),
        }))
    }

    /// The tasks of an engine that its workers have taken.
    pub(crate) async fn in_hand(&self, engine_id: &str) -> RedisResult<Vec<InHand>> {
        let stream = keys::task_stream(engine_id);
        let pending: RedisResult<Vec<(String, String, u64, u64)>> = redis::cmd("XPENDING")
            .arg(&[&stream, keys::TASK_GROUP, "-", "+"])
            .arg(MAX_IN_HAND)
            .query_async(&mut self.connection())
            .await;
        let pending = match pending {
            // There is no such queue.
            Err(error) if error.code() == Some("NOGROUP") => return Ok(Vec::new()),
            pending => pending?,
        };
        if pending.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = pipe();
        for (id, ..) in &pending {
            read.cmd("XRANGE").arg(&[&stream, id, id]);
        }
        let entries: Vec<Vec<(String, Fields)>> = read.query_async(&mut self.connection()).await?;
        let tasks = pending.into_iter().zip(entries);
        let tasks = tasks.filter_map(|((_, instance, _, deliveries), mut entry)| {
            let (_, mut fields) = entry.pop()?;
            let task_id = fields.remove("task_id")?;
            Some(InHand {
                instance,
                task_id,
                deliveries,
            })
        });
        Ok(tasks.collect())
    }

    /// The newest dead letters, and how many there are.
    pub(crate) async fn dead_letters(&self) -> RedisResult<(Vec<DeadLetter>, u64)> {
        let (letters, total): (Vec<(String, Fields)>, u64) = pipe()
            .cmd("XREVRANGE")
            .arg(&[keys::EVENT_DEAD_LETTERS, "+", "-", "COUNT"])
            .arg(MAX_DEAD_LETTERS)
            .cmd("XLEN")
            .arg(keys::EVENT_DEAD_LETTERS)
            .query_async(&mut self.connection())
            .await?;
        let letters = letters.into_iter().map(|(_, fields)| DeadLetter { fields });
        Ok((letters.collect(), total))
    }
}

fn text(group: &BTreeMap<String, Value>, name: &str) -> Option<String> {
    String::from_redis_value(group.get(name)?.clone()).ok()
}

fn number(group: &BTreeMap<String, Value>, name: &str) -> Option<u64> {
    u64::from_redis_value(group.get(name)?.clone()).ok()
}

/// The time in the id of an entry.
fn time_of(id: &str) -> Option<Timestamp> {
    let (milliseconds, _) = id.split_once('-')?;
    let since = std::time::Duration::from_millis(milliseconds.parse().ok()?);
    Some(Timestamp::from(std::time::UNIX_EPOCH.checked_add(since)?))
}
