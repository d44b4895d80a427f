//! Broken model directories: each is an error of one line that names the file.

use std::fs;
use std::path::Path;

use faster_whisper::{Placement, Whisper};
use serde_json::json;
use tch::{Kind, Tensor};
use tempfile::TempDir;

use crate::generated::Shape;
use crate::generated_models::edit;

const WEIGHTS: &str = "model.safetensors";

#[test]
fn missing_directory_is_named() {
    let message = Whisper::load("/nowhere/whisper".as_ref(), Placement::CPU)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "cannot read /nowhere/whisper: No such file or directory (os error 2)"
    );
}

#[test]
fn missing_file_is_named() {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
        let message = broken(|dir| fs::remove_file(dir.join(file)).unwrap());
        assert_eq!(
            message,
            format!("cannot read DIR/{file}: No such file or directory (os error 2)")
        );
    }
    let message = broken(|dir| fs::remove_file(dir.join(WEIGHTS)).unwrap());
    assert_eq!(
        message,
        "DIR: no model.safetensors and no model.safetensors.index.json: is this a Hugging Face Whisper directory?"
    );
    let message = broken(|dir| fs::rename(dir.join(WEIGHTS), dir.join("pytorch_model.bin")).unwrap());
    assert!(
        message.contains("convert pytorch_model.bin with `python3 -c"),
        "{message}"
    );
}

#[test]
fn malformed_json_is_located() {
    for file in [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ] {
        let message = broken(|dir| fs::write(dir.join(file), "{\"d_model\": ,}").unwrap());
        assert_eq!(message, format!("DIR/{file}: expected value at line 1 column 13"));
    }
    let message = broken(|dir| fs::write(dir.join("tokenizer.json"), "[]").unwrap());
    assert!(message.starts_with("DIR/tokenizer.json: "), "{message}");
}

#[test]
fn invalid_value_is_named() {
    let config = |key: &'static str, value: serde_json::Value| {
        broken(move |dir| edit(dir, "config.json", |config| config[key] = value))
    };
    let without = broken(|dir| {
        edit(dir, "config.json", |config| {
            config.as_object_mut().unwrap().remove("d_model");
        });
    });
    assert!(
        without.starts_with("DIR/config.json: missing field `d_model`"),
        "{without}"
    );
    assert_eq!(
        config("d_model", json!(0)),
        "DIR/config.json: d_model is 0: expected 1 to 16384"
    );
    assert_eq!(
        config("decoder_attention_heads", json!(7)),
        "DIR/config.json: decoder_attention_heads is 7, which does not divide d_model (32)"
    );
    assert_eq!(
        config("model_type", json!("bert")),
        "DIR/config.json: model_type is \"bert\": expected \"whisper\""
    );
    assert_eq!(
        config("num_mel_bins", json!(128)),
        "DIR/preprocessor_config.json: feature_size is 80, but num_mel_bins in config.json is 128"
    );
    assert!(config("max_source_positions", json!(750)).contains("make 3000 frames a window"));
    assert_eq!(
        config("vocab_size", json!(305)),
        "DIR/tokenizer.json: token id 310 lies outside the vocabulary of 305 in config.json"
    );
}

#[test]
fn directory_of_another_program_is_named() {
    let message = broken(|dir| {
        fs::write(dir.join("vocabulary.json"), "[]").unwrap();
        fs::write(
            dir.join("config.json"),
            r#"{"lang_ids": [5], "suppress_ids": [1]}"#,
        )
        .unwrap();
    });
    assert_eq!(
        message,
        "DIR is a CTranslate2 model, not a Hugging Face Whisper directory: name the Hugging Face directory that it was \
         converted from, for example of openai/whisper-small"
    );
    let message = broken(|dir| fs::rename(dir.join("config.json"), dir.join("adapter_config.json")).unwrap());
    assert!(
        message.starts_with("DIR is a PEFT adapter, not a Hugging Face"),
        "{message}"
    );
    let message = broken(|dir| fs::rename(dir.join("config.json"), dir.join("tiny.pt")).unwrap());
    assert!(
        message.starts_with("DIR is an OpenAI checkpoint (.pt), not a Hugging Face"),
        "{message}"
    );
}

#[test]
fn missing_control_token_is_an_error() {
    let message = broken(|dir| {
        edit(dir, "tokenizer.json", |tokenizer| {
            tokenizer["added_tokens"]
                .as_array_mut()
                .unwrap()
                .retain(|token| token["content"] != "<|notimestamps|>");
        });
        edit(dir, "generation_config.json", |config| {
            config["no_timestamps_token_id"] = json!(null)
        });
    });
    assert_eq!(
        message,
        "DIR/tokenizer.json: token \"<|notimestamps|>\" is missing, and generation_config.json does not name it either"
    );
}

#[test]
fn invalid_weights_are_described() {
    let cut = |keep: usize| {
        broken(move |dir| {
            let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            fs::write(dir.join(WEIGHTS), &bytes[..keep.min(bytes.len() - 1)]).unwrap();
        })
    };
    assert_eq!(
        cut(0),
        "DIR/model.safetensors: truncated: 0 bytes are too few for a safetensors header"
    );
    assert!(
        cut(100)
            .starts_with("DIR/model.safetensors: not a safetensors file, or truncated: its header claims")
    );
    assert!(
        cut(50_000).starts_with("DIR/model.safetensors: truncated: 50000 bytes where the header calls for")
    );
    assert!(cut(usize::MAX).starts_with("DIR/model.safetensors: truncated: "));

    let foreign = broken(|dir| fs::write(dir.join(WEIGHTS), "a Git LFS pointer or a web page").unwrap());
    assert!(
        foreign.starts_with("DIR/model.safetensors: not a safetensors file"),
        "{foreign}"
    );
    let mut header = 20_u64.to_le_bytes().to_vec();
    header.extend(*b"{\"a\": [1, 2, 3, 4]  ");
    let malformed = broken(|dir| fs::write(dir.join(WEIGHTS), header).unwrap());
    assert!(
        malformed.starts_with("DIR/model.safetensors: not a safetensors file: malformed header: "),
        "{malformed}"
    );
    let longer = broken(|dir| {
        let mut bytes = fs::read(dir.join(WEIGHTS)).unwrap();
        bytes.push(0);
        fs::write(dir.join(WEIGHTS), bytes).unwrap();
    });
    assert!(
        longer.starts_with("DIR/model.safetensors: trailing bytes"),
        "{longer}"
    );
}

#[test]
fn wrong_shape_is_named_with_the_expected_one() {
    let name = "model.decoder.layers.1.fc1.weight";
    let message = weights(|tensors| {
        for (key, tensor) in tensors.iter_mut() {
            if key == name {
                *tensor = tensor.transpose(0, 1).contiguous();
            }
        }
    });
    assert_eq!(
        message,
        "DIR/model.safetensors: tensor \"model.decoder.layers.1.fc1.weight\" has shape [32, 128], but config.json calls \
         for [128, 32]"
    );
    let message = weights(|tensors| tensors.retain(|(key, _)| key != name));
    assert_eq!(
        message,
        format!("DIR/model.safetensors: tensor \"{name}\" is missing")
    );
    let message = weights(|tensors| {
        for (key, tensor) in tensors.iter_mut() {
            if key == name {
                *tensor = tensor.to_kind(Kind::Int8);
            }
        }
    });
    assert_eq!(
        message,
        format!("DIR/model.safetensors: tensor \"{name}\" is stored as I8: expected F32, F16, BF16 or F64")
    );
}

#[test]
fn invalid_index_of_shards_is_an_error() {
    let index = "model.safetensors.index.json";
    let shape = Shape {
        shards: 2,
        ..Shape::tiny()
    };
    let name = "model.encoder.conv1.bias";
    let map = |file: &'static str| {
        broken_shape(&shape, |dir| {
            edit(dir, index, |index| index["weight_map"][name] = json!(file))
        })
    };
    let outside = map("../../etc/passwd");
    assert_eq!(
        outside,
        "DIR/model.safetensors.index.json: weight_map names \"../../etc/passwd\": expected the name of a file in the \
         same directory"
    );
    assert_eq!(
        map("model-00009-of-00002.safetensors"),
        "cannot read DIR/model-00009-of-00002.safetensors: No such file or directory (os error 2)"
    );
    let unknown = broken_shape(&shape, |dir| {
        edit(dir, index, |index| {
            index["weight_map"]["made.up"] = json!("model-00001-of-00002.safetensors")
        });
    });
    assert_eq!(
        unknown,
        "DIR/model.safetensors.index.json: tensor \"made.up\" is missing"
    );
}

/// The error of a generated model after `damage`, with `DIR` instead of its directory.
fn broken(damage: impl FnOnce(&Path)) -> String {
    broken_shape(&Shape::tiny(), damage)
}

fn broken_shape(shape: &Shape, damage: impl FnOnce(&Path)) -> String {
    let dir = TempDir::new().unwrap();
    shape.write(dir.path());
    damage(dir.path());
    let message = Whisper::load(dir.path(), Placement::CPU).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message.replace(dir.path().to_str().unwrap(), "DIR")
}

fn weights(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> String {
    broken(|dir| {
        let path = dir.join(WEIGHTS);
        let mut tensors = Tensor::read_safetensors(&path).unwrap();
        change(&mut tensors);
        Tensor::write_safetensors(&tensors, &path).unwrap();
    })
}
