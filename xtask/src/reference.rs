//! The pages of `docs/reference`, which are generated from code.

use crate::error::Error;
use crate::steps::cargo;

/// Writes the pages.
pub(crate) fn write() -> Result<(), Error> {
    generator("write")
}

/// Fails if a page is out of date.
pub(crate) fn check() -> Result<(), Error> {
    generator("check")
}

fn generator(verb: &str) -> Result<(), Error> {
    cargo()
        .args("run --quiet --package reference --")
        .arg(verb)
        .arg(".")
        .run()
}
