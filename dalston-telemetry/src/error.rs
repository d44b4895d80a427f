//! What can go wrong when telemetry starts, and when it ends.

use std::error::Error;
use std::panic::Location;

use crate::env::EnvError;

/// Telemetry could not be set up. Read by whoever deploys the service, at start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// An environment variable has a value that it can't have.
    #[error(transparent)]
    Env(#[from] EnvError),

    /// `install` was called a second time in this process.
    #[error(
        "telemetry is already installed, by {first}: keep the `Telemetry` of the first call and pass its `handle()` on"
    )]
    AlreadyInstalled {
        /// Where the first call stands.
        first: &'static Location<'static>,
    },

    /// Somebody else has set the global `tracing` subscriber.
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
    #[error("{setting}: {path}: {reason}")]
    Certificate {
        /// The variable or call that names the file.
        setting: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The exporter could not be built from settings that are valid one by one.
    #[error("the OTLP exporter for {endpoint} could not be built: {reason}")]
    Exporter {
        /// Where it would have sent to, without credentials.
        endpoint: String,
        /// What is wrong.
        reason: String,
        /// The error underneath, when there is one.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },

    /// The operating system gave us no thread.
    #[error("the export thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// Telemetry did not get everything out in time. Nothing is wrong with the work itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// Time was up before all spans were sent.
    #[error("{pending} spans were not yet sent when time was up")]
    Timeout {
        /// Spans that were still waiting or on their way.
        pending: usize,
    },

    /// The latest values of metrics did not arrive. Nothing is lost while there is another push to come.
    #[error("the latest metrics were not delivered: {last_failure}")]
    Metrics {
        /// The latest reason.
        last_failure: String,
    },

    /// The collector could not be reached or refused them.
    #[error("{lost} spans were lost since the last flush: {last_failure}")]
    Lost {
        /// How many.
        lost: u64,
        /// The latest reason.
        last_failure: String,
    },
}
