//! The pages of `docs/reference`, which are generated from code.

use crate::error::Error;
use crate::steps::cargo;

/// Writes the pages. A test of the package `reference` fails while one is out of date.
pub(crate) fn write() -> Result<(), Error> {
    cargo().args("run --quiet --package reference -- .").run()
}
