//! Generates Whisper directories of any shape, with random weights and a vocabulary. Shared with
//! the benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// The shape of a generated model. Token ids are: text, `<|endoftext|>`, `<|startoftranscript|>`,
/// languages, tasks and so on.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) width: i64,
    pub(crate) heads: i64,
    pub(crate) encoder_layers: i64,
    pub(crate) decoder_layers: i64,
    pub(crate) bins: i64,
    /// At least 256, for the bytes.
    pub(crate) text_tokens: i64,
    pub(crate) languages: Vec<&'static str>,
    pub(crate) no_speech: &'static str,
    pub(crate) kind: Kind,
    pub(crate) shards: usize,
    /// Standard deviation of the weights, in units of the one that keeps the size of activations.
    pub(crate) scale: f32,
    pub(crate) seed: u64,
}

impl Shape {
    pub(crate) fn tiny() -> Self {
        Self {
            width: 32,
            heads: 2,
            encoder_layers: 1,
            decoder_layers: 2,
            bins: 80,
            text_tokens: 300,
            languages: vec!["cy", "fo", "yi"],
            no_speech: "<|nospeech|>",
            kind: Kind::Float,
            shards: 1,
            scale: 1.0,
            seed: 1,
        }
    }

    /// The common shape of OpenAI's multilingual models before large-v3.
    #[allow(dead_code)] // for the benchmark
    pub(crate) fn published(width: i64, layers: i64) -> Self {
        Self {
            width,
            heads: width / 64,
            encoder_layers: layers,
            decoder_layers: layers,
            text_tokens: 50_257,
            languages: vec!["en"; 1],
            ..Self::tiny()
        }
    }

    pub(crate) fn vocabulary(&self) -> i64 {
        self.first_timestamp() + 1501
    }

    pub(crate) fn end_of_text(&self) -> i64 {
        self.text_tokens
    }

    pub(crate) fn first_timestamp(&self) -> i64 {
        self.control().len() as i64 + self.text_tokens
    }

    fn control(&self) -> Vec<String> {
        let before = ["<|endoftext|>", "<|startoftranscript|>"].map(str::to_owned);
        let languages = self.languages.iter().map(|code| format!("<|{code}|>"));
        let after = [
            "<|translate|>",
            "<|transcribe|>",
            "<|startoflm|>",
            "<|startofprev|>",
            self.no_speech,
            "<|notimestamps|>",
        ];
        before
            .into_iter()
            .chain(languages)
            .chain(after.map(str::to_owned))
            .collect()
    }

    fn id(&self, name: &str) -> i64 {
        self.text_tokens + self.control().iter().position(|token| token == name).unwrap() as i64
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "model_type": "whisper", "activation_function": "gelu", "num_mel_bins": self.bins,
            "vocab_size": self.vocabulary(), "d_model": self.width,
            "encoder_layers": self.encoder_layers, "encoder_attention_heads": self.heads, "encoder_ffn_dim": 4 * self.width,
            "decoder_layers": self.decoder_layers, "decoder_attention_heads": self.heads, "decoder_ffn_dim": 4 * self.width,
            "max_source_positions": 1500, "max_target_positions": 448, "num_hidden_layers": 77,
            "decoder_start_token_id": self.id("<|startoftranscript|>"), "eos_token_id": self.end_of_text(),
            "bos_token_id": self.end_of_text(), "pad_token_id": self.end_of_text(), "suppress_tokens": null,
            "begin_suppress_tokens": null,
        })
    }

    pub(crate) fn generation_config(&self) -> Value {
        let languages: BTreeMap<String, i64> = self
            .languages
            .iter()
            .map(|code| (format!("<|{code}|>"), self.id(&format!("<|{code}|>"))))
            .collect();
        json!({
            "is_multilingual": true, "lang_to_id": languages,
            "task_to_id": { "transcribe": self.id("<|transcribe|>"), "translate": self.id("<|translate|>") },
            "no_timestamps_token_id": self.id("<|notimestamps|>"), "prev_sot_token_id": self.id("<|startofprev|>"),
            "suppress_tokens": [7, 8], "begin_suppress_tokens": [32, self.end_of_text()], "max_initial_timestamp_index": 50,
            "decoder_start_token_id": self.id("<|startoftranscript|>"), "eos_token_id": self.end_of_text(),
            "bos_token_id": self.end_of_text(), "pad_token_id": self.end_of_text(),
        })
    }

    fn preprocessor_config(&self) -> Value {
        json!({
            "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": self.bins, "sampling_rate": 16000,
            "hop_length": 160, "n_fft": 400, "chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000,
            "padding_value": 0.0,
        })
    }

    fn tokenizer(&self) -> Value {
        let mut vocabulary: BTreeMap<String, i64> = BTreeMap::new();
        // The byte-level alphabet: printable bytes map to themselves, the others to characters from
        // 256 on.
        let mut substitute = 256;
        for byte in 0..=255_u32 {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let letter = if printable { byte } else { substitute };
            substitute += u32::from(!printable);
            vocabulary.insert(char::from_u32(letter).unwrap().to_string(), i64::from(byte));
        }
        for id in 256..self.text_tokens {
            vocabulary.insert(format!("Ġfiller{id}"), id);
        }
        let added = |id: i64, content: &str, special: bool| {
            json!({
                "id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": !special,
            })
        };
        let control = self.control();
        let mut tokens: Vec<Value> = control
            .iter()
            .map(|name| added(self.id(name), name, true))
            .collect();
        for step in 0..1501 {
            let name = format!("<|{:.2}|>", step as f64 * 0.02);
            tokens.push(added(self.first_timestamp() + step, &name, false));
        }
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": null,
            "pre_tokenizer": byte_level.clone(), "post_processor": null, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
            },
        })
    }

    /// Names and shapes of all tensors, in Hugging Face's terms.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let width = self.width;
        let mut all = vec![
            ("encoder.conv1.weight".to_owned(), vec![width, self.bins, 3]),
            ("encoder.conv1.bias".to_owned(), vec![width]),
            ("encoder.conv2.weight".to_owned(), vec![width, width, 3]),
            ("encoder.conv2.bias".to_owned(), vec![width]),
            ("encoder.embed_positions.weight".to_owned(), vec![1500, width]),
            (
                "decoder.embed_tokens.weight".to_owned(),
                vec![self.vocabulary(), width],
            ),
            ("decoder.embed_positions.weight".to_owned(), vec![448, width]),
        ];
        let sides = [("encoder", self.encoder_layers), ("decoder", self.decoder_layers)];
        for (side, layers) in sides {
            let mut norm = |name: String| {
                all.push((format!("{name}.weight"), vec![width]));
                all.push((format!("{name}.bias"), vec![width]));
            };
            norm(format!("{side}.layer_norm"));
            let attentions: &[&str] = if side == "encoder" {
                &["self_attn"]
            } else {
                &["self_attn", "encoder_attn"]
            };
            for layer in (0..layers).map(|index| format!("{side}.layers.{index}")) {
                norm(format!("{layer}.final_layer_norm"));
                for attention in attentions {
                    norm(format!("{layer}.{attention}_layer_norm"));
                }
            }
            for layer in (0..layers).map(|index| format!("{side}.layers.{index}")) {
                for attention in attentions {
                    for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                        all.push((format!("{layer}.{attention}.{part}.weight"), vec![width, width]));
                        if part != "k_proj" {
                            all.push((format!("{layer}.{attention}.{part}.bias"), vec![width]));
                        }
                    }
                }
                all.push((format!("{layer}.fc1.weight"), vec![4 * width, width]));
                all.push((format!("{layer}.fc1.bias"), vec![4 * width]));
                all.push((format!("{layer}.fc2.weight"), vec![width, 4 * width]));
                all.push((format!("{layer}.fc2.bias"), vec![width]));
            }
        }
        all.into_iter()
            .map(|(name, shape)| (format!("model.{name}"), shape))
            .collect()
    }

    /// Writes the whole directory.
    pub(crate) fn write(&self, dir: &Path) {
        let json = |name: &str, value: &Value| fs::write(dir.join(name), value.to_string()).unwrap();
        json("config.json", &self.config());
        json("generation_config.json", &self.generation_config());
        json("preprocessor_config.json", &self.preprocessor_config());
        json("tokenizer.json", &self.tokenizer());

        let mut random = Random(self.seed);
        let tensors: Vec<(String, Tensor)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let tensor = self.fill(&name, &shape, &mut random).to_kind(self.kind);
                (name, tensor)
            })
            .collect();
        if self.shards == 1 {
            Tensor::write_safetensors(&tensors, dir.join("model.safetensors")).unwrap();
            return;
        }
        let mut map = BTreeMap::new();
        let per_shard = tensors.len().div_ceil(self.shards);
        for (index, shard) in tensors.chunks(per_shard).enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, self.shards);
            Tensor::write_safetensors(shard, dir.join(&file)).unwrap();
            map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        }
        json(
            "model.safetensors.index.json",
            &json!({ "metadata": {}, "weight_map": map }),
        );
    }

    fn fill(&self, name: &str, shape: &[i64], random: &mut Random) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let (mean, deviation) = match () {
            () if name.ends_with("norm.weight") => (1.0, 0.1),
            () if name.ends_with("bias") => (0.0, 0.1),
            () if name.contains("embed") => (0.0, self.scale / (self.width as f32).sqrt()),
            () => {
                let inputs = shape[1..].iter().product::<i64>() as f32;
                (0.0, self.scale / inputs.sqrt())
            }
        };
        let values: Vec<f32> = (0..count).map(|_| mean + deviation * random.next()).collect();
        Tensor::from_slice(&values).reshape(shape)
    }
}

/// SplitMix64, uniform with mean 0 and variance 1: the same weights on every machine, and fast
/// enough for large models.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1_u32 << 24) as f32;
        (unit - 0.5) * 12.0_f32.sqrt()
    }
}
