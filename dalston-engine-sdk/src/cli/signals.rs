//! The signals that end a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) name: &'static str,
    number: u8,
}

impl Received {
    /// The exit status that shells report for a process that the signal has ended.
    pub(super) fn exit_status(self) -> u8 {
        128 + self.number
    }
}

/// `SIGTERM` and `SIGINT` (Ctrl-C).
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Received {
        let (name, number) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.interrupt.recv() => ("SIGINT", 2),
        };
        Received { name, number }
    }
}
