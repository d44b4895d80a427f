//! The orchestrator's rules for the events of engines. They are stricter than the platform's: an
//! event that the orchestrator tolerates and a correct engine never sends is a violation.

use dalston_engine_sdk::protocol::Timestamp;

use crate::engine::{FAILURE, MAX_DELIVERIES};
use crate::task::{Kind, Reason, Status, Task};

/// The number of retries of a failed task.
const MAX_RETRIES: u32 = 2;
/// How often workers hand a task back for one cause of their own. Then it fails.
const MAX_HAND_BACKS: u32 = 2;

/// The durable copy of an event.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    pub(crate) kind: &'a str,
    pub(crate) job: &'a str,
    pub(crate) error: &'a str,
    /// How often workers handed the task back for one cause of their own, at most.
    pub(crate) hand_backs: u32,
    /// By the clock of Redis.
    pub(crate) at: Timestamp,
}

/// The reaction to an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Nothing,
    CheckResult,
    Retry,
}

/// Applies an event to a task. The error is a violation.
pub(crate) fn apply(task: &mut Task, event: &Event<'_>) -> Result<Reaction, String> {
    let Event {
        kind, job, error, at, ..
    } = *event;
    task.timeline.push((at, format!("{kind} {error}")));
    if task.job != job {
        return Err(format!("{kind} names the job {job:?}"));
    }
    if task.status == Status::Failed(Reason::Scanner) || task.is_over() && task.was_queued_after_its_end() {
        return Ok(Reaction::Nothing);
    }
    match (kind, &task.status) {
        ("task.started", Status::Ready | Status::Running) => {
            task.starts.push(at);
            task.starts_of_try += 1;
            task.duplicates += usize::from(task.status == Status::Running);
            task.status = Status::Running;
            Ok(Reaction::Nothing)
        }
        // An earlier delivery may have started it, which the current worker cannot know.
        ("task.completed", Status::Ready | Status::Running) if task.plan.kind == Kind::Cancelled => {
            task.status = Status::Completed;
            task.ended_at = Some(at);
            Ok(Reaction::Nothing)
        }
        ("task.completed", Status::Running) => {
            task.status = Status::Completed;
            task.ended_at = Some(at);
            match task.plan.kind {
                Kind::Plain => Ok(Reaction::CheckResult),
                _ => Err("it is completed, and its configuration demands a failure".to_owned()),
            }
        }
        ("task.failed", Status::Running) => {
            let Some(reason) = planned_reason(task, event) else {
                task.status = Status::Failed(Reason::Unplanned);
                return Err(format!("it failed for an unexpected reason: {error}"));
            };
            if task.retries < MAX_RETRIES && task.plan.kind != Kind::Cancelled {
                task.retries += 1;
                task.starts_of_try = 0;
                task.status = Status::Ready;
                return Ok(Reaction::Retry);
            }
            task.status = Status::Failed(reason);
            task.ended_at = Some(at);
            Ok(Reaction::Nothing)
        }
        ("task.started", _) => Err("it was started after its end".to_owned()),
        (_, Status::Ready) => Err(format!("{kind} without a start")),
        ("task.completed" | "task.failed", _) => Err(format!("{kind} after its end: a second outcome")),
        _ => Err(format!("an event of an unknown kind: {kind}")),
    }
}

/// Applies an event to a task after Redis lost writes: of both sides, in any combination.
pub(crate) fn apply_after_loss(task: &mut Task, event: &Event<'_>) -> Result<Reaction, String> {
    let Event { kind, error, at, .. } = *event;
    task.timeline.push((at, format!("{kind} {error}")));
    if task.is_over() {
        return Ok(Reaction::Nothing);
    }
    match kind {
        "task.started" => task.status = Status::Running,
        "task.completed" => task.status = Status::Completed,
        // The message was written, and the metadata was lost.
        "task.failed" if error.contains("its metadata is gone") => {
            task.status = Status::Ready;
            return Ok(Reaction::Retry);
        }
        _ => {
            task.status = Status::Failed(Reason::Unplanned);
            return Err(format!("{kind} after a fail-over: {error}"));
        }
    }
    Ok(Reaction::Nothing)
}

/// The reason for which this task may fail with this error. Storage and network are none: a worker
/// that can't reach them hands its tasks back.
fn planned_reason(task: &Task, event: &Event<'_>) -> Option<Reason> {
    let error = event.error;
    let planned = match task.plan.kind {
        Kind::Fails | Kind::Panics => error.contains(FAILURE).then_some(Reason::Configured),
        Kind::Late => error.contains("deadline").then_some(Reason::Deadline),
        Kind::Plain | Kind::Kills | Kind::Cancelled => None,
    };
    // The report of such a failure needs no start of its own, but comes with one.
    let starts = task.starts_of_try.saturating_sub(1);
    let deaths = error.contains("no worker survived it") && starts >= MAX_DELIVERIES;
    // Of storage, of a full disk, and of a disk without locks.
    let own_faults = ["s3://", "No space left", "set DALSTON_MODEL_CACHE_DIR"];
    let own_fault = own_faults.iter().any(|text| error.contains(text));
    let handed_back = own_fault && event.hand_backs >= MAX_HAND_BACKS;
    planned
        .or(deaths.then_some(Reason::Deaths))
        .or(handed_back.then_some(Reason::HandBacks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskPlan;

    fn task(kind: Kind) -> Task {
        let plan = TaskPlan {
            kind,
            ..TaskPlan::plain(std::time::Duration::ZERO)
        };
        Task::new("J", plan)
    }

    fn send(task: &mut Task, kind: &str, error: &str) -> Result<Reaction, String> {
        let event = Event {
            kind,
            job: "J",
            error,
            hand_backs: 0,
            at: Timestamp::now(),
        };
        apply(task, &event)
    }

    #[test]
    fn storage_error_is_a_violation_unless_configured() {
        for kind in [Kind::Plain, Kind::Fails, Kind::Cancelled] {
            let mut task = task(kind);
            send(&mut task, "task.started", "").unwrap();
            let error = "reading s3://dalston-artifacts/jobs/J: the connection was reset";
            send(&mut task, "task.failed", error).unwrap_err();
            assert_eq!(task.status, Status::Failed(Reason::Unplanned));
        }
    }

    #[test]
    fn storage_error_needs_all_hand_backs() {
        for (hand_backs, is_planned) in [(1, false), (2, true)] {
            let mut task = task(Kind::Plain);
            send(&mut task, "task.started", "").unwrap();
            let event = Event {
                kind: "task.failed",
                job: "J",
                error: "writing in.txt: No space left on device (os error 28)",
                hand_backs,
                at: Timestamp::now(),
            };
            let failed = apply(&mut task, &event);
            assert_eq!(failed == Ok(Reaction::Retry), is_planned, "{hand_backs}");
        }
    }

    #[test]
    fn configured_failure_is_retried_twice() {
        let mut task = task(Kind::Fails);
        for reaction in [Reaction::Retry, Reaction::Retry, Reaction::Nothing] {
            send(&mut task, "task.started", "").unwrap();
            assert_eq!(send(&mut task, "task.failed", FAILURE), Ok(reaction));
        }
        assert_eq!(task.status, Status::Failed(Reason::Configured));
    }

    #[test]
    fn limit_of_deaths_needs_as_many_starts() {
        let error =
            "inference of the task began 3 times (limit 3) and no worker survived it or finished it in time";
        let after = |starts| {
            let mut task = task(Kind::Plain);
            for _ in 0..starts {
                send(&mut task, "task.started", "").unwrap();
            }
            send(&mut task, "task.failed", error)
        };
        after(MAX_DELIVERIES).unwrap_err();
        assert_eq!(after(MAX_DELIVERIES + 1), Ok(Reaction::Retry));
    }

    #[test]
    fn second_outcome_and_outcome_without_start_are_violations() {
        let mut task = task(Kind::Plain);
        send(&mut task, "task.completed", "").unwrap_err();
        send(&mut task, "task.started", "").unwrap();
        assert_eq!(send(&mut task, "task.completed", ""), Ok(Reaction::CheckResult));
        for kind in ["task.started", "task.completed", "task.failed"] {
            send(&mut task, kind, FAILURE).unwrap_err();
        }
    }

    #[test]
    fn outcome_after_a_later_copy_is_ignored() {
        for (copy, is_ignored) in [("1000-0", false), ("9999999999999-0", true)] {
            let mut task = task(Kind::Plain);
            task.messages.push(copy.to_owned());
            send(&mut task, "task.started", "").unwrap();
            send(&mut task, "task.completed", "").unwrap();
            let second = send(&mut task, "task.completed", "");
            assert_eq!(second == Ok(Reaction::Nothing), is_ignored, "{copy}");
        }
    }

    #[test]
    fn late_task_fails_only_for_its_deadline() {
        for (error, is_planned) in [
            ("the task was not done before its deadline", true),
            ("reading s3://b/k: the connection was reset", false),
        ] {
            let mut task = task(Kind::Late);
            send(&mut task, "task.started", "").unwrap();
            let failed = send(&mut task, "task.failed", error);
            assert_eq!(failed == Ok(Reaction::Retry), is_planned, "{error}");
        }
    }

    #[test]
    fn start_of_a_running_task_is_a_duplicate() {
        let mut task = task(Kind::Plain);
        send(&mut task, "task.started", "").unwrap();
        send(&mut task, "task.started", "").unwrap();
        assert_eq!((task.duplicates, task.starts_of_try), (1, 2));
    }
}
