//! The machine's GPUs, as the NVIDIA driver sees them: what they are, and their memory, utilisation, power and temperature as
//! metrics.
//!
//! Asked of the driver's own library, NVML (`libnvidia-ml.so.1`), which is loaded where there is a driver and only then. It
//! answers also when an engine cannot use the GPU, which is when one wants to know, and it counts the memory of all processes.
//! It is only ever called on a thread of its own, so a driver that hangs stops nothing else.

mod monitor;
mod nvml;

use std::path::Path;
use std::time::Duration;

pub use self::monitor::GpuMonitor;
pub(crate) use self::monitor::GpuReading;
use self::nvml::Driver;

/// A broken driver hangs rather than fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// One GPU, as the NVIDIA driver sees it at this moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gpu {
    /// The driver's number for it. CUDA counts the same way unless `CUDA_VISIBLE_DEVICES` or `CUDA_DEVICE_ORDER` says
    /// otherwise.
    pub index: usize,
    /// For example `NVIDIA L4`.
    pub name: String,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// Share of the last sample period in which at least one kernel ran, from 0 to 1; `None` where the driver does not
    /// tell, as on a partitioned GPU.
    pub utilization: Option<f64>,
    /// What the device draws, in watts; `None` where the driver does not tell.
    pub power_watts: Option<f64>,
    /// Temperature of the chip, in degrees Celsius; `None` where the driver does not tell.
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
    /// In use, in bytes: by this process where the driver tells it apart from others, else by all processes on the first GPU.
    /// In a container it usually can't, because the numbers of processes differ inside.
    pub used: u64,
    /// Memory of the first GPU, in bytes.
    pub total: u64,
}

/// Asks the driver for its GPUs, waiting at most five seconds. One that the driver has lost is left out while there are others.
///
/// # Errors
///
/// Says in one line why it cannot tell, for example that there is no driver.
pub fn gpus() -> Result<Vec<Gpu>, GpuError> {
    present(each_gpu()?)
}

/// As [`gpus`], and why one can't be read.
pub(crate) fn each_gpu() -> Result<Vec<Result<Gpu, GpuError>>, GpuError> {
    match nvidia_driver_present() {
        true => Driver::of_the_machine().gpus(PATIENCE),
        false => Err(GpuError::NoDriver),
    }
}

/// Those that can be read, unless none can.
fn present(gpus: Vec<Result<Gpu, GpuError>>) -> Result<Vec<Gpu>, GpuError> {
    let mut lost = None;
    let mut present = Vec::new();
    for gpu in gpus {
        match gpu {
            Ok(gpu) => present.push(gpu),
            Err(error) => lost = lost.or(Some(error)),
        }
    }
    match lost {
        Some(error) if present.is_empty() => Err(error),
        _ => Ok(present),
    }
}

/// Whether an NVIDIA driver is at work on this machine, told from the files it makes, without loading anything.
#[must_use]
pub fn nvidia_driver_present() -> bool {
    driver_present_under(Path::new("/"))
}

/// Why the driver's view of the GPUs cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// Nobody to ask.
    #[error("no NVIDIA driver is at work")]
    NoDriver,
    /// There is a driver, and its library can't be loaded.
    #[error(
        "the NVIDIA driver's library {library} cannot be loaded: {message}; install it, or in a container let \
         NVIDIA_DRIVER_CAPABILITIES have utility"
    )]
    Load {
        /// The file.
        library: String,
        /// What the dynamic loader said.
        message: String,
    },
    /// It did not answer.
    #[error("the NVIDIA driver gave no answer within {0:?}; it may be stuck")]
    Timeout(Duration),
    /// It answered with an error.
    #[error("the NVIDIA driver failed: {0}")]
    Failed(String),
    /// It answered with an error when it was asked about this GPU.
    #[error("GPU {index} cannot be read: {message}")]
    Unreadable {
        /// The driver's number for it.
        index: usize,
        /// What the driver said.
        message: String,
    },
}

fn driver_present_under(root: &Path) -> bool {
    // The last two are how Windows hands its driver to Linux programs.
    [
        "dev/nvidiactl",
        "dev/nvidia0",
        "proc/driver/nvidia/version",
        "dev/dxg",
        "usr/lib/wsl/lib/libcuda.so.1",
    ]
    .iter()
    .any(|path| root.join(path).exists())
}

#[cfg(test)]
mod tests;
