//! Where tasks come from and where their outcome goes: [`Broker`].
//!
//! A broker gives every task to one worker at a time, at least once. The worker holds it under a lease that it renews
//! while it works; a worker that falls silent loses the task to another one. Whatever a worker says about a task is
//! checked against the ownership first, so that a worker that lost a task can't touch it any more.
//!
//! The runner calls a broker in this order, per task: [`receive`](Broker::receive), [`lookup`](Broker::lookup),
//! [`started`](Broker::started), [`renew`](Broker::renew) and [`is_cancelled`](Broker::is_cancelled) again and again, and then
//! [`finish`](Broker::finish) or [`release`](Broker::release). A broker that can read several tasks at once overrides
//! [`receive_several`](Broker::receive_several).

mod memory;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;

pub use self::memory::{EventKind, MemoryBroker, QueueFull, QueuedTask, RecordedEvent};
use crate::protocol::{ArtifactReference, RequestBinding, Timestamp};

/// A queue of tasks with leases, and the channel on which their outcome is reported.
///
/// All methods are called from the runner's control loop, never from an inference thread. They may be called for several
/// tasks at the same time.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// The kind of broker, for the attribute `messaging.system`: `redis`, `memory`.
    fn system(&self) -> &'static str;

    /// How long a task stays with a worker that is not heard of.
    fn lease(&self) -> Duration;

    /// Takes the next task for `consumer`, waiting for one up to `wait`.
    ///
    /// The future may be dropped at any time: a task that it has taken but not returned must come back to the queue by
    /// itself, at the latest when its lease ends.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the runner waits a little and tries again.
    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError>;

    /// Takes up to `most` tasks that are waiting, as [`receive`](Self::receive) takes one. It waits for the first one only.
    ///
    /// Unless a broker has a better way, this takes one.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    async fn receive_several(
        &self,
        consumer: &Consumer,
        _most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, BrokerError> {
        Ok(self.receive(consumer, wait).await?.into_iter().collect())
    }

    /// Finds out what is known about a task and whether it should be done at all.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError>;

    /// Reports that work on a task begins.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn started(&self, claim: &Claim, event: &EventContext) -> Result<Ownership, BrokerError>;

    /// Says that the worker is alive and busy with this task: its lease begins anew.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached. The runner keeps working: [`finish`](Self::finish) decides who owns the task.
    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError>;

    /// Whether someone cancelled the job of this task.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError>;

    /// Reports the outcome of a task and removes it from the queue, both or none, and only for the owner.
    ///
    /// For a completed task its artifacts are made known before the event.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the runner tries again.
    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        event: &EventContext,
    ) -> Result<Ownership, BrokerError>;

    /// Hands a task back, so that the next consumer can have it at once.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the task then comes back when its lease ends.
    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError>;
}

/// Who takes tasks: one process that works for one engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Consumer {
    /// The engine id, which is also the name of the queue.
    pub engine_id: String,
    /// The name of the process, unique among all processes that ever ran.
    pub instance: String,
}

/// The right to work on a task, held by one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The task.
    pub task_id: String,
    /// Its job.
    pub job_id: String,
    /// The entry in the queue; the same task may be queued again under another one.
    pub message_id: String,
    /// Who holds the claim.
    pub consumer: Consumer,
    /// Which delivery of the entry this claim is about. A later one makes it void.
    pub delivery_count: u32,
}

impl Claim {
    /// The claim that goes with a delivery. Brokers make these.
    #[must_use]
    pub fn new(
        consumer: Consumer,
        message_id: impl Into<String>,
        task_id: impl Into<String>,
        job_id: impl Into<String>,
        delivery_count: u32,
    ) -> Self {
        Self {
            task_id: task_id.into(),
            job_id: job_id.into(),
            message_id: message_id.into(),
            consumer,
            delivery_count,
        }
    }
}

/// A task that was taken from the queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// The right to work on it.
    pub claim: Claim,
    /// When the entry was queued, by the clock of whoever queued it.
    pub enqueued_at: Option<Timestamp>,
    /// When it became available to this consumer, if that was later: the end of an earlier owner's lease.
    pub requeued_at: Option<Timestamp>,
    /// When the task has to be done.
    pub timeout_at: Option<Timestamp>,
    /// Why it was delivered again, if it was.
    pub redelivery: Option<RedeliveryReason>,
    /// When the broker was asked for it: its lease began no earlier. The process may have stood still since then. Without
    /// this time, the lease is counted from the moment at which the runner sees the delivery.
    pub asked_at: Option<Instant>,
}

impl Delivery {
    /// A first delivery under this claim, with no times known. Brokers make these.
    #[must_use]
    pub fn new(claim: Claim) -> Self {
        Self {
            claim,
            enqueued_at: None,
            requeued_at: None,
            timeout_at: None,
            redelivery: None,
            asked_at: None,
        }
    }
}

/// Why a task was delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedeliveryReason {
    /// Its owner fell silent.
    EngineCrash,
    /// Its owner handed it back.
    Deferred,
}

impl RedeliveryReason {
    /// The value of the label `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EngineCrash => "engine_crash",
            Self::Deferred => "deferred",
        }
    }
}

/// What a broker knows about a delivered task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Lookup {
    /// It should be done.
    Task(Box<TaskMetadata>),
    /// Its job was cancelled: remove it without an event.
    Cancelled,
    /// The platform gave it up, for this reason: remove it without an event.
    Blocked(String),
    /// Nothing is known about it: fail it.
    Missing,
    /// What is known about it makes no sense: fail it.
    Malformed {
        /// What could be read of it.
        metadata: Box<TaskMetadata>,
        /// What is wrong.
        problem: String,
    },
    /// Someone else owns it by now.
    Lost,
}

/// What the platform says about a task outside of `request.json`.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TaskMetadata {
    /// The stage, with a channel suffix if it has one: `transcribe_ch0`.
    pub stage: String,
    /// When the task was queued, if its queue entry does not say it.
    pub enqueued_at: Option<Timestamp>,
    /// The model, if the platform names it here.
    pub model: Option<String>,
    /// The id of the request at the gateway.
    pub request_id: Option<String>,
    /// The JSON of the trace context.
    pub trace_context: Option<String>,
    /// Inputs, if they are more recent than those of `request.json`.
    pub bindings: Option<Vec<RequestBinding>>,
    /// Artifact ids by slot, if they are more recent than those of `request.json`.
    pub resolved_artifact_ids: Option<BTreeMap<String, String>>,
}

impl TaskMetadata {
    /// What is known about a task of this stage, with nothing else said.
    #[must_use]
    pub fn new(stage: impl Into<String>) -> Self {
        Self {
            stage: stage.into(),
            ..Self::default()
        }
    }
}

/// Whether the caller still had the right to do what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ownership {
    /// It had, and it is done.
    Held,
    /// It had not, and nothing was done.
    Lost,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Its response is in the store.
    Completed {
        /// The files beside the response.
        artifacts: Vec<ArtifactReference>,
    },
    /// It failed.
    Failed {
        /// One line for people.
        error: String,
        /// The short static code.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// Its job was cancelled after it was started, and it has ended without a response. The platform waits for that; a failure
    /// it would have tried again.
    Cancelled,
    /// It was never started and needs no event: its job was cancelled, or the platform gave it up.
    Skipped,
}

/// What events carry beside the ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventContext {
    /// The id of the request at the gateway. Given on so that the orchestrator's next tasks have it too.
    pub request_id: Option<String>,
    /// The JSON of the trace context under which the orchestrator goes on.
    pub trace_context: Option<String>,
}

/// A broker could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct BrokerError {
    operation: String,
    source: Box<dyn Error + Send + Sync>,
}

impl BrokerError {
    /// `operation` says what was tried, and where: `finishing task 7 of my-asr on Redis at localhost:6379`.
    pub fn new(operation: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
