//! Engines: metrics of tasks, of direct requests and of GPUs.

mod busy;
mod direct;
mod gpu;
mod metrics;
pub mod spans;

pub use direct::*;
pub use gpu::*;
pub use metrics::*;
