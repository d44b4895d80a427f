//! Why a command fails, and its exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use dalston_telemetry::{Env, EnvError};

use super::terminal::complain_at_exit;

/// The exit status if something failed.
pub(super) const FAILED: u8 = 1;
/// The exit status if the command line or the environment is invalid.
const USAGE: u8 = 2;

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line or the environment is invalid.
    Usage(String),
    /// Something failed.
    Failed(String),
    /// The reader of the output is gone, as with `| head`. That is not an error.
    Closed,
}

impl Failure {
    pub(super) fn of_writing(result: io::Result<()>) -> Result<(), Self> {
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(format!("writing the results: {error}")),
        })
    }

    pub(super) fn of_signals(error: io::Error) -> Self {
        Self::Failed(format!("installing the signal handlers: {error}"))
    }

    /// Prints the message, and returns the exit status.
    pub(super) fn report(self, env: &Env) -> ExitCode {
        let (code, message) = match self {
            Self::Usage(message) => (USAGE, message),
            Self::Failed(message) => (FAILED, message),
            Self::Closed => return ExitCode::SUCCESS,
        };
        complain_at_exit(&message, env);
        ExitCode::from(code)
    }
}

impl From<EnvError> for Failure {
    fn from(error: EnvError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    Failure::of_writing(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}
