//! Setup: from the builder to the guard that ends telemetry.

pub(crate) mod builder;
pub(crate) mod layers;
mod monotonic;
pub(crate) mod panic;
mod report;
pub mod settings;
pub(crate) mod targets;
pub(crate) mod telemetry;
mod values;
