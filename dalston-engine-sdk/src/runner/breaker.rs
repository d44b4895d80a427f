//! Stops the reads of a worker with a broken dependency: [`Breaker`].
//!
//! A worker that fails every task at once would empty the queue beside healthy peers. So a task
//! that fails for a cause of its worker is handed back, and a worker with several such failures in
//! a row stops reading until its probes pass. Then it reads one task as a trial: only a completed
//! task ends the outage, because a probe does not see every fault.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_telemetry::redact;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::status::RunnerStatus;
use crate::engine::{Check, CheckStatus};
use crate::error::{RunError, TaskError, WorkerFault};

/// How often a task is handed back for one cause, by all workers together. Then it fails.
pub(super) const MAX_HAND_BACKS: u32 = 2;
/// How many own failures in a row, without a completed task between them, stop the reads.
const MAX_FAILURES: u32 = 3;
/// The pause before the next probes. It doubles until a task is completed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the worker may be unable to take tasks, trials not counted, before it gives up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// The time limit of one round of probes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Examines the dependencies of the worker.
pub(super) type Probe = dyn Fn(&str) -> Pin<Box<dyn Future<Output = Vec<Check>> + Send>> + Send + Sync;

/// Decides whether the worker reads tasks. Without a probe it always does.
pub(super) struct Breaker {
    probe: Option<Box<Probe>>,
    instance: String,
    status: RunnerStatus,
    mode: watch::Sender<Mode>,
    outage: Mutex<Outage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Tasks are read.
    Closed,
    /// No tasks are read.
    Open,
    /// One task at a time is read.
    Trial,
}

/// What happened since the last completed task.
#[derive(Debug)]
struct Outage {
    failures: u32,
    pause: Duration,
    /// How long the breaker was open.
    lasted: Duration,
    reason: String,
    /// The task of the last failed load, if no load has succeeded since.
    failed_load: Option<String>,
}

impl Default for Outage {
    fn default() -> Self {
        Self {
            failures: 0,
            pause: FIRST_PAUSE,
            lasted: Duration::ZERO,
            reason: String::new(),
            failed_load: None,
        }
    }
}

impl Breaker {
    pub(super) fn new(probe: Option<Box<Probe>>, instance: String, status: RunnerStatus) -> Self {
        Self {
            probe,
            instance,
            status,
            mode: watch::Sender::new(Mode::Closed),
            outage: Mutex::default(),
        }
    }

    /// The fault of this worker that the error of a task shows.
    ///
    /// A model that can't be loaded is a fault of the worker if the worker itself names it
    /// (`is_own_model`), or if the load of another task's model failed before and none succeeded
    /// since. A model that only one task names may be a mistake of that task.
    pub(super) fn judge(&self, error: &TaskError, task_id: &str, is_own_model: bool) -> Option<WorkerFault> {
        self.probe.as_ref()?;
        let fault = error.worker_fault()?;
        if fault != WorkerFault::Model || is_own_model {
            return Some(fault);
        }
        let earlier = self.outage().failed_load.replace(task_id.to_owned());
        earlier.filter(|earlier| earlier != task_id).map(|_| fault)
    }

    /// Counts a failure of this worker.
    pub(super) fn failed(&self, reason: String) {
        let mut outage = self.outage();
        outage.failures += 1;
        outage.reason = reason;
        let open = match *self.mode.borrow() {
            Mode::Closed => outage.failures >= MAX_FAILURES,
            Mode::Trial => true,
            Mode::Open => false,
        };
        if open {
            self.stop_reading(&outage);
        }
    }

    /// Stops the reads because a model to preload could not be loaded. The trials load it again.
    pub(super) fn preload_failed(&self, reason: String) {
        if self.probe.is_some() {
            let mut outage = self.outage();
            outage.reason = reason;
            self.stop_reading(&outage);
        }
    }

    /// Records that a model was loaded or is loaded.
    pub(super) fn loaded(&self) {
        self.outage().failed_load = None;
    }

    /// Records a completed task: the dependencies work.
    pub(super) fn completed(&self) {
        let mut outage = self.outage();
        *outage = Outage {
            reason: std::mem::take(&mut outage.reason),
            ..Outage::default()
        };
        // An open breaker waits for its probes: this task may have been saved before the fault.
        self.mode.send_if_modified(|mode| {
            let trial = *mode == Mode::Trial;
            if trial {
                *mode = Mode::Closed;
            }
            trial
        });
    }

    /// Waits until no tasks may be read.
    pub(super) async fn opened(&self) {
        self.until(|mode| mode == Mode::Open).await;
    }

    pub(super) fn is_on_trial(&self) -> bool {
        *self.mode.borrow() == Mode::Trial
    }

    /// Waits until the trial is over.
    pub(super) async fn tried(&self) {
        self.until(|mode| mode != Mode::Trial).await;
    }

    /// Probes the dependencies before the first read, and waits until they work.
    ///
    /// # Errors
    ///
    /// If they did not for 10 minutes.
    pub(super) async fn start(&self) -> Result<(), RunError> {
        let Err(reason) = self.examine().await else {
            return Ok(());
        };
        {
            let mut outage = self.outage();
            outage.reason = reason;
            self.stop_reading(&outage);
        }
        self.recover(Mode::Closed).await
    }

    /// Waits until the probes pass.
    ///
    /// # Errors
    ///
    /// If the breaker was open for 10 minutes since the last completed task.
    pub(super) async fn retry(&self) -> Result<(), RunError> {
        self.recover(Mode::Trial).await
    }

    async fn recover(&self, next: Mode) -> Result<(), RunError> {
        loop {
            let pause = {
                let mut outage = self.outage();
                let left = GIVE_UP_AFTER.saturating_sub(outage.lasted);
                if left.is_zero() {
                    let reason = outage.reason.clone();
                    return Err(RunError::ProbesFailed { reason });
                }
                let pause = outage.pause.min(left);
                outage.pause = (outage.pause * 2).min(LONGEST_PAUSE);
                tracing::warn!(
                    reason = outage.reason,
                    next_probe_in_seconds = pause.as_secs_f64(),
                    "worker_takes_no_tasks"
                );
                pause
            };
            let begun_at = Instant::now();
            sleep(pause).await;
            let examined = self.examine().await;
            let mut outage = self.outage();
            outage.lasted += begun_at.elapsed();
            match examined {
                Ok(()) => {
                    tracing::info!("worker_takes_tasks_again");
                    self.status.set_problem(None);
                    self.mode.send_replace(next);
                    return Ok(());
                }
                Err(reason) => {
                    self.status.set_problem(Some(&reason));
                    outage.reason = reason;
                }
            }
        }
    }

    /// Runs the probes. The error names the first that failed.
    async fn examine(&self) -> Result<(), String> {
        let Some(probe) = &self.probe else {
            return Ok(());
        };
        let Ok(checks) = timeout(PROBE_TIMEOUT, probe(&self.instance)).await else {
            let seconds = PROBE_TIMEOUT.as_secs();
            return Err(format!("the probes of the worker did not end within {seconds} s"));
        };
        let mut failed = None;
        for check in checks {
            match check.status {
                CheckStatus::Ok => {}
                CheckStatus::Warning => {
                    let (name, advice) = (&check.name, check.advice.as_deref());
                    tracing::warn!(probe = name, problem = check.detail, advice, "probe_warning");
                }
                CheckStatus::Missing if failed.is_none() => {
                    failed = Some(redact::text(&check.to_string()).into_owned());
                }
                CheckStatus::Missing => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn stop_reading(&self, outage: &Outage) {
        self.status.set_problem(Some(&outage.reason));
        self.mode.send_replace(Mode::Open);
    }

    async fn until(&self, reached: impl Fn(Mode) -> bool) {
        // The sender lives as long as `self`, so this does not fail.
        let _ = self.mode.subscribe().wait_for(|mode| reached(*mode)).await;
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("mode", &*self.mode.borrow())
            .field("outage", &*self.outage())
            .finish_non_exhaustive()
    }
}
