//! Engines: metrics of tasks, of direct requests and of GPUs.

mod busy;
mod direct;
mod families;
mod gpu;
mod labels;
mod metrics;
pub mod spans;

pub use busy::{BusyGuard, SlotMetrics};
pub use direct::{DirectEndpoint, DirectMetrics, DirectStatus};
pub use gpu::{GpuMetrics, GpuSample};
pub use labels::{BatchDispatch, BatchSplit, Device, EngineLabels, InMemory, RedeliveryReason};
pub use metrics::{EngineMetrics, ModelMetrics};
