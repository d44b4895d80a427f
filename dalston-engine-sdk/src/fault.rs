//! Points between the steps of a task at which a test can make the process fail.
//!
//! They are for tests only, so the feature `fault-points` is off by default. Without the feature
//! there is no code at these points. With it they do nothing until [`install`] is called.
//!
//! The `chaos` program of the workspace ends engines at each point and checks that no task is lost.

use std::fmt;
use std::sync::OnceLock;

/// A point between two steps of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Point {
    /// The server gave a task to this instance, and the reply was not read yet.
    Taken,
    /// A task of a stale instance was claimed.
    TakenOver,
    /// The runner received the task.
    Received,
    /// Its metadata was looked up.
    LookedUp,
    /// `request.json` was read.
    RequestRead,
    /// Its inputs were downloaded.
    Downloaded,
    /// It has an inference thread, and its start was reported.
    Started,
    /// The engine has returned.
    Inferred,
    /// One of its output files was stored.
    ArtifactStored,
    /// `response.json` was stored.
    ResponseStored,
    /// Before the report of its outcome.
    BeforeFinish,
    /// After the report of its outcome.
    AfterFinish,
    /// Before it is handed back to the queue.
    BeforeRelease,
    /// After it was handed back to the queue.
    AfterRelease,
}

impl Point {
    /// All points, in the order in which a task reaches them.
    pub const ALL: [Self; 14] = [
        Self::Taken,
        Self::TakenOver,
        Self::Received,
        Self::LookedUp,
        Self::RequestRead,
        Self::Downloaded,
        Self::Started,
        Self::Inferred,
        Self::ArtifactStored,
        Self::ResponseStored,
        Self::BeforeFinish,
        Self::AfterFinish,
        Self::BeforeRelease,
        Self::AfterRelease,
    ];

    /// A short name for reports: `taken-over`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::TakenOver => "taken-over",
            Self::Received => "received",
            Self::LookedUp => "looked-up",
            Self::RequestRead => "request-read",
            Self::Downloaded => "downloaded",
            Self::Started => "started",
            Self::Inferred => "inferred",
            Self::ArtifactStored => "artifact-stored",
            Self::ResponseStored => "response-stored",
            Self::BeforeFinish => "before-finish",
            Self::AfterFinish => "after-finish",
            Self::BeforeRelease => "before-release",
            Self::AfterRelease => "after-release",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Hook = Box<dyn Fn(Point) + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Sets the function that is called when a task reaches a point, for the whole process. It may end
/// or stop the process.
///
/// Returns whether this was the first call. Later calls change nothing.
pub fn install(hook: impl Fn(Point) + Send + Sync + 'static) -> bool {
    HOOK.set(Box::new(hook)).is_ok()
}

/// Calls the installed function.
pub(crate) fn reach(point: Point) {
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}
