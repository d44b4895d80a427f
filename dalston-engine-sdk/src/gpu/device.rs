//! One GPU and its memory.

/// One GPU, as the NVIDIA driver reports it at this moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gpu {
    /// The driver's number for it. CUDA counts the same way unless `CUDA_VISIBLE_DEVICES` or
    /// `CUDA_DEVICE_ORDER` says otherwise.
    pub index: usize,
    /// For example `NVIDIA L4`.
    pub name: String,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// Share of the last sample period in which at least one kernel ran, from 0 to 1. `None` where
    /// the driver does not report it, as on a partitioned GPU.
    pub utilization: Option<f64>,
    /// Power draw in watts. `None` where the driver does not report it.
    pub power_watts: Option<f64>,
    /// Temperature of the chip in degrees Celsius. `None` where the driver does not report it.
    pub temperature_celsius: Option<f64>,
    /// Version of the driver.
    pub driver_version: String,
    /// CUDA compute capability, for example `8.9`.
    pub compute_capability: String,
}

/// How much memory of a GPU is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuMemory {
    /// Memory in use, in bytes: by this process where the driver counts it separately, else by all
    /// processes on the first GPU. In a container the driver usually can't, because process ids
    /// differ inside.
    pub used: u64,
    /// Memory of the first GPU, in bytes.
    pub total: u64,
}
