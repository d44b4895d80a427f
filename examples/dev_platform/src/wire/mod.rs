//! Redis, as the live platform uses it: queues of tasks, events, cancellations, the registry of
//! engines; and a look at all of it for the pages. The names and the fields are those of
//! [`protocol`](dalston_engine_sdk::protocol).

mod inspect;
mod sessions;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use dalston_engine_sdk::protocol::{Event, EventKind, QueuedTask, RECORD_TTL_SECONDS, Timestamp, keys};
use dalston_telemetry::services::MessageContext;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisResult, Script, pipe};
use serde_json::Value;

pub(crate) use self::inspect::{DeadLetter, InHand, Queue};
pub(crate) use self::sessions::{Candidate, LiveSession, TOKEN_SECONDS};

/// How often a failed task is queued again.
pub(crate) const MAX_RETRIES: u32 = 2;

/// The longest time without an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The field of a task's metadata that engines on the SDK set at its end.
const ENDED: &str = "ended";
/// How long Redis remembers that an attempt was queued.
const MARKER_SECONDS: u64 = 86_400;

/// Queues an attempt of a task, once. Whether all of it happened or nothing of it, the next call
/// does the rest.
static QUEUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
-- KEYS: the stream, the metadata, the marker of the attempt.
-- ARGV: the group, the lifetimes of metadata and marker in s, the number of metadata words, these
-- words, the eight of the entry, the field for its id.
local queued = redis.call('GET', KEYS[3])
if queued and redis.call('EXISTS', KEYS[2]) == 1 then
  if redis.call('HEXISTS', KEYS[2], 'ended') == 1 then return queued end
  -- An engine that gave the task back has queued it under another entry.
  queued = redis.call('HGET', KEYS[2], 'stream_message_id') or queued
  if #redis.call('XRANGE', KEYS[1], queued, queued) == 1 then return queued end
end
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
local words = tonumber(ARGV[4])
redis.call('HSET', KEYS[2], unpack(ARGV, 5, 4 + words))
redis.call('EXPIRE', KEYS[2], ARGV[2])
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5 + words, 12 + words))
redis.call('HSET', KEYS[2], ARGV[13 + words], id)
redis.call('SET', KEYS[3], id, 'EX', ARGV[3])
return id
",
    )
});

/// A connection that is made again when it is lost. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wire {
    client: Client,
    connection: ConnectionManager,
}

/// An engine process in the registry.
#[derive(Clone, Debug)]
pub(crate) struct EngineRecord {
    fields: BTreeMap<String, String>,
}

impl Wire {
    /// A connection that is made with the first command.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let client = Client::open(url).context("REDIS_URL")?;
        let connection = connect(&client)?;
        Ok(Self { client, connection })
    }

    /// A connection of its own for blocking reads: commands behind one would wait for it.
    pub(crate) fn blocking(&self) -> Result<ConnectionManager> {
        Ok(connect(&self.client)?)
    }

    fn connection(&self) -> ConnectionManager {
        self.connection.clone()
    }

    pub(crate) async fn ping(&self) -> RedisResult<()> {
        redis::cmd("PING").query_async(&mut self.connection()).await
    }

    /// Publishes an event in both forms.
    pub(crate) async fn publish(&self, event: &Event) -> RedisResult<()> {
        let mut add = redis::cmd("XADD");
        add.arg(keys::EVENT_STREAM)
            .arg("MAXLEN")
            .arg("~")
            .arg(keys::EVENT_STREAM_MAX_LEN)
            .arg("*");
        for (name, value) in event.fields() {
            add.arg(name).arg(value);
        }
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(keys::EVENT_CHANNEL).arg(event.published());
        pipe()
            .add_command(add)
            .ignore()
            .add_command(publish)
            .ignore()
            .query_async(&mut self.connection())
            .await
    }

    /// Queues the attempt with this number, unless it is queued already. Returns its entry.
    pub(crate) async fn queue(&self, task: &QueuedTask, retry: u32) -> RedisResult<String> {
        let metadata = task.metadata();
        let mut call = QUEUE.prepare_invoke();
        call.key(keys::task_stream(&task.engine_id))
            .key(keys::task(&task.task_id))
            .key(keys::retry_enqueue(&task.task_id, retry))
            .arg(keys::TASK_GROUP)
            .arg(task.metadata_lifetime(MAX_RETRIES).as_secs())
            .arg(MARKER_SECONDS)
            .arg(metadata.len() * 2);
        for (name, value) in metadata {
            call.arg(name).arg(value);
        }
        for (name, value) in task.entry() {
            call.arg(name).arg(value);
        }
        call.arg(keys::STREAM_MESSAGE_ID);
        call.invoke_async(&mut self.connection()).await
    }

    /// Whether Redis still knows an attempt that was queued: its entry, or that an engine ended it.
    pub(crate) async fn is_queued(&self, task_id: &str, engine_id: &str) -> RedisResult<bool> {
        let (entry, ended): (Option<String>, Option<String>) = redis::cmd("HMGET")
            .arg(keys::task(task_id))
            .arg(&[keys::STREAM_MESSAGE_ID, ENDED])
            .query_async(&mut self.connection())
            .await?;
        let Some(entry) = entry.filter(|_| ended.is_none()) else {
            return Ok(ended.is_some());
        };
        let entries: Vec<(String, BTreeMap<String, String>)> = redis::cmd("XRANGE")
            .arg(&[&keys::task_stream(engine_id), &entry, &entry])
            .query_async(&mut self.connection())
            .await?;
        Ok(!entries.is_empty())
    }

    /// Tells the engines that a job is cancelled.
    pub(crate) async fn cancel(&self, job_id: &str) -> RedisResult<()> {
        redis::cmd("SET")
            .arg(keys::job_cancelled(job_id))
            .arg("1")
            .arg("EX")
            .arg(keys::JOB_CANCELLED_SECONDS)
            .query_async(&mut self.connection())
            .await
    }

    /// Takes back that a job is cancelled.
    pub(crate) async fn withdraw_cancel(&self, job_id: &str) -> RedisResult<()> {
        redis::cmd("DEL")
            .arg(keys::job_cancelled(job_id))
            .query_async(&mut self.connection())
            .await
    }

    /// Has engines pass over the entries of tasks that are still in their queues. The entries stay:
    /// without them, Redis would no longer know how long a queue is.
    pub(crate) async fn block(&self, task_ids: &[String], reason: &str) -> RedisResult<()> {
        let now = Timestamp::now().to_string();
        let mut block = pipe();
        for id in task_ids {
            block
                .cmd("HSET")
                .arg(keys::task(id))
                .arg(&["blocked_reason", reason, "blocked_at", &now])
                .ignore();
            // An attempt that has expired comes back without its other fields.
            block.expire(keys::task(id), MARKER_SECONDS as i64).ignore();
        }
        match task_ids {
            [] => Ok(()),
            _ => block.query_async(&mut self.connection()).await,
        }
    }

    /// Forgets what Redis holds about a job and its tasks.
    pub(crate) async fn forget(&self, job_id: &str, task_ids: &[String]) -> RedisResult<()> {
        let mut names: Vec<String> = task_ids.iter().map(|id| keys::task(id)).collect();
        names.push(keys::job_artifacts(job_id));
        redis::cmd("DEL")
            .arg(names)
            .query_async(&mut self.connection())
            .await
    }

    /// The engine processes that are alive, without their realtime halves.
    pub(crate) async fn engines(&self) -> RedisResult<Vec<EngineRecord>> {
        let mut engines = self.records().await?;
        engines.retain(|engine| engine.is_healthy() && !engine.is_realtime());
        Ok(engines)
    }

    /// The realtime workers, dead ones too until their records are gone.
    pub(crate) async fn realtime_workers(&self) -> RedisResult<Vec<EngineRecord>> {
        let mut workers = self.records().await?;
        workers.retain(EngineRecord::is_realtime);
        Ok(workers)
    }

    async fn records(&self) -> RedisResult<Vec<EngineRecord>> {
        let instances: Vec<String> = redis::cmd("SMEMBERS")
            .arg(keys::INSTANCES)
            .query_async(&mut self.connection())
            .await?;
        let mut read = pipe();
        for instance in &instances {
            read.hgetall(keys::instance(instance));
        }
        let records: Vec<BTreeMap<String, String>> = match instances.is_empty() {
            true => Vec::new(),
            false => read.query_async(&mut self.connection()).await?,
        };
        let mut records: Vec<_> = records
            .into_iter()
            .map(|fields| EngineRecord { fields })
            .filter(|record| !record.engine_id().is_empty())
            .collect();
        records.sort_by(|a, b| a.text("instance").cmp(b.text("instance")));
        Ok(records)
    }
}

fn connect(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_max_delay(Duration::from_secs(1));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

/// An event about a job, with what it carries for telemetry.
pub(crate) fn job_event(kind: EventKind, job_id: &str, message: &MessageContext) -> Event {
    let mut event = Event::new(kind, job_id, Timestamp::now());
    event.request_id.clone_from(&message.request_id);
    event.trace_context.clone_from(&message.trace_context);
    event
}

impl EngineRecord {
    #[cfg(test)]
    pub(crate) fn from_fields<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            fields: fields.collect(),
        }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    pub(crate) fn engine_id(&self) -> &str {
        self.text("engine_id")
    }

    /// Whether it takes tasks of a stage.
    pub(crate) fn takes(&self, stage: &str) -> bool {
        let stages = self.capabilities();
        let listed = stages["stages"].as_array();
        let listed = listed.is_some_and(|stages| stages.iter().any(|name| name == stage));
        listed || self.text("stage") == stage
    }

    pub(crate) fn has_words(&self) -> bool {
        self.text("supports_word_timestamps") == "true"
    }

    pub(crate) fn capabilities(&self) -> Value {
        self.text("capabilities").parse().unwrap_or_default()
    }

    /// Whether it is the realtime half of a process.
    pub(crate) fn is_realtime(&self) -> bool {
        let interfaces = serde_json::from_str::<Vec<String>>(self.text("interfaces"));
        interfaces.is_ok_and(|interfaces| interfaces.iter().any(|name| name == "realtime"))
    }

    /// The seconds since its last heartbeat.
    pub(crate) fn heartbeat_age(&self) -> f64 {
        let heartbeat = self.text("last_heartbeat").parse::<Timestamp>();
        heartbeat.map_or(f64::INFINITY, |heartbeat| {
            Timestamp::now().seconds_since(heartbeat)
        })
    }

    fn is_healthy(&self) -> bool {
        self.text("status") != "offline" && self.heartbeat_age() < RECORD_TTL_SECONDS as f64
    }
}
