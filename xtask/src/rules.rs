//! Alert rules, their tests and dashboards, which are generated from code.

use crate::error::Error;
use crate::steps::cargo;

/// Writes the files. A test of the package `observability` fails while one is out of date.
pub(crate) fn write() -> Result<(), Error> {
    cargo().args("run --quiet --package observability -- .").run()
}
