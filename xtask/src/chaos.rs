//! The chaos test: kills engines, and breaks Redis, network, storage and machines.

use crate::error::Error;
use crate::steps::{Cmd, cargo, target_directory};
use crate::system::{FAKETIME, REDIS, STRACE, require};

/// Builds the chaos test and runs it with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Result<(), Error> {
    require(&[REDIS, FAKETIME, STRACE])?;
    // The jobs run on the processes of dev_platform. Built apart from it, `chaos` would have other
    // features, and most dependencies would be built twice.
    cargo()
        .args("build --package chaos --package dev_platform")
        .run()?;
    let command = Cmd::new(target_directory().join("debug/chaos"));
    arguments
        .iter()
        .fold(command, |command, argument| command.arg(argument))
        .run()
}
