//! Taking tasks from a stream: claims of stale entries first, then new messages.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::claim::{Search, StaleEntry, WINDOW};
use super::held::{HeldTasks, milliseconds};
use super::message::{Fields, Message};
use super::scripts::{self, GROUP_EXISTS, GROUP_IS_NEW};
use super::server::{RedisServer, has_code};
use super::trim::{remove_idle_consumers, trim};
use crate::broker::{BrokerError, Consumer, Delivery};
use crate::protocol::{Timestamp, keys};

/// How often stale entries are looked for, and so the longest time that a read blocks.
const CLAIM_INTERVAL: Duration = Duration::from_millis(500);
/// How often acknowledged messages and idle consumers are removed.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// How long nothing is read after a task was passed on that this process had handed back. Without
/// peers it comes again.
const PASS_ON_PAUSE: Duration = Duration::from_millis(500);

/// How many messages are looked at for the first one that a lost group had delivered, and then for
/// unfinished ones.
const LOOKED_AT_FOR_GROUP: u32 = 10_000;

/// The reply of `XREADGROUP`: streams, of which one is asked for, and their messages.
type Messages = Option<Vec<(String, Vec<(String, Fields)>)>>;

/// What a read may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The next task, for which it waits.
    Next,
    /// A task that no idle peer could begin at once. It does not wait.
    Ahead,
}

/// Takes tasks from one stream at a time, and remembers what it needs from one read to the next.
pub(super) struct StreamReader {
    pub(super) held: Arc<HeldTasks>,
    /// Of its own, because every other command on it would wait behind a blocking read.
    connection: Option<MultiplexedConnection>,
    /// The stream whose group is known to exist.
    stream: Option<String>,
    /// Whether all entries were found that this instance held before its process started.
    own_entries_done: bool,
    /// How many stale entries the last looks saw. None of them was free.
    looked_at: usize,
    next_claim: Option<Instant>,
    /// The same for reads ahead, after one that left the stale entries to idle peers.
    next_claim_ahead: Option<Instant>,
    next_trim: Option<Instant>,
}

impl StreamReader {
    pub(super) fn new(held: Arc<HeldTasks>) -> Self {
        Self {
            held,
            connection: None,
            stream: None,
            own_entries_done: false,
            looked_at: 0,
            next_claim: None,
            next_claim_ahead: None,
            next_trim: None,
        }
    }

    /// Takes the next task. Returns none when there was none for a while, at the latest at
    /// `give_up`.
    pub(super) async fn read(
        &mut self,
        consumer: &Consumer,
        reads: Reads,
        give_up: Instant,
    ) -> Result<Option<Delivery>, BrokerError> {
        let stream = keys::task_stream(&consumer.engine_id);
        match self.step(consumer, &stream, reads, give_up).await {
            // A group that a peer created again from the beginning delivers messages twice.
            Ok(Some(delivery)) if self.held.is_held(&delivery.claim.message_id) => Ok(None),
            Ok(Some(delivery)) => {
                fault_point!(Taken);
                self.held.hold(&delivery);
                if !self.held.was_handed_back(&delivery.claim.task_id) {
                    return Ok(Some(delivery));
                }
                let _ = self.held.pass_on(&delivery.claim).await?;
                // A peer that waits for a message has it by now.
                sleep(PASS_ON_PAUSE).await;
                Ok(None)
            }
            Ok(None) => Ok(None),
            // The server lost its data, or the stream was removed: before the read, or during it.
            Err(error) if has_code(&error, "NOGROUP") || has_code(&error, "UNBLOCKED") => {
                let address = self.held.server.address();
                warn!(stream, address, %error, action = "created again", "consumer_group_lost");
                self.stream = None;
                Ok(None)
            }
            Err(error) => {
                if !has_code(&error, "OOM") {
                    self.connection = None;
                }
                let address = self.held.server.address();
                Err(BrokerError::new(
                    format!("reading from {stream} on Redis at {address}"),
                    error,
                ))
            }
        }
    }

    /// Looks for stale entries if it is time for that, and then for new messages until it is time
    /// for the next look. Not longer: a worker that stops waiting must soon stop taking tasks.
    async fn step(
        &mut self,
        consumer: &Consumer,
        stream: &str,
        reads: Reads,
        give_up: Instant,
    ) -> RedisResult<Option<Delivery>> {
        if self.stream.as_deref() != Some(stream) {
            make_group(&self.held.server, stream).await?;
            self.stream = Some(stream.to_owned());
            (self.own_entries_done, self.looked_at, self.next_claim) = (false, 0, None);
        }
        let now = Instant::now();
        let is_due = |next: Option<Instant>| next.is_none_or(|next| next <= now);
        if is_due(self.next_claim) && (reads == Reads::Next || is_due(self.next_claim_ahead)) {
            self.held.forget_abandoned();
            if reads == Reads::Next || self.has_no_idle_peers(consumer).await? {
                if let Some(delivery) = self.claim_stale_entry(consumer, stream).await? {
                    return Ok(Some(delivery));
                }
                self.next_claim = Some(Instant::now() + CLAIM_INTERVAL);
            } else {
                // The next task of an idle thread may still be a stale entry.
                self.next_claim_ahead = Some(Instant::now() + CLAIM_INTERVAL);
            }
        }
        if self.next_trim.is_none_or(|next| next <= now) {
            self.next_trim = Some(now + TRIM_INTERVAL);
            trim(&self.held.server, stream).await;
            remove_idle_consumers(&self.held.server, stream, self.held.lease).await;
        }
        let until = self.next_claim.map_or(give_up, |next| next.min(give_up));
        self.read_new(consumer, stream, reads, until).await
    }

    async fn has_no_idle_peers(&self, consumer: &Consumer) -> RedisResult<bool> {
        let mut script = scripts::IDLE_PEERS.key(keys::engine_instances(&consumer.engine_id));
        script.arg(keys::instance("")).arg(&consumer.instance);
        let free: u64 = script.invoke_async(&mut self.held.server.shared()).await?;
        Ok(free == 0)
    }

    async fn claim_stale_entry(
        &mut self,
        consumer: &Consumer,
        stream: &str,
    ) -> RedisResult<Option<Delivery>> {
        let held = &self.held;
        if !self.own_entries_done {
            // A process with a fixed name finds here what it held when it was killed, and need not
            // wait for the lease.
            let search = Search {
                skipped: 0,
                idle: Duration::ZERO,
                consumer: Some(&consumer.instance),
            };
            for entry in StaleEntry::find(held, stream, search).await? {
                if !held.is_held(&entry.id)
                    && let Some(delivery) = entry.claim(held, stream, consumer, Duration::ZERO).await?
                {
                    return Ok(Some(delivery));
                }
            }
            self.own_entries_done = true;
        }
        let search = Search {
            skipped: self.looked_at,
            idle: held.lease,
            consumer: None,
        };
        let entries = StaleEntry::find(held, stream, search).await?;
        let rest = match entries.len() {
            WINDOW => self.looked_at + WINDOW,
            _ => 0,
        };
        // After a claim, the next look begins with the longest idle entry again.
        self.looked_at = 0;
        for entry in entries {
            let free = if entry.is_released() {
                !held.was_handed_back(&entry.id)
            } else if entry.consumer == consumer.instance {
                // Delivered to this process, but the reply was lost on the way.
                !held.is_held(&entry.id)
            } else {
                entry.owner_is_dead(Timestamp::now())
            };
            if free && let Some(delivery) = entry.claim(held, stream, consumer, held.lease).await? {
                return Ok(Some(delivery));
            }
        }
        self.looked_at = rest;
        Ok(None)
    }

    /// Reads the next new message, and waits for it until `until` unless it reads ahead. Returns
    /// none if it is not a task.
    async fn read_new(
        &mut self,
        consumer: &Consumer,
        stream: &str,
        reads: Reads,
        until: Instant,
    ) -> RedisResult<Option<Delivery>> {
        let mut asked_at = Instant::now();
        let mut found = self.read_waiting(consumer, stream, reads).await?;
        if found.is_none() && reads == Reads::Next {
            asked_at = Instant::now();
            found = self.wait_for_message(consumer, stream, until).await?;
        }
        let mut messages = found.into_iter().flatten().flat_map(|(_, messages)| messages);
        let Some((id, fields)) = messages.next() else {
            return Ok(None);
        };
        let message = Message {
            id,
            delivery_count: 1,
            fields,
        };
        Ok(message.into_delivery(&self.held.server, consumer, asked_at).await)
    }

    /// Reads a message that waits already. Fails with OOM while the server is out of memory.
    async fn read_waiting(&self, consumer: &Consumer, stream: &str, reads: Reads) -> RedisResult<Messages> {
        let mut script = match reads {
            Reads::Next => scripts::READ.key(stream),
            Reads::Ahead => scripts::READ_AHEAD.key(stream),
        };
        script
            .arg(keys::TASK_GROUP)
            .arg(&consumer.instance)
            .arg(keys::UNUSED_STREAM);
        if reads == Reads::Ahead {
            script
                .key(keys::engine_instances(&consumer.engine_id))
                .arg(keys::instance(""));
        }
        script.invoke_async(&mut self.held.server.shared()).await
    }

    async fn wait_for_message(
        &mut self,
        consumer: &Consumer,
        stream: &str,
        until: Instant,
    ) -> RedisResult<Messages> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.held.server.blocking().await?),
        };
        let block = until.saturating_duration_since(Instant::now());
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(keys::TASK_GROUP)
            .arg(&consumer.instance)
            .arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            // Zero would block without an end.
            .arg(milliseconds(block).max(1))
            .arg("STREAMS")
            .arg(stream)
            .arg(">");
        let server = &self.held.server;
        let reply = timeout(block + server.timeout(), command.query_async(connection)).await;
        reply.map_err(|_| {
            server.timed_out();
            io::Error::new(
                io::ErrorKind::TimedOut,
                "a blocking read was not answered in time",
            )
        })?
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("stream", &self.stream)
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

async fn make_group(server: &RedisServer, stream: &str) -> RedisResult<()> {
    let mut script = scripts::MAKE_GROUP.key(stream);
    script
        .key(keys::EVENT_STREAM)
        .arg(keys::TASK_GROUP)
        .arg(keys::task(""))
        .arg(LOOKED_AT_FOR_GROUP);
    let unfinished: i64 = script.invoke_async(&mut server.shared()).await?;
    if unfinished != GROUP_EXISTS && unfinished != GROUP_IS_NEW {
        let address = server.address();
        warn!(stream, address, unfinished, "consumer_group_restored");
    }
    Ok(())
}
