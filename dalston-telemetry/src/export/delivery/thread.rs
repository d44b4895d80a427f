//! The thread of an exporter.

use std::io;
use std::sync::mpsc;
use std::thread;

use opentelemetry::Context;

use crate::error::InitError;

/// Runs an exporter on a thread and a runtime of its own. So it works the same in a program with a
/// multi-thread runtime, with a `current_thread` runtime and without one, and blocking code of the
/// program cannot stop it.
///
/// `end_on_drop` is dropped when the exporter ends, also by a panic.
pub(crate) fn spawn(
    name: &str,
    end_on_drop: impl Send + 'static,
    exporter: impl Future<Output = ()> + Send + 'static,
) -> Result<(), InitError> {
    let (started, start) = mpsc::sync_channel(1);
    let run = move || {
        let _end = end_on_drop;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        drop(started.send(Ok(())));
        // The libraries that send spans must not make spans themselves.
        let _suppressed = Context::enter_telemetry_suppressed_scope();
        runtime.block_on(exporter);
        runtime.shutdown_background();
    };
    let thread = thread::Builder::new().name(name.into()).spawn(run);
    let started = thread.and_then(|_| {
        let ended = || io::Error::other("the thread ended at once");
        start.recv().unwrap_or_else(|_| Err(ended()))
    });
    started.map_err(|source| InitError::Thread {
        name: "export",
        source,
    })
}
