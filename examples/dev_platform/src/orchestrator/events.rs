//! The stream of events: reads it as the group of the orchestrators.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use dalston_engine_sdk::protocol::{Event, EventKind, ProtocolError, Timestamp, keys};
use dalston_telemetry::services::orchestrator::{EventDecision, EventType, FailureReason};
use redis::RedisResult;
use redis::aio::ConnectionManager;
use tracing::{error, warn};

use super::Orchestrator;

/// The name of the consumer: the same in each process, so that a new one finds the entries of the
/// one before.
const CONSUMER: &str = "orchestrator";
/// How long a read waits for events.
const BLOCK: Duration = Duration::from_millis(500);
/// How many events are read at once.
const COUNT: usize = 32;
/// The time between two attempts at an event whose handling failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How often an event is handled before it goes to the dead letters.
const MAX_ATTEMPTS: u32 = 30;

/// An entry of the stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    fields: BTreeMap<String, String>,
}

/// Reads entries: first those that were read before and not acknowledged.
pub(super) struct EventReader {
    connection: ConnectionManager,
    has_group: bool,
    /// When the unacknowledged entries are read again.
    retry_at: Option<Instant>,
    attempts: HashMap<String, u32>,
}

impl EventReader {
    pub(super) fn new(connection: ConnectionManager) -> Self {
        Self {
            connection,
            has_group: false,
            retry_at: Some(Instant::now()),
            attempts: HashMap::new(),
        }
    }

    /// Begins again, after an error: the server may have lost the group.
    pub(super) fn reset(&mut self) {
        self.has_group = false;
        self.retry_at = Some(Instant::now());
    }

    pub(super) async fn read(&mut self) -> RedisResult<Vec<Entry>> {
        if !self.has_group {
            let made: RedisResult<()> = redis::cmd("XGROUP")
                .arg(&[
                    "CREATE",
                    keys::EVENT_STREAM,
                    keys::ORCHESTRATOR_GROUP,
                    "0",
                    "MKSTREAM",
                ])
                .query_async(&mut self.connection)
                .await;
            match made {
                Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
                _ => self.has_group = true,
            }
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            let unacknowledged = self.read_from("0").await?;
            if !unacknowledged.is_empty() {
                return Ok(unacknowledged);
            }
        }
        self.read_from(">").await
    }

    async fn read_from(&mut self, from: &str) -> RedisResult<Vec<Entry>> {
        type Answer = Option<Vec<(String, Vec<(String, Option<BTreeMap<String, String>>)>)>>;
        let answer: Answer = redis::cmd("XREADGROUP")
            .arg(&["GROUP", keys::ORCHESTRATOR_GROUP, CONSUMER])
            .arg("COUNT")
            .arg(COUNT)
            .arg("BLOCK")
            .arg(BLOCK.as_millis() as u64)
            .arg(&["STREAMS", keys::EVENT_STREAM, from])
            .query_async(&mut self.connection)
            .await?;
        let entries = answer.and_then(|mut streams| Some(streams.pop()?.1));
        let entries = entries.unwrap_or_default().into_iter();
        // An entry that was trimmed has no fields; it is acknowledged as unreadable.
        let entries = entries.map(|(id, fields)| Entry {
            id,
            fields: fields.unwrap_or_default(),
        });
        Ok(entries.collect())
    }

    async fn acknowledge(&mut self, id: &str) {
        self.attempts.remove(id);
        let done: RedisResult<()> = redis::cmd("XACK")
            .arg(&[keys::EVENT_STREAM, keys::ORCHESTRATOR_GROUP, id])
            .query_async(&mut self.connection)
            .await;
        if let Err(error) = done {
            // It is read again and changes nothing.
            warn!(event_id = id, %error, "event_not_acknowledged");
            self.reset();
        }
    }

    /// Leaves an entry for another attempt; `false` if it had enough of them.
    fn postpone(&mut self, id: &str) -> bool {
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        let attempts = self.attempts.entry(id.to_owned()).or_default();
        *attempts += 1;
        *attempts < MAX_ATTEMPTS
    }

    async fn dead_letter(&mut self, entry: &Entry, reason: FailureReason, error: &str) {
        let now = Timestamp::now().to_string();
        let mut command = redis::cmd("XADD");
        command
            .arg(keys::EVENT_DEAD_LETTERS)
            .arg("MAXLEN")
            .arg("~")
            .arg(keys::EVENT_STREAM_MAX_LEN)
            .arg("*");
        for (name, value) in [
            ("source_stream", keys::EVENT_STREAM),
            ("source_group", keys::ORCHESTRATOR_GROUP),
            ("source_message_id", &entry.id),
            ("event_type", entry.text("type")),
            ("failure_reason", reason.as_str()),
            ("error", error),
            ("consumer_id", CONSUMER),
            ("failed_at", &now),
            ("raw_payload", entry.text("payload")),
        ] {
            command.arg(name).arg(value);
        }
        let kept: RedisResult<()> = command.query_async(&mut self.connection).await;
        match kept {
            Ok(()) => self.acknowledge(&entry.id).await,
            Err(error) => {
                warn!(event_id = entry.id, %error, "dead_letter_not_kept");
                self.postpone(&entry.id);
            }
        }
    }
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

impl Entry {
    fn text(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Orchestrator {
    /// Handles an entry and acknowledges it, or leaves it for another attempt.
    pub(super) async fn take(&self, reader: &mut EventReader, entry: &Entry) {
        let kind = EventType::of(entry.text("type"));
        let dead = |reason| EventDecision::DeadLetter(reason);
        let metrics = self.steps.metrics();
        let event = match Event::from_fields(&entry.fields) {
            Ok(event) => event,
            Err(problem) => {
                let reason = match &problem {
                    ProtocolError::Syntax { .. } => FailureReason::InvalidPayloadJson,
                    _ => FailureReason::InvalidEventSchema,
                };
                error!(event_id = entry.id, error = %problem, "event_not_readable");
                metrics.event(kind, dead(reason));
                return reader.dead_letter(entry, reason, &problem.to_string()).await;
            }
        };
        if let EventKind::Other(name) = &event.kind {
            let reason = FailureReason::UnknownEventType;
            metrics.event(kind, dead(reason));
            return reader
                .dead_letter(entry, reason, &format!("no handler for {name}"))
                .await;
        }
        match self.handle(&entry.id, kind, &event).await {
            Ok(()) => reader.acknowledge(&entry.id).await,
            Err(problem) => {
                let problem = format!("{problem:#}");
                warn!(event_id = entry.id, error = problem, "event_not_handled");
                if !reader.postpone(&entry.id) {
                    let reason = FailureReason::HandlerException;
                    metrics.event(kind, dead(reason));
                    reader.dead_letter(entry, reason, &problem).await;
                }
            }
        }
    }
}
