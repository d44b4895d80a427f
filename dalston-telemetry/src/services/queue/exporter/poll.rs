//! A poll of all queues.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};

use super::QueueExporterConfig;
use crate::services::queue::{QueueSample, QueueSamples};

const PREFIX: &str = "dalston:stream:";
const GROUP: &[u8] = b"engines";

/// The longest time for a connection, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The keys of one `SCAN`, during which Redis executes no other command: less than a millisecond.
const KEYS_PER_SCAN: usize = 1000;
/// The number of `SCAN` commands in a poll.
const SCANS_PER_POLL: usize = 100;
/// The queues of one round trip.
const QUEUES_PER_PIPELINE: usize = 50;
/// The tasks of a queue that are always counted one by one.
const ALWAYS_COUNTED: usize = 100;
/// The entries of one `XRANGE` while more tasks are counted.
const ENTRIES_PER_RANGE: usize = 1000;
/// The largest count.
const MOST_COUNTED: usize = 10_000;
/// The longest name of an engine.
const LONGEST_NAME: usize = 128;

/// Polls Redis, and remembers the queues that it has found.
pub(super) struct QueuePoll {
    client: Client,
    dead_letters: String,
    max_queues: usize,
    /// The engines of the queues.
    queues: BTreeSet<String>,
    /// The position at which the next poll continues the search for queues.
    cursor: u64,
    /// The queues beyond the limit in the last complete search, and in the current one.
    left_out: u64,
    left_out_so_far: u64,
}

impl QueuePoll {
    pub(super) fn new(config: &QueueExporterConfig) -> Self {
        Self {
            client: config.client.clone(),
            dead_letters: config.dead_letters.clone(),
            max_queues: config.max_queues,
            queues: BTreeSet::new(),
            cursor: 0,
            left_out: 0,
            left_out_so_far: 0,
        }
    }

    /// Reads all queues. Can be called again after it failed or its future was dropped.
    pub(super) async fn run(&mut self) -> Result<QueueSamples, PollError> {
        let mut redis = Redis::connect(&self.client).await?;
        self.search(&mut redis).await?;
        let mut samples = QueueSamples {
            dead_letters: redis.length(&self.dead_letters).await?,
            ..QueueSamples::default()
        };
        let engines: Vec<String> = self.queues.iter().cloned().collect();
        for engines in engines.chunks(QUEUES_PER_PIPELINE) {
            for (engine_id, queue) in engines.iter().zip(redis.queues(engines).await?) {
                match queue {
                    Some(queue) => samples.queues.push(queue),
                    None => _ = self.queues.remove(engine_id),
                }
            }
        }
        samples.left_out = self.left_out;
        Ok(samples)
    }

    /// Continues the search for queues.
    async fn search(&mut self, redis: &mut Redis) -> Result<(), PollError> {
        for _ in 0..SCANS_PER_POLL {
            let (cursor, keys) = redis.scan(self.cursor).await?;
            self.cursor = cursor;
            for engine_id in keys.iter().filter_map(|key| engine_id(key)) {
                if self.queues.contains(engine_id) {
                    continue;
                }
                if self.queues.len() < self.max_queues {
                    self.queues.insert(engine_id.to_owned());
                } else {
                    self.left_out_so_far += 1;
                }
            }
            if cursor == 0 {
                self.left_out = std::mem::take(&mut self.left_out_so_far);
                break;
            }
        }
        Ok(())
    }
}

/// The engine of a queue; `None` if its name can't be a label.
fn engine_id(key: &[u8]) -> Option<&str> {
    let engine_id = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let fits = (1..=LONGEST_NAME).contains(&engine_id.len()) && !engine_id.contains(char::is_control);
    fits.then_some(engine_id)
}

/// A connection for one poll. With a new connection for each poll, the name in the URL is resolved
/// again, so that the exporter does not stay on a server that has lost its role.
struct Redis {
    connection: MultiplexedConnection,
}

impl Redis {
    async fn connect(client: &Client) -> Result<Self, PollError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        Ok(Self {
            connection: connection.map_err(PollError::while_doing("connect to Redis"))?,
        })
    }

    async fn scan(&mut self, cursor: u64) -> Result<(u64, Vec<Vec<u8>>), PollError> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{PREFIX}*"));
        scan.arg("COUNT").arg(KEYS_PER_SCAN).arg("TYPE").arg("stream");
        let answer = scan.query_async(&mut self.connection).await;
        answer.map_err(PollError::while_doing("search Redis for queues"))
    }

    async fn length(&mut self, stream: &str) -> Result<u64, PollError> {
        let answer = redis::cmd("XLEN")
            .arg(stream)
            .query_async(&mut self.connection)
            .await;
        answer.map_err(PollError::while_doing("count the dead letters in Redis"))
    }

    /// Reads these queues, usually in two round trips; `None` for one that was removed.
    async fn queues(&mut self, engines: &[String]) -> Result<Vec<Option<QueueSample>>, PollError> {
        let mut about = Pipeline::new();
        for engine_id in engines {
            about.cmd("XINFO").arg("GROUPS").arg(key(engine_id));
            about.cmd("XLEN").arg(key(engine_id));
        }
        let answers = self.all(&about).await?;
        let mut groups = Vec::new();
        for answer in answers.chunks_exact(2) {
            groups.push(Group::read(&answer[0], &answer[1])?);
        }
        let mut first = Pipeline::new();
        for (engine_id, group) in engines.iter().zip(&groups) {
            if let Some(group) = group {
                first.add_command(after(engine_id, &group.last_delivered, ALWAYS_COUNTED + 1));
            }
        }
        let mut first = self.all(&first).await?.into_iter();
        let mut queues = Vec::new();
        for (engine_id, group) in engines.iter().zip(groups) {
            queues.push(match group {
                Some(group) => {
                    let waiting = Waiting::read(first.next().unwrap_or_default())?;
                    Some(QueueSample {
                        engine_id: engine_id.clone(),
                        depth: self.depth(engine_id, &group, &waiting).await?,
                        pending: group.pending,
                        oldest: waiting.oldest,
                    })
                }
                None => None,
            });
        }
        Ok(queues)
    }

    /// The number of tasks that wait, of which `first` are the first ones.
    async fn depth(&mut self, engine_id: &str, group: &Group, first: &Waiting) -> Result<u64, PollError> {
        if first.count <= ALWAYS_COUNTED {
            return Ok(first.count as u64);
        }
        // The lag of Redis includes entries that were removed before their delivery. After an
        // `XDEL`, Redis reports none.
        let plausible = ALWAYS_COUNTED as u64 + 1..=group.length;
        if let Some(lag) = group.lag.filter(|lag| plausible.contains(lag)) {
            return Ok(lag);
        }
        let mut count = first.count;
        let mut last = first.last.clone();
        while count < MOST_COUNTED {
            let most = ENTRIES_PER_RANGE.min(MOST_COUNTED - count);
            let mut page = Pipeline::new();
            page.add_command(after(engine_id, &last, most));
            let page = Waiting::read(self.all(&page).await?.pop().unwrap_or_default())?;
            count += page.count;
            if page.count < most {
                break;
            }
            last = page.last;
        }
        Ok(count as u64)
    }

    /// Sends several commands in one round trip. Each answer can be an error.
    async fn all(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, PollError> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.connection.req_packed_commands(pipeline, 0, pipeline.len());
        answers
            .await
            .map_err(PollError::while_doing("read the queues in Redis"))
    }
}

fn key(engine_id: &str) -> String {
    format!("{PREFIX}{engine_id}")
}

/// The entries of a queue after this one.
fn after(engine_id: &str, id: &str, most: usize) -> redis::Cmd {
    let mut range = redis::cmd("XRANGE");
    range.arg(key(engine_id)).arg(format!("({id}")).arg("+");
    range.arg("COUNT").arg(most);
    range
}

/// The consumer group of a queue's engines.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    last_delivered: String,
    pending: u64,
    /// The number of entries that wait, according to Redis.
    lag: Option<u64>,
    /// The entries of the stream, delivered or not.
    length: u64,
}

impl Group {
    /// `None` if the queue was removed, or if the key has another type.
    fn read(groups: &Value, length: &Value) -> Result<Option<Self>, PollError> {
        for answer in [groups, length] {
            if let Value::ServerError(error) = answer {
                let is_gone = error.code() == "WRONGTYPE"
                    || error
                        .details()
                        .is_some_and(|details| details.contains("no such key"));
                return match is_gone {
                    true => Ok(None),
                    false => Err(PollError::while_doing("read the queues in Redis")(
                        error.clone().into(),
                    )),
                };
            }
        }
        let length = whole(Some(length)).unwrap_or_default();
        // Without the group, no entry was delivered.
        let mut ours = Self {
            last_delivered: "0-0".into(),
            pending: 0,
            lag: None,
            length,
        };
        let Value::Array(groups) = groups else {
            return Err(PollError::unexpected("XINFO GROUPS"));
        };
        if let Some(group) = groups
            .iter()
            .find(|group| text(field(group, "name")) == Some(GROUP))
        {
            let id = text(field(group, "last-delivered-id")).and_then(|id| std::str::from_utf8(id).ok());
            id.ok_or_else(|| PollError::unexpected("XINFO GROUPS"))?
                .clone_into(&mut ours.last_delivered);
            ours.pending = whole(field(group, "pending")).unwrap_or_default();
            ours.lag = whole(field(group, "lag"));
        }
        Ok(Some(ours))
    }
}

/// Tasks that wait.
#[derive(Debug)]
struct Waiting {
    count: usize,
    /// The time at which the first of them was queued.
    oldest: Option<SystemTime>,
    /// The id of the last of them.
    last: String,
}

impl Waiting {
    fn read(answer: Value) -> Result<Self, PollError> {
        let unexpected = || PollError::unexpected("XRANGE");
        let entries = match &answer {
            Value::Array(entries) => entries,
            Value::ServerError(error) if error.code() != "WRONGTYPE" => {
                return Err(PollError::while_doing("read the queues in Redis")(
                    error.clone().into(),
                ));
            }
            // The queue was removed after the first round trip.
            Value::Nil | Value::ServerError(_) => &Vec::new(),
            _ => return Err(unexpected()),
        };
        let id = |entry: &Value| match entry {
            Value::Array(parts) => text(parts.first()).and_then(|id| String::from_utf8(id.to_vec()).ok()),
            _ => None,
        };
        let last = match entries.last() {
            Some(entry) => id(entry).ok_or_else(unexpected)?,
            None => String::new(),
        };
        let oldest = entries.first().and_then(|entry| {
            let Value::Array(parts) = entry else { return None };
            let enqueued_at = parts.get(1).and_then(|fields| text(field(fields, "enqueued_at")));
            enqueued_at.and_then(time).or_else(|| time_of_id(&id(entry)?))
        });
        Ok(Self {
            count: entries.len(),
            oldest,
            last,
        })
    }
}

/// A field of a map, which is an array in RESP2.
fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let mut pairs = map.as_map_iter()?;
    let (_, value) = pairs.find(|(key, _)| text(Some(key)) == Some(name.as_bytes()))?;
    Some(value)
}

fn text(value: Option<&Value>) -> Option<&[u8]> {
    match value? {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn whole(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Parses a time of the platform, with or without an offset.
fn time(text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let time = text.parse::<jiff::Timestamp>().or_else(|_| {
        let civil = text.parse::<jiff::civil::DateTime>()?;
        jiff::tz::TimeZone::UTC.to_timestamp(civil)
    });
    Some(time.ok()?.into())
}

/// The first part of an entry's id is a time in milliseconds.
fn time_of_id(id: &str) -> Option<SystemTime> {
    let milliseconds = id.split('-').next()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
}

/// The queues could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {problem}")]
pub(super) struct PollError {
    doing: &'static str,
    problem: String,
}

impl PollError {
    fn while_doing(doing: &'static str) -> impl Fn(RedisError) -> Self {
        move |error| Self {
            doing,
            problem: error.to_string(),
        }
    }

    fn unexpected(command: &str) -> Self {
        Self {
            doing: "read the queues in Redis",
            problem: format!("the answer to {command} has an unexpected form"),
        }
    }

    pub(super) fn timeout(limit: Duration) -> Self {
        Self {
            doing: "read the queues in Redis",
            problem: format!("no result within {} s", limit.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_platform_are_parsed() {
        let known = UNIX_EPOCH + Duration::from_millis(1_769_860_800_500);
        for text in [
            "2026-01-31T12:00:00.500000+00:00",
            "2026-01-31T12:00:00.5Z",
            "2026-01-31T12:00:00.5",
            " 2026-01-31 13:00:00.5+01:00 ",
        ] {
            assert_eq!(time(text.as_bytes()), Some(known), "{text}");
        }
        assert_eq!(time_of_id("1769860800500-3"), Some(known));
        for text in ["", "yesterday", "1769860800"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
        assert_eq!(time_of_id("x-1"), None);
    }

    #[test]
    fn names_that_cannot_be_labels_are_no_queues() {
        assert_eq!(engine_id(b"dalston:stream:my-asr"), Some("my-asr"));
        let long = format!("{PREFIX}{}", "x".repeat(129));
        for key in [
            &b"dalston:stream:"[..],
            b"dalston:stream:a\nb",
            b"dalston:stream:\xff",
            long.as_bytes(),
        ] {
            assert_eq!(engine_id(key), None);
        }
    }

    #[test]
    fn groups_are_read_from_resp2_and_resp3() {
        let text = |text: &str| Value::BulkString(text.into());
        let pairs = |name: &str| {
            [
                ("name", text(name)),
                ("pending", Value::Int(2)),
                ("last-delivered-id", text("5-1")),
                ("lag", Value::Nil),
            ]
        };
        let expected = Group {
            last_delivered: "5-1".into(),
            pending: 2,
            lag: None,
            length: 9,
        };
        let flat = |name| {
            let words = pairs(name)
                .into_iter()
                .flat_map(|(key, value)| [text(key), value]);
            Value::Array(words.collect())
        };
        let map = Value::Map(
            pairs("engines")
                .into_iter()
                .map(|(key, value)| (text(key), value))
                .collect(),
        );
        for groups in [vec![flat("audit"), flat("engines")], vec![map]] {
            let group = Group::read(&Value::Array(groups), &Value::Int(9)).unwrap();
            assert_eq!(group, Some(expected.clone()));
        }
        let error = Group::read(&Value::Int(3), &Value::Int(9)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the queues in Redis: the answer to XINFO GROUPS has an unexpected form"
        );
    }
}
