//! The queue of a live deployment: one Redis stream per engine, one consumer group for all of its instances.
//!
//! See sections 2.2 to 2.4 of the protocol, and 12 for the traps.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::warn;

use super::answers::{Answer, Malformed};
use super::calls::{CallError, Caller, Event, Operation};
use super::reader::Reader;
use super::scripts::{GONE, HANDED_BACK, HELD};
use super::server::RedisServer;
use crate::broker::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, Lookup, Outcome, Ownership,
};
use crate::protocol::{Payload, TaskEventKind, Timestamp, trace_context_json};

/// Takes tasks from a live deployment, and reports to it.
///
/// Clones share the connections and what is known about the tasks in hand.
///
/// Tasks of an instance that fell silent are taken over when its registry record is gone or 60 s old and the task was
/// not renewed for [`lease`](Broker::lease). A task that was [released](Broker::release) is taken over at once.
///
/// ```no_run
/// use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = RedisBroker::new(RedisServer::new("redis://localhost:6379")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBroker {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) server: RedisServer,
    pub(super) lease: Duration,
    pub(super) trim: bool,
    /// The tasks in our hands, by message id.
    held: Mutex<HashMap<String, InHand>>,
    pub(super) caller: Caller,
    reader: tokio::sync::Mutex<Reader>,
}

/// What we know about a task that we took.
#[derive(Debug, Clone, Copy)]
pub(super) struct InHand {
    /// A command that ends the claim was sent, and its answer did not come yet or was lost. If the entry is gone, it was
    /// we who removed it.
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
                caller: Caller::default(),
                reader,
            }),
        }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &RedisServer {
        &self.shared.server
    }

    pub(super) fn held(&self) -> MutexGuard<'_, HashMap<String, InHand>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_in_hand(&self, message_id: &str) {
        let task = InHand {
            ending: false,
            seen: Instant::now(),
        };
        self.held().insert(message_id.to_owned(), task);
    }

    /// What was given up without a word must not gather here.
    pub(super) fn forget_abandoned(&self) {
        let (now, lease) = (Instant::now(), self.shared.lease);
        self.held().retain(|_, task| now - task.seen < lease * 10);
    }

    pub(super) fn is_in_hand(&self, message_id: &str) -> bool {
        self.held()
            .get(message_id)
            .is_some_and(|task| task.seen.elapsed() < self.shared.lease)
    }

    async fn call(&self, claim: &Claim, doing: &str, operation: Operation) -> Result<Answer, BrokerError> {
        let Shared { caller, server, .. } = &*self.shared;
        let answer = caller.call(server, claim, operation).await;
        answer.map_err(|source| failed(claim, doing, source))
    }

    /// Makes a call that is only for the owner of the entry and is answered with who that is.
    async fn as_owner(
        &self,
        claim: &Claim,
        doing: &str,
        operation: Operation,
        ends: bool,
    ) -> Result<Ownership, BrokerError> {
        let mut ended_before = false;
        if let Some(task) = self.held().get_mut(&claim.message_id) {
            task.seen = Instant::now();
            ended_before = task.ending;
            // Noted now, for who asked may be gone before there is an answer.
            task.ending |= ends;
        }
        let owner = self.call(claim, doing, operation).await?;
        let ours = match owner {
            Answer::Number(HELD) => true,
            Answer::Number(GONE) => ended_before,
            _ => false,
        };
        if ends || !ours {
            self.held().remove(&claim.message_id);
        }
        Ok(if ours { Ownership::Held } else { Ownership::Lost })
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
        Ok(self.receive_several(consumer, 1, wait).await?.pop())
    }

    async fn receive_several(
        &self,
        consumer: &Consumer,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let mut reader = self.shared.reader.lock().await;
        reader.next(self, consumer, most, wait).await
    }

    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError> {
        let doing = "looking up";
        let Answer::Lookup(lookup) = self.call(claim, doing, Operation::Lookup).await? else {
            return Err(failed(claim, doing, Malformed.into()));
        };
        if matches!(lookup, Lookup::Lost) {
            self.held().remove(&claim.message_id);
        }
        Ok(lookup)
    }

    async fn started(&self, claim: &Claim, event: &EventContext) -> Result<Ownership, BrokerError> {
        let event = task_event(claim, &TaskEventKind::Started, event);
        self.as_owner(claim, "reporting the start of", Operation::Started(event), false)
            .await
    }

    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        self.as_owner(claim, "renewing the lease of", Operation::Renew, false)
            .await
    }

    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError> {
        let doing = "asking for the cancellation of";
        match self.call(claim, doing, Operation::IsCancelled).await? {
            Answer::Number(there) => Ok(there != 0),
            _ => Err(failed(claim, doing, Malformed.into())),
        }
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
        let ids: Vec<&str> = artifacts
            .iter()
            .map(|artifact| artifact.artifact_id.as_str())
            .collect();
        let operation = Operation::Finish {
            event: kind.map(|kind| task_event(claim, &kind, event)),
            ids: json(&ids),
            artifacts: artifacts
                .iter()
                .map(|artifact| (artifact.artifact_id.clone(), json(artifact)))
                .collect(),
        };
        self.as_owner(claim, "finishing", operation, true).await
    }

    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let operation = Operation::Release {
            nobody: HANDED_BACK,
            idle_ms: milliseconds(self.shared.lease),
        };
        self.as_owner(claim, "handing back", operation, true).await
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

fn task_event(claim: &Claim, kind: &TaskEventKind, context: &EventContext) -> Event {
    let payload = Payload {
        task_id: &claim.task_id,
        job_id: &claim.job_id,
        engine_id: &claim.consumer.engine_id,
        error: kind.error(),
        request_id: context.request_id.as_deref(),
    };
    let trace_context = context.trace_context.as_deref();
    Event {
        kind: kind.as_str(),
        payload: payload.to_json(),
        context: trace_context.and_then(trace_context_json).unwrap_or_default(),
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("references have string keys and no `Serialize` that fails")
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn failed(claim: &Claim, doing: &str, source: CallError) -> BrokerError {
    BrokerError::new(format!("{doing} task {}", claim.task_id), source)
}

/// The time of a field, or nothing and a warning.
pub(super) fn readable(task_id: &str, field: &str, text: &str) -> Option<Timestamp> {
    text.parse()
        .inspect_err(|error| warn!(task_id, field, %error, "task_time_unreadable"))
        .ok()
}
