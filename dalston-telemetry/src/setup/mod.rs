//! Sets up telemetry: from the builder to the guard that ends it.

pub(crate) mod builder;
pub(crate) mod panic;
pub(crate) mod select;
pub(crate) mod telemetry;
