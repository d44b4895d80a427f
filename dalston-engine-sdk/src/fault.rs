//! Places between the steps of a task at which a test can make the process fail.
//!
//! Only for tests, which is why the feature `fault-points` is off by default: without it there is no code at these places, and
//! with it they do nothing until [`install`] was called.
//!
//! The workspace's own `chaos` uses it to end engines between any two steps, and to prove that no task is lost by that.

use std::fmt;
use std::sync::OnceLock;

/// A place between two steps of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Point {
    /// The server gave a task to this instance, and nobody here knows of it yet.
    Taken,
    /// A task of an instance that fell silent was taken over.
    TakenOver,
    /// The runner has the task.
    Received,
    /// What is known about it was looked up.
    LookedUp,
    /// Its start was announced.
    Started,
    /// `request.json` was read.
    RequestRead,
    /// Its inputs are here.
    Downloaded,
    /// The engine is done.
    Inferred,
    /// One of its files is in the store.
    ArtifactStored,
    /// `response.json` is in the store.
    ResponseStored,
    /// Its outcome is about to be reported.
    BeforeFinish,
    /// Its outcome was reported.
    AfterFinish,
    /// It is about to be handed back.
    BeforeRelease,
    /// It was handed back.
    AfterRelease,
}

impl Point {
    /// All of them, in the order in which a task comes by.
    pub const ALL: [Self; 14] = [
        Self::Taken,
        Self::TakenOver,
        Self::Received,
        Self::LookedUp,
        Self::Started,
        Self::RequestRead,
        Self::Downloaded,
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
            Self::Started => "started",
            Self::RequestRead => "request-read",
            Self::Downloaded => "downloaded",
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

/// Sets what happens when a task comes by a point, for the whole process. The hook may end or stop the process.
///
/// Returns whether this was the first call; later ones change nothing.
pub fn install(hook: impl Fn(Point) + Send + Sync + 'static) -> bool {
    HOOK.set(Box::new(hook)).is_ok()
}

/// A task comes by.
pub(crate) fn reach(point: Point) {
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}
