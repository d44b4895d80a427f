//! A task on its way to a worker.

use std::time::Instant;

pub use dalston_telemetry::services::engine::RedeliveryReason;

use super::Claim;
use crate::protocol::Timestamp;

/// A task that was taken from the queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// The right to work on it.
    pub claim: Claim,
    /// When the entry was queued, by the clock of the host that queued it.
    pub enqueued_at: Option<Timestamp>,
    /// When it became available to this consumer, if that was later: the end of an earlier owner's
    /// lease.
    pub requeued_at: Option<Timestamp>,
    /// When the task has to be done.
    pub timeout_at: Option<Timestamp>,
    /// Why it was delivered again, if it was.
    pub redelivery: Option<RedeliveryReason>,
    /// When the broker was asked for it: its lease began no earlier. The process may have stood
    /// still since then. Without this time, the lease is counted from the moment at which the
    /// runner sees the delivery.
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
