//! Nothing is ever lost: engines are killed, Redis is restarted, network and storage fail.

use crate::error::Error;
use crate::steps::cargo;
use crate::system::{REDIS, require};

/// Builds and runs it, with these arguments handed on.
pub(crate) fn run(arguments: &[&str]) -> Result<(), Error> {
    require(&[REDIS])?;
    let command = cargo().args("run --package chaos --");
    arguments
        .iter()
        .fold(command, |command, argument| command.arg(argument))
        .run()
}
