//! The engine in the real runner, from an audio file to a validated transcript.

use std::fs;
use std::path::PathBuf;

use dalston_engine_sdk::models::{ModelConfig, ModelStorage};
use dalston_engine_sdk::stage::{LanguageSource, TimestampGranularity};
use dalston_engine_sdk::store::{S3Config, Store};
use dalston_engine_sdk::testing::{EngineHarness, TaskReport};
use dalston_engine_sdk::{CheckStatus, DeviceChoice, Engine, EngineConfig, LoadContext, PrecisionChoice};
use faster_whisper::{FasterWhisper, Placement};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testbed::TestS3;

use crate::generated::Shape;
use crate::goldens::transcript_texts;
use crate::support::root;

#[test]
fn cold_task_has_all_spans() {
    let report = harness("en_three.wav").run_blocking();

    let transcript = report.transcript();
    assert_eq!(transcript.text, "seven three three");
    assert_eq!(
        (transcript.language.as_str(), transcript.language_source),
        ("en", Some(LanguageSource::Detected))
    );
    assert!(transcript.language_confidence.unwrap() > 0.99);
    assert_eq!(transcript.timestamp_granularity, TimestampGranularity::Word);
    let words = transcript.segments[0].words.as_ref().unwrap();
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    assert_eq!(texts, ["seven", "three", "three"]);
    assert!(
        words.iter().all(|word| word.confidence.unwrap() > 0.5),
        "{words:?}"
    );
    assert_eq!(
        (transcript.engine_id.as_str(), transcript.duration),
        ("faster-whisper", Some(1.75))
    );
    assert_eq!(transcript.warnings, Vec::<String>::new());
    let segment = &transcript.segments[0];
    assert_eq!((segment.start, segment.end), (0.0, 1.18));
    assert_eq!(
        segment.metadata.get("tokens"),
        Some(&json!([537, 298, 321, 321, 590]))
    );
    assert_eq!(segment.metadata.get("temperature"), Some(&json!(0.0)));
    for key in ["avg_logprob", "no_speech_prob", "compression_ratio"] {
        assert!(
            segment.metadata.get(key).is_some_and(serde_json::Value::is_f64),
            "{key}"
        );
    }

    // It depends on the processor.
    let precision = Placement::auto_on_cpu().precision();
    let expected = format!(
        "
        engine.queue_wait
        engine.faster-whisper.process {{dalston.language=en}}
          engine.download_input
          engine.model_acquire
            engine.model_load
              whisper.load {{dalston.compute_type={precision}}}
          engine.process
            engine.recognize {{dalston.device=cpu, dalston.compute_type={precision}, dalston.segment_count=1}}
              whisper.features
              whisper.encode
              whisper.detect_language {{dalston.language=en}}
              whisper.decode {{whisper.tokens=5}}
              whisper.align
          engine.upload_output
        "
    );
    report.tree().assert_eq(&expected);
    assert_eq!(report.moved("dalston_engine_tasks_processed_total"), 1.0);
}

#[tokio::test]
async fn one_load_transcribes_all_recordings_as_the_reference() {
    // Includes other sampling rates, several channels and long recordings. In bfloat16, which
    // `auto` is on some processors, two words of the longest one differ.
    let config = EngineConfig::new()
        .device(DeviceChoice::Cpu)
        .precision(PrecisionChoice::Float32)
        .model("whisper-nano-digits");
    let worker = harness("en_one.wav").engine_config(config).start();
    for (index, (file, language, text)) in transcript_texts().into_iter().enumerate() {
        let task = worker
            .task()
            .input("audio", root().join("audio").join(&file))
            .config("language", language)
            .configs(greedy());
        let report = worker.run(task).await;
        assert_eq!(report.transcript().text, text, "{file}");
        let loads = report
            .spans()
            .iter()
            .filter(|span| span.name == "engine.model_load")
            .count();
        assert_eq!(loads, usize::from(index == 0), "{file}");
    }
    worker.stop().await;
}

#[test]
fn unsupported_options_are_warnings() {
    let report = harness("noise_only_6s.wav")
        .config("language", "en")
        .config("timestamp_granularity", "phoneme")
        .config("include_transcription_logprobs", true)
        .config("made_up", 1)
        .run_blocking();

    let transcript = report.transcript();
    assert_eq!((transcript.text.as_str(), transcript.segments.len()), ("", 0));
    assert_eq!(transcript.language_source, Some(LanguageSource::Requested));
    assert_eq!(
        transcript.warnings,
        [
            "config key made_up is not one of the transcribe stage and was ignored",
            "times of a phoneme are not supported: words have times",
            "log-probabilities of single tokens are not supported: segments have avg_logprob",
            "no speech was found",
        ]
    );
}

#[test]
fn voice_activity_has_a_span_and_a_metric() {
    let report = harness("en_eight.wav")
        .config("language", "en")
        .config("vad_filter", true)
        .config("vad_parameters", json!({"speech_pad_ms": 200}))
        .run_blocking();
    assert_eq!(
        report.transcript().text,
        "zero seven two eight zero four six nine"
    );
    assert_eq!(attribute(&report, "engine.vad", "whisper.speech_parts"), "1");
    assert_eq!(attribute(&report, "engine.recognize", "dalston.mode"), "vad");
    assert_eq!(report.moved("dalston_engine_vad_segment_count_sum"), 1.0);
    let report = harness("noise_only_6s.wav")
        .config("vad_filter", true)
        .run_blocking();
    assert_eq!(report.transcript().warnings, ["no speech was found"]);
    assert_eq!(report.transcript().language, "und");
}

#[test]
fn chunking_strategy_is_voice_activity_detection() {
    let parts = |strategy: Value| {
        let report = harness("en_pauses_25s.wav")
            .config("language", "en")
            .config("chunking_strategy", strategy)
            .run_blocking();
        assert_eq!(report.transcript().warnings, Vec::<String>::new());
        attribute(&report, "engine.vad", "whisper.speech_parts")
    };
    // No pause is as long as the default of 2 s.
    assert_eq!(parts(json!({"type": "auto"})), "1");
    let strategy = json!({"type": "server_vad", "silence_duration_ms": 400, "prefix_padding_ms": 100});
    assert_eq!(parts(strategy), "6");
}

#[test]
fn options_that_exclude_each_other_are_warnings() {
    let report = harness("en_one.wav")
        .config("vad_filter", false)
        .config("vad_parameters", json!({"threshold": 0.4}))
        .config("chunking_strategy", "auto")
        .config("prefix", "five")
        .config("hotwords", "seven")
        .run_blocking();
    let warnings = report.transcript().warnings;
    assert_eq!(
        warnings,
        [
            "chunking_strategy has no effect beside vad_parameters or without vad_filter",
            "vad_parameters has no effect without vad_filter",
            "hotwords has no effect with prefix",
        ]
    );
}

#[test]
fn options_of_faster_whisper_are_keys_of_a_task() {
    let report = harness("en_one.wav")
        .config("beam_size", 3)
        .config("without_timestamps", true)
        .config("initial_prompt", "one two")
        .config("max_new_tokens", 1)
        .config("temperature", json!(null))
        .run_blocking();
    let transcript = report.transcript();
    assert_eq!(transcript.warnings, Vec::<String>::new());
    assert_eq!(transcript.timestamp_granularity, TimestampGranularity::None);
    assert_eq!(attribute(&report, "engine.recognize", "dalston.beam_size"), "3");
    assert_eq!(attribute(&report, "whisper.decode", "whisper.tokens"), "1");
}

#[test]
fn task_options_reach_the_decoder() {
    let translated = harness("de_four.wav")
        .config("language", "DE")
        .config("task", "translate")
        .config("timestamp_granularity", "none")
        .run_blocking()
        .transcript();
    assert_eq!(translated.language, "de");
    assert_eq!(translated.timestamp_granularity, TimestampGranularity::None);
    assert!(
        translated.text.starts_with("five") || translated.text.contains("eight"),
        "{}",
        translated.text
    );

    let prompted = harness("en_one.wav")
        .config("language", "en")
        .config("prompt", "one two")
        .config("vocabulary", json!(["seven", "nine"]))
        .config("suppress_tokens", json!(["-1", " five"]))
        .config("temperature", json!([0.0, 0.5]))
        .config("word_timestamps", false)
        .run_blocking();
    assert!(
        !prompted.transcript().text.contains("five"),
        "{:?}",
        prompted.transcript()
    );
    let tokens: i64 = attribute(&prompted, "whisper.decode", "whisper.prompt_tokens")
        .parse()
        .unwrap();
    // <|startofprev|>, the words and the prompt come before the usual three.
    assert!(tokens > 1 + 4 + 3, "{tokens}");
}

#[test]
fn invalid_options_fail_permanently_with_a_code() {
    for (key, value, code) in [
        ("language", json!("tlh"), "unknown_language"),
        ("suppress_tokens", json!(["99999"]), "invalid_config"),
        ("temperature", json!(7), "invalid_config"),
        ("beam_size", json!(0), "invalid_config"),
        ("beam_size", json!("many"), "invalid_config"),
        ("chunk_length", json!(31), "invalid_config"),
        ("vad_parameters", json!({"threshold": 2}), "invalid_config"),
        ("vad_parameters", json!({"treshold": 0.5}), "invalid_config"),
        ("max_new_tokens", json!(446), "invalid_config"),
        ("clip_timestamps", json!([3, 1]), "invalid_config"),
        ("chunking_strategy", json!({"type": "often"}), "invalid_config"),
        ("initial_prompt", json!([99_999]), "invalid_config"),
    ] {
        let report = harness("en_one.wav").config(key, value).run_blocking();
        assert_eq!(report.error_code(), code, "{}", report.error());
    }
}

#[test]
fn broken_model_fails_its_task_and_names_the_file() {
    let dir = TempDir::new().unwrap();
    Shape::tiny().write(dir.path());
    let weights = dir.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..1000]).unwrap();

    let report = harness_with(dir.path().to_str().unwrap(), "en_one.wav").run_blocking();

    assert_eq!(report.error_code(), "invalid_model");
    assert!(
        report
            .error()
            .contains("model.safetensors: not a safetensors file, or truncated"),
        "{}",
        report.error()
    );
}

#[test]
fn openai_checkpoint_is_called_what_it_is() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("small.pt");
    fs::write(&file, "PK").unwrap();
    let report = harness_with(file.to_str().unwrap(), "en_one.wav").run_blocking();
    assert_eq!(report.error_code(), "invalid_model");
    assert!(
        report
            .error()
            .contains("small.pt is an OpenAI checkpoint (.pt), not a Hugging Face"),
        "{}",
        report.error()
    );
}

#[test]
fn missing_model_is_named() {
    let report = harness_with("/nowhere/whisper", "en_one.wav").run_blocking();
    assert_eq!(report.error_code(), "model_not_found");
    assert!(report.error().contains("/nowhere/whisper"), "{}", report.error());
}

#[tokio::test]
async fn model_is_downloaded_from_the_bucket_and_transcribes() {
    let s3 = TestS3::start();
    for file in fs::read_dir(root().join("models/whisper-nano-digits")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        s3.put(
            &format!("dalston-artifacts/models/team/digits/{name}"),
            fs::read(&path).unwrap(),
        );
    }
    s3.put("dalston-artifacts/models/team/digits/.complete", "");
    let cache = TempDir::new().unwrap();
    let mut settings = ModelConfig::default();
    settings.cache_dir = Some(cache.path().to_owned());
    let mut bucket = S3Config::default();
    bucket.endpoint = Some(s3.url());
    bucket.credentials = [
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let models = ModelStorage::new(settings, Store::s3(bucket).unwrap());

    let report = harness_with("team/digits", "en_three.wav")
        .model_storage(models)
        .run()
        .await;

    assert_eq!(report.transcript().text, "seven three three");
    report.tree().assert_eq(
        "
        engine.queue_wait
        engine.faster-whisper.process {dalston.model=team/digits}
          engine.download_input
          engine.model_acquire
            engine.model_load
              engine.model_download {dalston.model_source=s3}
              whisper.load
          engine.process
            engine.recognize
              whisper.features
              whisper.encode
              whisper.detect_language
              whisper.decode
              whisper.align
          engine.upload_output
        ",
    );
}

#[test]
fn doctor_describes_the_model_or_its_error() {
    let model = |config: EngineConfig| {
        let checks = FasterWhisper.check(&LoadContext::new(config.device(DeviceChoice::Cpu)));
        checks.into_iter().find(|check| check.name == "model").unwrap()
    };
    let config = EngineConfig::new().device(DeviceChoice::Cpu);
    let checks = FasterWhisper.check(&LoadContext::new(config));
    let precision = checks.iter().find(|check| check.name == "precision").unwrap();
    let expected = Placement::auto_on_cpu().precision();
    assert!(precision.detail.starts_with(expected), "{precision:?}");
    let shipped = model(EngineConfig::new());
    assert_eq!(shipped.status, CheckStatus::Ok);
    assert!(
        shipped.detail.ends_with(
            "whisper-nano-digits: 3 + 4 layers of width 128, 80 mel bins, 2 language(s), 4.5 MB of weights in 1 file(s)"
        ),
        "{}",
        shipped.detail
    );

    let dir = TempDir::new().unwrap();
    Shape::tiny().write(dir.path());
    crate::generated_models::edit(dir.path(), "config.json", |config| {
        config["decoder_ffn_dim"] = json!(64)
    });
    let broken = model(EngineConfig::new().model(dir.path().to_str().unwrap()));
    assert_eq!(broken.status, CheckStatus::Missing);
    assert!(
        broken.detail.contains("fc1.weight\" has shape [128, 32]"),
        "{}",
        broken.detail
    );
}

/// The configuration of the transcripts in `goldens/`.
fn greedy() -> Map<String, Value> {
    let config = json!({"beam_size": 1, "temperature": 0, "condition_on_previous_text": false, "word_timestamps": false});
    config.as_object().unwrap().clone()
}

fn attribute(report: &TaskReport, span: &str, key: &str) -> String {
    let span = report.span(span);
    let mut attributes = span.attributes.iter();
    attributes
        .find(|attribute| attribute.key.as_str() == key)
        .map(|attribute| attribute.value.to_string())
        .unwrap()
}

fn harness(file: &str) -> EngineHarness<FasterWhisper> {
    harness_with("whisper-nano-digits", file)
}

fn harness_with(model: &str, file: &str) -> EngineHarness<FasterWhisper> {
    // As in support::load.
    tch::set_num_threads(1);
    let path: PathBuf = root().join("audio").join(file);
    EngineHarness::new(FasterWhisper)
        .engine_config(EngineConfig::new().device(DeviceChoice::Cpu).model(model))
        .input("audio", path)
}
