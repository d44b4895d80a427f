//! `describe --engine-yaml` and `--model-yaml`: the files that the platform reads about an engine.
//!
//! Section 5 of the protocol. The first file becomes an entry of the platform's catalog, the second
//! a row of its model registry.

use std::fmt::Write;

use crate::engine::EngineInfo;
use crate::stage::Stage;

const SCHEMA_VERSION: &str = "1.1";

/// The `engine.yaml` of an engine. What the schema of the platform would refuse is in comments at
/// its top.
pub(super) fn engine_yaml(info: &EngineInfo) -> String {
    let stage = info.stages.first().map_or("", Stage::as_str);
    let description = format!(
        "{} {}, an engine built with dalston-engine-sdk {}",
        info.id,
        info.version,
        env!("CARGO_PKG_VERSION")
    );
    let mut yaml = Yaml::default();
    for problem in problems(info) {
        yaml.comment(&problem);
    }
    yaml.text("schema_version", SCHEMA_VERSION);
    yaml.text("id", &info.id);
    yaml.text("engine_id", &info.id);
    yaml.text("stage", stage);
    yaml.text("name", &info.id);
    yaml.text("version", &info.version);
    yaml.text("description", &description);
    yaml.text("execution_profile", "container");
    yaml.group("container");
    yaml.text("  gpu", gpu(info));
    yaml.text("  memory", &format!("{}G", info.memory_gib.unwrap_or(MEMORY_GIB)));
    if info.default_model.is_some() {
        yaml.text("  model_cache", "/models");
    }
    yaml.group("capabilities");
    match &info.languages {
        Some(languages) => yaml.texts("  languages", languages),
        None => yaml.texts("  languages", &["all"]),
    }
    yaml.value("  native_streaming", info.streams_natively());
    yaml.value("  word_timestamps", info.word_timestamps);
    yaml.value("  includes_diarization", info.includes_diarization);
    yaml.value("  language_forcing", info.language_forcing);
    #[cfg(feature = "audio")]
    if let Some(format) = info.audio {
        yaml.group("input");
        yaml.texts("  audio_formats", &["wav"]);
        yaml.value("  sample_rate", format.sample_rate);
        yaml.value("  channels", format.channels);
    }
    yaml.hardware_and_performance(info);
    yaml.0
}

/// The row of a model in the platform's registry.
pub(super) fn model_yaml(info: &EngineInfo, model: &str) -> String {
    let stage = info.stages.first().map_or("", Stage::as_str);
    let mut yaml = Yaml::default();
    if model.starts_with(['/', '.']) {
        yaml.comment("the id is a directory: the platform expects a name, such as openai/whisper-tiny");
    }
    yaml.text("schema_version", SCHEMA_VERSION);
    yaml.text("id", model);
    yaml.text("engine_id", &info.id);
    yaml.text("loaded_model_id", model);
    yaml.text("name", model);
    // The platform downloads the repository `source` of the Hugging Face hub, and tasks name it.
    match is_repository(model) {
        true => yaml.text("source", model),
        false => yaml.value("source", "null"),
    }
    yaml.text("stage", stage);
    match &info.languages {
        Some(languages) => yaml.texts("languages", languages),
        None => yaml.value("languages", "null"),
    }
    yaml.group("capabilities");
    yaml.value("  native_streaming", info.streams_natively());
    yaml.value("  word_timestamps", info.word_timestamps);
    yaml.hardware_and_performance(info);
    yaml.0
}

/// The schema demands a value. An engine that declares none gets this one, and a comment.
const MEMORY_GIB: u32 = 2;

fn gpu(info: &EngineInfo) -> &'static str {
    if info.gpu_required || !info.supports_cpu {
        "required"
    } else if info.gpu_memory_mib.is_some() || info.realtime_factor_gpu.is_some() {
        "optional"
    } else {
        "none"
    }
}

/// What the schema of the platform would refuse, and what the file leaves out.
fn problems(info: &EngineInfo) -> Vec<String> {
    let mut problems = Vec::new();
    if !is_id(&info.id) {
        problems.push(format!(
            "id is {:?}: the platform expects 2 to 64 of a-z, 0-9, . and -, a letter first and no . or - last",
            info.id
        ));
    }
    if !is_version(&info.version) {
        let version = &info.version;
        problems.push(format!(
            "version is {version:?}: the platform expects three numbers, such as 1.4.0"
        ));
    }
    match info.stages.as_slice() {
        [] => problems.push("the engine has no stage: add one with EngineInfo::stage".to_owned()),
        [Stage::Other(_), ..] => problems.push(format!(
            "stage is {}: the platform expects one of prepare, transcribe, align, diarize, pii_detect, audio_redact",
            info.stages[0]
        )),
        _ => {}
    }
    if info.stages.len() > 1 {
        problems.push("the platform reads one stage of an engine: the others are left out".to_owned());
    }
    if info.memory_gib.is_none() {
        problems.push("container.memory is a guess: set EngineInfo::memory_gib".to_owned());
    }
    problems
}

fn is_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (2..=64).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| plain(byte) || matches!(byte, b'.' | b'-'))
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(plain)
}

/// Three numbers, and perhaps one word after a dash.
fn is_version(version: &str) -> bool {
    let (numbers, word) = version.split_once('-').unwrap_or((version, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.split('.').count() == 3
        && numbers.split('.').all(is_number)
        && !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether a model is named like a repository of the Hugging Face hub: `openai/whisper-tiny`.
fn is_repository(model: &str) -> bool {
    let mut parts = model.split('/');
    let is_part = |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && !part.starts_with('.'));
    is_part(parts.next()) && is_part(parts.next()) && parts.next().is_none()
}

/// YAML in the form of lines `key: value`. Keys of a group begin with two spaces.
#[derive(Debug, Default)]
struct Yaml(String);

impl Yaml {
    fn comment(&mut self, text: &str) {
        self.line(format_args!("# {text}"));
    }

    fn group(&mut self, key: &str) {
        self.line(format_args!("{key}:"));
    }

    /// A number, `true`, `false` or `null`.
    fn value(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(format_args!("{key}: {value}"));
    }

    fn optional(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        match value {
            Some(value) => self.value(key, value),
            None => self.value(key, "null"),
        }
    }

    fn text(&mut self, key: &str, text: &str) {
        self.value(key, quoted(text));
    }

    fn texts(&mut self, key: &str, texts: &[impl AsRef<str>]) {
        let texts: Vec<_> = texts.iter().map(|text| quoted(text.as_ref())).collect();
        self.line(format_args!("{key}: [{}]", texts.join(", ")));
    }

    /// What both files have in the same form.
    fn hardware_and_performance(&mut self, info: &EngineInfo) {
        let finite = |factor: Option<f64>| factor.filter(|factor| factor.is_finite());
        self.group("hardware");
        if let Some(mib) = info.gpu_memory_mib {
            self.value("  min_vram_gb", mib.div_ceil(1024));
        }
        self.value("  supports_cpu", info.supports_cpu);
        if let Some(gib) = info.memory_gib {
            self.value("  min_ram_gb", gib);
        }
        self.group("performance");
        self.optional("  rtf_gpu", finite(info.realtime_factor_gpu));
        self.optional("  rtf_cpu", finite(info.realtime_factor_cpu));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// A YAML string in double quotes, with escapes for what YAML does not allow there.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            other => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(other));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asr() -> EngineInfo {
        EngineInfo::new("my-asr", "1.4.0")
            .stage(Stage::Transcribe)
            .default_model("openai/whisper-tiny")
            .languages(["en", "de"])
            .word_timestamps(true)
            .gpu_memory_mib(2500)
            .memory_gib(4)
            .realtime_factor_cpu(0.25)
    }

    #[test]
    fn engine_yaml_has_the_keys_of_the_platform() {
        let expected = format!(
            r#"schema_version: "1.1"
id: "my-asr"
engine_id: "my-asr"
stage: "transcribe"
name: "my-asr"
version: "1.4.0"
description: "my-asr 1.4.0, an engine built with dalston-engine-sdk {}"
execution_profile: "container"
container:
  gpu: "optional"
  memory: "4G"
  model_cache: "/models"
capabilities:
  languages: ["en", "de"]
  native_streaming: false
  word_timestamps: true
  includes_diarization: false
  language_forcing: true
hardware:
  min_vram_gb: 3
  supports_cpu: true
  min_ram_gb: 4
performance:
  rtf_gpu: null
  rtf_cpu: 0.25
"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(engine_yaml(&asr()), expected);
    }

    #[test]
    fn model_yaml_is_a_row_of_the_registry() {
        let expected = r#"schema_version: "1.1"
id: "openai/whisper-tiny"
engine_id: "my-asr"
loaded_model_id: "openai/whisper-tiny"
name: "openai/whisper-tiny"
source: "openai/whisper-tiny"
stage: "transcribe"
languages: ["en", "de"]
capabilities:
  native_streaming: false
  word_timestamps: true
hardware:
  min_vram_gb: 3
  supports_cpu: true
  min_ram_gb: 4
performance:
  rtf_gpu: null
  rtf_cpu: 0.25
"#;
        assert_eq!(model_yaml(&asr(), "openai/whisper-tiny"), expected);
        let named = model_yaml(&asr(), "tiny");
        assert!(named.contains("\nsource: null\n"), "{named}");
        let directory = model_yaml(&asr(), "./models/tiny");
        assert!(directory.starts_with("# the id is a directory"), "{directory}");
        assert!(directory.contains("\nsource: null\n"), "{directory}");
    }

    #[cfg(feature = "audio")]
    #[test]
    fn engine_yaml_has_the_audio_format() {
        let yaml = engine_yaml(&asr().audio(crate::audio::AudioFormat::MONO_16K));
        let expected = "input:\n  audio_formats: [\"wav\"]\n  sample_rate: 16000\n  channels: 1\n";
        assert!(yaml.contains(expected), "{yaml}");
    }

    #[test]
    fn gpu_follows_what_the_engine_needs() {
        let info = |change: fn(EngineInfo) -> EngineInfo| change(EngineInfo::new("my-asr", "1.4.0"));
        assert_eq!(gpu(&info(|info| info)), "none");
        assert_eq!(gpu(&info(|info| info.realtime_factor_gpu(0.02))), "optional");
        assert_eq!(gpu(&info(|info| info.gpu_required(true))), "required");
        assert_eq!(gpu(&info(|info| info.supports_cpu(false))), "required");
    }

    #[test]
    fn refused_values_are_named_in_comments() {
        assert_eq!(problems(&asr()), [] as [&str; 0]);
        let odd = EngineInfo::new("my_asr", "1.0")
            .stage(Stage::other("count").unwrap())
            .stage(Stage::Align);
        let yaml = engine_yaml(&odd);
        let comments: Vec<_> = yaml.lines().take_while(|line| line.starts_with("# ")).collect();
        assert_eq!(
            comments,
            [
                r#"# id is "my_asr": the platform expects 2 to 64 of a-z, 0-9, . and -, a letter first and no . or - last"#,
                r#"# version is "1.0": the platform expects three numbers, such as 1.4.0"#,
                "# stage is count: the platform expects one of prepare, transcribe, align, diarize, pii_detect, audio_redact",
                "# the platform reads one stage of an engine: the others are left out",
                "# container.memory is a guess: set EngineInfo::memory_gib",
            ]
        );
        for (version, accepted) in [
            ("1.4.0-rc1", true),
            ("1.4.0-rc.1", false),
            ("1.4", false),
            ("1.4.0.1", false),
            ("1.4.x", false),
            ("1.4.0-", false),
        ] {
            assert_eq!(is_version(version), accepted, "{version}");
        }
        for (id, accepted) in [
            ("a", false),
            ("a1", true),
            ("a.b-c", true),
            ("1a", false),
            ("ab-", false),
        ] {
            assert_eq!(is_id(id), accepted, "{id}");
        }
    }

    #[test]
    fn quotes_and_control_characters_are_escaped() {
        assert_eq!(
            quoted("a\"b\\c\n\u{85}é: #"),
            r#""a\"b\\c\U0000000A\U00000085\U000000E9: #""#
        );
    }
}
