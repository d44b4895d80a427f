//! Taking tasks: entries of silent workers first, then new ones.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::broker::{RedisBroker, milliseconds, readable};
use super::calls::CallError;
use super::scripts::{self, HANDED_BACK};
use crate::broker::{Broker, BrokerError, Claim, Consumer, Delivery, RedeliveryReason};
use crate::protocol::{RECORD_TTL_SECONDS, Timestamp, keys};

/// How often we look for tasks of silent workers, and so the longest that a read blocks.
const LOOK_AROUND: Duration = Duration::from_millis(500);
/// How many entries of the pending list we look at each time.
const WINDOW: usize = 32;
/// How often we remove what is acknowledged, and who is gone.
const TRIM: Duration = Duration::from_secs(60);
/// After how many leases a consumer that did nothing is gone.
const FORGOTTEN: u32 = 10;
/// How long a task waits in the process for somebody to ask for it. After that it goes to whoever is not busy.
const PARKED: Duration = Duration::from_millis(250);
/// How much later than asked a blocking read may be answered before we take the connection for dead.
const GRACE: Duration = Duration::from_secs(5);

/// Reads for one consumer at a time.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// A read goes on when nobody waits for it any more, because the server may have given us a task already.
    under_way: Option<UnderWay>,
    state: Arc<Mutex<State>>,
}

struct UnderWay {
    consumer: Consumer,
    read: Read,
}

enum Read {
    /// Whoever waits for it goes on with it, so that a task comes without a detour.
    Attended(Reading),
    /// Nobody waited for a while. What it finds is parked.
    Alone {
        reading: JoinHandle<Result<(), BrokerError>>,
        parking: Arc<Parking>,
    },
}

/// With the broker that hands back what nobody takes.
type Reading = (
    RedisBroker,
    BoxFuture<'static, Result<Vec<Delivery>, BrokerError>>,
);

/// Where deliveries wait for their taker.
#[derive(Debug, Default)]
struct Parking {
    place: std::sync::Mutex<Vec<Delivery>>,
    parked: Notify,
    emptied: Notify,
}

impl Parking {
    /// The first ones.
    fn take(&self, most: usize) -> Vec<Delivery> {
        let mut place = self.place();
        let count = most.min(place.len());
        let taken = place.drain(..count).collect();
        if count > 0 && place.is_empty() {
            self.emptied.notify_one();
        }
        taken
    }

    fn put(&self, deliveries: Vec<Delivery>) {
        *self.place() = deliveries;
        self.parked.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.place().is_empty()
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Vec<Delivery>> {
        self.place
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What is known from one read to the next.
#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    group_of: Option<String>,
    /// Whether entries from before this process started were looked for, and all were found.
    own_done: bool,
    /// Where in the pending list the next look begins.
    cursor: Option<String>,
    next_look: Option<Instant>,
    next_trim: Option<Instant>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// As many deliveries as are wanted, or fewer; none if there were none for as long as `wait`.
    pub(super) async fn next(
        &mut self,
        broker: &RedisBroker,
        consumer: &Consumer,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let give_up = Instant::now() + wait;
        let most = most.max(1);
        // What was read before has something to ask first.
        tokio::task::yield_now().await;
        loop {
            if self
                .under_way
                .as_ref()
                .is_none_or(|under_way| under_way.consumer != *consumer)
            {
                self.leave();
                let reading = read(broker.clone(), consumer.clone(), most, give_up, &self.state);
                self.under_way = Some(UnderWay {
                    consumer: consumer.clone(),
                    read: Read::Attended((broker.clone(), reading)),
                });
            }
            let attended = LeaveOnDrop(self);
            let Some(UnderWay { read, .. }) = &mut attended.0.under_way else {
                continue;
            };
            match read {
                Read::Attended((_, reading)) => {
                    let found = tokio::select! {
                        found = reading => found,
                        () = tokio::time::sleep_until(give_up) => return Ok(Vec::new()),
                    };
                    attended.0.under_way = None;
                    let found = found?;
                    if !found.is_empty() || Instant::now() >= give_up {
                        broker.shared.caller.expect(found.len());
                        return Ok(found);
                    }
                }
                Read::Alone { reading, parking } => {
                    let parked = parking.take(most);
                    if !parked.is_empty() {
                        if parking.is_empty() {
                            attended.0.under_way = None;
                        }
                        broker.shared.caller.expect(parked.len());
                        return Ok(parked);
                    }
                    tokio::select! {
                        () = parking.parked.notified() => {}
                        ended = reading => {
                            let parked = parking.take(most);
                            attended.0.under_way = None;
                            if !parked.is_empty() {
                                return Ok(parked);
                            }
                            let doing = || format!("reading from {}", keys::task_stream(&consumer.engine_id));
                            ended.map_err(|source| BrokerError::new(doing(), source))??;
                            if Instant::now() >= give_up {
                                return Ok(Vec::new());
                            }
                        }
                        () = tokio::time::sleep_until(give_up) => return Ok(Vec::new()),
                    }
                }
            }
        }
    }

    /// Lets a read go on alone.
    fn leave(&mut self) {
        let Some(UnderWay { consumer, read }) = self.under_way.take() else {
            return;
        };
        let read = match (read, Handle::try_current()) {
            (Read::Attended(reading), Ok(runtime)) => go_on_alone(&runtime, reading),
            // The runtime is gone, and the connection with it.
            (Read::Attended(_), Err(_)) => return,
            (alone, _) => alone,
        };
        self.under_way = Some(UnderWay { consumer, read });
    }
}

/// One who waits for a read may stop waiting at any time.
struct LeaveOnDrop<'a>(&'a mut Reader);

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn read(
    broker: RedisBroker,
    consumer: Consumer,
    most: usize,
    give_up: Instant,
    state: &Arc<Mutex<State>>,
) -> BoxFuture<'static, Result<Vec<Delivery>, BrokerError>> {
    let state = Arc::clone(state);
    Box::pin(async move {
        let mut state = state.lock().await;
        state.read(&broker, &consumer, most, give_up).await
    })
}

fn go_on_alone(runtime: &Handle, (broker, reading): Reading) -> Read {
    let parking = Arc::new(Parking::default());
    let parked = Arc::clone(&parking);
    let reading = runtime.spawn(async move {
        let found = reading.await?;
        if found.is_empty() {
            return Ok(());
        }
        parked.put(found);
        let _ = timeout(PARKED, parked.emptied.notified()).await;
        for delivery in parked.take(usize::MAX) {
            if broker.release(&delivery.claim).await.is_err() {
                // It is nobody's now: it comes back when it was idle for a lease.
                broker.held().remove(&delivery.claim.message_id);
            }
        }
        Ok(())
    });
    Read::Alone { reading, parking }
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnderWay")
            .field("consumer", &self.consumer)
            .field("alone", &matches!(self.read, Read::Alone { .. }))
            .finish_non_exhaustive()
    }
}

impl State {
    /// Does one step. Not more: when nobody waits any more, this worker must soon stop taking tasks.
    async fn read(
        &mut self,
        broker: &RedisBroker,
        consumer: &Consumer,
        most: usize,
        give_up: Instant,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let stream = keys::task_stream(&consumer.engine_id);
        match self.step(broker, consumer, &stream, most, give_up).await {
            Ok(deliveries) => {
                for delivery in &deliveries {
                    fault_point!(Taken);
                    broker.take_in_hand(&delivery.claim.message_id);
                }
                Ok(deliveries)
            }
            // Redis lost its data, or someone removed the stream: during the read, or before it.
            Err(error) if matches!(error.code(), Some("NOGROUP" | "UNBLOCKED")) => {
                self.group_of = None;
                Ok(Vec::new())
            }
            Err(error) => {
                if !error.is_out_of_memory() {
                    self.connection = None;
                }
                Err(BrokerError::new(format!("reading from {stream}"), error))
            }
        }
    }

    /// One look around, if it is time for one, and one read that blocks until it is time for the next.
    async fn step(
        &mut self,
        broker: &RedisBroker,
        consumer: &Consumer,
        stream: &str,
        most: usize,
        give_up: Instant,
    ) -> Result<Vec<Delivery>, CallError> {
        if self.group_of.as_deref() != Some(stream) {
            make_group(broker, stream).await?;
            self.group_of = Some(stream.to_owned());
            (self.own_done, self.cursor, self.next_look) = (false, None, None);
        }
        check_memory(broker).await?;
        let now = Instant::now();
        if self.next_look.is_none_or(|next| next <= now) {
            broker.forget_abandoned();
            if let Some(delivery) = self.look_around(broker, consumer, stream).await? {
                return Ok(vec![delivery]);
            }
            self.next_look = Some(Instant::now() + LOOK_AROUND);
        }
        if broker.shared.trim && self.next_trim.is_none_or(|next| next <= now) {
            self.next_trim = Some(now + TRIM);
            trim(broker, stream).await;
            forget_consumers(broker, stream).await;
        }
        let until = self.next_look.map_or(give_up, |next| next.min(give_up));
        Ok(self.read_new(broker, consumer, stream, most, until).await?)
    }

    async fn look_around(
        &mut self,
        broker: &RedisBroker,
        consumer: &Consumer,
        stream: &str,
    ) -> RedisResult<Option<Delivery>> {
        if !self.own_done {
            // A process with a fixed name finds here what it had when it was killed, and need not wait until it is idle.
            let own = stale(broker, stream, None, Duration::ZERO, Some(&consumer.instance)).await?;
            for entry in own {
                if !broker.is_in_hand(&entry.id)
                    && let Some(delivery) = entry.claim(broker, consumer, stream, Duration::ZERO).await?
                {
                    return Ok(Some(delivery));
                }
            }
            self.own_done = true;
        }
        let lease = broker.shared.lease;
        let entries = stale(broker, stream, self.cursor.as_deref(), lease, None).await?;
        self.cursor = match entries.last() {
            Some(last) if entries.len() == WINDOW => Some(last.id.clone()),
            _ => None,
        };
        for entry in entries {
            let free = match &*entry.consumer {
                HANDED_BACK => true,
                // Delivered to us, but the answer was lost on the way.
                name if name == consumer.instance => !broker.is_in_hand(&entry.id),
                _ => entry.owner_is_dead(Timestamp::now()),
            };
            if free && let Some(delivery) = entry.claim(broker, consumer, stream, lease).await? {
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }

    async fn read_new(
        &mut self,
        broker: &RedisBroker,
        consumer: &Consumer,
        stream: &str,
        most: usize,
        until: Instant,
    ) -> RedisResult<Vec<Delivery>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(broker.shared.server.blocking().await?),
        };
        let asked_at = Instant::now();
        let block = until.saturating_duration_since(asked_at);
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(keys::TASK_GROUP)
            .arg(&consumer.instance)
            .arg("COUNT")
            .arg(most);
        // Zero would mean for ever.
        command
            .arg("BLOCK")
            .arg(milliseconds(block).max(1))
            .arg("STREAMS")
            .arg(stream)
            .arg(">");
        let answer = timeout(block + GRACE, command.query_async::<Value>(connection)).await;
        let Ok(answer) = answer else {
            let silent = std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "a blocking read was not answered in time",
            );
            return Err(silent.into());
        };
        let mut deliveries = Vec::new();
        for message in messages(answer?)? {
            deliveries.extend(message.into_delivery(broker, consumer, stream, asked_at).await);
        }
        Ok(deliveries)
    }
}

/// A message, as far as its fields concern us.
#[derive(Debug)]
struct Message {
    id: String,
    deliveries: u32,
    task_id: Option<String>,
    job_id: Option<String>,
    enqueued_at: Option<String>,
    timeout_at: Option<String>,
}

/// The answer to a read is a list of streams, of which we ask for one: its name, and a list of entries, which are their ids and
/// their fields. Taken apart by hand, because all of it becomes part of the deliveries.
fn messages(answer: Value) -> RedisResult<Vec<Message>> {
    let list = redis::from_redis_value::<Vec<Value>>;
    let pair = |value| {
        let mut list = list(value)?.into_iter();
        RedisResult::Ok((
            list.next().unwrap_or(Value::Nil),
            list.next().unwrap_or(Value::Nil),
        ))
    };
    let entries = match answer {
        Value::Nil => None,
        Value::Array(streams) => streams
            .into_iter()
            .next()
            .map(|stream| RedisResult::Ok(pair(stream)?.1))
            .transpose()?,
        // So says RESP3.
        Value::Map(streams) => streams.into_iter().next().map(|(_, entries)| entries),
        _ => {
            let expected = "expected streams and their entries in the answer to XREADGROUP";
            return Err((ErrorKind::UnexpectedReturnType, expected).into());
        }
    };
    let Some(entries) = entries else {
        return Ok(Vec::new());
    };
    let entries = list(entries)?.into_iter().map(|entry| {
        let (id, fields) = pair(entry)?;
        Ok(Message::read(redis::from_redis_value(id)?, &list(fields)?, 1))
    });
    entries.collect()
}

impl Message {
    /// One with these names and values, alternately.
    fn read(id: String, fields: &[Value], deliveries: u32) -> Self {
        let mut message = Self {
            id,
            deliveries,
            task_id: None,
            job_id: None,
            enqueued_at: None,
            timeout_at: None,
        };
        for field in fields.chunks_exact(2) {
            if let [Value::BulkString(name), Value::BulkString(value)] = field {
                message.add(name, value);
            }
        }
        message
    }

    /// The first one of each name counts that is text.
    fn add(&mut self, name: &[u8], value: &[u8]) {
        let place = match name {
            b"task_id" => &mut self.task_id,
            b"job_id" => &mut self.job_id,
            b"enqueued_at" => &mut self.enqueued_at,
            b"timeout_at" => &mut self.timeout_at,
            _ => return,
        };
        if place.is_none() {
            *place = std::str::from_utf8(value).ok().map(str::to_owned);
        }
    }

    /// A message that names no task can't even be reported: it is logged and removed.
    async fn into_delivery(
        self,
        broker: &RedisBroker,
        consumer: &Consumer,
        stream: &str,
        asked_at: Instant,
    ) -> Option<Delivery> {
        let id = self.id;
        let valid = |id: Option<String>| id.filter(|id| is_id(id));
        let (Some(task_id), Some(job_id)) = (valid(self.task_id), valid(self.job_id)) else {
            error!(stream, message_id = %id, "task_message_unreadable: it names no task and job; removed");
            let mut command = redis::cmd("XACK");
            command.arg(stream).arg(keys::TASK_GROUP).arg(&id);
            let removed: RedisResult<()> = command.query_async(&mut broker.shared.server.shared()).await;
            if let Err(error) = removed {
                // It is found again when it was idle for a lease.
                warn!(stream, message_id = %id, %error, "task_message_not_removed");
            }
            return None;
        };
        let time = |name: &str, text: Option<String>| text.and_then(|text| readable(&task_id, name, &text));
        let (enqueued_at, timeout_at) = (
            time("enqueued_at", self.enqueued_at),
            time("timeout_at", self.timeout_at),
        );
        let claim = Claim::new(consumer.clone(), id, task_id, job_id, self.deliveries);
        let mut delivery = Delivery::new(claim);
        delivery.asked_at = Some(asked_at.into_std());
        (delivery.enqueued_at, delivery.timeout_at) = (enqueued_at, timeout_at);
        Some(delivery)
    }
}

/// Ids become parts of keys and paths, so only what a UUID could be made of may pass.
fn is_id(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

/// An entry of the pending list that nobody renewed for a while.
#[derive(Debug)]
struct Stale {
    id: String,
    consumer: String,
    idle: Duration,
    deliveries: u32,
    /// Of the consumer's registry record. Negative if it has no end, or if there is no record.
    record_ttl_ms: i64,
    status: String,
    last_heartbeat: String,
}

async fn stale(
    broker: &RedisBroker,
    stream: &str,
    after: Option<&str>,
    idle: Duration,
    of: Option<&str>,
) -> RedisResult<Vec<Stale>> {
    type Row = (String, String, u64, u32, i64, String, String);
    let start = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
    let mut script = scripts::STALE.key(stream);
    script
        .arg(keys::TASK_GROUP)
        .arg(start)
        .arg(milliseconds(idle))
        .arg(WINDOW)
        .arg(of.unwrap_or_default());
    script.arg(keys::instance(""));
    let rows: Vec<Row> = script.invoke_async(&mut broker.shared.server.shared()).await?;
    let stale = |(id, consumer, idle, deliveries, record_ttl_ms, status, last_heartbeat): Row| Stale {
        id,
        consumer,
        idle: Duration::from_millis(idle),
        deliveries,
        record_ttl_ms,
        status,
        last_heartbeat,
    };
    Ok(rows.into_iter().map(stale).collect())
}

impl Stale {
    /// The platform's rule, with one addition: a record that the server itself will drop within a minute was renewed within
    /// the last minute, whatever the clocks of the two hosts say.
    fn owner_is_dead(&self, now: Timestamp) -> bool {
        if self.status.is_empty() || self.status == "offline" {
            return true;
        }
        let Ok(heartbeat) = self.last_heartbeat.parse::<Timestamp>() else {
            return true;
        };
        let fresh = now.seconds_since(heartbeat) < RECORD_TTL_SECONDS as f64;
        !fresh && self.record_ttl_ms <= 0
    }

    async fn claim(
        self,
        broker: &RedisBroker,
        consumer: &Consumer,
        stream: &str,
        idle: Duration,
    ) -> RedisResult<Option<Delivery>> {
        let asked_at = Instant::now();
        let mut script = scripts::CLAIM.key(stream);
        script.arg(keys::TASK_GROUP).arg(&self.id).arg(&consumer.instance);
        script
            .arg(self.deliveries)
            .arg(&self.consumer)
            .arg(milliseconds(idle));
        let fields: Option<Vec<Value>> = script.invoke_async(&mut broker.shared.server.shared()).await?;
        let Some(fields) = fields else { return Ok(None) };
        if fields.is_empty() {
            warn!(stream, message_id = %self.id, "pending_entry_without_message: removed");
            return Ok(None);
        }
        let message = Message::read(self.id, &fields, self.deliveries + 1);
        let delivery = message.into_delivery(broker, consumer, stream, asked_at);
        let Some(mut delivery) = delivery.await else {
            return Ok(None);
        };
        let handed_back = self.consumer == HANDED_BACK;
        if !handed_back {
            fault_point!(TakenOver);
        }
        delivery.redelivery = Some(if handed_back {
            RedeliveryReason::Deferred
        } else {
            RedeliveryReason::EngineCrash
        });
        // It could have been taken since its lease ended.
        let free_for = self.idle.saturating_sub(broker.shared.lease);
        let now = std::time::SystemTime::now();
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

/// Fails while the server is full. Such a server still lets a group read, but refuses the events: a whole backlog would be
/// taken, and no result of it could be reported. So before each read we ask for a write that needs memory and changes nothing:
/// an entry for a stream that does not exist and is not made.
async fn check_memory(broker: &RedisBroker) -> RedisResult<()> {
    let mut command = redis::cmd("XADD");
    command
        .arg(format!("{}:none", keys::EVENT_STREAM))
        .arg("NOMKSTREAM")
        .arg("*")
        .arg(&["type", "none"]);
    let written: RedisResult<()> = command.query_async(&mut broker.shared.server.shared()).await;
    match written {
        // A user with narrow rights may be refused here; only a full server must stop the reads.
        Err(error) if error.code().is_some_and(|code| code != "OOM") => Ok(()),
        other => other,
    }
}

async fn make_group(broker: &RedisBroker, stream: &str) -> RedisResult<()> {
    let mut command = redis::cmd("XGROUP");
    // From the beginning: what was queued before the first engine started counts.
    command
        .arg("CREATE")
        .arg(stream)
        .arg(keys::TASK_GROUP)
        .arg("0")
        .arg("MKSTREAM");
    match command.query_async(&mut broker.shared.server.shared()).await {
        Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
        other => other,
    }
}

async fn trim(broker: &RedisBroker, stream: &str) {
    let mut script = scripts::TRIM.key(stream);
    script.arg(keys::TASK_GROUP);
    match script
        .invoke_async::<u64>(&mut broker.shared.server.shared())
        .await
    {
        Ok(0) => {}
        Ok(removed) => debug!(stream, removed, "acknowledged_tasks_trimmed"),
        Err(error) => warn!(stream, %error, "acknowledged_tasks_not_trimmed"),
    }
}

async fn forget_consumers(broker: &RedisBroker, stream: &str) {
    let mut script = scripts::FORGET.key(stream);
    script
        .arg(keys::TASK_GROUP)
        .arg(milliseconds(broker.shared.lease * FORGOTTEN))
        .arg(keys::instance(""));
    match script
        .invoke_async::<u64>(&mut broker.shared.server.shared())
        .await
    {
        Ok(0) => {}
        Ok(removed) => debug!(stream, removed, "consumers_forgotten"),
        Err(error) => warn!(stream, %error, "consumers_not_forgotten"),
    }
}
