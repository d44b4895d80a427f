//! Why the driver's figures can't be read.

use std::time::Duration;

use thiserror::Error;

/// Why the driver's figures can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no NVIDIA driver.
    #[error("no NVIDIA driver is running on this machine")]
    NoDriver,
    /// There is a driver, but its library can't be loaded.
    #[error(
        "the NVIDIA driver's library {library} can't be loaded: {message}; install it, or in a container add utility \
         to NVIDIA_DRIVER_CAPABILITIES"
    )]
    Load {
        /// The file.
        library: String,
        /// The message of the dynamic loader.
        message: String,
    },
    /// The driver did not answer within this time.
    #[error("the NVIDIA driver gave no answer within {0:?} and may be stuck")]
    Timeout(Duration),
    /// The driver answered with this error.
    #[error("the NVIDIA driver failed: {0}")]
    Failed(String),
    /// The driver answered with an error about one GPU.
    #[error("GPU {index} can't be read: {message}")]
    Unreadable {
        /// The driver's number for it.
        index: usize,
        /// The message of the driver.
        message: String,
    },
}
