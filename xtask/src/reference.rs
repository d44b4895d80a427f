//! The pages of `docs/reference`, which are made from code.

use crate::error::Error;
use crate::steps::cargo;

/// Writes them.
pub(crate) fn write() -> Result<(), Error> {
    generator("write")
}

/// Fails unless they are as they would be written.
pub(crate) fn check() -> Result<(), Error> {
    generator("check")
}

fn generator(verb: &str) -> Result<(), Error> {
    cargo()
        .args("run --quiet --package reference --")
        .arg(verb)
        .arg("docs/reference")
        .run()
}
