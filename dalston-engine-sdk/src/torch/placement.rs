//! The device and number format of an engine.

use tch::{Cuda, Device, Kind, Tensor};

use super::cuda::{CudaError, load_cuda};
use super::memory::message;
use crate::config::{DeviceChoice, EngineConfig, PrecisionChoice};
use crate::gpu::nvidia_driver_present;

/// The device and number format of an engine on this machine, chosen by its options.
///
/// ```no_run
/// use dalston_engine_sdk::torch::Placement;
/// use dalston_engine_sdk::{LoadContext, TaskError};
///
/// fn load(cx: &LoadContext) -> Result<tch::Tensor, TaskError> {
///     let placement = Placement::choose(cx.config())?;
///     Ok(tch::Tensor::f_zeros([80, 3000], (placement.kind(), placement.device()))?)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    device: Device,
    kind: Kind,
}

impl Placement {
    /// Chooses the device and the precision. A small computation tests a GPU.
    ///
    /// The device `auto` means the first GPU if an NVIDIA driver runs and libtorch can use the GPU,
    /// else the CPU; a warning says why a GPU can't be used. The precision `auto` means float16 on
    /// a GPU and float32 on the CPU. An engine with weights in int8 handles the precision `int8`
    /// before this call, which refuses it.
    ///
    /// # Errors
    ///
    /// If the options name a GPU that can't be used, or a precision that the device does not
    /// support.
    pub fn choose(config: &EngineConfig) -> Result<Self, PlacementError> {
        let device = device(config.device)?;
        let kind = kind(config.precision, device)?;
        tracing::debug!(device = %device_name(device), precision = precision_name(kind), "device_chosen");
        Ok(Self { device, kind })
    }

    /// The device for tensors.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// The number format of weights and activations.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl std::fmt::Display for Placement {
    /// For example `cuda:0, float16`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", device_name(self.device), precision_name(self.kind))
    }
}

/// Why a device or a precision can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The GPU that the options name can't be used.
    #[error("the device {asked} can't be used: {reason}")]
    Device {
        /// The device in the options.
        asked: String,
        /// The reason, with advice.
        #[source]
        reason: CudaError,
    },
    /// The device does not support the precision.
    #[error(
        "the precision {precision} is not supported on the CPU, where libtorch is slower with it than with float32 and \
         lacks some operations; use auto, float32 or bfloat16, or a GPU"
    )]
    Precision {
        /// The precision in the options.
        precision: &'static str,
    },
    /// int8 is a precision of weights, and the engine does not offer it on the device.
    #[error("the precision int8 is not offered on the device {device}; use auto, float32 or bfloat16")]
    Int8 {
        /// The device, as `cuda:0`.
        device: String,
    },
}

fn device(choice: DeviceChoice) -> Result<Device, PlacementError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => gpu(index).map_err(|reason| PlacementError::Device {
            asked: format!("cuda:{index}"),
            reason,
        }),
        DeviceChoice::Auto if !nvidia_driver_present() => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(gpu(0).unwrap_or_else(|reason| {
            // A warning, because the CPU is many times slower.
            tracing::warn!(%reason, "gpu_unusable");
            Device::Cpu
        })),
    }
}

fn gpu(index: usize) -> Result<Device, CudaError> {
    load_cuda()?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if count == 0 {
        return Err(CudaError::NoDevice);
    }
    if index >= count {
        return Err(CudaError::NoSuchDevice { index, count });
    }
    let device = Device::Cuda(index);
    // A listed GPU can be unusable: too old for this build's kernels, in an exclusive mode, or
    // broken. The test fails here rather than in the first task. The CUDA context that it creates
    // is needed in any case.
    probe(device).map_err(|error| CudaError::Unusable {
        index,
        message: message(&error),
    })?;
    Ok(device)
}

/// Runs a small computation and reads its result.
pub(super) fn probe(device: Device) -> Result<(), tch::TchError> {
    let ones = Tensor::f_ones([4, 4], (Kind::Float, device))?;
    let sum = ones.f_matmul(&ones)?.f_sum(Kind::Float)?;
    let sum = f64::try_from(sum)?;
    if sum == 64.0 {
        Ok(())
    } else {
        Err(tch::TchError::Torch(format!("a sum of 64 was computed as {sum}")))
    }
}

fn kind(choice: PrecisionChoice, device: Device) -> Result<Kind, PlacementError> {
    match choice {
        PrecisionChoice::Auto if device.is_cuda() => Ok(Kind::Half),
        PrecisionChoice::Auto | PrecisionChoice::Float32 => Ok(Kind::Float),
        PrecisionChoice::Bfloat16 => Ok(Kind::BFloat16),
        PrecisionChoice::Float16 if device.is_cuda() => Ok(Kind::Half),
        PrecisionChoice::Float16 => Err(PlacementError::Precision { precision: "float16" }),
        PrecisionChoice::Int8 => Err(PlacementError::Int8 {
            device: device_name(device),
        }),
    }
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "mps".to_owned(),
        Device::Vulkan => "vulkan".to_owned(),
    }
}

fn precision_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(device: DeviceChoice, precision: PrecisionChoice) -> EngineConfig {
        EngineConfig::new().device(device).precision(precision)
    }

    #[test]
    fn auto_precision_follows_the_device() {
        let gpu = Device::Cuda(0);
        assert_eq!(kind(PrecisionChoice::Auto, Device::Cpu), Ok(Kind::Float));
        assert_eq!(kind(PrecisionChoice::Auto, gpu), Ok(Kind::Half));
        assert_eq!(kind(PrecisionChoice::Float32, gpu), Ok(Kind::Float));
        assert_eq!(kind(PrecisionChoice::Float16, gpu), Ok(Kind::Half));
        assert_eq!(kind(PrecisionChoice::Bfloat16, gpu), Ok(Kind::BFloat16));
        assert_eq!(kind(PrecisionChoice::Bfloat16, Device::Cpu), Ok(Kind::BFloat16));
    }

    #[test]
    fn half_precision_on_the_cpu_is_refused_with_advice() {
        let error = Placement::choose(&config(DeviceChoice::Cpu, PrecisionChoice::Float16)).unwrap_err();

        let text = error.to_string();
        assert!(text.contains("float16") && text.contains("bfloat16"), "{text}");
    }

    #[test]
    fn int8_is_left_to_the_engine() {
        let error = Placement::choose(&config(DeviceChoice::Cpu, PrecisionChoice::Int8)).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the precision int8 is not offered on the device cpu; use auto, float32 or bfloat16"
        );
    }

    #[test]
    fn the_cpu_can_always_be_chosen() {
        let placement = Placement::choose(&config(DeviceChoice::Cpu, PrecisionChoice::Auto)).unwrap();

        assert_eq!((placement.device(), placement.kind()), (Device::Cpu, Kind::Float));
        assert_eq!(placement.to_string(), "cpu, float32");
        probe(Device::Cpu).unwrap();
    }

    #[test]
    fn missing_gpu_is_refused_with_the_reason() {
        // No machine has so many, so the test is the same with and without a GPU.
        let error = Placement::choose(&config(DeviceChoice::Cuda(4096), PrecisionChoice::Auto)).unwrap_err();

        let PlacementError::Device { asked, reason } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(asked, "cuda:4096");
        assert!(error.to_string().ends_with(&reason.to_string()), "{error}");
    }

    #[test]
    fn error_for_missing_gpu_names_the_devices() {
        assert_eq!(
            CudaError::NoSuchDevice { index: 2, count: 2 }.to_string(),
            "cuda:2 does not exist: the devices are cuda:0 to cuda:1"
        );
    }
}
