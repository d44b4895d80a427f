//! Errors of tasks: [`TaskError`], and of workers: [`BuildError`], [`RunError`].

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::ErrorKind;

use thiserror::Error;

pub(crate) type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The error of a task.
///
/// `?` converts every error to it, also `anyhow::Error`, `Box<dyn Error + Send + Sync>` and texts.
/// To make that possible it does not implement [`std::error::Error`] itself, so a function that
/// calls [`TaskRequest`](crate::TaskRequest) or [`TaskContext`](crate::TaskContext) returns a
/// `TaskError`, too.
///
/// `?` makes errors that are retryable and have the code `error`, with two exceptions: invalid
/// options ([`ConfigError`](crate::stage::ConfigError)) become a permanent `invalid_config`, and
/// audio files that can't be decoded (`AudioError`) a permanent `unreadable_audio` or
/// `audio_too_long`. They are recognised inside other errors, too. A `Box<dyn Error>` that is not
/// `Send + Sync` passes as a text: `.map_err(|error| error.to_string())?`.
///
/// ```
/// use dalston_engine_sdk::{TaskError, TaskErrorKind};
///
/// fn parse(text: &str) -> Result<u32, TaskError> {
///     Ok(text.parse::<u32>()?)
/// }
///
/// let error = parse("seven").unwrap_err();
/// assert_eq!(error.kind(), TaskErrorKind::Retryable);
/// assert_eq!(error.to_string(), "invalid digit found in string");
///
/// let error = TaskError::permanent("unknown_language", "language \"tlh\": this model knows en and de");
/// assert_eq!(error.code(), "unknown_language");
/// ```
pub struct TaskError(Box<Parts>);

struct Parts {
    kind: TaskErrorKind,
    code: &'static str,
    context: Option<String>,
    fault: Option<WorkerFault>,
    source: BoxError,
}

/// The dependency of a worker that caused an error. A peer may do the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerFault {
    /// The temporary directory, the cache of models, or the disk below them.
    Disk,
    /// The storage of the deployment, or the rights to use it.
    Storage,
    /// A model can't be loaded. One such error may also be the fault of the task that names the
    /// model: the runner decides.
    Model,
    /// The GPU is gone.
    Device,
}

impl WorkerFault {
    /// A short name: `storage`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Storage => "storage",
            Self::Model => "model",
            Self::Device => "device",
        }
    }
}

/// The kind of a [`TaskError`]: what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// Another attempt may succeed. `?` makes errors of this kind.
    Retryable,
    /// Another attempt would fail in the same way: the input or the request is wrong.
    Permanent,
    /// The result is not wanted any more.
    Cancelled,
    /// The memory of the device or of the machine was exhausted. The model is dropped and loaded
    /// again.
    OutOfMemory,
    /// The task did not end in time. Only the runner makes this kind.
    DeadlineExceeded,
    /// The engine panicked. Only the runner makes this kind. The model is dropped and loaded again.
    Panic,
}

impl TaskError {
    /// An error after which another attempt may succeed.
    ///
    /// `code` is short, static and in `snake_case`. It becomes the attribute `error.type` and may
    /// become a label.
    pub fn retryable(code: &'static str, error: impl Into<BoxError>) -> Self {
        Self::new(TaskErrorKind::Retryable, code, error)
    }

    /// An error that every further attempt would meet again.
    pub fn permanent(code: &'static str, error: impl Into<BoxError>) -> Self {
        Self::new(TaskErrorKind::Permanent, code, error)
    }

    /// The memory of the device or of the machine was exhausted. The code is `out_of_memory`.
    pub fn out_of_memory(error: impl Into<BoxError>) -> Self {
        Self::new(TaskErrorKind::OutOfMemory, "out_of_memory", error)
    }

    /// The task was cancelled. The code is `cancelled`.
    ///
    /// Usually returned by [`TaskContext::check_cancelled`](crate::TaskContext::check_cancelled).
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(TaskErrorKind::Cancelled, "cancelled", "the task was cancelled")
    }

    pub(crate) fn new(kind: TaskErrorKind, code: &'static str, error: impl Into<BoxError>) -> Self {
        Self(Box::new(Parts {
            kind,
            code,
            context: None,
            fault: None,
            source: error.into(),
        }))
    }

    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> TaskErrorKind {
        self.0.kind
    }

    /// The short static code. `?` sets `error`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The error that this was made from.
    #[must_use]
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.source
    }

    /// Adds the failed operation in front of the message: `reading config.json: no such file`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.0.context = Some(match self.0.context.take() {
            None => doing.to_string(),
            Some(inner) => format!("{doing}: {inner}"),
        });
        self
    }

    /// The same error with another code.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.0.code = code;
        self
    }

    /// The same error of another kind.
    #[must_use]
    pub(crate) fn with_kind(mut self, kind: TaskErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error, caused by this dependency of the worker.
    #[must_use]
    pub(crate) fn with_fault(mut self, fault: WorkerFault) -> Self {
        self.0.fault = Some(fault);
        self
    }

    /// The same error, met while a model was loaded.
    #[must_use]
    pub(crate) fn in_load(self) -> Self {
        let interrupted = matches!(
            self.kind(),
            TaskErrorKind::Cancelled | TaskErrorKind::DeadlineExceeded
        );
        match self.worker_fault() {
            None if !interrupted => self.with_fault(WorkerFault::Model),
            _ => self,
        }
    }

    /// The dependency of this worker that caused the error. `None` if the task caused it:
    /// a missing object, an invalid request, an engine that refuses the input.
    ///
    /// What can't be told from the error itself is set where it is made: see
    /// [`StoreError::worker_fault`](crate::store::StoreError::worker_fault) and
    /// [`in_load`](Self::in_load).
    pub(crate) fn worker_fault(&self) -> Option<WorkerFault> {
        if self.0.fault.is_some() {
            return self.0.fault;
        }
        if matches!(self.code(), "disk_full" | "model_cache_unusable" | "audio_spool")
            || is_disk_full(&*self.0.source)
        {
            return Some(WorkerFault::Disk);
        }
        says_device_lost(&self.to_string()).then_some(WorkerFault::Device)
    }

    /// Whether the model must be dropped after this error.
    pub(crate) fn spoils_model(&self) -> bool {
        matches!(self.kind(), TaskErrorKind::Panic | TaskErrorKind::OutOfMemory)
    }

    /// Recognises exhausted memory by the text of an error that the engine passed on.
    pub(crate) fn classified(self) -> Self {
        if self.kind() == TaskErrorKind::Retryable && says_out_of_memory(&self.to_string()) {
            return self
                .with_kind(TaskErrorKind::OutOfMemory)
                .with_code("out_of_memory");
        }
        self
    }
}

/// Whether the text of a foreign error or panic reports exhausted memory. libtorch and CUDA report
/// it as text only.
pub(crate) fn says_out_of_memory(text: &str) -> bool {
    const PHRASES: [&str; 9] = [
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
        "std::bad_alloc",
    ];
    PHRASES.iter().any(|phrase| text.contains(phrase))
}

/// Whether the text of a foreign error reports that the GPU is gone or can't be used any more.
/// libtorch and CUDA report it as text only.
fn says_device_lost(text: &str) -> bool {
    const PHRASES: [&str; 6] = [
        "no CUDA-capable device is detected",
        "CUDA-capable device(s) is/are busy or unavailable",
        "uncorrectable ECC error encountered",
        "GPU is lost",
        "CUDA driver version is insufficient",
        "hardware stack error",
    ];
    PHRASES.iter().any(|phrase| text.contains(phrase))
}

/// Whether one of the causes is a disk without room, or one that takes no writes.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A message in one line, without the C++ back-trace that libtorch appends.
pub(crate) fn one_line(text: &str) -> String {
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Exception raised from") && !line.starts_with("frame #"))
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// The message with the messages of its causes, on one line.
impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.0.context {
            write!(f, "{context}: ")?;
        }
        f.write_str(&chain(&*self.0.source))
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskError")
            .field("kind", &self.kind())
            .field("code", &self.code())
            .field("message", &self.to_string())
            .finish()
    }
}

/// The message of an error with the messages of its causes, on one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = one_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = one_line(&error.to_string());
        // Many errors repeat the cause in their own message.
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// A text without the directories of this machine: of an absolute path, its last part remains.
pub(crate) fn without_directories(text: &str) -> String {
    let words = text.split(' ').map(last_of_path);
    words.collect::<Vec<_>>().join(" ")
}

/// The last part of an absolute path; any other word unchanged.
fn last_of_path(word: &str) -> String {
    let Some(start) = word.find('/') else {
        return word.to_owned();
    };
    let (before, path) = word.split_at(start);
    // Only a quote, a bracket, `name=` or `file://` may precede a path.
    let begins =
        before.is_empty() || before.ends_with(['"', '\'', '`', '(', '[', '{', '<', '=']) || before == "file:";
    if !begins || !path.trim_start_matches('/').contains('/') && !path.starts_with("//") {
        return word.to_owned();
    }
    let last = path.trim_end_matches('/').rfind('/').unwrap_or(0);
    format!("{before}{}", &path[last + 1..])
}

/// A text of at most `longest` characters. The middle is left out: an error begins with its subject
/// and ends with its cause.
pub(crate) fn shorten(text: &str, longest: usize) -> String {
    const GAP: &str = " ... ";
    let length = text.chars().count();
    if length <= longest {
        return text.to_owned();
    }
    let kept = longest.saturating_sub(GAP.len());
    let (head, tail) = (kept - kept / 2, kept / 2);
    let begin = text.chars().take(head);
    let end = text.chars().skip(length - tail);
    begin.chain(GAP.chars()).chain(end).collect()
}

/// The error of [`RunnerBuilder::build`](crate::RunnerBuilder::build).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The platform would not accept the description of the engine.
    #[error("engine {id:?}: {problem}")]
    Engine {
        /// The id of the engine.
        id: String,
        /// The problem of its description.
        problem: String,
    },
    /// A part is missing.
    #[error("the runner has no {what}: give it one with Runner::builder(..).{what}(..)")]
    Missing {
        /// The part, by the name of the builder's method.
        what: &'static str,
    },
    /// A number is out of range.
    #[error("{what} is {value}: expected {accepted}")]
    Value {
        /// The name of the value.
        what: &'static str,
        /// Its value.
        value: String,
        /// The accepted values.
        accepted: Cow<'static, str>,
    },
    /// The voice detector of the configuration is not usable.
    #[error("DALSTON_VAD_MODEL: {problem}")]
    VoiceDetector {
        /// The file, and what is wrong with it.
        problem: String,
    },
}

/// The error of [`Runner::run_until`](crate::Runner::run_until).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Too many inference threads are stuck in calls that did not return. Only a new process gets
    /// their memory back.
    #[error(
        "{abandoned} inference threads are stuck past the deadlines of their tasks: the process must be restarted"
    )]
    Stuck {
        /// How many threads were given up.
        abandoned: usize,
    },
    /// The operating system refused an inference thread.
    #[error("starting an inference thread: {0}: check the limits on threads and memory of the process")]
    Thread(#[source] std::io::Error),
    /// The probes of the worker failed all the time: temporary directory, Redis, storage, or a
    /// model that can't be loaded.
    #[error("the worker could take no tasks for 10 minutes: {reason}")]
    ProbesFailed {
        /// The last failed probe, or the last error that the worker itself caused.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_taken_out_of_a_text() {
        for (text, expected) in [
            ("reading /tmp/dalston_task_1/in.wav: no", "reading in.wav: no"),
            ("path=\"/models/x/config.json\"", "path=\"config.json\""),
            ("file:///etc/hosts: no", "file:hosts: no"),
            (
                "https://host/a/b.wav responded with status 404",
                "https://host/a/b.wav responded with status 404",
            ),
            (
                "s3://bucket/a/b.wav: there is no such object",
                "s3://bucket/a/b.wav: there is no such object",
            ),
            ("\"../../etc\": no", "\"../../etc\": no"),
            ("expected 1/2 or n/a", "expected 1/2 or n/a"),
            ("a / b", "a / b"),
        ] {
            assert_eq!(without_directories(text), expected);
        }
    }

    #[test]
    fn a_shortened_text_keeps_its_ends() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(
            shorten("s3://bucket/key: no such object", 20),
            "s3://buc ...  object"
        );
        assert_eq!(shorten(&"é".repeat(3000), 2000).chars().count(), 2000);
    }

    #[derive(Debug, Error)]
    #[error("opening the model")]
    struct Opening(#[source] std::io::Error);

    #[derive(Debug, Error)]
    #[error("opening the model: {0}")]
    struct Repeating(#[source] std::io::Error);

    fn missing() -> std::io::Error {
        std::io::Error::other("no such file")
    }

    #[test]
    fn the_message_names_every_cause_once() {
        assert_eq!(
            TaskError::from(Opening(missing())).to_string(),
            "opening the model: no such file"
        );
        assert_eq!(
            TaskError::from(Repeating(missing())).to_string(),
            "opening the model: no such file"
        );
        let error = TaskError::from(missing())
            .context("config.json")
            .context("loading tiny");
        assert_eq!(error.to_string(), "loading tiny: config.json: no such file");
    }

    #[test]
    fn a_message_is_one_line_without_the_cpp_back_trace() {
        let torch = std::io::Error::other(
            "size mismatch,\n  got 2 and 3\nException raised from infer_size at a.cpp:31 (most recent call first):\nframe #0: f",
        );
        assert_eq!(
            TaskError::from(torch).context("decoding").to_string(),
            "decoding: size mismatch, got 2 and 3"
        );
    }

    #[test]
    fn libtorch_text_about_memory_becomes_out_of_memory() {
        let torch = std::io::Error::other("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; ...)");
        let error = TaskError::from(torch).context("decoding").classified();
        assert_eq!(
            (error.kind(), error.code()),
            (TaskErrorKind::OutOfMemory, "out_of_memory")
        );
    }

    #[test]
    fn own_faults_are_told_from_those_of_the_task() {
        use std::io::Error;

        let full = || Error::from(ErrorKind::StorageFull);
        let table = [
            (
                TaskError::from(full()).context("writing"),
                Some(WorkerFault::Disk),
            ),
            (TaskError::from(Opening(full())), Some(WorkerFault::Disk)),
            (
                TaskError::retryable("model_cache_unusable", "read-only"),
                Some(WorkerFault::Disk),
            ),
            (
                TaskError::retryable("error", "CUDA error: uncorrectable ECC error encountered"),
                Some(WorkerFault::Device),
            ),
            (TaskError::from(Error::from(ErrorKind::PermissionDenied)), None),
            (TaskError::permanent("invalid_audio", "no samples"), None),
            (
                TaskError::permanent("model_not_found", "none").in_load(),
                Some(WorkerFault::Model),
            ),
            (TaskError::from(full()).in_load(), Some(WorkerFault::Disk)),
            (TaskError::cancelled().in_load(), None),
        ];
        for (error, expected) in table {
            assert_eq!(error.worker_fault(), expected, "{error}");
        }
    }

    #[test]
    fn an_explicit_kind_is_kept_despite_the_text() {
        let error =
            TaskError::permanent("bad_input", "CUDA out of memory is the title of the song").classified();
        assert_eq!(
            (error.kind(), error.code()),
            (TaskErrorKind::Permanent, "bad_input")
        );
    }
}
