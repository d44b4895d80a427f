//! The key `chunking_strategy`: how a client of OpenAI's API has the recording cut.

use dalston_engine_sdk::TaskOption;
use dalston_engine_sdk::audio::VadOptions;
use serde::Deserialize;
use serde_json::Value;

use crate::options::OptionError;

pub(crate) const NAME: &str = "chunking_strategy";
const EXPECTED: &str = "auto, or an object with the type server_vad, and threshold, prefix_padding_ms or \
                        silence_duration_ms";

/// At silence, found by voice activity detection.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chunking {
    #[serde(rename = "type")]
    kind: Kind,
    threshold: Option<f32>,
    prefix_padding_ms: Option<u32>,
    silence_duration_ms: Option<u32>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Auto,
    ServerVad,
}

impl Chunking {
    /// Reads the key.
    ///
    /// # Errors
    /// The value is not a strategy, or a number in it is out of range.
    pub(crate) fn read(value: &Value) -> Result<Self, OptionError> {
        let wrong = || OptionError::new(NAME, crate::options::shortened(value), EXPECTED);
        if value == "auto" {
            return Ok(Self::default());
        }
        let strategy = Self::deserialize(value).map_err(|_| wrong())?;
        let mut options = VadOptions::default();
        strategy.apply(&mut options);
        options.check().map_err(|_| wrong())?;
        Ok(strategy)
    }

    /// Sets what the client gives.
    pub(crate) fn apply(&self, options: &mut VadOptions) {
        if let Some(threshold) = self.threshold {
            options.threshold = threshold;
        }
        if let Some(padding) = self.prefix_padding_ms {
            options.speech_pad_ms = padding;
        }
        if let Some(silence) = self.silence_duration_ms {
            options.min_silence_duration_ms = silence;
        }
    }
}

/// The option for command lines and HTTP routes.
pub(crate) fn option() -> TaskOption {
    let check = |value: &Value| match value {
        Value::Null => Ok(()),
        other => Chunking::read(other)
            .map(drop)
            .map_err(|error| format!("expected {}", error.expected)),
    };
    let help = "As vad_filter, in the form of OpenAI's API: auto, or an object with the type server_vad";
    TaskOption::new(NAME, help, check)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategy_sets_the_values_that_it_has() {
        let applied = |strategy: Value| {
            let mut options = VadOptions::default();
            Chunking::read(&strategy).unwrap().apply(&mut options);
            (
                options.threshold,
                options.speech_pad_ms,
                options.min_silence_duration_ms,
            )
        };
        assert_eq!(applied(json!("auto")), (0.5, 400, 2000));
        assert_eq!(applied(json!({"type": "auto"})), (0.5, 400, 2000));
        let all = json!({"type": "server_vad", "threshold": 0.25, "prefix_padding_ms": 300, "silence_duration_ms": 200});
        assert_eq!(applied(all), (0.25, 300, 200));
    }

    #[test]
    fn other_strategies_are_refused() {
        for strategy in [
            json!("often"),
            json!({"threshold": 0.5}),
            json!({"type": "semantic_vad"}),
            json!({"type": "server_vad", "threshold": 2}),
            json!({"type": "server_vad", "pause_ms": 2}),
        ] {
            let error = Chunking::read(&strategy).unwrap_err().to_string();
            assert!(error.starts_with("chunking_strategy is "), "{error}");
            assert!(error.ends_with("silence_duration_ms"), "{error}");
        }
    }
}
