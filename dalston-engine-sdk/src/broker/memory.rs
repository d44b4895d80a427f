//! A broker inside the process, for local runs and tests, with the rules of the live platform.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, EventKind, HandBack, Lookup, Outcome,
    Ownership, QueueFull, QueuedTask, RecordedEvent, RedeliveryReason,
};
use crate::protocol::Timestamp;

/// A queue in memory. Clones share it.
///
/// Leases run on tokio's clock, so tests can pause it. The queue and the list of events are
/// bounded.
///
/// ```
/// use dalston_engine_sdk::broker::{MemoryBroker, QueuedTask, TaskMetadata};
///
/// let broker = MemoryBroker::new();
/// let task = QueuedTask::new("my-asr", "T1", "J1").metadata(TaskMetadata::new("transcribe"));
/// broker.enqueue(task)?;
/// assert_eq!(broker.waiting(), 1);
/// # Ok::<(), dalston_engine_sdk::broker::QueueFull>(())
/// ```
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

struct Shared {
    lease: Duration,
    capacity: usize,
    state: Mutex<State>,
    /// Something became available, or an event was recorded.
    changed: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    last_id: u64,
    /// Entries that were neither finished nor skipped, by message id.
    entries: BTreeMap<u64, Entry>,
    /// Message ids of entries without a holder, by engine.
    waiting: BTreeMap<String, VecDeque<u64>>,
    held: BTreeMap<u64, Holder>,
    /// How many consumers wait for a task that they can begin at once, by engine.
    idle: BTreeMap<String, usize>,
    events: VecDeque<RecordedEvent>,
}

struct Entry {
    task: QueuedTask,
    cancelled: bool,
    deliveries: u32,
    /// How many times inference began without a known end.
    starts: u32,
    /// The delivery whose start was reported last.
    started_in: Option<u32>,
    looked_up: bool,
    requeued_at: Option<Timestamp>,
    redelivery: Option<RedeliveryReason>,
    /// How often it was handed back, by cause.
    hand_backs: BTreeMap<String, u32>,
    /// The consumer that handed it back gets it only after this time.
    kept_from: Option<Holder>,
}

struct Holder {
    consumer: Consumer,
    until: Instant,
}

/// Counts a consumer that waits for a task, until it is dropped.
struct Idle<'a> {
    shared: &'a Shared,
    engine_id: &'a str,
}

impl<'a> Idle<'a> {
    fn new(shared: &'a Shared, consumer: &'a Consumer) -> Self {
        let engine_id = &consumer.engine_id;
        *shared.state().idle.entry(engine_id.clone()).or_default() += 1;
        Self { shared, engine_id }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        if let Some(idle) = self.shared.state().idle.get_mut(self.engine_id) {
            *idle = idle.saturating_sub(1);
        }
        self.shared.changed.notify_waiters();
    }
}

/// No more than this many events are kept, the newest.
const EVENTS_KEPT: usize = 10_000;

impl MemoryBroker {
    /// A queue for up to 10 000 tasks with leases of 60 s.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Duration::from_secs(60), 10_000)
    }

    /// A queue for up to `capacity` tasks whose leases last `lease`.
    #[must_use]
    pub fn with(lease: Duration, capacity: usize) -> Self {
        let state = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                lease,
                capacity,
                state,
                changed: Notify::new(),
            }),
        }
    }

    /// Queues a task and returns the id of its entry.
    ///
    /// # Errors
    ///
    /// When the queue is full. Tasks that are being worked on count.
    pub fn enqueue(&self, task: QueuedTask) -> Result<String, QueueFull> {
        let mut state = self.state();
        if state.entries.len() >= self.shared.capacity {
            return Err(QueueFull {
                capacity: self.shared.capacity,
            });
        }
        state.last_id += 1;
        let id = state.last_id;
        state
            .waiting
            .entry(task.engine_id.clone())
            .or_default()
            .push_back(id);
        let entry = Entry {
            task,
            cancelled: false,
            deliveries: 0,
            starts: 0,
            started_in: None,
            looked_up: false,
            requeued_at: None,
            redelivery: None,
            hand_backs: BTreeMap::new(),
            kept_from: None,
        };
        state.entries.insert(id, entry);
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(id.to_string())
    }

    /// Cancels a job: workers skip its waiting tasks and stop its running ones.
    pub fn cancel_job(&self, job_id: &str) {
        let mut state = self.state();
        for entry in state
            .entries
            .values_mut()
            .filter(|entry| entry.task.job_id == job_id)
        {
            entry.cancelled = true;
        }
    }

    /// How many tasks wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting.values().map(VecDeque::len).sum()
    }

    /// How many tasks are held by a consumer.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// The last 10 000 events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<RecordedEvent> {
        self.state().events.iter().cloned().collect()
    }

    /// Waits until `found` finds something in the events.
    pub async fn wait_for_event<T>(&self, mut found: impl FnMut(&RecordedEvent) -> Option<T>) -> T {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = self.state().events.iter().find_map(&mut found) {
                return value;
            }
            changed.await;
        }
    }

    /// Waits until a task has failed or is completed.
    pub async fn wait_for_outcome(&self, task_id: &str) -> RecordedEvent {
        let of_task = |event: &RecordedEvent| {
            (event.task_id == task_id && event.kind != EventKind::Started).then(|| event.clone())
        };
        self.wait_for_event(of_task).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Takes the next task for a consumer, as soon as it `may`.
    async fn take(
        &self,
        consumer: &Consumer,
        wait: Duration,
        may: impl Fn(&State) -> bool + Send,
    ) -> Option<Delivery> {
        let give_up = Instant::now() + wait;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next_change = {
                let mut state = self.state();
                state.end_leases(Instant::now());
                if may(&state)
                    && let Some(delivery) = state.deliver(consumer, self.shared.lease)
                {
                    return Some(delivery);
                }
                state.next_change()
            };
            if Instant::now() >= give_up {
                return None;
            }
            let wake = next_change.map_or(give_up, |end| end.min(give_up));
            tokio::select! {
                () = changed => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Runs `act` on the entry of `claim`, if its consumer still holds it.
    fn as_owner(&self, claim: &Claim, act: impl FnOnce(&mut State, u64)) -> Ownership {
        let mut state = self.state();
        state.end_leases(Instant::now());
        match state.owned(claim) {
            None => Ownership::Lost,
            Some(id) => {
                act(&mut state, id);
                Ownership::Held
            }
        }
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker")
            .field("waiting", &self.waiting())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn system(&self) -> &'static str {
        "memory"
    }

    fn lease(&self) -> Duration {
        self.shared.lease
    }

    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError> {
        let _idle = Idle::new(&self.shared, consumer);
        Ok(self.take(consumer, wait, |_| true).await)
    }

    async fn receive_ahead(
        &self,
        consumer: &Consumer,
        wait: Duration,
    ) -> Result<Option<Delivery>, BrokerError> {
        let engine = &consumer.engine_id;
        let exceeds_idle = |state: &State| {
            let waiting = state.waiting.get(engine).map_or(0, VecDeque::len);
            waiting > state.idle.get(engine).copied().unwrap_or(0)
        };
        Ok(self.take(consumer, wait, exceeds_idle).await)
    }

    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError> {
        let mut state = self.state();
        state.end_leases(Instant::now());
        let Some(id) = state.owned(claim) else {
            return Ok(Lookup::Lost);
        };
        if state.is_in_hand_elsewhere(id) {
            state.held.remove(&id);
            state.entries.remove(&id);
            return Ok(Lookup::Lost);
        }
        let Some(entry) = state.entries.get_mut(&id) else {
            return Ok(Lookup::Lost);
        };
        entry.looked_up = true;
        Ok(match &entry.task.metadata {
            _ if entry.cancelled => Lookup::Cancelled {
                is_running: entry.starts > 0,
            },
            None => Lookup::Missing,
            Some(metadata) => {
                let mut metadata = metadata.clone();
                metadata.inference_starts = entry.starts;
                Lookup::Task(Box::new(metadata))
            }
        })
    }

    async fn started(&self, claim: &Claim, context: &EventContext) -> Result<Ownership, BrokerError> {
        let ownership = self.as_owner(claim, |state, id| {
            if state.start(claim, id, context)
                && let Some(entry) = state.entries.get_mut(&id)
            {
                entry.starts += 1;
            }
        });
        self.shared.changed.notify_waiters();
        Ok(ownership)
    }

    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let until = Instant::now() + self.shared.lease;
        Ok(self.as_owner(claim, |state, id| {
            if let Some(holder) = state.held.get_mut(&id) {
                holder.until = until;
            }
        }))
    }

    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError> {
        let state = self.state();
        let entry = claim
            .message_id
            .parse()
            .ok()
            .and_then(|id: u64| state.entries.get(&id));
        Ok(entry.is_some_and(|entry| entry.cancelled))
    }

    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        context: &EventContext,
    ) -> Result<Ownership, BrokerError> {
        let ownership = self.as_owner(claim, |state, id| {
            match outcome {
                Outcome::Completed { artifacts } => {
                    let artifacts = artifacts.clone();
                    state.record(claim, EventKind::Completed { artifacts }, context);
                }
                Outcome::Failed {
                    error,
                    code,
                    retryable,
                } => {
                    state.start(claim, id, context);
                    let kind = EventKind::Failed {
                        error: error.clone(),
                        code,
                        retryable: *retryable,
                    };
                    state.record(claim, kind, context);
                }
                Outcome::Cancelled => {
                    let artifacts = Vec::new();
                    state.record(claim, EventKind::Completed { artifacts }, context);
                }
                Outcome::Skipped => {}
            }
            state.held.remove(&id);
            state.entries.remove(&id);
        });
        self.shared.changed.notify_waiters();
        Ok(ownership)
    }

    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        let ownership = self.as_owner(claim, |state, id| state.hand_back(id));
        self.shared.changed.notify_waiters();
        Ok(ownership)
    }

    async fn hand_back(&self, claim: &Claim, cause: &str, limit: u32) -> Result<HandBack, BrokerError> {
        let kept_from = Holder {
            consumer: claim.consumer.clone(),
            until: Instant::now() + self.shared.lease,
        };
        let mut result = HandBack::Lost;
        let _ = self.as_owner(claim, |state, id| {
            result = HandBack::Refused;
            let Some(entry) = state.entries.get_mut(&id) else {
                return;
            };
            let count = entry.hand_backs.entry(cause.to_owned()).or_default();
            if *count < limit {
                *count += 1;
                entry.kept_from = Some(kept_from);
                state.hand_back(id);
                result = HandBack::Done;
            }
        });
        self.shared.changed.notify_waiters();
        Ok(result)
    }
}

impl State {
    fn end_leases(&mut self, now: Instant) {
        let ended = self.held.iter().filter(|(_, holder)| holder.until <= now);
        let ended: Vec<u64> = ended.map(|(id, _)| *id).collect();
        // Backwards, because each goes to the front of the queue.
        for id in ended.into_iter().rev() {
            self.give_back(id, RedeliveryReason::EngineCrash);
        }
    }

    /// When a task may become available without a call: the end of a lease, or of the time for
    /// which a task is kept from the consumer that handed it back.
    fn next_change(&self) -> Option<Instant> {
        let waiting = self.waiting.values().flatten();
        let kept = waiting.filter_map(|id| self.entries.get(id)?.kept_from.as_ref());
        let now = Instant::now();
        let kept = kept.filter(|kept| kept.until > now);
        self.held.values().chain(kept).map(|holder| holder.until).min()
    }

    /// Reports the start of a task, unless this claim has reported it. Returns whether it did.
    fn start(&mut self, claim: &Claim, id: u64, context: &EventContext) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let delivery = Some(claim.delivery_count);
        if entry.started_in == delivery {
            return false;
        }
        entry.started_in = delivery;
        self.record(claim, EventKind::Started, context);
        true
    }

    /// Puts an entry back that its holder gives up.
    fn hand_back(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.started_in.take() == Some(entry.deliveries)
        {
            // The worker survived the inference that it began.
            entry.starts = entry.starts.saturating_sub(1);
        }
        self.give_back(id, RedeliveryReason::Deferred);
    }

    /// Puts an entry back at the front: old work goes before new work.
    fn give_back(&mut self, id: u64, reason: RedeliveryReason) {
        self.held.remove(&id);
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.requeued_at = Some(Timestamp::now());
        entry.redelivery = Some(reason);
        self.waiting
            .entry(entry.task.engine_id.clone())
            .or_default()
            .push_front(id);
    }

    fn deliver(&mut self, consumer: &Consumer, lease: Duration) -> Option<Delivery> {
        let now = Instant::now();
        let waiting = self.waiting.get_mut(&consumer.engine_id)?;
        let at = waiting.iter().position(|id| {
            let kept = self.entries.get(id).and_then(|entry| entry.kept_from.as_ref());
            kept.is_none_or(|kept| kept.consumer != *consumer || kept.until <= now)
        })?;
        let id = waiting.remove(at)?;
        let entry = self.entries.get_mut(&id)?;
        entry.deliveries += 1;
        self.held.insert(
            id,
            Holder {
                consumer: consumer.clone(),
                until: Instant::now() + lease,
            },
        );
        let task = &entry.task;
        let claim = Claim::new(
            consumer.clone(),
            id.to_string(),
            &*task.task_id,
            &*task.job_id,
            entry.deliveries,
        );
        Some(Delivery {
            claim,
            enqueued_at: Some(task.enqueued_at),
            requeued_at: entry.requeued_at,
            timeout_at: task.timeout_at,
            redelivery: entry.redelivery,
            asked_at: Some(Instant::now().into_std()),
        })
    }

    /// The entry that a claim is about, if it was not delivered again since.
    fn owned(&self, claim: &Claim) -> Option<u64> {
        let id = claim.message_id.parse().ok()?;
        let (entry, holder) = (self.entries.get(&id)?, self.held.get(&id)?);
        (holder.consumer == claim.consumer && entry.deliveries == claim.delivery_count).then_some(id)
    }

    /// Whether a consumer works on the task of an entry under another entry.
    fn is_in_hand_elsewhere(&self, id: u64) -> bool {
        let task = |id: &u64| self.entries.get(id).map(|entry| (entry, &*entry.task.task_id));
        let Some((_, task_id)) = task(&id) else {
            return false;
        };
        let others = self.held.keys().filter(|other| **other != id).filter_map(task);
        others
            .into_iter()
            .any(|(entry, other)| entry.looked_up && other == task_id)
    }

    fn record(&mut self, claim: &Claim, kind: EventKind, context: &EventContext) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(RecordedEvent {
            kind,
            task_id: claim.task_id.clone(),
            job_id: claim.job_id.clone(),
            consumer: claim.consumer.clone(),
            delivery_count: claim.delivery_count,
            context: context.clone(),
        });
    }
}
