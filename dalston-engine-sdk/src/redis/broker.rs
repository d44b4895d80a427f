//! The queue of a live deployment: one stream per engine, one consumer group for all of its
//! instances.
//!
//! See sections 2.2 to 2.4 of the protocol, and section 12 for the traps.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::ScriptInvocation;

use super::held::{HeldTasks, RELEASED, milliseconds};
use super::lookup::read_lookup;
use super::read::Reads;
use super::reader::Reader;
use super::scripts;
use super::server::RedisServer;
use crate::broker::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, HandBack, Lookup, Outcome, Ownership,
};
use crate::protocol::{Event, EventKind, Timestamp, keys};

/// The platform's own lease: an instance without a heartbeat for so long is dead.
const LEASE: Duration = Duration::from_secs(60);

/// Takes tasks from a live deployment, and reports to it.
///
/// Clones share the connections and the list of held tasks.
///
/// A task of another instance is claimed when the registry record of that instance is gone or 60 s
/// old and the task was not renewed for [`lease`](Broker::lease). A [released](Broker::release)
/// task is claimed at once.
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
    held: Arc<HeldTasks>,
    reader: Arc<Reader>,
}

impl RedisBroker {
    /// A broker on this server, with leases of 60 s.
    #[must_use]
    pub fn new(server: RedisServer) -> Self {
        Self::with_lease(server, LEASE)
    }

    /// A broker with another lease. All instances of an engine need the same.
    #[must_use]
    pub fn with_lease(server: RedisServer, lease: Duration) -> Self {
        let held = Arc::new(HeldTasks::new(server, lease));
        let reader = Arc::new(Reader::new(Arc::clone(&held)));
        Self { held, reader }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &RedisServer {
        &self.held.server
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn system(&self) -> &'static str {
        "redis"
    }

    fn lease(&self) -> Duration {
        self.held.lease
    }

    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError> {
        self.reader.receive(consumer, Reads::Next, wait).await
    }

    async fn receive_ahead(
        &self,
        consumer: &Consumer,
        wait: Duration,
    ) -> Result<Option<Delivery>, BrokerError> {
        self.reader.receive(consumer, Reads::Ahead, wait).await
    }

    async fn stop_reading(&self) {
        self.reader.close().await;
    }

    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError> {
        let mut script = self.held.script_about(claim, &scripts::LOOKUP);
        script
            .key(keys::job_cancelled(&claim.job_id))
            .key(keys::WAITING_TASKS);
        script
            .arg(&claim.task_id)
            .arg(&keys::WAIT_MARKERS)
            .arg(milliseconds(self.held.lease))
            .arg(RELEASED)
            .arg(keys::instance(""));
        let reply: Vec<_> = script
            .invoke_async(&mut self.held.server.shared())
            .await
            .map_err(|source| self.held.failed(claim, "looking up", source))?;
        let lookup =
            read_lookup(claim, &reply).map_err(|source| self.held.failed(claim, "looking up", source))?;
        match &lookup {
            Lookup::Lost => self.held.forget(&claim.message_id),
            Lookup::Task(metadata) => self.held.metadata_found(&claim.message_id, metadata),
            Lookup::Cancelled { is_running: true } => self.held.running(&claim.message_id),
            _ => {}
        }
        Ok(lookup)
    }

    async fn started(&self, claim: &Claim, context: &EventContext) -> Result<Ownership, BrokerError> {
        self.held.running(&claim.message_id);
        let mut script = self.held.script_about(claim, &scripts::STARTED);
        script.key(keys::EVENT_STREAM);
        script.arg(keys::EVENT_STREAM_MAX_LEN).arg(keys::EVENT_CHANNEL);
        add_event(&mut script, Some(&event(claim, EventKind::TaskStarted, context)));
        self.held
            .call(claim, "reporting the start of", script, false)
            .await
    }

    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let mut script = self.held.script_about(claim, &scripts::RENEW);
        script.arg(RELEASED);
        self.held
            .call(claim, "renewing the lease of", script, false)
            .await
    }

    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError> {
        let mut command = redis::cmd("EXISTS");
        command.arg(keys::job_cancelled(&claim.job_id));
        let exists = command.query_async(&mut self.held.server.shared()).await;
        exists.map_err(|source| self.held.failed(claim, "asking for the cancellation of", source))
    }

    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        context: &EventContext,
    ) -> Result<Ownership, BrokerError> {
        let completed = || Some(event(claim, EventKind::TaskCompleted, context));
        let (end, artifacts) = match outcome {
            Outcome::Completed { artifacts } => (completed(), artifacts.as_slice()),
            Outcome::Failed { error, .. } => {
                let failed = event(claim, EventKind::TaskFailed, context).error(error.as_str());
                (Some(failed), [].as_slice())
            }
            // A cancelled job ends when its running tasks are completed. A failed task would be
            // queued again and then skipped without an event, and its job would stay in the state
            // `cancelling`.
            Outcome::Cancelled => (completed(), [].as_slice()),
            Outcome::Skipped => (None, [].as_slice()),
        };
        let mut script = self.held.script_about(claim, &scripts::FINISH);
        script
            .key(keys::EVENT_STREAM)
            .key(keys::job_artifacts(&claim.job_id));
        script.arg(keys::EVENT_STREAM_MAX_LEN).arg(keys::EVENT_CHANNEL);
        // The orchestrator takes the failure of a task without a start for a replay and ignores it;
        // the job would hang.
        let is_failed = matches!(outcome, Outcome::Failed { .. });
        let start = is_failed.then(|| event(claim, EventKind::TaskStarted, context));
        for event in [end, start] {
            add_event(&mut script, event.as_ref());
        }
        let ids: Vec<&str> = artifacts
            .iter()
            .map(|artifact| artifact.artifact_id.as_str())
            .collect();
        script.arg(json(&ids));
        for artifact in artifacts {
            script.arg(&artifact.artifact_id).arg(json(artifact));
        }
        self.held.call(claim, "finishing", script, true).await
    }

    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        self.held.release(claim).await
    }

    async fn hand_back(&self, claim: &Claim, cause: &str, limit: u32) -> Result<HandBack, BrokerError> {
        self.held.hand_back(claim, cause, limit).await
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker")
            .field("server", &self.held.server)
            .field("lease", &self.held.lease)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

fn event(claim: &Claim, kind: EventKind, context: &EventContext) -> Event {
    let event = Event::new(kind, &*claim.job_id, Timestamp::now());
    let mut event = event.task(&*claim.task_id, &*claim.consumer.engine_id);
    event.request_id.clone_from(&context.request_id);
    event.trace_context.clone_from(&context.trace_context);
    event
}

/// The arguments of `report` in `event.lua`. An empty type stands for no event.
fn add_event(script: &mut ScriptInvocation<'_>, event: Option<&Event>) {
    match event {
        Some(event) => {
            let time = event.timestamp.map(|time| time.to_string());
            script.arg(event.kind.as_str()).arg(time.unwrap_or_default());
            script
                .arg(event.payload())
                .arg(event.trace_context_field().unwrap_or_default())
                .arg(event.published());
        }
        None => {
            script.arg(&["", "", "", "", ""]);
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("references have string keys and no `Serialize` that fails")
}
