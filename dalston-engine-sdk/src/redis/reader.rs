//! Reads for callers that may stop waiting at any time.
//!
//! A read that was sent may take tasks even if its caller no longer waits. So the reads run in the
//! background, in one task of the runtime that answers requests. Deliveries whose caller is gone
//! come back to its buffer, for the next request. The buffer keeps them for a moment and then
//! releases them for other workers.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::instrument::WithSubscriber;

use super::held::HeldTasks;
use super::read::{Reads, StreamReader};
use crate::broker::{BrokerError, Consumer, Delivery};

/// How long a delivery waits in the buffer for the next request before it is released.
const BUFFERED_READ_TTL: Duration = Duration::from_millis(250);
/// How often a busy consumer looks for a task that no idle peer could begin.
const AHEAD_INTERVAL: Duration = Duration::from_millis(250);
/// How many requests may wait. A runner has one.
const QUEUED_REQUESTS: usize = 16;

/// Asks the background task for deliveries.
pub(super) struct Reader {
    held: Arc<HeldTasks>,
    serving: Mutex<Option<Serving>>,
}

/// The background task.
struct Serving {
    requests: mpsc::Sender<Request>,
    ended: JoinHandle<()>,
}

struct Request {
    consumer: Consumer,
    reads: Reads,
    give_up: Instant,
    reply: oneshot::Sender<Reply>,
}

impl Reader {
    pub(super) fn new(held: Arc<HeldTasks>) -> Self {
        Self {
            held,
            serving: Mutex::default(),
        }
    }

    /// The next delivery, or none if there was none for as long as `wait`.
    pub(super) async fn receive(
        &self,
        consumer: &Consumer,
        reads: Reads,
        wait: Duration,
    ) -> Result<Option<Delivery>, BrokerError> {
        let give_up = Instant::now() + wait;
        loop {
            let found = tokio::select! {
                found = self.request(consumer, reads, give_up) => found?,
                () = sleep_until(give_up) => return Ok(None),
            };
            if found.is_some() || Instant::now() >= give_up {
                return Ok(found);
            }
            if reads == Reads::Ahead {
                sleep_until(give_up.min(Instant::now() + AHEAD_INTERVAL)).await;
            }
        }
    }

    async fn request(
        &self,
        consumer: &Consumer,
        reads: Reads,
        give_up: Instant,
    ) -> Result<Option<Delivery>, BrokerError> {
        let (reply, replied) = oneshot::channel();
        let request = Request {
            consumer: consumer.clone(),
            reads,
            give_up,
            reply,
        };
        let sent = self.sender().send(request).await.is_ok();
        match replied.await {
            Ok(reply) if sent => reply.into_found(),
            _ => Err(BrokerError::new(
                format!("reading tasks of {}", consumer.engine_id),
                "the background task for reads has ended; the next read starts it again",
            )),
        }
    }

    /// Starts the background task if there is none: before the first request, or when the runtime
    /// in which it ran is gone.
    fn sender(&self) -> mpsc::Sender<Request> {
        let mut serving = self.serving();
        match &*serving {
            Some(serving) if !serving.requests.is_closed() => serving.requests.clone(),
            _ => {
                let (requests, received) = mpsc::channel(QUEUED_REQUESTS);
                let task = serve(Arc::clone(&self.held), received);
                let ended = tokio::spawn(task.with_current_subscriber());
                serving.insert(Serving { requests, ended }).requests.clone()
            }
        }
    }

    /// Ends the background task when the read under way is over, at the latest when it is time to
    /// look for stale entries, and releases what it took.
    pub(super) async fn close(&self) {
        let serving = self.serving().take();
        if let Some(Serving { requests, ended }) = serving {
            drop(requests);
            // It fails only with its runtime.
            let _ = ended.await;
        }
    }

    fn serving(&self) -> MutexGuard<'_, Option<Serving>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Answers requests, one after the other, until the [`Reader`] is gone.
async fn serve(held: Arc<HeldTasks>, mut requests: mpsc::Receiver<Request>) {
    let mut stream = StreamReader::new(Arc::clone(&held));
    let mut buffer = ReadBuffer::default();
    let (returns, mut returned) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            biased;
            Some(delivery) = returned.recv() => buffer.put(delivery),
            () = sleep_until(buffer.release_at), if !buffer.deliveries.is_empty() => buffer.release(&held).await,
            request = requests.recv() => match request {
                None => break,
                Some(request) if request.reply.is_closed() => {}
                Some(request) => {
                    let Request { consumer, reads, give_up, reply } = request;
                    let found = match buffer.take(&consumer) {
                        None => stream.read(&consumer, reads, give_up).await,
                        buffered => Ok(buffered),
                    };
                    let returns = returns.clone();
                    let _ = reply.send(Reply { found, returns });
                }
            },
        }
    }
    while let Ok(delivery) = returned.try_recv() {
        buffer.put(delivery);
    }
    buffer.release(&held).await;
}

/// The answer to a request. A delivery that the caller did not take out of it goes back to the
/// buffer.
struct Reply {
    found: Result<Option<Delivery>, BrokerError>,
    returns: mpsc::UnboundedSender<Delivery>,
}

impl Reply {
    fn into_found(mut self) -> Result<Option<Delivery>, BrokerError> {
        std::mem::replace(&mut self.found, Ok(None))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Ok(Some(delivery)) = std::mem::replace(&mut self.found, Ok(None)) {
            // If the background task is gone, the task comes back when its lease ends.
            let _ = self.returns.send(delivery);
        }
    }
}

/// Deliveries whose caller stopped waiting.
struct ReadBuffer {
    deliveries: Vec<Delivery>,
    release_at: Instant,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self {
            deliveries: Vec::new(),
            release_at: Instant::now(),
        }
    }
}

impl ReadBuffer {
    fn put(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
        self.release_at = Instant::now() + BUFFERED_READ_TTL;
    }

    /// The first delivery of this consumer.
    fn take(&mut self, consumer: &Consumer) -> Option<Delivery> {
        let is_ours = |delivery: &Delivery| delivery.claim.consumer == *consumer;
        let ours = self.deliveries.iter().position(is_ours)?;
        Some(self.deliveries.remove(ours))
    }

    async fn release(&mut self, held: &HeldTasks) {
        for delivery in self.deliveries.drain(..) {
            if held.release(&delivery.claim).await.is_err() {
                // It is not held any more, and can be claimed when it was idle for a lease.
                held.forget(&delivery.claim.message_id);
            }
        }
    }
}
