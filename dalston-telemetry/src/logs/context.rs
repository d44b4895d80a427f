//! The log context: fields of the current task or request, which all of its log lines carry.
//!
//! A [`LogContext`] is set once per task or request. Log lines carry its fields whether tracing is
//! on or off. Log lines that take their fields from spans need a subscriber that remembers the
//! fields of all spans, which costs hundreds of nanoseconds a span even if no span is exported.
//!
//! ```
//! use dalston_telemetry::context::{LogContext, WithLogContext};
//!
//! async fn handle_task() {
//!     tracing::info!("task_received"); // the line carries job_id and task_id
//! }
//!
//! # async fn example() {
//! let context = LogContext::new().job_id("job-7").task_id("task-9");
//! handle_task().with_log_context(context).await;
//! # }
//! ```

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll};

use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt, TraceId};
use pin_project_lite::pin_project;

use super::inherited::{INHERITED, InheritedField};
use super::json::member;
use super::key::is_reserved;
use crate::redact;

thread_local! {
    static CURRENT: RefCell<LogContext> = const { RefCell::new(LogContext::EMPTY) };
}

/// The fields of the current task, request or session, which all of its log lines carry.
///
/// Cheap to clone. Make it where the work starts, and put it around the work with
/// [`with_log_context`](WithLogContext::with_log_context) for a future or [`enter`](Self::enter)
/// for synchronous code. Threads don't inherit it: give a clone to the thread and `enter` it there.
///
/// A field that is set again gets the new value. An empty value removes the field, so that an id
/// that is absent is absent in the log line too.
#[derive(Clone, Default)]
pub struct LogContext {
    inner: Option<Arc<Inner>>,
}

#[derive(Clone, Default)]
struct Inner {
    fields: Vec<ContextField>,
    carrier: Option<Context>,
    /// The carrier's trace id, present only if it is valid.
    trace_id: Option<TraceId>,
}

/// A field in both forms of a log line.
#[derive(Clone)]
pub(crate) struct ContextField {
    pub(crate) name: Cow<'static, str>,
    pub(crate) value: String,
    /// Its position in [`INHERITED`], if it has a row there.
    pub(crate) position: Option<usize>,
    /// `,"name":"value"`, the member of a JSON line.
    pub(crate) json: String,
}

impl LogContext {
    const EMPTY: Self = Self { inner: None };

    /// A context without fields.
    #[must_use]
    pub const fn new() -> Self {
        Self::EMPTY
    }

    /// The current context of this thread; empty if none was entered.
    ///
    /// Give it to a thread or a task that works for the same request.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Sets `request_id`, the id that the client of the platform sees.
    #[must_use]
    pub fn request_id(self, id: impl Into<String>) -> Self {
        self.field("request_id", id)
    }

    /// Sets `job_id`.
    #[must_use]
    pub fn job_id(self, id: impl Into<String>) -> Self {
        self.field("job_id", id)
    }

    /// Sets `task_id`.
    #[must_use]
    pub fn task_id(self, id: impl Into<String>) -> Self {
        self.field("task_id", id)
    }

    /// Sets `engine_id`.
    #[must_use]
    pub fn engine_id(self, id: impl Into<String>) -> Self {
        self.field("engine_id", id)
    }

    /// Sets a further field, such as `model`, `session_id` or `instance`.
    ///
    /// The names of members that every line has (`timestamp`, `level`, `service`, `target`,
    /// `event`, `trace_id`, `span_id`) can't be set; such a field is ignored.
    #[must_use]
    pub fn field(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        let (mut name, value) = (name.into(), value.into());
        let position = InheritedField::position(&name);
        if let Some(position) = position {
            name = Cow::Borrowed(INHERITED[position].name);
        }
        if name.is_empty() || is_reserved(&name) {
            return self;
        }
        let fields = &mut self.inner_mut().fields;
        fields.retain(|field| field.name != name);
        if !value.is_empty() {
            let value = match position.is_none() && redact::is_secret_name(&name) {
                true => redact::MASK.to_owned(),
                false => match redact::text(&value) {
                    Cow::Borrowed(_) => value,
                    Cow::Owned(redacted) => redacted,
                },
            };
            let json = member(&name, &value);
            fields.push(ContextField {
                name,
                value,
                position,
                json,
            });
        }
        self
    }

    /// Sets the trace context that came with the task or request (see
    /// [`propagate`](crate::propagate)).
    ///
    /// With tracing off, lines carry the trace id of this context, so that they can be found from
    /// the producer's trace, and
    /// [`propagate::current_context`](crate::propagate::current_context) returns it unchanged.
    /// With tracing on, the ids of spans win. An invalid context is kept for its baggage, and lines
    /// do not carry its id.
    #[must_use]
    pub fn carrier(mut self, carrier: Context) -> Self {
        let inner = self.inner_mut();
        let span_context = carrier.span().span_context().clone();
        inner.trace_id = span_context.is_valid().then(|| span_context.trace_id());
        inner.carrier = Some(carrier);
        self
    }

    /// The value of a field, if it is set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields()
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.value.as_str())
    }

    /// Whether no field and no carrier is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields().is_empty() && self.carrier_context().is_none()
    }

    /// Makes this the current context of the thread until the guard is dropped.
    ///
    /// For synchronous code only: a guard that is held across an `.await` leaks the fields into
    /// other tasks of the thread. (The guard is not `Send`, so most such mistakes do not compile.)
    /// Use [`with_log_context`](WithLogContext::with_log_context) for futures.
    ///
    /// ```
    /// use dalston_telemetry::context::LogContext;
    ///
    /// let context = LogContext::new().task_id("task-9");
    /// std::thread::spawn(move || {
    ///     let _guard = context.enter();
    ///     tracing::info!("decoding"); // carries task_id
    /// });
    /// ```
    pub fn enter(&self) -> LogContextGuard {
        let previous = CURRENT.with(|current| current.replace(self.clone()));
        LogContextGuard {
            previous,
            not_send: PhantomData,
        }
    }

    pub(crate) fn fields(&self) -> &[ContextField] {
        self.inner.as_ref().map_or(&[], |inner| &inner.fields)
    }

    pub(crate) fn carrier_context(&self) -> Option<&Context> {
        self.inner.as_ref()?.carrier.as_ref()
    }

    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.inner.as_ref()?.trace_id
    }

    /// Lends the current context, without cloning it. `f` must not run code that could enter a
    /// context.
    pub(crate) fn with_current<R>(f: impl FnOnce(&Self) -> R) -> R {
        CURRENT.with(|current| f(&current.borrow()))
    }

    fn inner_mut(&mut self) -> &mut Inner {
        Arc::make_mut(self.inner.get_or_insert_with(Arc::default))
    }
}

impl fmt::Debug for LogContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for field in self.fields() {
            map.entry(&field.name, &field.value);
        }
        if let Some(trace_id) = self.trace_id() {
            map.entry(&"trace_id", &format_args!("{trace_id}"));
        }
        map.finish()
    }
}

/// Restores the previous [`LogContext`] of the thread when dropped. Made by [`LogContext::enter`].
///
/// Guards must be dropped in the reverse order of their creation, as scopes do.
#[must_use = "the context is left as soon as the guard is dropped"]
pub struct LogContextGuard {
    previous: LogContext,
    // The guard belongs to the thread whose context it restores.
    not_send: PhantomData<*const ()>,
}

impl fmt::Debug for LogContextGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogContextGuard").finish_non_exhaustive()
    }
}

impl Drop for LogContextGuard {
    fn drop(&mut self) {
        let previous = mem::take(&mut self.previous);
        // The replaced context is dropped after the borrow has ended: it may hold the last
        // reference to a span, and the end of a span may log.
        let _replaced = CURRENT.try_with(|current| current.replace(previous));
    }
}

/// Runs a future with a [`LogContext`] around it.
pub trait WithLogContext: Future + Sized {
    /// Makes `context` current whenever this future is polled, and while it is dropped.
    fn with_log_context(self, context: LogContext) -> InLogContext<Self> {
        InLogContext {
            inner: Some(self),
            context,
        }
    }
}

impl<F: Future> WithLogContext for F {}

pin_project! {
    /// A future with a [`LogContext`] around it. Made by [`WithLogContext::with_log_context`].
    #[must_use = "futures do nothing unless polled"]
    pub struct InLogContext<F> {
        // `None` only during the drop.
        #[pin]
        inner: Option<F>,
        context: LogContext,
    }

    impl<F> PinnedDrop for InLogContext<F> {
        fn drop(this: Pin<&mut Self>) {
            // Destructors of a cancelled task may log.
            let mut this = this.project();
            let _guard = this.context.enter();
            this.inner.set(None);
        }
    }
}

impl<F: Future> Future for InLogContext<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _guard = this.context.enter();
        match this.inner.as_pin_mut() {
            Some(future) => future.poll(cx),
            None => unreachable!("the future is taken out only when this is dropped"),
        }
    }
}

impl<F> fmt::Debug for InLogContext<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InLogContext")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

    use super::*;

    fn current(name: &str) -> Option<String> {
        LogContext::current().get(name).map(str::to_owned)
    }

    #[test]
    fn a_dropped_guard_restores_the_previous_fields() {
        assert!(LogContext::current().is_empty());
        let outer = LogContext::new().job_id("job").task_id("outer");
        let guard = outer.enter();
        {
            let _inner = LogContext::current().task_id("inner").enter();
            assert_eq!(current("job_id").as_deref(), Some("job"));
            assert_eq!(current("task_id").as_deref(), Some("inner"));
        }
        assert_eq!(current("task_id").as_deref(), Some("outer"));
        drop(guard);
        assert!(LogContext::current().is_empty());
    }

    #[test]
    fn a_future_has_its_fields_only_while_polled() {
        let mut polls = 0;
        let future = poll_fn(move |cx| {
            assert_eq!(current("task_id").as_deref(), Some("t"));
            polls += 1;
            cx.waker().wake_by_ref();
            if polls < 3 {
                Poll::Pending
            } else {
                Poll::Ready(polls)
            }
        });
        let mut future = std::pin::pin!(future.with_log_context(LogContext::new().task_id("t")));
        let mut cx = PollContext::from_waker(Waker::noop());
        loop {
            let poll = future.as_mut().poll(&mut cx);
            assert_eq!(current("task_id"), None);
            if let Poll::Ready(polls) = poll {
                assert_eq!(polls, 3);
                break;
            }
        }
    }

    #[test]
    fn a_cancelled_future_has_its_fields_while_dropped() {
        struct Last<'a>(&'a RefCell<Option<String>>);
        impl Drop for Last<'_> {
            fn drop(&mut self) {
                *self.0.borrow_mut() = current("task_id");
            }
        }
        let seen = RefCell::new(None);
        let last = Last(&seen);
        let future = async move {
            let _last = last;
            std::future::pending::<()>().await;
        };
        let mut future = Box::pin(future.with_log_context(LogContext::new().task_id("t")));
        assert!(
            future
                .as_mut()
                .poll(&mut PollContext::from_waker(Waker::noop()))
                .is_pending()
        );
        drop(future);
        assert_eq!(seen.take().as_deref(), Some("t"));
    }

    #[test]
    fn empty_values_and_reserved_names_set_no_field() {
        let context = LogContext::new()
            .task_id("t")
            .task_id("")
            .field("level", "loud")
            .field("model", "tiny");
        assert_eq!(context.get("task_id"), None);
        assert_eq!(context.get("level"), None);
        assert_eq!(context.get("model"), Some("tiny"));
    }

    #[test]
    fn secrets_in_context_fields_are_masked() {
        let context = LogContext::new()
            .field("source", "s3://key:hunter2@host/x")
            .field("api_key", "sk-1");
        assert_eq!(context.get("source"), Some("s3://***@host/x"));
        assert_eq!(context.get("api_key"), Some("***"));
        assert!(!format!("{context:?}").contains("hunter2"));
    }

    #[test]
    fn only_a_valid_carrier_gives_a_trace_id() {
        let span_context = SpanContext::new(
            TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c),
            SpanId::from(1),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        let carrier = Context::new().with_remote_span_context(span_context);
        let context = LogContext::new().carrier(carrier);
        assert_eq!(
            context.trace_id(),
            Some(TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c))
        );
        assert_eq!(LogContext::new().carrier(Context::new()).trace_id(), None);
    }
}
