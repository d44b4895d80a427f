//! The chaos test: kills engines, restarts Redis, and breaks network and storage.

use crate::error::Error;
use crate::steps::cargo;
use crate::system::{REDIS, require};

/// Builds the chaos test and runs it with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Result<(), Error> {
    require(&[REDIS])?;
    let command = cargo().args("run --package chaos --");
    arguments
        .iter()
        .fold(command, |command, argument| command.arg(argument))
        .run()
}
