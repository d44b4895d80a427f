//! The right to work on a task.

/// One process that takes tasks for one engine.
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
    /// The holder of the claim.
    pub consumer: Consumer,
    /// Which delivery of the entry this claim is about. A later one makes it void, and so does a
    /// claim of another entry of the task that took it over.
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

/// Whether the caller still had the right to do what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ownership {
    /// It had, and it is done.
    Held,
    /// It had not, and nothing was done.
    Lost,
    /// The broker lost its record of the delivery, so no other consumer has the task. The event, if
    /// the call has one, was reported. There was nothing to renew, to remove or to give back. The
    /// caller goes on as the owner.
    Unrecorded,
}

/// What became of a task that its worker wanted to hand back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum HandBack {
    /// It is back in the queue.
    Done,
    /// It was handed back as often as it may be, or nothing can count that. The caller still holds
    /// it.
    Refused,
    /// Another worker has it, and nothing was done.
    Lost,
}
