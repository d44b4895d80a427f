//! Silero's voice detector on libtorch: [`SileroFile`], [`Silero`].

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tch::{CModule, IValue, TchError, Tensor};
use thiserror::Error;
use tracing::warn;

use super::inference::inference;
use super::memory::message;
use crate::audio::VoiceDetector;

/// Samples of a frame: the only length that the network accepts at its rate.
const FRAME: usize = 512;
const RATE: u32 = 16_000;

/// The TorchScript file of the detector of [Silero](https://github.com/snakers4/silero-vad):
/// `silero_vad/data/silero_vad.jit` in the Python package `silero-vad`. Cheap to clone.
///
/// [`EngineConfig::vad_model`](crate::EngineConfig::vad_model) names the file. The worker then uses
/// it for realtime sessions in place of [`Engine::voice_detector`](crate::Engine::voice_detector).
/// An engine that looks for speech in files asks the configuration itself:
///
/// ```
/// use dalston_engine_sdk::audio::{Earshot, VoiceDetector};
/// use dalston_engine_sdk::torch::SileroFile;
/// use dalston_engine_sdk::{EngineConfig, TaskError};
///
/// fn detector(config: &EngineConfig) -> Result<Box<dyn VoiceDetector + Send>, TaskError> {
///     Ok(match &config.vad_model {
///         Some(path) => Box::new(SileroFile::read(path)?.detector()?),
///         None => Box::new(Earshot::new()),
///     })
/// }
/// # assert!(detector(&EngineConfig::new()).is_ok());
/// ```
#[derive(Clone)]
pub struct SileroFile {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    data: Vec<u8>,
    /// Modules that no detector uses. Their state is at the start of a recording.
    spare: Mutex<Vec<CModule>>,
}

/// Modules that are kept for later detectors.
const MOST_SPARE: usize = 16;

impl SileroFile {
    /// Reads the file, and lets its network hear one frame.
    ///
    /// # Errors
    ///
    /// If it can't be read, is no TorchScript file, or has another interface.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, SileroError> {
        let path = path.into();
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(source) => return Err(SileroError::Unreadable { path, source }),
        };
        let shared = Arc::new(Shared {
            path,
            data,
            spare: Mutex::default(),
        });
        let file = Self { shared };
        let module = file.module()?;
        let heard = probability(&module, &[0.0; FRAME]).and_then(|_| reset(&module));
        heard.map_err(|error| file.invalid(&error))?;
        file.spare().push(module);
        Ok(file)
    }

    /// A detector at the start of a recording.
    ///
    /// # Errors
    ///
    /// If libtorch can't load the network once more, for example for lack of memory.
    pub fn detector(&self) -> Result<Silero, SileroError> {
        let spare = self.spare().pop();
        let module = match spare {
            Some(module) => module,
            None => self.module()?,
        };
        Ok(Silero {
            module: Some(module),
            file: self.clone(),
            has_failed: false,
        })
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn module(&self) -> Result<CModule, SileroError> {
        CModule::load_data(&mut &*self.shared.data).map_err(|error| self.invalid(&error))
    }

    fn invalid(&self, error: &TchError) -> SileroError {
        SileroError::Invalid {
            path: self.shared.path.clone(),
            problem: message(error),
        }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<CModule>> {
        self.shared.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SileroFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SileroFile")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

/// The error of [`SileroFile`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SileroError {
    /// The file can't be read.
    #[error("reading the voice detector {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// libtorch can't use the file.
    #[error(
        "the voice detector {} is not usable: {problem}: expected the file silero_vad.jit of the Python package silero-vad",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The message of libtorch.
        problem: String,
    },
}

/// The detector of Silero: 16 kHz, frames of 32 ms. [`SileroFile::detector`] makes it.
///
/// Each detector has a network of its own, because the network keeps what it has heard.
pub struct Silero {
    /// `None` only while it is dropped.
    module: Option<CModule>,
    file: SileroFile,
    has_failed: bool,
}

impl VoiceDetector for Silero {
    fn sample_rate(&self) -> u32 {
        RATE
    }

    fn frame_len(&self) -> usize {
        FRAME
    }

    fn delay(&self) -> usize {
        // Measured on the recordings of the Whisper example: speech is heard 28 to 82 ms late.
        1
    }

    /// 0 if libtorch fails, and then a log event says so.
    fn probability(&mut self, frame: &[f32]) -> f32 {
        let mut exact = [0.0; FRAME];
        for (to, from) in exact.iter_mut().zip(frame) {
            *to = if from.is_nan() { 0.0 } else { from.clamp(-1.0, 1.0) };
        }
        let Some(module) = &self.module else { return 0.0 };
        match probability(module, &exact) {
            Ok(found) if found.is_finite() => found.clamp(0.0, 1.0),
            Ok(_) => 0.0,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(error = %message(&error), "voice_detector_failed");
                }
                0.0
            }
        }
    }

    fn reset(&mut self) {
        if let Some(Err(error)) = self.module.as_ref().map(reset) {
            warn!(error = %message(&error), "voice_detector_failed");
        }
    }
}

impl Drop for Silero {
    fn drop(&mut self) {
        let Some(module) = self.module.take() else { return };
        // The first frames of a network are slow, because libtorch compiles it.
        let mut spare = self.file.spare();
        if spare.len() < MOST_SPARE && reset(&module).is_ok() {
            spare.push(module);
        }
    }
}

impl fmt::Debug for Silero {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Silero")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn probability(module: &CModule, frame: &[f32; FRAME]) -> Result<f32, TchError> {
    inference(|| {
        let frame = Tensor::f_from_slice(frame)?;
        match module.forward_is(&[IValue::Tensor(frame), IValue::Int(i64::from(RATE))])? {
            IValue::Tensor(found) if found.numel() == 1 => {
                Ok(found.f_double_value(&vec![0; found.dim()])? as f32)
            }
            other => Err(TchError::Kind(format!(
                "forward returns {other:?}: expected one number"
            ))),
        }
    })
}

fn reset(module: &CModule) -> Result<(), TchError> {
    module.method_is::<IValue>("reset_states", &[]).map(drop)
}
