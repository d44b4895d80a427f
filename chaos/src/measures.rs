//! What the orchestrator measured: counts, waits, and the times until a peer took a task over.

use std::collections::HashMap;

use dalston_engine_sdk::protocol::Timestamp;

use crate::orchestrator::{Orchestrator, Violation};
use crate::task::{Kind, Reason, Status};

/// A task that lost its engine.
#[derive(Debug)]
pub(crate) struct Freed {
    task: String,
    since: Timestamp,
    cause: Cause,
}

/// The reason why a task lost its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// Its process was killed, and the replacement has another name.
    Killed,
    /// Its process was killed, and the replacement has the same name.
    KilledAndRestarted,
    /// Its process released it.
    Released,
}

/// The state of all tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) tasks: usize,
    pub(crate) open: usize,
    pub(crate) completed: usize,
    pub(crate) failed_as_configured: usize,
    pub(crate) failed_late: usize,
    pub(crate) failed_by_deaths: usize,
    pub(crate) failed_by_scanner: usize,
    pub(crate) failed_by_hand_backs: usize,
    pub(crate) failed_unplanned: usize,
    pub(crate) cancelled: usize,
    pub(crate) retries: u32,
    pub(crate) starts: usize,
    pub(crate) duplicates: usize,
    /// Messages that were queued again although the task was not lost.
    pub(crate) copies: usize,
    pub(crate) violations: usize,
}

impl Orchestrator {
    /// Records that a process with these pending entries was killed.
    pub(crate) fn freed(&self, tasks: Vec<String>, since: Timestamp, cause: Cause) {
        let mut state = self.state();
        let freed = tasks.into_iter().map(|task| Freed { task, since, cause });
        state.freed.extend(freed);
    }

    /// Records that a process released this task.
    pub(crate) fn released(&self, task: &str, since: Timestamp) {
        self.freed(vec![task.to_owned()], since, Cause::Released);
    }

    /// The sorted seconds from the loss of its engine to the next start of each task, unless the
    /// task lost another engine before that.
    pub(crate) fn takeovers(&self, cause: Cause) -> Vec<f64> {
        let took = self.taken_over(cause).into_iter();
        took.map(|(seconds, _)| seconds).collect()
    }

    /// The task that waited longest.
    pub(crate) fn slowest_takeover(&self, cause: Cause) -> Option<String> {
        self.taken_over(cause).pop().map(|(_, task)| task)
    }

    /// As [`takeovers`](Self::takeovers), with the tasks.
    fn taken_over(&self, cause: Cause) -> Vec<(f64, String)> {
        let state = self.state();
        let mut losses: HashMap<&str, Vec<Timestamp>> = HashMap::new();
        for freed in &state.freed {
            losses.entry(&freed.task).or_default().push(freed.since);
        }
        let took = |freed: &Freed| {
            let later = |times: &[Timestamp]| times.iter().filter(|time| **time > freed.since).min().copied();
            let next = later(&state.tasks.get(&freed.task)?.starts)?;
            let next_loss = losses.get(&*freed.task).and_then(|losses| later(losses));
            next_loss
                .is_none_or(|loss| next < loss)
                .then(|| (next.seconds_since(freed.since), freed.task.clone()))
        };
        let freed = state.freed.iter().filter(|freed| freed.cause == cause);
        let mut took: Vec<(f64, String)> = freed.filter_map(took).collect();
        took.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        took
    }

    /// Discards the measured takeovers.
    pub(crate) fn forget_takeovers(&self) {
        self.state().freed.clear();
    }

    /// The sorted seconds from the queueing of each task to its first start.
    pub(crate) fn waits(&self, tasks: &[String]) -> Vec<f64> {
        let state = self.state();
        let wait = |task: &String| {
            let task = state.tasks.get(task)?;
            let (queued, _) = task
                .timeline
                .iter()
                .find(|(_, what)| what.starts_with("queued"))?;
            Some(task.starts.iter().min()?.seconds_since(*queued))
        };
        let mut waits: Vec<f64> = tasks.iter().filter_map(wait).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }

    pub(crate) fn violation(&self, task: Option<&str>, what: impl Into<String>) {
        let (task, what) = (task.map(str::to_owned), what.into());
        eprintln!("violation: {}: {what}", task.as_deref().unwrap_or("all"));
        self.state().violations.push(Violation { task, what });
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.state().violations.clone()
    }

    /// The number of starts of a task.
    pub(crate) fn starts(&self, task: &str) -> usize {
        self.state().tasks.get(task).map_or(0, |task| task.starts.len())
    }

    pub(crate) fn is_over(&self, task: &str) -> bool {
        self.state().tasks.get(task).is_some_and(|task| task.is_over())
    }

    /// Tasks without a known end. A cancelled task that was never started may end without an event.
    pub(crate) fn open_tasks(&self) -> Vec<String> {
        let state = self.state();
        let open = state.tasks.iter().filter(|(_, task)| {
            !task.is_over() && (task.plan.kind, &task.status) != (Kind::Cancelled, &Status::Ready)
        });
        open.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        let mut counts = Counts {
            tasks: state.tasks.len(),
            violations: state.violations.len(),
            ..Counts::default()
        };
        for task in state.tasks.values() {
            counts.retries += task.retries;
            counts.starts += task.starts.len();
            counts.duplicates += task.duplicates;
            counts.copies += task.copies.len();
            match &task.status {
                Status::Completed if task.plan.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Completed => counts.completed += 1,
                Status::Ready if task.plan.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Failed(Reason::Configured) => counts.failed_as_configured += 1,
                Status::Failed(Reason::Deadline) => counts.failed_late += 1,
                Status::Failed(Reason::Scanner) => counts.failed_by_scanner += 1,
                Status::Failed(Reason::Deaths) => counts.failed_by_deaths += 1,
                Status::Failed(Reason::HandBacks) => counts.failed_by_hand_backs += 1,
                Status::Failed(Reason::Unplanned) => counts.failed_unplanned += 1,
                Status::Ready | Status::Running => counts.open += 1,
            }
        }
        counts
    }
}
