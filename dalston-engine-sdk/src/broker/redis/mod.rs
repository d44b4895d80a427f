//! The queue of a live deployment: one Redis stream per engine, one consumer group for all of its instances.
//!
//! See sections 2.2 to 2.4 of the protocol, and 12 for the traps.

mod reader;
mod scripts;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisResult, ScriptInvocation};
use tokio::time::Instant;
use tracing::warn;

use self::reader::Reader;
use self::scripts::{GONE, HANDED_BACK, HELD};
pub use self::server::{InvalidRedisUrl, RedisServer};
use super::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, Lookup, Outcome, Ownership, TaskMetadata,
};
use crate::protocol::{RequestBinding, TaskEvent, TaskEventKind, Timestamp, keys};

pub(crate) use self::scripts::HEARTBEAT as HEARTBEAT_SCRIPT;

/// Takes tasks from a live deployment, and reports to it.
///
/// Clones share the connections and what is known about the tasks in hand.
///
/// Tasks of an instance that fell silent are taken over when its registry record is gone or 60 s old and the task was
/// not renewed for [`lease`](Broker::lease). A task that was [released](Broker::release) is taken over at once.
///
/// ```no_run
/// use dalston_engine_sdk::broker::{RedisBroker, RedisServer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = RedisBroker::new(RedisServer::new("redis://localhost:6379")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBroker {
    shared: Arc<Shared>,
}

struct Shared {
    server: RedisServer,
    lease: Duration,
    trim: bool,
    /// The tasks in our hands, by message id.
    held: Mutex<HashMap<String, InHand>>,
    reader: tokio::sync::Mutex<Reader>,
}

/// What we know about a task that we took.
#[derive(Debug, Clone, Copy)]
struct InHand {
    /// A command that ends the claim was sent, but its answer was lost. If the entry is gone, it was we who removed it.
    ending: bool,
    /// When the runner last showed that it works on it. A task that it gave up is free after a lease, for us, too.
    seen: Instant,
}

/// The platform's own: an instance is dead when nothing was heard of it for so long.
const LEASE: Duration = Duration::from_secs(60);

impl RedisBroker {
    /// A broker on this server, with leases of 60 s, that removes acknowledged entries from the front of the streams.
    #[must_use]
    pub fn new(server: RedisServer) -> Self {
        Self::with(server, LEASE, true)
    }

    /// A broker with another lease. Give all instances of an engine the same.
    #[must_use]
    pub fn with_lease(server: RedisServer, lease: Duration) -> Self {
        Self::with(server, lease, true)
    }

    fn with(server: RedisServer, lease: Duration, trim: bool) -> Self {
        let reader = tokio::sync::Mutex::default();
        Self {
            shared: Arc::new(Shared {
                server,
                lease,
                trim,
                held: Mutex::default(),
                reader,
            }),
        }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &RedisServer {
        &self.shared.server
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, InHand>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in_hand(&self, message_id: &str) {
        let (now, lease) = (Instant::now(), self.shared.lease);
        let mut held = self.held();
        // What was given up without a word must not gather here.
        held.retain(|_, task| now - task.seen < lease * 10);
        held.insert(
            message_id.to_owned(),
            InHand {
                ending: false,
                seen: now,
            },
        );
    }

    fn is_in_hand(&self, message_id: &str) -> bool {
        self.held()
            .get(message_id)
            .is_some_and(|task| task.seen.elapsed() < self.shared.lease)
    }

    /// Sends a script that begins with the ownership check and answers with who owns the entry.
    async fn as_owner(
        &self,
        claim: &Claim,
        doing: &str,
        script: &ScriptInvocation<'_>,
        ends: bool,
    ) -> Result<Ownership, BrokerError> {
        if let Some(task) = self.held().get_mut(&claim.message_id) {
            task.seen = Instant::now();
        }
        let answer: RedisResult<String> = script.invoke_async(&mut self.shared.server.shared()).await;
        let mut held = self.held();
        match answer {
            Ok(owner) => {
                let ours = owner == HELD
                    || (owner == GONE && ends && held.get(&claim.message_id).is_some_and(|task| task.ending));
                if ends || !ours {
                    held.remove(&claim.message_id);
                }
                Ok(if ours { Ownership::Held } else { Ownership::Lost })
            }
            Err(source) => {
                if ends && let Some(task) = held.get_mut(&claim.message_id) {
                    task.ending = true;
                }
                Err(failed(claim, doing, source))
            }
        }
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn system(&self) -> &'static str {
        "redis"
    }

    fn lease(&self) -> Duration {
        self.shared.lease
    }

    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError> {
        self.shared.reader.lock().await.next(self, consumer, wait).await
    }

    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError> {
        let mut script = scripts::LOOKUP.key(stream(claim));
        script
            .key(keys::job_cancelled(&claim.job_id))
            .key(keys::task(&claim.task_id))
            .key(keys::WAITING_TASKS);
        own(&mut script, claim)
            .arg(&claim.task_id)
            .arg(&keys::WAIT_MARKERS);
        let answer: RedisResult<redis::Value> = script.invoke_async(&mut self.shared.server.shared()).await;
        let answer = answer.map_err(|source| failed(claim, "looking up", source))?;
        let lookup = read_lookup(answer).map_err(|source| failed(claim, "looking up", source))?;
        if matches!(lookup, Lookup::Lost) {
            self.held().remove(&claim.message_id);
        }
        Ok(lookup)
    }

    async fn started(&self, claim: &Claim, event: &EventContext) -> Result<Ownership, BrokerError> {
        let mut script = scripts::STARTED.key(stream(claim));
        script.key(keys::EVENT_STREAM);
        add_event(
            own(&mut script, claim),
            &task_event(claim, TaskEventKind::Started, event),
        );
        self.as_owner(claim, "reporting the start of", &script, false)
            .await
    }

    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let mut script = scripts::RENEW.key(stream(claim));
        own(&mut script, claim);
        self.as_owner(claim, "renewing the lease of", &script, false)
            .await
    }

    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError> {
        let mut command = redis::cmd("EXISTS");
        command.arg(keys::job_cancelled(&claim.job_id));
        let answer = command.query_async(&mut self.shared.server.shared()).await;
        answer.map_err(|source| failed(claim, "asking for the cancellation of", source))
    }

    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        event: &EventContext,
    ) -> Result<Ownership, BrokerError> {
        let (kind, artifacts) = match outcome {
            Outcome::Completed { artifacts } => (Some(TaskEventKind::Completed), artifacts.as_slice()),
            Outcome::Failed { error, .. } => (Some(TaskEventKind::Failed(error.clone())), [].as_slice()),
            // A cancelled job ends when its running tasks are completed. A task that failed would be queued again, to be
            // skipped without a word, and its job would be cancelling for ever.
            Outcome::Cancelled => (Some(TaskEventKind::Completed), [].as_slice()),
            Outcome::Skipped => (None, [].as_slice()),
        };
        let mut script = scripts::FINISH.key(stream(claim));
        script
            .key(keys::EVENT_STREAM)
            .key(keys::job_artifacts(&claim.job_id))
            .key(keys::task(&claim.task_id));
        own(&mut script, claim).arg(if kind.is_some() { "1" } else { "0" });
        let kind = kind.unwrap_or(TaskEventKind::Completed);
        add_event(&mut script, &task_event(claim, kind, event));
        if artifacts.is_empty() {
            script.arg("");
        } else {
            let ids: Vec<&str> = artifacts
                .iter()
                .map(|artifact| artifact.artifact_id.as_str())
                .collect();
            script.arg(json(&ids));
        }
        for artifact in artifacts {
            script.arg(&artifact.artifact_id).arg(json(artifact));
        }
        self.as_owner(claim, "finishing", &script, true).await
    }

    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let mut script = scripts::RELEASE.key(stream(claim));
        own(&mut script, claim)
            .arg(milliseconds(self.shared.lease))
            .arg(HANDED_BACK);
        self.as_owner(claim, "handing back", &script, true).await
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker")
            .field("server", &self.shared.server)
            .field("lease", &self.shared.lease)
            .field("held", &self.held().len())
            .finish_non_exhaustive()
    }
}

fn stream(claim: &Claim) -> String {
    keys::task_stream(&claim.consumer.engine_id)
}

/// The four arguments with which every owner's script begins.
fn own<'a, 's>(script: &'a mut ScriptInvocation<'s>, claim: &Claim) -> &'a mut ScriptInvocation<'s> {
    script
        .arg(keys::TASK_GROUP)
        .arg(&claim.message_id)
        .arg(&claim.consumer.instance)
        .arg(claim.delivery_count)
}

fn task_event(claim: &Claim, kind: TaskEventKind, context: &EventContext) -> TaskEvent {
    let engine_id = &*claim.consumer.engine_id;
    let mut event = TaskEvent::new(kind, &*claim.task_id, &*claim.job_id, engine_id, Timestamp::now());
    event.request_id.clone_from(&context.request_id);
    event.trace_context.clone_from(&context.trace_context);
    event
}

fn add_event(script: &mut ScriptInvocation<'_>, event: &TaskEvent) {
    script
        .arg(keys::EVENT_STREAM_MAX_LEN)
        .arg(keys::EVENT_CHANNEL)
        .arg(event.kind.as_str())
        .arg(event.timestamp.to_string())
        .arg(event.payload())
        .arg(event.trace_context_field().unwrap_or_default())
        .arg(event.published());
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("references have string keys and no `Serialize` that fails")
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn failed(claim: &Claim, doing: &str, source: redis::RedisError) -> BrokerError {
    BrokerError::new(format!("{doing} task {}", claim.task_id), source)
}

fn read_lookup(answer: redis::Value) -> RedisResult<Lookup> {
    let mut answer: Vec<redis::Value> = redis::from_redis_value(answer)?;
    let rest = answer.split_off(answer.len().min(1)).into_iter().next();
    let state: String = redis::from_redis_value(answer.pop().unwrap_or(redis::Value::Nil))?;
    let reason = |rest: Option<redis::Value>| match rest {
        Some(redis::Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    };
    Ok(match state.as_str() {
        "task" => {
            let fields = redis::from_redis_value(rest.unwrap_or(redis::Value::Nil))?;
            match read_metadata(fields) {
                Ok(metadata) => Lookup::Task(Box::new(metadata)),
                Err(problem) => Lookup::Malformed(problem),
            }
        }
        "cancelled" => Lookup::Cancelled,
        "blocked" => Lookup::Blocked(reason(rest)),
        "malformed" => Lookup::Malformed(format!("its metadata can't be read: {}", reason(rest))),
        "missing" => Lookup::Missing,
        _ => Lookup::Lost,
    })
}

/// Section 2.3. What is only for tracing or for the clock is left out when it makes no sense; what decides about the work
/// must be right.
fn read_metadata(fields: HashMap<String, Vec<u8>>) -> Result<TaskMetadata, String> {
    let text = |name: &str| -> Result<Option<String>, String> {
        let Some(value) = fields.get(name) else {
            return Ok(None);
        };
        let value = String::from_utf8(value.clone())
            .map_err(|_| format!("the field {name:?} of its metadata is not UTF-8"))?;
        Ok((!value.is_empty()).then_some(value))
    };
    let lenient = |name: &str| text(name).unwrap_or(None);
    let stage = text("stage")?.ok_or_else(|| "its metadata has no stage".to_owned())?;
    let mut metadata = TaskMetadata::new(stage);
    metadata.enqueued_at = lenient("enqueued_at").and_then(|time| readable("enqueued_at", &time));
    metadata.model = lenient("loaded_model_id");
    metadata.request_id = lenient("request_id");
    metadata.trace_context = lenient("_trace_context");
    if let Some(bindings) = text("request_bindings_json")? {
        metadata.bindings = Some(read_bindings(&bindings)?);
    }
    if let Some(ids) = text("resolved_artifact_ids_json")? {
        let ids: BTreeMap<String, Option<String>> = serde_json::from_str(&ids)
            .map_err(|error| format!("the field \"resolved_artifact_ids_json\" of its metadata: {error}"))?;
        metadata.resolved_artifact_ids = Some(
            ids.into_iter()
                .filter_map(|(slot, id)| id.map(|id| (slot, id)))
                .collect(),
        );
    }
    Ok(metadata)
}

fn read_bindings(text: &str) -> Result<Vec<RequestBinding>, String> {
    RequestBinding::list_from_slice(text.as_bytes()).map_err(|error| error.to_string())
}

/// The time of a field, or nothing and a warning.
fn readable(field: &str, text: &str) -> Option<Timestamp> {
    text.parse()
        .inspect_err(|error| warn!(field, %error, "task_time_unreadable"))
        .ok()
}
