//! The values of settings that have a few names: devices, number formats, sources of models,
//! notices.

use std::fmt;
use std::str::FromStr;

use dalston_telemetry::ParseError;

/// Where to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one that works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The names of devices. Completes the sentence "expected …".
    pub(crate) const ACCEPTED: &str = "auto, cpu, cuda or cuda:N";
}

impl FromStr for DeviceChoice {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(number)),
                _ => Err(ParseError::new("device", text, Self::ACCEPTED)),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// In which number format to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// As suits the device: usually half precision on a GPU, single precision on a CPU.
    #[default]
    Auto,
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
    /// Weights in 8 bits, activations as suits the device. Only for engines that offer it.
    Int8,
}

impl PrecisionChoice {
    /// The names of number formats. Completes the sentence "expected …".
    pub(crate) const ACCEPTED: &str = "auto, float32, float16, bfloat16 or int8";
}

impl FromStr for PrecisionChoice {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            "int8" => Ok(Self::Int8),
            _ => Err(ParseError::new("precision", text, Self::ACCEPTED)),
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        })
    }
}

/// A place that models come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// `models/{model_id}/` in the bucket of the deployment.
    S3,
    /// The Hugging Face hub.
    HuggingFace,
}

/// The notices about a spot instance that start the drain of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
// Its variable is declared in every build; only a worker exports the type.
#[cfg_attr(not(feature = "worker"), allow(unreachable_pub))]
pub enum SpotDrain {
    /// The instance will be interrupted, or this has become likely, which Amazon calls a rebalance
    /// recommendation. A recommendation that was there already when the worker started is ignored.
    #[default]
    All,
    /// The instance will be interrupted.
    Interruption,
    /// None. The worker does not ask for notices.
    Off,
}

/// The requests of a worker that have client spans in the traces of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
// As with `SpotDrain`.
#[cfg_attr(not(feature = "worker"), allow(unreachable_pub))]
pub enum ClientSpans {
    /// None: a task has a dozen such requests, which would hide its own spans.
    #[default]
    Off,
    /// Commands to Redis.
    Redis,
    /// Requests to S3.
    S3,
    /// Both.
    All,
}

#[cfg(feature = "worker")]
impl ClientSpans {
    pub(crate) fn redis(self) -> bool {
        matches!(self, Self::Redis | Self::All)
    }

    pub(crate) fn s3(self) -> bool {
        matches!(self, Self::S3 | Self::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_precisions_parse_their_names() {
        for device in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("CUDA".parse(), Ok(DeviceChoice::Cuda(0)));
        for precision in [
            PrecisionChoice::Auto,
            PrecisionChoice::Float32,
            PrecisionChoice::Float16,
            PrecisionChoice::Bfloat16,
            PrecisionChoice::Int8,
        ] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
    }

    #[test]
    fn wrong_device_is_named_with_accepted_devices() {
        let error = "cuda:x".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"device is "cuda:x": expected auto, cpu, cuda or cuda:N"#
        );
    }
}
