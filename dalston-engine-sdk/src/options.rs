//! What whoever starts an engine may choose: device, precision, model. Says nothing about how a choice is met.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::model_id::ModelId;

/// The choices of whoever started the worker, from the command line or the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Where to compute. `--device`, `DALSTON_DEVICE`; default [`DeviceChoice::Auto`].
    pub device: DeviceChoice,
    /// In which number format. `--precision`, `DALSTON_PRECISION`; default [`PrecisionChoice::Auto`].
    pub precision: PrecisionChoice,
    /// The model for tasks that name none; goes before the engine's own default. `--model`, `DALSTON_DEFAULT_MODEL`.
    pub model: Option<ModelId>,
    /// The directory that models' names are looked up in. `DALSTON_MODEL_DIR`.
    pub model_root: Option<PathBuf>,
}

impl EngineOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets where to compute.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Sets the number format.
    #[must_use]
    pub fn precision(mut self, precision: PrecisionChoice) -> Self {
        self.precision = precision;
        self
    }

    /// Sets the model for tasks that name none.
    #[must_use]
    pub fn model(mut self, model: impl Into<ModelId>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets the directory that models' names are looked up in.
    #[must_use]
    pub fn model_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.model_root = Some(root.into());
        self
    }
}

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

impl FromStr for DeviceChoice {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(number)),
                _ => Err(OptionError {
                    what: "device",
                    value: text.to_owned(),
                    accepted: "auto, cpu, cuda or cuda:N",
                }),
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
    /// What suits the device: usually half precision on a GPU, single precision on a CPU.
    #[default]
    Auto,
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
}

impl FromStr for PrecisionChoice {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            _ => Err(OptionError {
                what: "precision",
                value: text.to_owned(),
                accepted: "auto, float32, float16 or bfloat16",
            }),
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
        })
    }
}

/// An option has a value that nobody understands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} is {value:?}: expected {accepted}")]
pub struct OptionError {
    what: &'static str,
    value: String,
    accepted: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_precisions_read_what_they_print() {
        for device in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("CUDA".parse(), Ok(DeviceChoice::Cuda(0)));
        for precision in [
            PrecisionChoice::Auto,
            PrecisionChoice::Float32,
            PrecisionChoice::Float16,
            PrecisionChoice::Bfloat16,
        ] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
    }

    #[test]
    fn a_wrong_device_is_named_together_with_what_is_accepted() {
        let error = "cuda:x".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"device is "cuda:x": expected auto, cpu, cuda or cuda:N"#
        );
    }
}
