//! What a worker reports about a task.

use crate::protocol::ArtifactReference;

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Its response is in the store.
    Completed {
        /// The files beside the response.
        artifacts: Vec<ArtifactReference>,
    },
    /// It failed.
    Failed {
        /// One line for people.
        error: String,
        /// The short static code.
        code: &'static str,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// Its job was cancelled after its start was reported, and it ended without a response.
    ///
    /// The broker reports it as completed, without artifacts: a cancelled job ends when its running
    /// tasks are completed, and the platform would queue a failed task again.
    Cancelled,
    /// It was never started and needs no event: its job was cancelled, or the platform gave it up.
    Skipped,
}

/// What events carry beside the ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventContext {
    /// The id of the request at the gateway. Given on so that the orchestrator's next tasks have it
    /// too.
    pub request_id: Option<String>,
    /// The JSON of the trace context under which the orchestrator goes on.
    pub trace_context: Option<String>,
}
