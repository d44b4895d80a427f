//! What an engine may see of, and do to, the world while it processes a task: [`TaskContext`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dalston_telemetry::metrics::Metrics;

use crate::error::{TaskError, TaskErrorKind};
use crate::store::key::is_plain_name;
use crate::task::TaskInfo;
use crate::task_dir::TaskDir;

/// The handle that [`Engine::process`](crate::Engine::process) gets beside its model and the request.
///
/// It is cheap to clone and may be given to helper threads.
#[derive(Clone)]
pub struct TaskContext {
    shared: Arc<Shared>,
}

struct Shared {
    info: TaskInfo,
    deadline: Instant,
    dir: Arc<TaskDir>,
    cancelled: CancelFlag,
    progress: AtomicU32,
    on_progress: Option<ProgressHook>,
    metrics: Metrics,
    said: Mutex<Said>,
}

/// Called on the inference thread with every report of progress.
pub(crate) type ProgressHook = Arc<dyn Fn(&TaskInfo, f32) + Send + Sync>;

/// What the engine told us while it worked.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) language: Option<String>,
    pub(crate) artifacts: Vec<OutputFile>,
}

impl TaskContext {
    pub(crate) fn new(
        info: TaskInfo,
        deadline: Instant,
        dir: Arc<TaskDir>,
        cancelled: CancelFlag,
        on_progress: Option<ProgressHook>,
        metrics: Metrics,
    ) -> Self {
        let progress = AtomicU32::new(0.0_f32.to_bits());
        let said = Mutex::default();
        let shared = Shared {
            info,
            deadline,
            dir,
            cancelled,
            progress,
            on_progress,
            metrics,
            said,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Ids, attempt, model.
    #[must_use]
    pub fn info(&self) -> &TaskInfo {
        &self.shared.info
    }

    /// Gives an error as soon as the result of this task is of no use any more. Costs one atomic load.
    ///
    /// ```
    /// # use dalston_engine_sdk::{TaskContext, TaskError};
    /// fn decode_windows(windows: &[Vec<f32>], cx: &TaskContext) -> Result<(), TaskError> {
    ///     for (done, window) in windows.iter().enumerate() {
    ///         cx.check_cancelled()?;
    ///         // ... decode `window` ...
    ///         cx.progress(done as f32 / windows.len() as f32);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// After a cancellation, a lost lease, a shutdown or the deadline; see [`cancel_reason`](Self::cancel_reason).
    pub fn check_cancelled(&self) -> Result<(), TaskError> {
        match self.cancel_reason() {
            None => Ok(()),
            Some(reason) => Err(reason.into_error()),
        }
    }

    /// Why the task should stop, if it should.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.shared.cancelled.reason()
    }

    /// When the task will be failed, whether or not the engine returns.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.shared.deadline
    }

    /// Reports how much is done, from 0 to 1. Values outside are clamped, and it never goes back.
    pub fn progress(&self, fraction: f32) {
        if fraction.is_nan() {
            return;
        }
        let fraction = fraction.clamp(0.0, 1.0);
        // Bits of non-negative floats are ordered like the floats.
        let before = self
            .shared
            .progress
            .fetch_max(fraction.to_bits(), Ordering::Relaxed);
        if let Some(hook) = &self.shared.on_progress
            && fraction.to_bits() > before
        {
            hook(&self.shared.info, fraction);
        }
    }

    /// A directory of this task's own, made when it is asked for. It is removed when the task has ended, however it ended.
    ///
    /// If it can't be made, which is logged, there is nothing at the path.
    #[must_use]
    pub fn temp_dir(&self) -> &Path {
        self.shared.dir.path_or_nowhere()
    }

    /// The metrics of this process, for an engine's own. Those of tasks are taken without its help.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Says which language was found, as an ISO 639-1 code; it appears on the task's span.
    pub fn set_language(&self, code: &str) {
        self.said().language = Some(code.to_owned());
    }

    /// Adds a file to the task's results. It is uploaded after [`process`](crate::Engine::process) has returned.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_artifact` if the name is not plain, or was used before.
    pub fn add_output_file(&self, file: OutputFile) -> Result<(), TaskError> {
        let invalid = |problem: &str| {
            let text = format!("the output file {:?} {problem}", file.name);
            TaskError::permanent("invalid_artifact", text)
        };
        if !is_plain_name(&file.name) {
            return Err(invalid(
                "can't be stored: a name has 1 to 128 letters, digits, dots, dashes and underscores",
            ));
        }
        let mut said = self.said();
        if said.artifacts.iter().any(|earlier| earlier.name == file.name) {
            return Err(invalid("was added before"));
        }
        said.artifacts.push(file);
        Ok(())
    }

    pub(crate) fn cancel_flag(&self) -> CancelFlag {
        self.shared.cancelled.clone()
    }

    pub(crate) fn take_said(&self) -> Said {
        std::mem::take(&mut *self.said())
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.shared.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext")
            .field("info", &self.shared.info)
            .field("cancel_reason", &self.cancel_reason())
            .finish_non_exhaustive()
    }
}

/// Why a task should stop before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CancelReason {
    /// Someone cancelled the job.
    Requested,
    /// The time for the task is over.
    DeadlineExceeded,
    /// Another worker owns the task now: this one was silent for too long.
    LeaseLost,
    /// The worker shuts down; the task goes back to the queue.
    Shutdown,
}

impl CancelReason {
    pub(crate) fn into_error(self) -> TaskError {
        let cancelled = |code, text: &str| TaskError::new(TaskErrorKind::Cancelled, code, text);
        match self {
            Self::Requested => TaskError::cancelled(),
            Self::DeadlineExceeded => TaskError::new(
                TaskErrorKind::DeadlineExceeded,
                "deadline_exceeded",
                "the task was not done before its deadline",
            ),
            Self::LeaseLost => cancelled("lease_lost", "another worker has taken over the task"),
            Self::Shutdown => cancelled("shutdown", "the worker shuts down"),
        }
    }
}

/// Set once by the runner, read by the engine. The first reason stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelFlag(Arc<AtomicU8>);

impl CancelFlag {
    pub(crate) fn set(&self, reason: CancelReason) {
        let code = match reason {
            CancelReason::Requested => 1,
            CancelReason::DeadlineExceeded => 2,
            CancelReason::LeaseLost => 3,
            CancelReason::Shutdown => 4,
        };
        let _ = self
            .0
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(CancelReason::Requested),
            2 => Some(CancelReason::DeadlineExceeded),
            3 => Some(CancelReason::LeaseLost),
            4 => Some(CancelReason::Shutdown),
            _ => None,
        }
    }
}

/// A file that a task leaves behind beside its response: an audio file, a final transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputFile {
    /// Its name among the files of the task. The platform calls it `{task_id}:{name}`.
    pub name: String,
    /// Where it is now, usually in [`TaskContext::temp_dir`].
    pub path: PathBuf,
    /// What it is, for example `audio` or `transcript`.
    pub kind: String,
    /// Its part in the job, for example `prepared` or `final`.
    pub role: Option<String>,
    /// Its media type, for example `audio/wav`.
    pub media_type: Option<String>,
    /// The audio channel that it is about.
    pub channel: Option<u32>,
}

impl OutputFile {
    /// A file of this kind under this name.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            kind: kind.into(),
            role: None,
            media_type: None,
            channel: None,
        }
    }

    /// Sets its part in the job.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// Sets its media type.
    #[must_use]
    pub fn media_type(mut self, media_type: impl Into<String>) -> Self {
        self.media_type = Some(media_type.into());
        self
    }

    /// Sets the audio channel that it is about.
    #[must_use]
    pub fn channel(mut self, channel: u32) -> Self {
        self.channel = Some(channel);
        self
    }
}
