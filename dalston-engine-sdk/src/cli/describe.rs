//! `describe`: identity and capabilities of the engine.

use serde::Serialize;

use super::args::DescribeArgs;
use super::catalog;
use super::failure::Failure;
use crate::engine::EngineInfo;
use crate::protocol::Capabilities;
use crate::stage::Stage;

/// What the command prints.
pub(super) fn describe(info: &EngineInfo, args: &DescribeArgs) -> Result<String, Failure> {
    if args.engine_yaml {
        return Ok(catalog::engine_yaml(info));
    }
    if let Some(model) = &args.model_yaml {
        let default = info.default_model.as_ref().map(|model| model.as_str());
        let named = model.as_deref().filter(|model| !model.is_empty());
        let model = named.or(default).ok_or_else(|| {
            Failure::Usage("the engine has no default model: name one with --model-yaml=MODEL".to_owned())
        })?;
        return Ok(catalog::model_yaml(info, model));
    }
    let json = serde_json::to_string_pretty(&description(info));
    json.map(|json| json + "\n")
        .map_err(|error| Failure::Failed(error.to_string()))
}

#[derive(Debug, Serialize)]
struct Description<'a> {
    engine_id: &'a str,
    version: &'a str,
    sdk_version: &'static str,
    stages: Vec<&'a str>,
    default_model: Option<&'a str>,
    languages: Option<&'a [String]>,
    audio: Option<Audio>,
    capabilities: Capabilities,
}

/// The audio format that the engine expects.
#[derive(Debug, Serialize)]
struct Audio {
    sample_rate: u32,
    channels: u32,
}

fn description(info: &EngineInfo) -> Description<'_> {
    #[cfg(feature = "audio")]
    let audio = info.audio.map(|format| Audio {
        sample_rate: format.sample_rate,
        channels: u32::from(format.channels),
    });
    #[cfg(not(feature = "audio"))]
    let audio = None;
    Description {
        engine_id: &info.id,
        version: &info.version,
        sdk_version: env!("CARGO_PKG_VERSION"),
        stages: info.stages.iter().map(Stage::as_str).collect(),
        default_model: info.default_model.as_ref().map(|model| model.as_str()),
        languages: info.languages.as_deref(),
        audio,
        capabilities: info.capabilities(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn description_has_identity_and_capabilities() {
        let info = EngineInfo::new("my-asr", "1.4.0")
            .stage(Stage::Transcribe)
            .default_model("tiny")
            .languages(["en", "de"])
            .word_timestamps(true)
            .realtime_factor_cpu(0.25)
            .gpu_memory_mib(2048);
        assert_eq!(
            serde_json::to_value(description(&info)).unwrap(),
            json!({
                "engine_id": "my-asr", "version": "1.4.0", "sdk_version": env!("CARGO_PKG_VERSION"),
                "stages": ["transcribe"], "default_model": "tiny", "languages": ["en", "de"], "audio": null,
                "capabilities": {
                    "engine_id": "my-asr", "version": "1.4.0", "stages": ["transcribe"],
                    "supports_word_timestamps": true, "supports_native_streaming": false, "model_variants": null,
                    "gpu_required": false, "gpu_vram_mb": 2048, "supports_cpu": true, "min_ram_gb": null,
                    "rtf_gpu": null, "rtf_cpu": 0.25, "max_concurrency": null, "includes_diarization": false, "vocabulary_support": null,
                    "supports_language_forcing": true,
                },
            })
        );
    }

    #[test]
    fn model_row_is_of_the_named_or_else_the_default_model() {
        let info = EngineInfo::new("my-asr", "1.4.0").default_model("tiny");
        for (named, model) in [(None, "tiny"), (Some(""), "tiny"), (Some("small"), "small")] {
            let args = DescribeArgs {
                engine_yaml: false,
                model_yaml: Some(named.map(str::to_owned)),
            };
            let row = describe(&info, &args).unwrap();
            assert!(row.contains(&format!("\nid: \"{model}\"\n")), "{row}");
        }
    }
}
