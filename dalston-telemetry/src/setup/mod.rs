//! Setup: from the builder to the guard that ends telemetry.

pub(crate) mod builder;
mod integers;
pub(crate) mod layers;
mod monotonic;
pub(crate) mod panic;
mod report;
pub mod settings;
pub(crate) mod targets;
pub(crate) mod telemetry;
