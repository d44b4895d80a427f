//! What a broker knows about a task.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::protocol::{RequestBinding, Timestamp};

/// What a broker knows about a delivered task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Lookup {
    /// It should be done.
    Task(Box<TaskMetadata>),
    /// Its job was cancelled: remove it.
    Cancelled {
        /// An earlier owner reported its start, so its job waits for its end. `false` if that is
        /// not known.
        is_running: bool,
    },
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
    /// Another claim owns it, it has ended, or the broker lost all that it knew about it.
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
    /// The time since it was first queued, by the clock of the broker. The clocks of the producer
    /// and of this machine may differ from each other.
    pub age: Option<Duration>,
    /// The time since its current entry was queued, by the clock of the broker.
    pub waited: Option<Duration>,
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
    /// How many deliveries it had under earlier entries, if a worker gave it back and the broker
    /// queued it again for that.
    pub earlier_deliveries: u32,
    /// How many times inference began without a known end: the worker died, or lost the task. The
    /// broker counts this.
    pub inference_starts: u32,
}

impl TaskMetadata {
    /// Metadata of a task of this stage, with no other field.
    #[must_use]
    pub fn new(stage: impl Into<String>) -> Self {
        Self {
            stage: stage.into(),
            ..Self::default()
        }
    }
}
