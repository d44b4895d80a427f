//! The span and the log fields of a piece of work, for other threads: [`Scope`].

use std::fmt;
use std::future::Future;

use dalston_telemetry::context::{LogContext, WithLogContext};
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Instrument, Span, dispatcher};

/// The current span and log fields of a thread, for work on helper threads. Made by
/// [`TaskContext::scope`](crate::TaskContext::scope).
///
/// Threads inherit neither. Work inside [`run`](Self::run) has both: its spans are children of the
/// span that was current where the scope was made, and its log lines carry the ids of the task.
///
/// It is cheap to clone and may be shared by threads. The span ends with the last clone, so a scope
/// should be dropped at the end of the task.
///
/// With threads of the standard library:
///
/// ```
/// # use dalston_engine_sdk::TaskContext;
/// fn words(halves: [&str; 2], cx: &TaskContext) -> usize {
///     let scope = &cx.scope();
///     std::thread::scope(|threads| {
///         let counts = halves.map(|half| {
///             threads.spawn(move || scope.run(|| {
///                 tracing::info_span!("count.half").in_scope(|| half.split_whitespace().count())
///             }))
///         });
///         counts.into_iter().map(|count| count.join().unwrap_or(0)).sum()
///     })
/// }
/// ```
///
/// With rayon:
///
/// ```
/// use rayon::prelude::*;
/// # use dalston_engine_sdk::TaskContext;
///
/// fn words(lines: &[&str], cx: &TaskContext) -> usize {
///     let scope = cx.scope();
///     let count = |line: &&str| scope.run(|| line.split_whitespace().count());
///     lines.par_iter().map(count).sum()
/// }
/// ```
#[derive(Clone)]
pub struct Scope {
    dispatch: Dispatch,
    span: Span,
    log: LogContext,
}

impl Scope {
    /// That of this thread.
    pub(crate) fn current() -> Self {
        Self::with_span(Span::current())
    }

    /// The log fields of this thread, with another span.
    pub(crate) fn with_span(span: Span) -> Self {
        Self {
            dispatch: dispatcher::get_default(Dispatch::clone),
            span,
            log: LogContext::current(),
        }
    }

    /// A span of this thread's subscriber, without log fields, for work that is of no single task.
    pub(crate) fn without_fields(span: Span) -> Self {
        Self {
            dispatch: dispatcher::get_default(Dispatch::clone),
            span,
            log: LogContext::new(),
        }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Runs `work` with the span and the log fields, on any thread.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        dispatcher::with_default(&self.dispatch, || {
            let _log = self.log.enter();
            self.span.in_scope(work)
        })
    }

    /// Puts the span and the log fields around a future, for `tokio::spawn`.
    pub fn attach<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future
            .instrument(self.span.clone())
            .with_log_context(self.log.clone())
            .with_subscriber(self.dispatch.clone())
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("span", &self.span)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}
