//! The voice detector that the configuration names: [`check`], [`detectors`].

#[cfg(feature = "realtime")]
use std::sync::Arc;

#[cfg(feature = "realtime")]
use crate::audio::VoiceDetector;
use crate::config::EngineConfig;
#[cfg(feature = "realtime")]
use crate::engine::Engine;
use crate::error::BuildError;

/// Makes the voice detectors of realtime sessions.
#[cfg(feature = "realtime")]
pub(super) type NewDetector = dyn Fn() -> Box<dyn VoiceDetector + Send> + Send + Sync;

/// An engine without libtorch can't have the detector.
pub(super) fn check(config: &EngineConfig) -> Result<(), BuildError> {
    match &config.vad_model {
        Some(path) if !cfg!(all(feature = "audio", feature = "tch")) => Err(BuildError::VoiceDetector {
            problem: format!(
                "{} is for engines that are built with the features audio and tch: unset it",
                path.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Those of the file that the configuration names, or else the engine's.
#[cfg(feature = "realtime")]
pub(super) fn detectors<E: Engine>(
    engine: &Arc<E>,
    config: &EngineConfig,
) -> Result<Box<NewDetector>, BuildError> {
    let engine = Arc::clone(engine);
    #[cfg(feature = "tch")]
    if let Some(path) = &config.vad_model {
        let file = crate::torch::SileroFile::read(path).map_err(|error| BuildError::VoiceDetector {
            problem: error.to_string(),
        })?;
        return Ok(Box::new(move || match file.detector() {
            Ok(detector) => Box::new(detector),
            Err(error) => {
                tracing::error!(%error, "voice_detector_failed");
                engine.voice_detector()
            }
        }));
    }
    let _ = config;
    Ok(Box::new(move || engine.voice_detector()))
}
