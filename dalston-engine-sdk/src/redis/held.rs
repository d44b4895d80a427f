//! The tasks that this process holds, and the calls that only their holder may make.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Script, ScriptInvocation};
use tokio::time::Instant;
use tracing::warn;

use super::scripts::{self, GONE, HELD, LOST, REFUSED, UNRECORDED};
use super::server::RedisServer;
use crate::broker::{BrokerError, Claim, Delivery, HandBack, Ownership, RedeliveryReason, TaskMetadata};
use crate::protocol::keys;

/// Engines in Python claim an entry that is idle for so long.
const IDLE_FOR_PYTHON: Duration = Duration::from_secs(600);
/// The consumer that gets released tasks. It is never registered, so every engine, also one in
/// Python, takes it for dead and claims its tasks at once.
pub(super) const RELEASED: &str = "handed-back";
/// After how many leases without a call a task is removed from the list.
const ABANDONED_AFTER_LEASES: u32 = 10;

/// What this process knows about the tasks that it holds.
#[derive(Debug)]
pub(super) struct HeldTasks {
    pub(super) server: RedisServer,
    pub(super) lease: Duration,
    /// By message id.
    tasks: Mutex<HashMap<String, HeldTask>>,
    /// When this process handed tasks back because of its own dependencies, and in which delivery,
    /// by message id and by task id. They go to peers first.
    handed_back: Mutex<HashMap<String, (Instant, u32)>>,
}

#[derive(Debug, Clone, Copy)]
struct HeldTask {
    /// A call that ends the claim was sent, and its reply did not come yet or was lost. If the
    /// entry is gone, this process removed it.
    ending: bool,
    /// When the runner last made a call about it. A task without a call for a lease is free, also
    /// for this process.
    last_call: Instant,
    /// Its metadata was found. If that is gone later, the server lost its data.
    metadata_found: bool,
    /// The start was reported, by this process or by an earlier owner, or may have been.
    is_running: bool,
    /// The server lost its record of the delivery, and this was logged.
    unrecorded: bool,
}

impl HeldTasks {
    pub(super) fn new(server: RedisServer, lease: Duration) -> Self {
        Self {
            server,
            lease,
            tasks: Mutex::default(),
            handed_back: Mutex::default(),
        }
    }

    pub(super) fn hold(&self, delivery: &Delivery) {
        let task = HeldTask {
            ending: false,
            last_call: Instant::now(),
            metadata_found: false,
            is_running: delivery.redelivery == Some(RedeliveryReason::EngineCrash),
            unrecorded: false,
        };
        self.tasks().insert(delivery.claim.message_id.clone(), task);
    }

    pub(super) fn is_held(&self, message_id: &str) -> bool {
        let lease = self.lease;
        let held = |task: &HeldTask| task.last_call.elapsed() < lease;
        self.tasks().get(message_id).is_some_and(held)
    }

    pub(super) fn metadata_found(&self, message_id: &str, metadata: &TaskMetadata) {
        if let Some(task) = self.tasks().get_mut(message_id) {
            task.metadata_found = true;
            task.is_running |= metadata.earlier_deliveries + metadata.inference_starts > 0;
        }
    }

    /// Notes that the start is being reported.
    pub(super) fn running(&self, message_id: &str) {
        if let Some(task) = self.tasks().get_mut(message_id) {
            task.is_running = true;
        }
    }

    /// How long a released task was idle when it was released. Every other engine may then claim
    /// it.
    pub(super) fn idle_when_released(&self) -> Duration {
        self.lease.max(IDLE_FOR_PYTHON)
    }

    /// Whether this process handed the task back less than a lease ago. `id` is that of the task or
    /// of the message.
    pub(super) fn was_handed_back(&self, id: &str) -> bool {
        let lease = self.lease;
        self.handed_back()
            .get(id)
            .is_some_and(|(at, _)| at.elapsed() < lease)
    }

    pub(super) fn forget(&self, message_id: &str) {
        self.tasks().remove(message_id);
    }

    /// Tasks that the runner gave up without a call must not pile up here.
    pub(super) fn forget_abandoned(&self) {
        let longest = self.lease * ABANDONED_AFTER_LEASES;
        self.tasks().retain(|_, task| task.last_call.elapsed() < longest);
        self.handed_back().retain(|_, (at, _)| at.elapsed() < self.lease);
    }

    pub(super) fn len(&self) -> usize {
        self.tasks().len()
    }

    /// Runs a script that acts only if this process holds the task, and returns who holds it. With
    /// `ends`, the script ends the claim.
    pub(super) async fn call(
        &self,
        claim: &Claim,
        operation: &str,
        script: ScriptInvocation<'_>,
        ends: bool,
    ) -> Result<Ownership, BrokerError> {
        let mut ended_before = false;
        if let Some(task) = self.tasks().get_mut(&claim.message_id) {
            task.last_call = Instant::now();
            ended_before = task.ending;
            // Noted before the call: its caller may be gone when the reply comes.
            task.ending |= ends;
        }
        let owner = script.invoke_async(&mut self.server.shared()).await;
        let owner = owner.map_err(|source| self.failed(claim, operation, source))?;
        let ownership = match owner {
            HELD => Ownership::Held,
            GONE if ended_before => Ownership::Held,
            GONE | LOST => Ownership::Lost,
            UNRECORDED => Ownership::Unrecorded,
            _ => {
                let problem = format!("the script returned {owner}, which is no ownership");
                return Err(self.failed(claim, operation, problem));
            }
        };
        if ownership == Ownership::Unrecorded {
            self.log_unrecorded(claim);
        }
        if ends || ownership == Ownership::Lost {
            self.forget(&claim.message_id);
        }
        Ok(ownership)
    }

    /// Logs once per task that the server lost its record of the delivery.
    fn log_unrecorded(&self, claim: &Claim) {
        let logged = |task: &mut HeldTask| std::mem::replace(&mut task.unrecorded, true);
        if self.tasks().get_mut(&claim.message_id).is_some_and(logged) {
            return;
        }
        warn!(
            task_id = %claim.task_id,
            message_id = %claim.message_id,
            address = self.server.address(),
            advice = "the work goes on and its result is reported; find out why Redis lost its data, the \
                      stream or the consumer group",
            "task_not_recorded_by_redis"
        );
    }

    /// Gives the task back to the queue.
    pub(super) async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let mut script = self.script_about(claim, &scripts::RELEASE);
        self.add_give_back(&mut script, claim, claim.delivery_count);
        self.call(claim, "releasing", script, true).await
    }

    /// Gives a task back that this process had handed back and read again.
    pub(super) async fn pass_on(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        self.running(&claim.message_id);
        let mut script = self.script_about(claim, &scripts::RELEASE);
        self.add_give_back(&mut script, claim, 0);
        self.call(claim, "passing on", script, true).await
    }

    /// The arguments of `give_back.lua`.
    fn add_give_back(&self, script: &mut ScriptInvocation<'_>, claim: &Claim, deliveries: u32) {
        let is_running = |task: &HeldTask| task.is_running;
        let is_running = self.tasks().get(&claim.message_id).is_none_or(is_running);
        script
            .arg(RELEASED)
            .arg(milliseconds(self.idle_when_released()))
            .arg(u8::from(is_running))
            .arg(deliveries);
    }

    /// Gives the task to a peer, at most `limit` times for this cause.
    pub(super) async fn hand_back(
        &self,
        claim: &Claim,
        cause: &str,
        limit: u32,
    ) -> Result<HandBack, BrokerError> {
        let mut script = self.script_about(claim, &scripts::HAND_BACK);
        self.add_give_back(&mut script, claim, claim.delivery_count);
        script.arg(format!("handed_back_{cause}")).arg(limit);
        // Before the call: this process may look for released tasks while the answer is under way.
        let now = (Instant::now(), claim.delivery_count);
        self.handed_back().insert(claim.task_id.clone(), now);
        let earlier = self.handed_back().insert(claim.message_id.clone(), now);
        // The answer of an earlier call about this delivery was lost.
        let is_repeated = earlier.is_some_and(|(_, delivery)| delivery == claim.delivery_count);
        let owner = script.invoke_async(&mut self.server.shared()).await;
        let result = match owner {
            Ok(HELD) => HandBack::Done,
            // A task that the server forgot is in no queue any more.
            Ok(REFUSED | UNRECORDED) => HandBack::Refused,
            Ok(_) if is_repeated => HandBack::Done,
            Ok(_) => HandBack::Lost,
            Err(source) => return Err(self.failed(claim, "handing back", source)),
        };
        match result {
            HandBack::Refused => {
                self.handed_back().remove(&claim.message_id);
                self.handed_back().remove(&claim.task_id);
            }
            _ => self.forget(&claim.message_id),
        }
        Ok(result)
    }

    pub(super) fn failed(
        &self,
        claim: &Claim,
        operation: &str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> BrokerError {
        let (task, engine, address) = (&claim.task_id, &claim.consumer.engine_id, self.server.address());
        BrokerError::new(
            format!("{operation} task {task} of {engine} on Redis at {address}"),
            source,
        )
    }

    /// A script with the arguments of `ownership.lua`.
    pub(super) fn script_about<'a>(&self, claim: &Claim, script: &'a Script) -> ScriptInvocation<'a> {
        let metadata_found = |task: &HeldTask| task.metadata_found;
        let metadata_found = self.tasks().get(&claim.message_id).is_some_and(metadata_found);
        let mut script = script.key(keys::task_stream(&claim.consumer.engine_id));
        script
            .key(keys::task(&claim.task_id))
            .arg(keys::TASK_GROUP)
            .arg(&claim.consumer.instance)
            .arg(&claim.message_id)
            .arg(claim.delivery_count)
            .arg(u8::from(metadata_found));
        script
    }

    fn handed_back(&self) -> MutexGuard<'_, HashMap<String, (Instant, u32)>> {
        self.handed_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, HeldTask>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
