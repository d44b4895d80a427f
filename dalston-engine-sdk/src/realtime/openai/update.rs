//! The configuration of a session: [`Settings`].

use serde_json::{Value, json};

use crate::audio::Encoding;
use crate::realtime::messages::{AudioChange, ConfigChange};

/// The configuration as the events show it.
#[derive(Debug)]
pub(super) struct Settings {
    id: String,
    format: Value,
    model: Value,
    language: Value,
    prompt: Value,
    turn_detection: Value,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: String::new(),
            format: json!({"type": "audio/pcm", "rate": 24_000}),
            model: Value::Null,
            language: Value::Null,
            prompt: Value::Null,
            turn_detection: detection(),
        }
    }
}

/// The detection of utterances unless the client says otherwise.
fn detection() -> Value {
    json!({
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
    })
}

/// Whether this is the name of one of OpenAI's own models. It selects the engine's default model.
pub(super) fn is_of_openai(model: &str) -> bool {
    model == "whisper-1" || model.starts_with("gpt-")
}

impl Settings {
    /// Takes the id and the model from `session.begin`.
    pub(super) fn begin(&mut self, message: &Value) {
        self.model = message["config"]["model"].clone();
        message["session_id"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut self.id);
    }

    /// The object `session` of events.
    pub(super) fn session(&self) -> Value {
        json!({
            "id": self.id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": {
                "format": self.format,
                "transcription": {"model": self.model, "language": self.language, "prompt": self.prompt},
                "noise_reduction": null,
                "turn_detection": self.turn_detection,
            }},
            "include": null,
        })
    }

    /// Takes the object `session` of an update, in the present form or in that of the beta.
    /// Nothing changes after an error, which names the key.
    pub(super) fn update(&mut self, session: &Value, has_audio: bool) -> Result<ConfigChange, String> {
        match session.get("type").and_then(Value::as_str) {
            None | Some("transcription") => {}
            Some(other) => return Err(format!("session.type is {other:?}: expected transcription")),
        }
        let input = &session["audio"]["input"];
        let either = |now: &str, beta: &str| input.get(now).or_else(|| session.get(beta)).cloned();
        let mut change = ConfigChange::default();
        let format = either("format", "input_audio_format").filter(|format| !format.is_null());
        if let Some(format) = &format {
            let audio = audio(format)?;
            if has_audio && *format != self.format {
                return Err("the format can't be changed after the first audio".to_owned());
            }
            change.audio = (!has_audio).then_some(audio);
        }
        let transcription = either("transcription", "input_audio_transcription").unwrap_or_default();
        let text = |key: &str| match transcription.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(String::new())),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(format!("transcription.{key} is {other}: expected a text")),
        };
        change.language = text("language")?;
        change.prompt = text("prompt")?;
        change.model = text("model")?.map(|model| match is_of_openai(&model) {
            true => String::new(),
            false => model,
        });
        let turns = either("turn_detection", "turn_detection");
        let turns = match turns {
            Some(Value::Null) => {
                change.vad = Some(false);
                Some(Value::Null)
            }
            Some(given) => Some(change.detect(&given)?),
            None => None,
        };
        change.check()?;
        self.format = format.unwrap_or_else(|| self.format.clone());
        for (key, kept) in [
            ("model", &mut self.model),
            ("language", &mut self.language),
            ("prompt", &mut self.prompt),
        ] {
            if let Some(given) = transcription.get(key) {
                kept.clone_from(given);
            }
        }
        if let Some(turns) = turns {
            self.turn_detection = turns;
        }
        Ok(change)
    }
}

impl ConfigChange {
    /// Takes `turn_detection`, and returns it with its defaults.
    fn detect(&mut self, given: &Value) -> Result<Value, String> {
        let kind = given["type"].as_str().unwrap_or("server_vad");
        if kind != "server_vad" {
            return Err(format!(
                "turn_detection.type is {kind:?}: expected server_vad or null"
            ));
        }
        let mut turns = detection();
        for key in ["threshold", "prefix_padding_ms", "silence_duration_ms"] {
            match given.get(key) {
                None | Some(Value::Null) => {}
                Some(value) if value.is_number() => turns[key] = value.clone(),
                Some(value) => return Err(format!("turn_detection.{key} is {value}: expected a number")),
            }
        }
        let milliseconds = |key: &str| {
            let value = &turns[key];
            let wrong = || format!("turn_detection.{key} is {value}: expected milliseconds");
            value.as_u64().ok_or_else(wrong)
        };
        self.vad = Some(true);
        self.prefix_padding_ms = Some(milliseconds("prefix_padding_ms")?);
        self.min_silence_duration_ms = Some(milliseconds("silence_duration_ms")?);
        // A probability needs no more precision.
        self.vad_threshold = turns["threshold"].as_f64().map(|threshold| threshold as f32);
        Ok(turns)
    }
}

/// The format of audio, as an object or by its name in the beta.
fn audio(format: &Value) -> Result<AudioChange, String> {
    let kind = format["type"].as_str().or(format.as_str()).unwrap_or_default();
    let rate = match format.get("rate") {
        None | Some(Value::Null) => 24_000,
        Some(rate) => rate
            .as_u64()
            .and_then(|rate| u32::try_from(rate).ok())
            .filter(|rate| (8_000..=48_000).contains(rate))
            .ok_or_else(|| format!("format.rate is {rate}: expected 8000 to 48000"))?,
    };
    let (encoding, rate) = match kind {
        "audio/pcm" | "pcm16" => (Encoding::Signed16, rate),
        "audio/pcmu" | "g711_ulaw" => (Encoding::MuLaw, 8_000),
        "audio/pcma" | "g711_alaw" => (Encoding::ALaw, 8_000),
        _ => {
            return Err(format!(
                "the format is {format}: expected audio/pcm, audio/pcmu or audio/pcma"
            ));
        }
    };
    Ok(AudioChange { encoding, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_is_read_in_both_forms() {
        let now = json!({"type": "transcription", "audio": {"input": {
            "format": {"type": "audio/pcmu"},
            "transcription": {"model": "tiny", "language": "de", "prompt": "numbers"},
            "turn_detection": {"type": "server_vad", "threshold": 0.25, "silence_duration_ms": 200},
        }}});
        let beta = json!({
            "input_audio_format": "g711_ulaw",
            "input_audio_transcription": {"model": "tiny", "language": "de", "prompt": "numbers"},
            "turn_detection": {"type": "server_vad", "threshold": 0.25, "silence_duration_ms": 200},
        });
        let expected = ConfigChange {
            language: Some("de".to_owned()),
            prompt: Some("numbers".to_owned()),
            model: Some("tiny".to_owned()),
            vad: Some(true),
            vad_threshold: Some(0.25),
            min_silence_duration_ms: Some(200),
            prefix_padding_ms: Some(300),
            audio: Some(AudioChange {
                encoding: Encoding::MuLaw,
                rate: 8_000,
            }),
        };
        for session in [now, beta] {
            let mut settings = Settings::default();
            assert_eq!(settings.update(&session, false), Ok(expected.clone()));
            assert_eq!(
                settings.session()["audio"]["input"]["turn_detection"]["silence_duration_ms"],
                200
            );
        }
        let manual = json!({"audio": {"input": {"turn_detection": null, "transcription": {"model": "gpt-4o-transcribe"}}}});
        let change = Settings::default().update(&manual, true).unwrap();
        assert_eq!((change.vad, change.model.as_deref()), (Some(false), Some("")));
    }

    #[test]
    fn wrong_values_are_named_and_change_nothing() {
        for (session, problem) in [
            (json!({"type": "realtime"}), "session.type is \"realtime\""),
            (json!({"input_audio_format": "mp3"}), "the format is \"mp3\""),
            (
                json!({"turn_detection": {"type": "semantic_vad"}}),
                "turn_detection.type is \"semantic_vad\"",
            ),
            (
                json!({"turn_detection": {"silence_duration_ms": 1}}),
                "min_silence_duration_ms is out of range",
            ),
            (
                json!({"turn_detection": {"threshold": "high"}}),
                "turn_detection.threshold is \"high\"",
            ),
            (
                json!({"audio": {"input": {"transcription": {"language": 1}}}}),
                "transcription.language is 1",
            ),
        ] {
            let mut settings = Settings::default();
            let before = settings.session();
            let error = settings.update(&session, false).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
            assert_eq!(settings.session(), before);
        }
        let late = Settings::default().update(&json!({"input_audio_format": "g711_alaw"}), true);
        assert!(late.unwrap_err().contains("after the first audio"));
    }
}
