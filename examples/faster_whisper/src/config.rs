//! The JSON files of a model directory, checked against each other before any weight is read.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::LoadError;

/// The JSON files of a model directory, except the tokenizer.
#[derive(Debug, Clone)]
pub struct Config {
    /// `config.json`: the network's shape.
    pub model: ModelConfig,
    /// `generation_config.json`: token ids and decoding defaults.
    pub generation: GenerationConfig,
    /// `preprocessor_config.json` or `processor_config.json`: how samples become features.
    pub features: FeatureConfig,
}

/// The part of `config.json` that shapes the network.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelConfig {
    /// `"whisper"`, if present.
    model_type: Option<String>,
    /// `"gelu"`, if present: Whisper uses exact GELU only.
    activation_function: Option<String>,
    /// Bins of the log-mel features: 80, or 128 since large-v3.
    pub num_mel_bins: i64,
    /// Number of tokens of the output projection.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// Layers of the encoder (`num_hidden_layers` is an alias of this one and not read).
    pub encoder_layers: i64,
    /// Heads per attention of the encoder.
    pub encoder_attention_heads: i64,
    /// Width of the encoder's feed-forward layers.
    pub encoder_ffn_dim: i64,
    /// Layers of the decoder.
    pub decoder_layers: i64,
    /// Heads per attention of the decoder.
    pub decoder_attention_heads: i64,
    /// Width of the decoder's feed-forward layers.
    pub decoder_ffn_dim: i64,
    /// Positions of the encoder: half the frames of a window.
    pub max_source_positions: i64,
    /// Positions of the decoder, prompt included.
    pub max_target_positions: i64,
    /// Whether the output projection is the token embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// First token of every prompt.
    pub decoder_start_token_id: Option<i64>,
    /// Used if `generation_config.json` lacks the key.
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
    forced_decoder_ids: Option<Vec<serde_json::Value>>,
}

/// The keys of `generation_config.json` that decoding needs. Old directories lack some keys or the
/// whole file; the [vocabulary](crate::Vocabulary) then uses the tokenizer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Whether prompts carry a language and a task.
    pub is_multilingual: Option<bool>,
    /// Language tokens, as `<|en|>`, and their ids.
    pub lang_to_id: Option<std::collections::BTreeMap<String, i64>>,
    /// Task tokens (`transcribe`, `translate`) and their ids.
    pub task_to_id: Option<std::collections::BTreeMap<String, i64>>,
    /// The token that switches timestamps off. The id of the first timestamp follows it.
    pub no_timestamps_token_id: Option<i64>,
    /// The token that introduces text from before the window.
    pub prev_sot_token_id: Option<i64>,
    /// End of text.
    pub eos_token_id: Option<OneOrMany>,
    /// Tokens that are never sampled.
    pub suppress_tokens: Option<Vec<i64>>,
    /// Tokens that are never sampled first.
    pub begin_suppress_tokens: Option<Vec<i64>>,
    /// The latest first timestamp, in steps. Absent: no limit.
    pub max_initial_timestamp_index: Option<i64>,
    /// Decoder layer and head of the cross-attention heads that align text with speech. Heads that
    /// the decoder does not have are left out: distilled models keep those of their teacher.
    pub alignment_heads: Option<Vec<(i64, i64)>>,
}

/// A token id, or a list of ids: published models use both.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One id.
    One(i64),
    /// Several; the first one counts.
    Many(Vec<i64>),
}

impl OneOrMany {
    /// The first id.
    #[must_use]
    pub fn first(&self) -> Option<i64> {
        match self {
            Self::One(id) => Some(*id),
            Self::Many(ids) => ids.first().copied(),
        }
    }
}

/// `preprocessor_config.json`, or its part of `processor_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct FeatureConfig {
    /// Mel bins.
    pub feature_size: i64,
    /// Samples per second that the model was trained on.
    pub sampling_rate: i64,
    /// Samples from one frame to the next.
    pub hop_length: i64,
    /// Samples per Fourier transform.
    pub n_fft: i64,
    /// Seconds per window.
    pub chunk_length: i64,
}

impl FeatureConfig {
    /// Samples per window.
    #[must_use]
    pub fn window_samples(&self) -> usize {
        (self.chunk_length * self.sampling_rate) as usize
    }

    /// Frames per second.
    #[must_use]
    pub fn frames_per_second(&self) -> f64 {
        self.sampling_rate as f64 / self.hop_length as f64
    }

    /// Frames per window.
    #[must_use]
    pub fn window_frames(&self) -> usize {
        (self.chunk_length * self.sampling_rate / self.hop_length) as usize
    }
}

impl Config {
    /// Reads and checks the JSON files of `dir`.
    ///
    /// # Errors
    /// A file is missing or malformed, lacks a key, or the files contradict each other.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        // Without this, a missing directory would be reported as a missing config.json.
        fs::read_dir(dir).map_err(|source| LoadError::Read {
            path: dir.to_owned(),
            source,
        })?;
        let model_path = dir.join("config.json");
        let features_path = features_path(dir);
        let generation_path = dir.join("generation_config.json");

        if let Some(error) = foreign(dir) {
            return Err(error);
        }
        let model: ModelConfig = read_json(&model_path)?;
        model.check().map_err(|problem| LoadError::Invalid {
            path: model_path,
            problem,
        })?;
        let features = if features_path.ends_with(PROCESSOR) {
            read_json::<Processor>(&features_path)?.feature_extractor
        } else {
            read_json::<FeatureConfig>(&features_path)?
        };
        features.check(&model).map_err(|problem| LoadError::Invalid {
            path: features_path,
            problem,
        })?;
        let mut generation: GenerationConfig = if generation_path.exists() {
            read_json(&generation_path)?
        } else {
            GenerationConfig::default()
        };
        generation.inherit(&model);
        generation.check().map_err(|problem| LoadError::Invalid {
            path: generation_path,
            problem,
        })?;
        Ok(Self {
            model,
            generation,
            features,
        })
    }

    /// Seconds from one timestamp token to the next: 0.02 in every published model.
    #[must_use]
    pub fn timestamp_step(&self) -> f64 {
        self.features.chunk_length as f64 / self.model.max_source_positions as f64
    }
}

impl ModelConfig {
    fn check(&self) -> Result<(), String> {
        if let Some(other) = self.model_type.as_deref().filter(|&kind| kind != "whisper") {
            return Err(format!("model_type is {other:?}: expected \"whisper\""));
        }
        if let Some(other) = self.activation_function.as_deref().filter(|&name| name != "gelu") {
            return Err(format!("activation_function is {other:?}: expected \"gelu\""));
        }
        // The upper limits are far above any published model. They stop a corrupt file from causing
        // an allocation of terabytes.
        for (key, value, max) in [
            ("num_mel_bins", self.num_mel_bins, 1 << 10),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("d_model", self.d_model, 1 << 14),
            ("encoder_layers", self.encoder_layers, 1 << 10),
            ("encoder_attention_heads", self.encoder_attention_heads, 1 << 10),
            ("encoder_ffn_dim", self.encoder_ffn_dim, 1 << 17),
            ("decoder_layers", self.decoder_layers, 1 << 10),
            ("decoder_attention_heads", self.decoder_attention_heads, 1 << 10),
            ("decoder_ffn_dim", self.decoder_ffn_dim, 1 << 17),
            ("max_source_positions", self.max_source_positions, 1 << 16),
            ("max_target_positions", self.max_target_positions, 1 << 16),
        ] {
            if !(1..=max).contains(&value) {
                return Err(format!("{key} is {value}: expected 1 to {max}"));
            }
        }
        if self.max_target_positions < 16 {
            return Err(format!(
                "max_target_positions is {}: expected at least 16",
                self.max_target_positions
            ));
        }
        for (key, heads) in [
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("decoder_attention_heads", self.decoder_attention_heads),
        ] {
            if self.d_model % heads != 0 {
                return Err(format!(
                    "{key} is {heads}, which does not divide d_model ({})",
                    self.d_model
                ));
            }
        }
        Ok(())
    }
}

impl FeatureConfig {
    fn check(&self, model: &ModelConfig) -> Result<(), String> {
        for (key, value, max) in [
            ("feature_size", self.feature_size, 1 << 10),
            ("sampling_rate", self.sampling_rate, 1 << 20),
            ("hop_length", self.hop_length, 1 << 16),
            ("n_fft", self.n_fft, 1 << 16),
            ("chunk_length", self.chunk_length, 1 << 10),
        ] {
            if !(1..=max).contains(&value) {
                return Err(format!("{key} is {value}: expected 1 to {max}"));
            }
        }
        if self.feature_size != model.num_mel_bins {
            return Err(format!(
                "feature_size is {}, but num_mel_bins in config.json is {}",
                self.feature_size, model.num_mel_bins
            ));
        }
        let frames = self.window_frames() as i64;
        if frames != 2 * model.max_source_positions {
            return Err(format!(
                "chunk_length, sampling_rate and hop_length make {frames} frames a window, but max_source_positions in \
                 config.json ({}) calls for {}",
                model.max_source_positions,
                2 * model.max_source_positions
            ));
        }
        if self.n_fft >= 2 * self.chunk_length * self.sampling_rate {
            return Err(format!("n_fft is {}: longer than the window", self.n_fft));
        }
        Ok(())
    }
}

impl GenerationConfig {
    /// Older directories have these keys in config.json.
    fn inherit(&mut self, model: &ModelConfig) {
        if self.suppress_tokens.is_none() {
            self.suppress_tokens.clone_from(&model.suppress_tokens);
        }
        if self.begin_suppress_tokens.is_none() {
            self.begin_suppress_tokens
                .clone_from(&model.begin_suppress_tokens);
        }
        if let Some(heads) = &mut self.alignment_heads {
            heads.retain(|(layer, head)| {
                (0..model.decoder_layers).contains(layer) && (0..model.decoder_attention_heads).contains(head)
            });
        }
        if self.is_multilingual.is_none() && self.lang_to_id.is_none() {
            // Multilingual models force language, task and timestamps; English-only ones only
            // timestamps. An empty list says nothing.
            let forced = model.forced_decoder_ids.as_ref().map(Vec::len);
            self.is_multilingual = forced.filter(|&count| count > 0).map(|count| count > 1);
        }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(index) = self.max_initial_timestamp_index.filter(|&index| index < 0) {
            return Err(format!(
                "max_initial_timestamp_index is {index}: expected 0 or more"
            ));
        }
        Ok(())
    }
}

/// Transformers 5 writes this file in place of `preprocessor_config.json`.
#[derive(Deserialize)]
struct Processor {
    feature_extractor: FeatureConfig,
}

const PROCESSOR: &str = "processor_config.json";

/// The file with the configuration of the features.
pub(crate) fn features_path(dir: &Path) -> PathBuf {
    let (usual, processor) = (dir.join("preprocessor_config.json"), dir.join(PROCESSOR));
    if !usual.exists() && processor.exists() {
        processor
    } else {
        usual
    }
}

/// Whether a path names a checkpoint of OpenAI's program, for example `small.pt`.
pub(crate) fn is_openai(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pt") && path.is_file()
}

/// The error for a checkpoint of OpenAI's program, or for its directory.
pub(crate) fn openai(path: &Path) -> LoadError {
    LoadError::Foreign {
        path: path.to_owned(),
        kind: "an OpenAI checkpoint (.pt)",
        advice: "use the Hugging Face directory of the same model, for example of openai/whisper-small",
    }
}

/// The error for a directory of another program.
fn foreign(dir: &Path) -> Option<LoadError> {
    #[derive(Deserialize)]
    struct Keys {
        d_model: Option<i64>,
        model_type: Option<String>,
        suppress_ids: Option<serde_json::Value>,
    }
    let has = |name: &str| dir.join(name).exists();
    if has("config.json") {
        let config: Keys = read_json(&dir.join("config.json")).ok()?;
        let is_other = config.d_model.is_none() && config.model_type.is_none();
        let is_converted = has("vocabulary.json") || has("vocabulary.txt") || config.suppress_ids.is_some();
        return (is_other && is_converted).then(|| LoadError::Foreign {
            path: dir.to_owned(),
            kind: "a CTranslate2 model",
            advice: "name the Hugging Face directory that it was converted from, for example of openai/whisper-small",
        });
    }
    if has("adapter_config.json") {
        return Some(LoadError::Foreign {
            path: dir.to_owned(),
            kind: "a PEFT adapter",
            advice: "merge it into its base model and save that as a Hugging Face directory",
        });
    }
    let mut files = fs::read_dir(dir).ok()?.flatten();
    files.any(|file| is_openai(&file.path())).then(|| openai(dir))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: PathBuf::from(path),
        source,
    })?;
    serde_json::from_str(&text).map_err(|source| LoadError::Json {
        path: PathBuf::from(path),
        source,
    })
}

fn yes() -> bool {
    true
}
