//! What an engine gets to know of the configuration: [`EngineConfig`].

use std::path::PathBuf;

use dalston_telemetry::{Env, EnvError};

use super::choices::{DeviceChoice, PrecisionChoice};
use super::settings::{
    DALSTON_DEFAULT_MODEL, DALSTON_DEVICE, DALSTON_MODEL_DIR, DALSTON_PRECISION, DALSTON_VAD_MODEL,
};
use crate::model_id::ModelId;

/// What an engine gets to know of the configuration: device, number format, model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Where to compute. `--device`, `DALSTON_DEVICE`; default [`DeviceChoice::Auto`].
    pub device: DeviceChoice,
    /// The number format to compute in. `--precision`, `DALSTON_PRECISION`; default
    /// [`PrecisionChoice::Auto`].
    pub precision: PrecisionChoice,
    /// The model for tasks that name none. It wins over the engine's own default. `--model`,
    /// `DALSTON_DEFAULT_MODEL`.
    pub model: Option<ModelId>,
    /// The directory in which models are looked up by name. `DALSTON_MODEL_DIR`.
    pub model_root: Option<PathBuf>,
    /// The TorchScript file of Silero's voice detector, in place of the engine's own detector. It
    /// needs the features `audio` and `tch`. `DALSTON_VAD_MODEL`.
    pub vad_model: Option<PathBuf>,
}

impl EngineConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `DALSTON_DEVICE`, `DALSTON_PRECISION`, `DALSTON_DEFAULT_MODEL`, `DALSTON_MODEL_DIR`
    /// and `DALSTON_VAD_MODEL`.
    pub(super) fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self {
            device: DALSTON_DEVICE.read_or_default(env)?,
            precision: DALSTON_PRECISION.read_or_default(env)?,
            model: DALSTON_DEFAULT_MODEL.read(env)?,
            model_root: DALSTON_MODEL_DIR.read(env)?,
            vad_model: DALSTON_VAD_MODEL.read(env)?,
        })
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

    /// Sets the directory in which models are looked up by name.
    #[must_use]
    pub fn model_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.model_root = Some(root.into());
        self
    }

    /// Sets the file of the voice detector.
    #[must_use]
    pub fn vad_model(mut self, file: impl Into<PathBuf>) -> Self {
        self.vad_model = Some(file.into());
        self
    }
}
