//! A request to a collector, and the answers to it.

use std::future::Future;
use std::time::Duration;

/// The largest request. Collectors refuse gRPC messages above 4 MiB unless configured otherwise.
pub(crate) const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// Sends the requests of one signal.
pub(crate) trait Transport: Send + Sync + 'static {
    type Request: Send + Sync;

    /// Sends a request once. The caller drops the future when the time is up.
    fn send(&self, request: &Self::Request) -> impl Future<Output = Result<Accepted, Failure>> + Send;
}

/// The collector has taken the request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// How many items of the request the collector does not keep.
    pub(crate) rejected: u64,
    /// The reason, or a warning.
    pub(crate) message: String,
}

impl Accepted {
    /// A partial success. A negative count makes no sense and counts as none.
    pub(crate) fn partly(rejected: i64, message: String) -> Self {
        Self {
            rejected: rejected.try_into().unwrap_or(0),
            message,
        }
    }
}

/// A request that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) retry: Retry,
    /// For the log. May repeat what the collector said.
    pub(crate) detail: String,
}

/// Whether a request that failed is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The same request would fail again.
    Never,
    /// The failure may pass, and the collector named no time.
    Backoff,
    /// The collector named the time to wait.
    After(Duration),
}
