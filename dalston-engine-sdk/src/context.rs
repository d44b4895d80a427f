//! The access of an engine to the outside while it processes a task: [`TaskContext`].

use std::fmt;
use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dalston_telemetry::metrics::Metrics;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::block_on::block_on;
use crate::error::{TaskError, TaskErrorKind};
use crate::scope::Scope;
use crate::store::key::{self, is_plain_name, is_task_document};
use crate::task::TaskInfo;
use crate::task_dir::TaskDir;

/// The ids, deadline, progress and files of a task, for
/// [`Engine::process`](crate::Engine::process).
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
    runtime: Handle,
    reported: Mutex<Reported>,
}

/// Called on the inference thread with every report of progress.
pub(crate) type ProgressHook = Arc<dyn Fn(&TaskInfo, f32) + Send + Sync>;

/// The facts that the engine reported while it worked.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    pub(crate) language: Option<String>,
    pub(crate) speech_segments: Option<usize>,
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
        runtime: Handle,
    ) -> Self {
        let progress = AtomicU32::new(0.0_f32.to_bits());
        let reported = Mutex::default();
        let shared = Shared {
            info,
            deadline,
            dir,
            cancelled,
            progress,
            on_progress,
            metrics,
            runtime,
            reported,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The ids, the attempt and the model.
    #[must_use]
    pub fn info(&self) -> &TaskInfo {
        &self.shared.info
    }

    /// Returns an error as soon as the result of this task is of no use any more. Costs one atomic
    /// load.
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
    /// After a cancellation, a lost lease, a shutdown or the deadline; see
    /// [`cancel_reason`](Self::cancel_reason).
    pub fn check_cancelled(&self) -> Result<(), TaskError> {
        match self.cancel_reason() {
            None => Ok(()),
            Some(reason) => Err(reason.into_error()),
        }
    }

    /// The reason for which the task should stop, if there is one.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.shared.cancelled.reason()
    }

    /// Waits until the task should stop, for `tokio::select!`. [`block_on`](Self::block_on) does so
    /// by itself.
    pub async fn cancelled(&self) -> CancelReason {
        self.shared.cancelled.wait().await
    }

    /// Runs a future to its end, for an engine with an asynchronous client or model.
    ///
    /// The future runs on this thread, with timers and sockets of the runtime of the worker. It has
    /// the current span and log fields, like the code around it. A task that it spawns gets them
    /// with [`Scope::attach`].
    ///
    /// When the task should stop, the future is dropped, whether it waits for a server or has not
    /// begun. A future that blocks the thread itself is not interrupted.
    ///
    /// ```
    /// # use dalston_engine_sdk::{TaskContext, TaskError};
    /// # async fn transcribe(url: &str) -> Result<String, std::io::Error> { Ok(url.to_owned()) }
    /// fn ask(url: &str, cx: &TaskContext) -> Result<String, TaskError> {
    ///     // The first `?` is for the end of the task, the second one for the error of the client.
    ///     Ok(cx.block_on(transcribe(url))??)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`check_cancelled`](Self::check_cancelled). Also the permanent `nested_block_on` inside a
    /// Tokio runtime: in another `block_on` and in a spawned task. Such code uses `.await`.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
        block_on(&self.shared.runtime, self.cancelled(), future)
    }

    /// The span and the log fields of this thread, to be continued on helper threads.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::current()
    }

    /// When the task fails, whether or not the engine returns.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.shared.deadline
    }

    /// Reports how much is done, from 0 to 1. Values outside are clamped. Lower values than before
    /// are ignored.
    pub fn progress(&self, fraction: f32) {
        if fraction.is_nan() {
            return;
        }
        let fraction = fraction.clamp(0.0, 1.0);
        // The bits of non-negative floats are ordered like the floats.
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

    /// A directory for this task. The first call makes it. It is removed when the task has ended.
    ///
    /// If it can't be made, that is logged, and nothing exists at the path.
    #[must_use]
    pub fn temp_dir(&self) -> &Path {
        self.shared.dir.path_or_nowhere()
    }

    /// The metrics of this process. An engine registers its own in
    /// [`Engine::start`](crate::Engine::start). The runner records the metrics of tasks itself.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Sets the number of parts of speech that voice activity detection found, for the metric
    /// `dalston_engine_vad_segment_count`.
    pub fn set_speech_segments(&self, count: usize) {
        self.reported().speech_segments = Some(count);
    }

    /// Sets the detected language, an ISO 639-1 code. It appears on the span of the task.
    pub fn set_language(&self, code: &str) {
        self.reported().language = Some(code.to_owned());
    }

    /// Adds a file to the task's results. It is uploaded after [`process`](crate::Engine::process)
    /// has returned.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_artifact` if the name has other characters than
    /// letters, digits, dots, dashes and underscores, was used before, or with the suffix of the
    /// file is `request.json` or `response.json`.
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
        let stored_as = file.stored_as();
        if is_task_document(&stored_as) {
            let problem = format!("would replace {stored_as} of the task: expected another name");
            return Err(invalid(&problem));
        }
        let mut reported = self.reported();
        let mut earlier = reported.artifacts.iter();
        if earlier.any(|earlier| earlier.name == file.name || earlier.stored_as() == stored_as) {
            return Err(invalid("was added before"));
        }
        reported.artifacts.push(file);
        Ok(())
    }

    pub(crate) fn cancel_flag(&self) -> CancelFlag {
        self.shared.cancelled.clone()
    }

    pub(crate) fn take_reported(&self) -> Reported {
        std::mem::take(&mut *self.reported())
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.shared
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// The reasons for which a task should stop early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CancelReason {
    /// The job was cancelled.
    Requested,
    /// The deadline has passed.
    DeadlineExceeded,
    /// Another worker owns the task now, because the lease of this one has ended.
    LeaseLost,
    /// The worker shuts down. The task goes back to the queue.
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

/// The reason to stop: set once by the runner, read by the engine. The first one stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelFlag(Arc<Cancellation>);

#[derive(Debug, Default)]
struct Cancellation {
    reason: AtomicU8,
    /// Cancelled after the reason is set.
    token: CancellationToken,
}

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
            .reason
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        self.0.token.cancel();
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        match self.0.reason.load(Ordering::Acquire) {
            1 => Some(CancelReason::Requested),
            2 => Some(CancelReason::DeadlineExceeded),
            3 => Some(CancelReason::LeaseLost),
            4 => Some(CancelReason::Shutdown),
            _ => None,
        }
    }

    /// Waits for the reason.
    pub(crate) async fn wait(&self) -> CancelReason {
        self.0.token.cancelled().await;
        match self.reason() {
            Some(reason) => reason,
            // The reason is set before the token.
            None => pending().await,
        }
    }
}

/// An output file of a task, beside its response: an audio file, a final transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputFile {
    /// Its name among the files of the task. Its artifact id is `{task_id}:{name}`. It is stored
    /// under this name and the suffix of the file, unless the name has that suffix.
    pub name: String,
    /// Its path, usually in [`TaskContext::temp_dir`].
    pub path: PathBuf,
    /// Its kind, for example `audio` or `transcript`.
    pub kind: String,
    /// Its role in the job, for example `prepared` or `final`.
    pub role: Option<String>,
    /// Its media type, for example `audio/wav`.
    pub media_type: Option<String>,
    /// The audio channel that it belongs to.
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

    /// The name under which it is stored among the files of the task.
    pub(crate) fn stored_as(&self) -> String {
        let file = self.path.file_name().and_then(|file| file.to_str());
        key::artifact_file(&self.name, file.and_then(key::suffix))
    }

    /// Sets its role in the job.
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

    /// Sets the audio channel that it belongs to.
    #[must_use]
    pub fn channel(mut self, channel: u32) -> Self {
        self.channel = Some(channel);
        self
    }
}
