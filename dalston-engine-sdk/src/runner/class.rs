//! The order of tasks for the inference threads: [`Class`].

/// The urgency of a task, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The final transcript of an utterance of a realtime session.
    #[cfg_attr(not(feature = "realtime"), allow(dead_code))]
    Final,
    /// A partial transcript.
    #[cfg_attr(not(feature = "realtime"), allow(dead_code))]
    Partial,
    /// Any other task.
    Batch,
}
