//! The chaos test: kills engines, and breaks Redis, network, storage and machines.

use crate::error::Error;
use crate::steps::cargo;
use crate::system::{FAKETIME, REDIS, STRACE, require};

/// Builds the chaos test and runs it with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Result<(), Error> {
    require(&[REDIS, FAKETIME, STRACE])?;
    // The jobs run on its processes.
    cargo().args("build --package dev_platform").run()?;
    let command = cargo().args("run --package chaos --");
    arguments
        .iter()
        .fold(command, |command, argument| command.arg(argument))
        .run()
}
