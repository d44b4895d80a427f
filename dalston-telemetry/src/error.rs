//! Errors of setup and of shutdown.

use std::error::Error;
use std::panic::Location;

use crate::env::EnvError;

/// Telemetry could not be set up. For operators, who read it when a service starts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// An environment variable has a value that is not accepted.
    #[error(transparent)]
    Env(#[from] EnvError),

    /// `install` was called a second time in this process.
    #[error(
        "telemetry is already installed, by {first}: keep the `Telemetry` of the first call and pass its `handle()` on"
    )]
    AlreadyInstalled {
        /// The place of the first call.
        first: &'static Location<'static>,
    },

    /// The process has a global `tracing` subscriber that is not ours.
    #[error(
        "the process already has a global tracing subscriber: remove it, or add the layer of `into_layer()` to it"
    )]
    ForeignSubscriber,

    /// The environment asks for a transport that this build does not have.
    #[error(
        "{setting} asks for {transport}, which this build lacks: turn on the Cargo feature `{feature}` of dalston-telemetry"
    )]
    MissingFeature {
        /// The variable or call that asks for it.
        setting: &'static str,
        /// What it asks for.
        transport: &'static str,
        /// The feature that has it.
        feature: &'static str,
    },

    /// A certificate or key file can't be used.
    #[error("the file {path}, named by {setting}, {reason}")]
    Certificate {
        /// The variable or call that names the file.
        setting: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it, as the predicate of a sentence: "holds no certificate in PEM
        /// form".
        reason: String,
    },

    /// The exporter could not be built from settings that are valid one by one.
    #[error("the OTLP exporter for {endpoint} could not be built: {reason}")]
    Exporter {
        /// The address of the collector, without credentials.
        endpoint: String,
        /// What is wrong.
        reason: String,
        /// The error behind it, if there is one.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },

    /// The operating system did not start a thread.
    #[error("the {name} thread could not be started: {source}")]
    Thread {
        /// What the thread is for: "export" or "log".
        name: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// Telemetry did not deliver everything in time. The work of the program is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// The time was up before everything was sent.
    #[error("{pending} {items} were not sent within the time limit: check the collector, or allow more time")]
    Timeout {
        /// What was to be sent: "spans".
        items: &'static str,
        /// How many were waiting or on their way.
        pending: usize,
    },

    /// The time was up before all log lines were written: the reader of the output is slow or
    /// stopped.
    #[error(
        "{pending} log lines were not written within the time limit: check the reader of the output, or allow more time"
    )]
    LogLines {
        /// How many were waiting or being written.
        pending: usize,
    },

    /// The latest values of metrics did not arrive. A later export includes them, if there is one.
    #[error("the latest metrics were not delivered: {last_failure}")]
    Metrics {
        /// The latest reason.
        last_failure: String,
    },

    /// Some items were lost: the collector could not be reached or refused them, or the queue was
    /// full.
    #[error("{lost} {items} were lost since the last flush: {last_failure}")]
    Lost {
        /// What was to be sent: "spans".
        items: &'static str,
        /// How many were lost.
        lost: u64,
        /// The latest reason.
        last_failure: String,
    },
}
