//! The panic hook: logs the panic with the ids of its span, writes the log lines and sends the
//! spans that wait, and calls the previous hook.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};

use super::targets::PANICS;
use crate::redact;
use crate::setup::telemetry::TelemetryHandle;

/// How long a collector that does not answer, or an output that is not read, can delay a panic.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Limits the delay of an engine that panics at every task.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);

/// Installs the hook in front of the present one. Only the first call in a process does.
pub(crate) fn install(telemetry: TelemetryHandle) {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::SeqCst) {
        return;
    }
    let previous = panic::take_hook();
    let spans_sent = LastTime::default();
    let lines_stuck = LastTime::default();
    panic::set_hook(Box::new(move |info| {
        report(info);
        // At every panic, because it takes no time as long as the output is read.
        if lines_stuck.is_long_ago() && telemetry.flush_log_lines(FLUSH_TIMEOUT).is_err() {
            lines_stuck.set();
        }
        if spans_sent.is_long_ago() {
            spans_sent.set();
            let _ = telemetry.flush_exporters(FLUSH_TIMEOUT);
        }
        previous(info);
    }));
}

/// Logs the panic and marks its span. A panic in here would abort the process: nothing below may
/// panic or wait for a lock that this thread could hold.
fn report(info: &PanicHookInfo<'_>) {
    let message = Message(info.payload());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(target: PANICS, exception = %message, location, thread, "panicked");
    mark_span(&message, location, thread);
}

/// Records the panic in the current span.
fn mark_span(message: &Message<'_>, location: String, thread: &str) {
    Context::map_current(|context| {
        let span = context.span();
        if !span.is_recording() {
            return;
        }
        let text = redact::text(&message.to_string()).into_owned();
        let attributes = vec![
            KeyValue::new("exception.type", "panic"),
            KeyValue::new("exception.message", text.clone()),
            KeyValue::new("exception.stacktrace", format!("at {location}")),
            KeyValue::new("thread.name", thread.to_owned()),
        ];
        span.add_event("exception", attributes);
        span.set_status(Status::error(format!("panicked: {text}")));
        if cfg!(panic = "abort") {
            // No unwinding will end it.
            span.end();
        }
    });
}

/// The last time of something that must not happen at every panic.
#[derive(Default)]
struct LastTime(Mutex<Option<Instant>>);

impl LastTime {
    fn is_long_ago(&self) -> bool {
        self.time().is_none_or(|last| last.elapsed() >= FLUSH_INTERVAL)
    }

    fn set(&self) {
        *self.time() = Some(Instant::now());
    }

    /// No code under this lock can panic.
    fn time(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of a panic.
struct Message<'a>(&'a (dyn Any + Send));

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = self.0;
        let text: Cow<'_, str> = if let Some(text) = payload.downcast_ref::<&'static str>() {
            Cow::Borrowed(text)
        } else if let Some(text) = payload.downcast_ref::<String>() {
            Cow::Borrowed(text)
        } else {
            Cow::Borrowed("the panic payload is not a text")
        };
        f.write_str(&text)
    }
}
