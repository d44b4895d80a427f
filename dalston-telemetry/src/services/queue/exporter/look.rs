//! One look at all queues.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};

use super::QueueExporterConfig;
use crate::services::queue::{QueueSeen, QueuesSeen};

const PREFIX: &str = "dalston:stream:";
const GROUP: &[u8] = b"engines";

/// How long a connection may take to come up, and each answer on it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Keys that Redis passes over in one command, and so how long it can't do anything else: less than a millisecond.
const SCANNED_AT_ONCE: usize = 1000;
/// How often it is asked to in one look.
const SCANS: usize = 100;
/// Queues that are asked about in one round trip.
const QUEUES_AT_ONCE: usize = 50;
/// Tasks of each that are counted one by one in any case.
const SURELY_COUNTED: usize = 100;
/// Tasks that are asked for at a time where there are more to count.
const COUNTED_AT_ONCE: usize = 1000;
/// The most that are counted.
const MOST_COUNTED: usize = 10_000;
/// The longest name of an engine that is shown.
const LONGEST_NAME: usize = 128;

/// Looks at Redis, and remembers which queues there are.
pub(super) struct Look {
    client: Client,
    dead_letters: String,
    max_queues: usize,
    /// By their engines.
    queues: BTreeSet<String>,
    /// Where the next look goes on to search for queues.
    cursor: u64,
    /// Queues that have no place: as counted by the last search that came to its end, and by the present one.
    left_out: u64,
    left_out_so_far: u64,
}

impl Look {
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

    /// Looks at all queues. Can be called again after it failed or was dropped.
    pub(super) async fn at_all(&mut self) -> Result<QueuesSeen, LookError> {
        let mut redis = Redis::connect(&self.client).await?;
        self.search(&mut redis).await?;
        let mut seen = QueuesSeen {
            dead_letters: redis.length(&self.dead_letters).await?,
            ..QueuesSeen::default()
        };
        let engines: Vec<String> = self.queues.iter().cloned().collect();
        for engines in engines.chunks(QUEUES_AT_ONCE) {
            for (engine_id, queue) in engines.iter().zip(redis.queues(engines).await?) {
                match queue {
                    Some(queue) => seen.queues.push(queue),
                    None => _ = self.queues.remove(engine_id),
                }
            }
        }
        seen.left_out = self.left_out;
        Ok(seen)
    }

    /// Goes on to search for queues, where the last look stopped.
    async fn search(&mut self, redis: &mut Redis) -> Result<(), LookError> {
        for _ in 0..SCANS {
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

/// Whose queue it is, if it can be a label.
fn engine_id(key: &[u8]) -> Option<&str> {
    let engine_id = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let fits = (1..=LONGEST_NAME).contains(&engine_id.len()) && !engine_id.contains(char::is_control);
    fits.then_some(engine_id)
}

/// A connection for one look. The next look makes its own: so it is always made to the server that the name leads to, and
/// never hangs on one that has lost its role.
struct Redis {
    connection: MultiplexedConnection,
}

impl Redis {
    async fn connect(client: &Client) -> Result<Self, LookError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        Ok(Self {
            connection: connection.map_err(LookError::at("connecting"))?,
        })
    }

    async fn scan(&mut self, cursor: u64) -> Result<(u64, Vec<Vec<u8>>), LookError> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{PREFIX}*"));
        scan.arg("COUNT").arg(SCANNED_AT_ONCE).arg("TYPE").arg("stream");
        let answer = scan.query_async(&mut self.connection).await;
        answer.map_err(LookError::at("searching for queues"))
    }

    async fn length(&mut self, stream: &str) -> Result<u64, LookError> {
        let answer = redis::cmd("XLEN")
            .arg(stream)
            .query_async(&mut self.connection)
            .await;
        answer.map_err(LookError::at("counting dead letters"))
    }

    /// What there is to know about these queues, in two round trips as a rule; `None` for one that is gone.
    async fn queues(&mut self, engines: &[String]) -> Result<Vec<Option<QueueSeen>>, LookError> {
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
                first.add_command(after(engine_id, &group.last_delivered, SURELY_COUNTED + 1));
            }
        }
        let mut first = self.all(&first).await?.into_iter();
        let mut queues = Vec::new();
        for (engine_id, group) in engines.iter().zip(groups) {
            queues.push(match group {
                Some(group) => {
                    let waiting = Entries::read(first.next().unwrap_or_default())?;
                    Some(QueueSeen {
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

    /// How many tasks wait, of which the first ones are known.
    async fn depth(&mut self, engine_id: &str, group: &Group, first: &Entries) -> Result<u64, LookError> {
        if first.count <= SURELY_COUNTED {
            return Ok(first.count as u64);
        }
        // Redis goes on counting entries that were removed before they were delivered, and there is none after `XDEL`.
        let plausible = SURELY_COUNTED as u64 + 1..=group.length;
        if let Some(lag) = group.lag.filter(|lag| plausible.contains(lag)) {
            return Ok(lag);
        }
        let mut count = first.count;
        let mut last = first.last.clone();
        while count < MOST_COUNTED {
            let most = COUNTED_AT_ONCE.min(MOST_COUNTED - count);
            let mut page = Pipeline::new();
            page.add_command(after(engine_id, &last, most));
            let page = Entries::read(self.all(&page).await?.pop().unwrap_or_default())?;
            count += page.count;
            if page.count < most {
                break;
            }
            last = page.last;
        }
        Ok(count as u64)
    }

    /// Sends several commands at once; each answer may be an error of its own.
    async fn all(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, LookError> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.connection.req_packed_commands(pipeline, 0, pipeline.len());
        answers.await.map_err(LookError::at("reading queues"))
    }
}

fn key(engine_id: &str) -> String {
    format!("{PREFIX}{engine_id}")
}

/// The entries of a queue that come after this one.
fn after(engine_id: &str, id: &str, most: usize) -> redis::Cmd {
    let mut range = redis::cmd("XRANGE");
    range.arg(key(engine_id)).arg(format!("({id}")).arg("+");
    range.arg("COUNT").arg(most);
    range
}

/// What Redis keeps for the engines of a queue.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    last_delivered: String,
    pending: u64,
    /// What it believes to be waiting.
    lag: Option<u64>,
    /// Entries of the stream, delivered or not.
    length: u64,
}

impl Group {
    /// `None` if the queue is gone, or something else has taken its name.
    fn read(groups: &Value, length: &Value) -> Result<Option<Self>, LookError> {
        for answer in [groups, length] {
            if let Value::ServerError(error) = answer {
                let is_gone = error.code() == "WRONGTYPE"
                    || error
                        .details()
                        .is_some_and(|details| details.contains("no such key"));
                return match is_gone {
                    true => Ok(None),
                    false => Err(LookError::at("reading queues")(error.clone().into())),
                };
            }
        }
        let length = whole(Some(length)).unwrap_or_default();
        // Without its group nothing was delivered: it begins with the first entry.
        let mut ours = Self {
            last_delivered: "0-0".into(),
            pending: 0,
            lag: None,
            length,
        };
        let Value::Array(groups) = groups else {
            return Err(LookError::unexpected("XINFO GROUPS"));
        };
        if let Some(group) = groups
            .iter()
            .find(|group| text(field(group, "name")) == Some(GROUP))
        {
            let id = text(field(group, "last-delivered-id")).and_then(|id| std::str::from_utf8(id).ok());
            id.ok_or_else(|| LookError::unexpected("XINFO GROUPS"))?
                .clone_into(&mut ours.last_delivered);
            ours.pending = whole(field(group, "pending")).unwrap_or_default();
            ours.lag = whole(field(group, "lag"));
        }
        Ok(Some(ours))
    }
}

/// Some tasks that wait.
#[derive(Debug)]
struct Entries {
    count: usize,
    /// Since when the first of them waits.
    oldest: Option<SystemTime>,
    /// The id of the last of them.
    last: String,
}

impl Entries {
    fn read(answer: Value) -> Result<Self, LookError> {
        let unexpected = || LookError::unexpected("XRANGE");
        let entries = match &answer {
            Value::Array(entries) => entries,
            Value::ServerError(error) if error.code() != "WRONGTYPE" => {
                return Err(LookError::at("reading queues")(error.clone().into()));
            }
            // Gone since we were told of it.
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
            let said = parts.get(1).and_then(|fields| text(field(fields, "enqueued_at")));
            said.and_then(time).or_else(|| time_of_id(&id(entry)?))
        });
        Ok(Self {
            count: entries.len(),
            oldest,
            last,
        })
    }
}

/// A field of what is a map, or was one before `RESP3`.
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

/// A time as the platform writes it, with or without its offset.
fn time(text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let time = text.parse::<jiff::Timestamp>().or_else(|_| {
        let civil = text.parse::<jiff::civil::DateTime>()?;
        jiff::tz::TimeZone::UTC.to_timestamp(civil)
    });
    Some(time.ok()?.into())
}

/// The first part of an id is the time of Redis in milliseconds.
fn time_of_id(id: &str) -> Option<SystemTime> {
    let milliseconds = id.split('-').next()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
}

/// Why the queues could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {problem}")]
pub(super) struct LookError {
    doing: &'static str,
    problem: String,
}

impl LookError {
    fn at(doing: &'static str) -> impl Fn(RedisError) -> Self {
        move |error| Self {
            doing,
            problem: error.to_string(),
        }
    }

    fn unexpected(command: &str) -> Self {
        Self {
            doing: "reading queues",
            problem: format!("the answer to {command} is not what Redis answers"),
        }
    }

    pub(super) fn too_long(limit: Duration) -> Self {
        Self {
            doing: "reading queues",
            problem: format!("not done after {} s", limit.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_platform_writes_them_and_nonsense_is_none() {
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
    fn what_cannot_be_a_label_is_no_queue() {
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
    fn a_group_is_read_as_either_protocol_writes_it() {
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
        let nonsense = Group::read(&Value::Int(3), &Value::Int(9)).unwrap_err();
        assert_eq!(
            nonsense.to_string(),
            "reading queues: the answer to XINFO GROUPS is not what Redis answers"
        );
    }
}
