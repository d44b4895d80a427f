//! What the platform knows about a task.

use std::time::{Duration, UNIX_EPOCH};

use dalston_engine_sdk::protocol::{Timestamp, keys};

use crate::engine::{self, ENGINES};

/// Longer than every task of a storm.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The configuration of a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskPlan {
    /// The engine id.
    pub(crate) engine: &'static str,
    /// The number of its model.
    pub(crate) model: usize,
    pub(crate) kind: Kind,
    pub(crate) duration: Duration,
    /// The time from its queueing to its deadline.
    pub(crate) timeout: Duration,
    pub(crate) artifacts: u64,
    /// The length of its input in lines.
    pub(crate) length: u64,
    /// Bytes of each artifact beyond the usual ones.
    pub(crate) filler: u64,
    /// Whether it is queued twice.
    pub(crate) twice: bool,
}

impl TaskPlan {
    pub(crate) fn model_id(&self) -> String {
        engine::model_id(self.model)
    }

    pub(crate) fn stream(&self) -> String {
        keys::task_stream(self.engine)
    }

    /// A task without faults.
    pub(crate) fn plain(duration: Duration) -> Self {
        Self {
            engine: ENGINES[0],
            model: 0,
            kind: Kind::Plain,
            duration,
            timeout: TIMEOUT,
            artifacts: 0,
            length: 10,
            filler: 0,
            twice: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Fails,
    Panics,
    /// It takes longer than its deadline.
    Late,
    /// It kills its worker.
    Kills,
    /// Its job is cancelled at some time. If it was started, it must be reported as completed, and
    /// needs no response.
    Cancelled,
}

/// The state of a task in the orchestrator's database.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) job: String,
    pub(crate) plan: TaskPlan,
    pub(crate) status: Status,
    pub(crate) retries: u32,
    pub(crate) messages: Vec<String>,
    /// Those of the messages that were queued although the task was not lost.
    pub(crate) copies: Vec<String>,
    /// By the clock of Redis: the clock of an engine may be wrong.
    pub(crate) starts: Vec<Timestamp>,
    /// The number of starts since it was queued or queued again.
    pub(crate) starts_of_try: u32,
    /// The number of starts while it was running.
    pub(crate) duplicates: usize,
    /// The time of its first outcome.
    pub(crate) ended_at: Option<Timestamp>,
    /// The attempt whose result its event reported.
    pub(crate) done_by: Option<String>,
    pub(crate) timeline: Vec<(Timestamp, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    Running,
    Completed,
    Failed(Reason),
}

/// The reason of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its configuration demands the failure.
    Configured,
    /// Its deadline passed.
    Deadline,
    /// The scanner failed it.
    Scanner,
    /// Its workers died during its inference, as often as the limit says.
    Deaths,
    /// Its workers handed it back because of their own dependencies, as often as they may.
    HandBacks,
    /// No fault explains it.
    Unplanned,
}

impl Task {
    pub(crate) fn new(job: &str, plan: TaskPlan) -> Self {
        Self {
            job: job.to_owned(),
            plan,
            status: Status::Ready,
            retries: 0,
            messages: Vec::new(),
            copies: Vec::new(),
            ended_at: None,
            starts: Vec::new(),
            starts_of_try: 0,
            duplicates: 0,
            done_by: None,
            timeline: Vec::new(),
        }
    }

    /// Whether one of its messages was queued after its end. Workers can't know that it is a copy.
    pub(crate) fn was_queued_after_its_end(&self) -> bool {
        let later = |message: &String| time_of(message) >= self.ended_at;
        self.ended_at.is_some() && self.messages.iter().any(later)
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Failed(_))
    }
}

/// The time in the id of an entry, by the clock of Redis.
pub(crate) fn time_of(id: &str) -> Option<Timestamp> {
    let milliseconds = id.split('-').next()?.parse().ok()?;
    Some(Timestamp::from(UNIX_EPOCH + Duration::from_millis(milliseconds)))
}
