//! What goes into the queue of a [`MemoryBroker`](super::MemoryBroker), and what comes out of it.

use super::{Consumer, EventContext, TaskMetadata};
use crate::protocol::{ArtifactReference, Timestamp};

/// A task for the queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueuedTask {
    /// The engine that should do it.
    pub engine_id: String,
    /// The task.
    pub task_id: String,
    /// Its job.
    pub job_id: String,
    /// When it was queued. Default: now.
    pub enqueued_at: Timestamp,
    /// When it has to be done. Default: no deadline.
    pub timeout_at: Option<Timestamp>,
    /// What [`Broker::lookup`](super::Broker::lookup) finds. Default: nothing, and then the task
    /// fails.
    pub metadata: Option<TaskMetadata>,
}

impl QueuedTask {
    /// A task for this engine, queued now.
    #[must_use]
    pub fn new(engine_id: impl Into<String>, task_id: impl Into<String>, job_id: impl Into<String>) -> Self {
        Self {
            engine_id: engine_id.into(),
            task_id: task_id.into(),
            job_id: job_id.into(),
            enqueued_at: Timestamp::now(),
            timeout_at: None,
            metadata: None,
        }
    }

    /// Sets when it was queued.
    #[must_use]
    pub fn enqueued_at(mut self, time: Timestamp) -> Self {
        self.enqueued_at = time;
        self
    }

    /// Sets when it has to be done.
    #[must_use]
    pub fn timeout_at(mut self, time: Timestamp) -> Self {
        self.timeout_at = Some(time);
        self
    }

    /// Sets what is known about it.
    #[must_use]
    pub fn metadata(mut self, metadata: TaskMetadata) -> Self {
        self.metadata = Some(metadata);
        self
    }
}

/// An event as a worker reported it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which task.
    pub task_id: String,
    /// Its job.
    pub job_id: String,
    /// The worker that reported it.
    pub consumer: Consumer,
    /// In which delivery of the task.
    pub delivery_count: u32,
    /// What came with it.
    pub context: EventContext,
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// `task.started`
    Started,
    /// `task.completed`
    Completed {
        /// The files beside the response.
        artifacts: Vec<ArtifactReference>,
    },
    /// `task.failed`
    Failed {
        /// One line for people.
        error: String,
        /// The short static code.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
}

/// The queue of a [`MemoryBroker`](super::MemoryBroker) is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: it holds {capacity} tasks, the most that it may hold")]
pub struct QueueFull {
    pub(super) capacity: usize,
}
