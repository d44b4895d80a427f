//! Where tasks come from and where their outcome goes: [`Broker`].
//!
//! A broker gives every task to one worker at a time, at least once. The worker holds the task
//! under a lease that it renews while it works. A worker that falls silent loses the task to
//! another one. Every report about a task is checked against the ownership first, so that a worker
//! that lost a task can't touch it any more.
//!
//! The runner calls a broker in this order, per task: [`receive`](Broker::receive),
//! [`lookup`](Broker::lookup), [`started`](Broker::started), [`renew`](Broker::renew) and
//! [`is_cancelled`](Broker::is_cancelled) again and again, and then [`finish`](Broker::finish),
//! [`release`](Broker::release) or [`hand_back`](Broker::hand_back).
//!
//! [`RedisBroker`](crate::redis::RedisBroker) takes the tasks of a live deployment,
//! [`MemoryBroker`] has a queue of its own in the process. `testing::broker_suite` (feature
//! `testing`) tests a broker of yours; the [`registry`](crate::registry) is the other half of a
//! deployment.

mod claim;
mod delivery;
mod error;
mod lookup;
mod memory;
mod outcome;
mod queued;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

pub use self::claim::{Claim, Consumer, HandBack, Ownership};
pub use self::delivery::{Delivery, RedeliveryReason};
pub use self::error::BrokerError;
pub use self::lookup::{Lookup, TaskMetadata};
pub use self::memory::MemoryBroker;
pub use self::outcome::{EventContext, Outcome};
pub use self::queued::{EventKind, QueueFull, QueuedTask, RecordedEvent};

/// A queue of tasks with leases, and the channel on which their outcome is reported.
///
/// All methods are called from the runner's control loop, never from an inference thread. They may
/// be called for several tasks at the same time.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// The kind of broker, for the attribute `messaging.system`: `redis`, `memory`.
    fn system(&self) -> &'static str;

    /// How long a task stays with a worker that is silent.
    fn lease(&self) -> Duration;

    /// Takes the next task for `consumer`, waiting for one up to `wait`.
    ///
    /// The future may be dropped at any time: a task that it has taken but not returned must come
    /// back to the queue by itself, at the latest when its lease ends.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached, or if it could not store the outcome of a task; the runner
    /// waits a little and tries again.
    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError>;

    /// Takes the next task for a `consumer` that has no free inference thread, waiting for one up
    /// to `wait`: only a task that no idle consumer of the engine could begin at once.
    ///
    /// Like [`receive`](Self::receive) in everything else, and by default the same.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    async fn receive_ahead(
        &self,
        consumer: &Consumer,
        wait: Duration,
    ) -> Result<Option<Delivery>, BrokerError> {
        self.receive(consumer, wait).await
    }

    /// Waits until no read is under way that could take a task, and gives back the tasks that were
    /// taken for a dropped future. The runner calls this when it drains.
    ///
    /// By default there is nothing to do.
    async fn stop_reading(&self) {}

    /// Finds out what is known about a task and whether it should be done at all.
    ///
    /// A task may be queued more than once. The claim that looks it up first owns it. An entry of a
    /// task that is in hand under another entry is removed, and its claim is
    /// [lost](Lookup::Lost).
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError>;

    /// Reports that inference of a task begins, and counts that in
    /// [`TaskMetadata::inference_starts`] until [`finish`](Self::finish),
    /// [`release`](Self::release) or [`hand_back`](Self::hand_back). A repeated call changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn started(&self, claim: &Claim, context: &EventContext) -> Result<Ownership, BrokerError>;

    /// Renews the lease of a task: the worker is alive and busy with it.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached. The runner keeps working: [`finish`](Self::finish) decides
    /// about the ownership.
    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError>;

    /// Whether the job of this task was cancelled.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError>;

    /// Reports the outcome of a task and removes it from the queue, both or none, and only for the
    /// owner.
    ///
    /// The artifacts of a completed task are made known before the event. A failure whose claim has
    /// not [reported a start](Self::started) reports one first, because the platform expects it.
    /// That start is not counted.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the runner tries again.
    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        context: &EventContext,
    ) -> Result<Ownership, BrokerError>;

    /// Gives a task back to the queue, so that the next consumer gets it at once. A broker may
    /// queue it again for that, behind the tasks that wait. A task of which the broker
    /// [has no record](Ownership::Unrecorded) is not in the queue any more.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the task then comes back when its lease ends.
    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError>;

    /// Gives a task back to the queue that failed for a cause of its worker, so that a peer can
    /// process it. For the length of a lease the task is not delivered to the same consumer.
    ///
    /// `cause` is a short static word. The number of such calls per task and cause is kept with the
    /// task, so it holds for all workers together. From `limit` on the task stays with the caller.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached; the task then comes back when its lease ends.
    async fn hand_back(&self, claim: &Claim, cause: &str, limit: u32) -> Result<HandBack, BrokerError>;
}
