//! Reads for callers that may stop waiting at any time.
//!
//! A read that was sent may take tasks even if its caller no longer waits. So the reads run in the background, in one task of
//! the runtime that answers requests. Deliveries whose caller is gone come back to its buffer, for the next request. The buffer
//! keeps them for a moment and then releases them for other workers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::instrument::WithSubscriber;

use super::held::HeldTasks;
use super::read::StreamReader;
use crate::broker::{BrokerError, Consumer, Delivery};

/// How long a delivery waits in the buffer for the next request before it is released.
const BUFFERED_READ_TTL: Duration = Duration::from_millis(250);
/// How many requests may wait. A runner has one.
const QUEUED_REQUESTS: usize = 16;

/// Asks the background task for deliveries.
pub(super) struct Reader {
    held: Arc<HeldTasks>,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
}

struct Request {
    consumer: Consumer,
    most: usize,
    give_up: Instant,
    reply: oneshot::Sender<Reply>,
}

impl Reader {
    pub(super) fn new(held: Arc<HeldTasks>) -> Self {
        Self {
            held,
            requests: Mutex::default(),
        }
    }

    /// Up to `most` deliveries, or none if there were none for as long as `wait`.
    pub(super) async fn receive(
        &self,
        consumer: &Consumer,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let give_up = Instant::now() + wait;
        loop {
            let found = tokio::select! {
                found = self.request(consumer, most.max(1), give_up) => found?,
                () = sleep_until(give_up) => return Ok(Vec::new()),
            };
            if !found.is_empty() || Instant::now() >= give_up {
                return Ok(found);
            }
        }
    }

    async fn request(
        &self,
        consumer: &Consumer,
        most: usize,
        give_up: Instant,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let (reply, replied) = oneshot::channel();
        let request = Request {
            consumer: consumer.clone(),
            most,
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

    /// Starts the background task if there is none: before the first request, or when the runtime in which it ran is gone.
    fn sender(&self) -> mpsc::Sender<Request> {
        let mut sender = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        match &*sender {
            Some(sender) if !sender.is_closed() => sender.clone(),
            _ => {
                let (started, requests) = mpsc::channel(QUEUED_REQUESTS);
                let serving = serve(Arc::clone(&self.held), requests);
                tokio::spawn(serving.with_current_subscriber());
                sender.insert(started).clone()
            }
        }
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
            Some(deliveries) = returned.recv() => buffer.put(deliveries),
            () = sleep_until(buffer.release_at), if !buffer.deliveries.is_empty() => buffer.release(&held).await,
            request = requests.recv() => match request {
                None => break,
                Some(request) if request.reply.is_closed() => {}
                Some(request) => {
                    let Request { consumer, most, give_up, reply } = request;
                    let buffered = buffer.take(&consumer, most);
                    let found = match buffered.is_empty() {
                        true => stream.read(&consumer, most, give_up).await,
                        false => Ok(buffered),
                    };
                    let _ = reply.send(Reply::new(found, returns.clone()));
                }
            },
        }
    }
    while let Ok(deliveries) = returned.try_recv() {
        buffer.put(deliveries);
    }
    buffer.release(&held).await;
}

/// The answer to a request. Deliveries that nothing took out of it go back to the buffer.
struct Reply {
    found: Option<Result<Vec<Delivery>, BrokerError>>,
    returns: mpsc::UnboundedSender<Vec<Delivery>>,
}

impl Reply {
    fn new(found: Result<Vec<Delivery>, BrokerError>, returns: mpsc::UnboundedSender<Vec<Delivery>>) -> Self {
        Self {
            found: Some(found),
            returns,
        }
    }

    fn into_found(mut self) -> Result<Vec<Delivery>, BrokerError> {
        self.found.take().unwrap_or_else(|| Ok(Vec::new()))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(Ok(deliveries)) = self.found.take()
            && !deliveries.is_empty()
        {
            // If the background task is gone, the deliveries come back when their leases end.
            let _ = self.returns.send(deliveries);
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
    fn put(&mut self, deliveries: Vec<Delivery>) {
        self.deliveries.extend(deliveries);
        self.release_at = Instant::now() + BUFFERED_READ_TTL;
    }

    /// The first deliveries of this consumer.
    fn take(&mut self, consumer: &Consumer, most: usize) -> Vec<Delivery> {
        let (ours, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.deliveries)
            .into_iter()
            .partition(|delivery| delivery.claim.consumer == *consumer);
        let mut ours = ours.into_iter();
        let taken = ours.by_ref().take(most).collect();
        self.deliveries = ours.chain(others).collect();
        taken
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
