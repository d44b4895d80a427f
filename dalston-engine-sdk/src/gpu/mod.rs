//! The machine's GPUs as the NVIDIA driver reports them: identity, memory, utilisation, power and
//! temperature.
//!
//! The answers come from the driver's own library, NVML (`libnvidia-ml.so.1`), which is loaded only
//! where there is a driver. NVML also answers when an engine cannot use the GPU, and it counts the
//! memory of all processes. It is only called on a thread of its own, so a driver that hangs stops
//! nothing else.

mod device;
mod error;
mod monitor;
mod nvml;

pub use self::device::{Gpu, GpuMemory};
pub use self::error::GpuError;
pub(crate) use self::monitor::{GpuMonitor, GpuReading};
pub use self::nvml::{gpus, nvidia_driver_present};

#[cfg(test)]
mod tests;
