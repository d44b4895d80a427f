//! The tasks that this process holds, and the calls that only their holder may make.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};
use tokio::time::Instant;

use super::scripts::{self, GONE, HELD};
use super::server::{RedisServer, has_code};
use crate::broker::{BrokerError, Claim, Ownership};
use crate::protocol::keys;

/// The consumer that gets released tasks. It is never registered, so every engine, also one in
/// Python, takes it for dead and claims its tasks at once.
pub(super) const RELEASED: &str = "handed-back";
/// After how many leases without a call a task is forgotten.
const ABANDONED_AFTER_LEASES: u32 = 10;

/// What this process knows about the tasks that it holds.
#[derive(Debug)]
pub(super) struct HeldTasks {
    pub(super) server: RedisServer,
    pub(super) lease: Duration,
    /// By message id.
    tasks: Mutex<HashMap<String, HeldTask>>,
}

#[derive(Debug, Clone, Copy)]
struct HeldTask {
    /// A call that ends the claim was sent, and its reply did not come yet or was lost. If the
    /// entry is gone, this process removed it.
    ending: bool,
    /// When the runner last made a call about it. A task without a call for a lease is free, also
    /// for this process.
    last_call: Instant,
}

impl HeldTasks {
    pub(super) fn new(server: RedisServer, lease: Duration) -> Self {
        Self {
            server,
            lease,
            tasks: Mutex::default(),
        }
    }

    pub(super) fn hold(&self, message_id: &str) {
        let task = HeldTask {
            ending: false,
            last_call: Instant::now(),
        };
        self.tasks().insert(message_id.to_owned(), task);
    }

    pub(super) fn is_held(&self, message_id: &str) -> bool {
        let lease = self.lease;
        let held = |task: &HeldTask| task.last_call.elapsed() < lease;
        self.tasks().get(message_id).is_some_and(held)
    }

    pub(super) fn forget(&self, message_id: &str) {
        self.tasks().remove(message_id);
    }

    /// Tasks that the runner gave up without a call must not pile up here.
    pub(super) fn forget_abandoned(&self) {
        let longest = self.lease * ABANDONED_AFTER_LEASES;
        self.tasks().retain(|_, task| task.last_call.elapsed() < longest);
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
        let ours = match gone_with_its_group(owner, GONE) {
            Ok(HELD) => true,
            Ok(GONE) => ended_before,
            Ok(_) => false,
            Err(source) => return Err(self.failed(claim, operation, source)),
        };
        if ends || !ours {
            self.forget(&claim.message_id);
        }
        Ok(if ours { Ownership::Held } else { Ownership::Lost })
    }

    /// Gives the task back to the queue.
    pub(super) async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let mut script = script_about(claim, &scripts::RELEASE);
        script.arg(RELEASED).arg(milliseconds(self.lease));
        self.call(claim, "releasing", script, true).await
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

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, HeldTask>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A script with the arguments of `ownership.lua`.
pub(super) fn script_about<'a>(claim: &Claim, script: &'a Script) -> ScriptInvocation<'a> {
    let mut script = script.key(keys::task_stream(&claim.consumer.engine_id));
    script
        .arg(keys::TASK_GROUP)
        .arg(&claim.consumer.instance)
        .arg(&claim.message_id)
        .arg(claim.delivery_count);
    script
}

/// Without its group, and so without its stream, an entry is gone: the server lost its data.
pub(super) fn gone_with_its_group<T>(reply: RedisResult<T>, gone: T) -> RedisResult<T> {
    match reply {
        Err(error) if has_code(&error, "NOGROUP") => Ok(gone),
        other => other,
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
