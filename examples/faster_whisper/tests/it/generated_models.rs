//! Generated models: other ids, other bins, shards, low-precision files, old and English-only
//! directories.

use std::fs;
use std::path::Path;

use faster_whisper::{
    Error, Placement, RuleConfig, Rules, Sampling, Task, TextOrTokens, TokenChoice, Whisper,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tempfile::TempDir;

use crate::generated::Shape;
use crate::support::{distance, model_dir, reference_options, samples};

#[test]
fn bfloat16_shards_equal_a_single_file() {
    let single = Shape {
        bins: 128,
        kind: Kind::BFloat16,
        heads: 4,
        ..Shape::tiny()
    };
    let sharded = Shape {
        shards: 3,
        ..single.clone()
    };
    let wide = Shape {
        kind: Kind::Float,
        ..single.clone()
    };
    let logits = |shape: &Shape| {
        let (_dir, mut whisper) = load(shape);
        assert_eq!(whisper.config().model.num_mel_bins, 128);
        let mel = whisper.features(&samples("en_three.wav")).unwrap();
        whisper
            .window(&mel)
            .unwrap()
            .logits(&[shape.end_of_text() + 1, 65, 66, 67])
            .unwrap()
    };
    let (one, three, float) = (logits(&single), logits(&sharded), logits(&wide));
    assert_eq!(distance(&one, &three), 0.0);
    let rounding = distance(&one, &float);
    assert!(rounding > 0.0 && rounding < 0.1, "{rounding}");
}

#[test]
fn decoding_with_cache_equals_decoding_without() {
    let shape = Shape {
        seed: 5,
        ..Shape::tiny()
    };
    let (_dir, mut whisper) = load(&shape);
    let mel = whisper.features(&samples("en_eight.wav")).unwrap();
    for (timestamps, previous) in [(false, 0), (true, 0), (true, 100)] {
        let generation = whisper.config().generation.clone();
        let config = RuleConfig {
            // Without an end of text, decoding continues to the limit.
            suppress: vec![7, 8, shape.end_of_text()],
            suppress_first: generation.begin_suppress_tokens.unwrap(),
            timestamps,
            max_initial_timestamp: generation.max_initial_timestamp_index,
            ..RuleConfig::default()
        };
        let rules = Rules::new(whisper.vocabulary(), &config, whisper.placement().device).unwrap();
        let earlier: Vec<i64> = (0..previous).collect();
        let prompt = whisper
            .vocabulary()
            .prompt("fo", Task::Translate, timestamps, &earlier, 223)
            .unwrap();
        let mut window = whisper.window(&mel).unwrap();
        let sampling = Sampling::greedy(30);
        let found = window.decode(&prompt, &rules, sampling, &mut || true).unwrap();
        assert_eq!((found.ids.len(), found.ended), (30, false));

        let all = [prompt.ids.as_slice(), &found.ids].concat();
        let rows = window.logits(&all).unwrap();
        let mut sum = 0.0;
        for (step, &id) in found.ids.iter().enumerate() {
            let row = rows.narrow(0, (prompt.ids.len() + step) as i64 - 1, 1);
            let row = rules
                .apply(&row, &found.ids[..step])
                .unwrap()
                .log_softmax(-1, Kind::Double);
            let best = row.max().double_value(&[]);
            let chosen = row.double_value(&[0, id]);
            assert!(
                best - chosen < 1e-4,
                "step {step}: token {id} is not the likeliest"
            );
            sum += chosen;
        }
        assert!((found.avg_logprob - sum / 31.0).abs() < 1e-4);
    }
}

#[test]
fn model_with_128_bins_decodes_as_the_reference() {
    // Output of `Reference.transcribe` in goldens/reference.py with transformers 5.23.0 and torch
    // 2.11.0, for the directory of this shape. The smallest margin of a choice is 0.03.
    let shape = Shape {
        bins: 128,
        width: 64,
        heads: 4,
        encoder_layers: 2,
        decoder_layers: 3,
        scale: 1.6,
        seed: 11,
        ..Shape::tiny()
    };
    let (_dir, mut whisper) = load(&shape);
    let mut config = reference_options();
    config.language = Some("fo".to_owned());
    // The reference does not know where the recording ends.
    let mut recording = samples("en_eight.wav");
    recording.resize(29 * 16_000 + 2_240, 0.0);
    let found = whisper.transcribe(&recording[..], &config, &mut ()).unwrap();
    let segments: Vec<_> = found
        .segments
        .iter()
        .map(|s| (s.start, s.end, s.tokens.as_slice()))
        .collect();
    assert_eq!(
        segments,
        [
            (0.70, 11.58, &[346, 49, 890][..]),
            (13.20, 29.08, &[971, 275, 1765]),
            (29.08, 29.14, &[1765, 275, 1768]),
        ]
    );
    for segment in &found.segments {
        assert!((segment.avg_logprob - -2.27643).abs() < 1e-3, "{segment:?}");
        assert!((segment.no_speech_prob - 0.00013).abs() < 1e-4, "{segment:?}");
    }
}

#[test]
fn no_time_is_behind_the_end_of_the_recording() {
    // The untrained model places text anywhere in the window of 30 s.
    let shape = Shape {
        bins: 128,
        width: 64,
        heads: 4,
        encoder_layers: 2,
        decoder_layers: 3,
        scale: 1.6,
        seed: 11,
        ..Shape::tiny()
    };
    let (_dir, mut whisper) = load(&shape);
    let mut config = reference_options();
    config.language = Some("fo".to_owned());
    let recording = &samples("en_eight.wav")[..54_500];
    let found = whisper.transcribe(recording, &config, &mut ()).unwrap();
    let times: Vec<_> = found.segments.iter().map(|s| (s.start, s.end)).collect();
    // 3.406 s
    assert_eq!(times, [(0.70, 3.40)]);
    let warning =
        "the model wrote text for a time behind the end of the recording: 2 segment(s) were left out";
    assert_eq!(found.warnings, [warning]);
}

#[test]
fn prompt_keeps_the_last_223_tokens_of_earlier_text() {
    let (_dir, mut whisper) = load(&Shape::tiny());
    assert_eq!(
        (whisper.max_previous_tokens(), whisper.max_sampled_tokens()),
        (223, 224)
    );
    let previous: Vec<i64> = (0..300).collect();
    let prompt = whisper
        .vocabulary()
        .prompt("cy", Task::Transcribe, true, &previous, 223)
        .unwrap();
    assert_eq!(prompt.ids.len(), 1 + 223 + 3);
    assert_eq!(prompt.ids[1..224], previous[77..]);
    assert_eq!(
        (prompt.start, prompt.ids[prompt.start]),
        (224, whisper.vocabulary().start_of_transcript())
    );

    let mut config = reference_options();
    config.language = Some("cy".to_owned());
    config.initial_prompt = TextOrTokens::Text("word ".repeat(500));
    config.hotwords = Some("other ".repeat(500));
    whisper
        .transcribe(&samples("en_one.wav")[..], &config, &mut ())
        .unwrap();
}

#[test]
fn untrained_model_ends_on_every_recording() {
    for seed in 0..4 {
        let (_dir, mut whisper) = load(&extreme(seed));
        let recording = samples("en_long_75s.wav");
        let found = whisper
            .transcribe(&recording[..], &reference_options(), &mut ())
            .unwrap();
        assert!(found.windows <= 100, "{} windows for 75 s", found.windows);
        for segment in &found.segments {
            assert!(segment.start < segment.end, "{segment:?}");
            assert!(segment.avg_logprob.is_finite());
        }
    }
}

#[test]
fn decoder_has_fewer_layers_than_the_encoder() {
    // Distilled models have two, turbo has four. Their files may still name the teacher's heads.
    for (encoder_layers, decoder_layers, bins) in [(6, 2, 80), (5, 4, 128)] {
        let shape = Shape {
            encoder_layers,
            decoder_layers,
            bins,
            ..extreme(3)
        };
        let dir = TempDir::new().unwrap();
        shape.write(dir.path());
        edit(dir.path(), "config.json", |config| {
            config["num_hidden_layers"] = encoder_layers.into()
        });
        edit(dir.path(), "generation_config.json", |config| {
            config["alignment_heads"] = json!([[encoder_layers - 1, 0]])
        });
        let described = Whisper::inspect(dir.path()).unwrap();
        let layers = format!("{encoder_layers} + {decoder_layers} layers");
        assert!(described.starts_with(&layers), "{described}");
        let mut whisper = Whisper::load(dir.path(), Placement::CPU).unwrap();
        let mut options = reference_options();
        options.word_timestamps = true;
        options.without_timestamps = true;
        options.max_new_tokens = Some(12);
        options.no_speech_threshold = None;
        let control = shape.end_of_text()..shape.vocabulary();
        options.suppress_tokens = control.map(TokenChoice::Id).collect();
        let found = whisper.transcribe(&samples("en_three.wav")[..], &options, &mut ());
        let segments = found.unwrap().segments;
        let words = segments.iter().flat_map(|segment| segment.words.iter().flatten());
        assert!(words.count() > 0, "{segments:?}");
    }
}

#[test]
fn timestamps_mean_nothing_when_they_are_off() {
    for seed in 0..4 {
        // Without the rules for timestamps, this model emits many of them.
        let shape = extreme(seed);
        let (_dir, mut whisper) = load(&shape);
        let first = shape.first_timestamp();
        let mut config = reference_options();
        config.without_timestamps = true;
        let found = whisper
            .transcribe(&samples("en_eight.wav")[..], &config, &mut ())
            .unwrap();
        for segment in &found.segments {
            let pairs = segment.tokens.windows(2);
            assert!(
                pairs.into_iter().any(|pair| pair.iter().all(|&id| id >= first)),
                "{segment:?}"
            );
            assert_eq!((segment.start, segment.end), (0.0, found.duration), "{segment:?}");
        }
        assert_eq!(found.segments.len(), 1, "seed {seed}");
    }
}

#[test]
fn old_name_of_the_no_speech_token_is_known() {
    let (_dir, whisper) = load(&Shape {
        no_speech: "<|nocaptions|>",
        ..Shape::tiny()
    });
    assert_eq!(
        whisper.vocabulary().no_speech(),
        Some(whisper.vocabulary().no_timestamps() - 1)
    );
}

#[test]
fn english_only_model_detects_and_translates_nothing() {
    let shape = Shape {
        languages: vec![],
        ..Shape::tiny()
    };
    let dir = TempDir::new().unwrap();
    shape.write(dir.path());
    edit(dir.path(), "generation_config.json", |config| {
        config["is_multilingual"] = false.into();
        config
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key != "lang_to_id" && key != "task_to_id");
    });
    let mut whisper = Whisper::load(dir.path(), Placement::CPU).unwrap();
    let vocabulary = whisper.vocabulary();
    let prompt = vocabulary.prompt("en", Task::Transcribe, false, &[], 0).unwrap();
    assert_eq!(
        prompt.ids,
        [vocabulary.start_of_transcript(), vocabulary.no_timestamps()]
    );

    let found = whisper
        .transcribe(&samples("en_one.wav")[..], &reference_options(), &mut ())
        .unwrap();
    assert_eq!(
        (found.language.as_deref(), found.language_probability),
        (Some("en"), None)
    );

    let mut config = reference_options();
    config.task = Task::Translate;
    let error = whisper
        .transcribe(&samples("en_one.wav")[..], &config, &mut ())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "this model cannot translate: it only knows the language \"en\""
    );
    let mut config = reference_options();
    config.language = Some("fo".to_owned());
    let error = whisper
        .transcribe(&samples("en_one.wav")[..], &config, &mut ())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "this model does not know the language \"fo\": expected en"
    );
}

#[test]
fn ids_come_from_tokenizer_without_generation_config() {
    let shape = Shape::tiny();
    let (reference_dir, reference) = load(&shape);
    let dir = TempDir::new().unwrap();
    shape.write(dir.path());
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    edit(dir.path(), "config.json", |config| {
        config["forced_decoder_ids"] = serde_json::json!([[1, null], [2, 305], [3, 309]]);
        config["suppress_tokens"] = serde_json::json!([7, 8]);
    });
    let whisper = Whisper::load(dir.path(), Placement::CPU).unwrap();
    let ids = |whisper: &Whisper| {
        let vocabulary = whisper.vocabulary();
        let prompt = vocabulary
            .prompt("yi", Task::Translate, false, &[3], 223)
            .unwrap();
        (
            prompt,
            vocabulary.languages(),
            vocabulary.first_timestamp(),
            vocabulary.no_speech(),
        )
    };
    assert_eq!(ids(&whisper), ids(&reference));
    assert_eq!(whisper.config().generation.suppress_tokens, Some(vec![7, 8]));
    drop(reference_dir);
}

#[test]
fn languages_are_known_without_generation_config() {
    let languages = |forced: Value| {
        let dir = TempDir::new().unwrap();
        Shape::tiny().write(dir.path());
        fs::remove_file(dir.path().join("generation_config.json")).unwrap();
        edit(dir.path(), "config.json", |config| {
            config["forced_decoder_ids"] = forced
        });
        let whisper = Whisper::load(dir.path(), Placement::CPU).unwrap();
        (
            whisper.vocabulary().is_multilingual(),
            whisper.vocabulary().languages(),
        )
    };
    // Vocabularies of English-only models have the tokens of languages, too.
    let only = (false, vec!["en".to_owned()]);
    assert_eq!(languages(json!([[1, 310]])), only);
    let all = (true, ["cy", "fo", "yi"].map(str::to_owned).to_vec());
    for forced in [json!(null), json!([]), json!([[1, null], [2, 305], [3, 309]])] {
        assert_eq!(languages(forced), all);
    }
}

#[test]
fn untied_output_projection_is_used() {
    let shape = Shape::tiny();
    let (tied_dir, mut tied) = load(&shape);
    let path = tied_dir.path().join("model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    let embedding = tensors
        .iter()
        .find(|(name, _)| name.ends_with("embed_tokens.weight"))
        .unwrap();
    let doubled = &embedding.1 * 2.0;
    tensors.push(("proj_out.weight".to_owned(), doubled));
    let dir = TempDir::new().unwrap();
    shape.write(dir.path());
    Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors")).unwrap();
    edit(dir.path(), "config.json", |config| {
        config["tie_word_embeddings"] = false.into()
    });
    let mut untied = Whisper::load(dir.path(), Placement::CPU).unwrap();

    let logits = |whisper: &mut Whisper| {
        let mel = whisper.features(&samples("en_one.wav")).unwrap();
        whisper.window(&mel).unwrap().logits(&[1, 2]).unwrap()
    };
    assert!(distance(&(logits(&mut tied) * 2.0), &logits(&mut untied)) < 1e-4);
}

#[test]
fn wrong_feature_shapes_and_unknown_tokens_are_errors() {
    let (_dir, mut whisper) = load(&Shape::tiny());
    let wrong = Tensor::zeros([1, 80, 100], (Kind::Float, tch::Device::Cpu));
    assert!(
        whisper
            .window(&wrong)
            .unwrap_err()
            .to_string()
            .contains("[1, 80, 100], expected [1, 80, 3000]")
    );
    let mel = whisper.features(&[]).unwrap();
    let mut window = whisper.window(&mel).unwrap();
    for ids in [vec![], vec![-1], vec![1 << 40], vec![0; 449]] {
        assert!(
            matches!(window.logits(&ids).unwrap_err(), Error::Torch(_)),
            "{ids:?}"
        );
    }
}

/// The shipped model in a directory as other programs write it.
fn nano(change: impl FnOnce(&Path)) -> Whisper {
    let dir = TempDir::new().unwrap();
    for file in fs::read_dir(model_dir()).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    change(dir.path());
    Whisper::load(dir.path(), Placement::CPU).unwrap()
}

fn text_of(whisper: &mut Whisper, file: &str) -> (String, Option<String>) {
    let config = reference_options();
    let found = whisper.transcribe(&samples(file)[..], &config, &mut ()).unwrap();
    (found.text(), found.language)
}

#[test]
fn directories_of_other_versions_transcribe_the_same() {
    let english = (
        "zero seven two eight zero four six nine".to_owned(),
        Some("en".to_owned()),
    );
    let mut expected = nano(|_| ());
    let german = text_of(&mut expected, "de_four.wav");
    assert_eq!(text_of(&mut expected, "en_eight.wav"), english);
    assert_eq!(german.1.as_deref(), Some("de"));
    let prompt = |whisper: &Whisper| whisper.vocabulary().encode(" zero, Eins <|en|>").unwrap();

    let processor = |dir: &Path| {
        let usual = dir.join("preprocessor_config.json");
        let features: Value = serde_json::from_slice(&fs::read(&usual).unwrap()).unwrap();
        let processor =
            serde_json::json!({"feature_extractor": features, "processor_class": "WhisperProcessor"});
        fs::write(dir.join("processor_config.json"), processor.to_string()).unwrap();
        fs::remove_file(usual).unwrap();
    };
    let minimal = |dir: &Path| {
        let config = r#"{"_from_model_config": true, "eos_token_id": 512, "decoder_start_token_id": 513}"#;
        fs::write(dir.join("generation_config.json"), config).unwrap();
    };
    let heads = |dir: &Path| {
        edit(dir, "generation_config.json", |config| {
            config["alignment_heads"] = serde_json::json!([[7, 0], [3, 0], [0, 9]]);
        });
    };
    let parts = |dir: &Path| {
        let path = dir.join("tokenizer.json");
        let tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let added = tokenizer["added_tokens"].as_array().unwrap().iter();
        let added = added.map(|token| (token["content"].as_str().unwrap().to_owned(), token["id"].clone()));
        let added: serde_json::Map<_, _> = added.collect();
        fs::write(dir.join("added_tokens.json"), Value::from(added).to_string()).unwrap();
        fs::remove_file(path).unwrap();
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 4] = [
        ("processor_config.json", &processor),
        ("minimal generation_config.json", &minimal),
        ("foreign alignment heads", &heads),
        ("vocab.json", &parts),
    ];
    for (name, change) in changes {
        let mut whisper = nano(change);
        assert_eq!(text_of(&mut whisper, "en_eight.wav"), english, "{name}");
        assert_eq!(text_of(&mut whisper, "de_four.wav"), german, "{name}");
        assert_eq!(whisper.vocabulary().languages(), ["de", "en"], "{name}");
        assert_eq!(prompt(&whisper), prompt(&expected), "{name}");
        if name == "foreign alignment heads" {
            let kept = whisper.config().generation.alignment_heads.clone();
            assert_eq!(kept, Some(vec![(3, 0)]));
        }
    }
}

/// An untrained model. Its large weights produce extreme logits.
pub(crate) fn extreme(seed: u64) -> Shape {
    Shape {
        seed,
        scale: 2.0,
        ..Shape::tiny()
    }
}

pub(crate) fn load(shape: &Shape) -> (TempDir, Whisper) {
    let dir = TempDir::new().unwrap();
    shape.write(dir.path());
    let whisper = Whisper::load(dir.path(), Placement::CPU).unwrap();
    (dir, whisper)
}

pub(crate) fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}
