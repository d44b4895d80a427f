//! The engine in the real runner, from an audio file to a validated transcript.

use std::fs;
use std::path::PathBuf;

use dalston_engine_sdk::models::{ModelConfig, ModelStorage};
use dalston_engine_sdk::stage::{LanguageSource, TimestampGranularity};
use dalston_engine_sdk::store::{S3Config, Store};
use dalston_engine_sdk::testing::EngineHarness;
use dalston_engine_sdk::{CheckStatus, DeviceChoice, Engine, EngineConfig, LoadContext};
use faster_whisper::FasterWhisper;
use serde_json::json;
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
    assert_eq!(transcript.timestamp_granularity, TimestampGranularity::Segment);
    assert_eq!(
        (transcript.engine_id.as_str(), transcript.duration),
        ("faster-whisper", Some(1.75))
    );
    assert_eq!(transcript.warnings, Vec::<String>::new());
    let segment = &transcript.segments[0];
    assert_eq!((segment.start, segment.end), (0.0, 1.36));
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

    report.tree().assert_eq(
        "
        engine.queue_wait
        engine.faster-whisper.process {dalston.language=en}
          engine.download_input
          engine.model_acquire
            engine.model_load
          engine.process
            engine.recognize {dalston.device=cpu, dalston.compute_type=float32, dalston.segment_count=1}
              whisper.features
              whisper.encode
              whisper.detect_language {dalston.language=en}
              whisper.decode {whisper.tokens=5}
          engine.upload_output
        ",
    );
    assert_eq!(report.moved("dalston_engine_tasks_processed_total"), 1.0);
}

#[tokio::test]
async fn one_load_transcribes_all_recordings_as_the_reference() {
    // Includes other sampling rates, several channels and long recordings.
    let worker = harness("en_one.wav").start();
    for (index, (file, language, text)) in transcript_texts().into_iter().enumerate() {
        let task = worker
            .task()
            .input("audio", root().join("audio").join(&file))
            .config("language", language);
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
        .config("beam_size", 4)
        .config("word_timestamps", true)
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
            "beam search is not supported: decoded greedily instead of with beam_size 4",
            "word timestamps are not supported: only segments have times",
            "log-probabilities of single tokens are not supported: segments have avg_logprob",
            "no speech was found",
        ]
    );
}

#[tokio::test]
async fn default_beam_size_is_logged_once_without_warning() {
    let worker = harness("noise_only_6s.wav").start();
    for _ in 0..2 {
        let task = worker
            .task()
            .input("audio", root().join("audio/noise_only_6s.wav"));
        let report = worker
            .run(task.config("language", "en").config("beam_size", 5))
            .await;
        assert_eq!(report.transcript().warnings, ["no speech was found"]);
    }
    let lines = worker.telemetry().logs();
    let logged = lines
        .iter()
        .filter(|line| line.event() == "beam_search_not_supported");
    assert_eq!(logged.map(|line| line.level()).collect::<Vec<_>>(), ["warning"]);
    worker.stop().await;
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
        .run_blocking();
    assert!(
        !prompted.transcript().text.contains("five"),
        "{:?}",
        prompted.transcript()
    );
    let decode = prompted.span("whisper.decode");
    let tokens = decode
        .attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == "whisper.prompt_tokens");
    let tokens: i64 = tokens.unwrap().value.to_string().parse().unwrap();
    // <|startofprev|>, the words and the prompt come before the usual three.
    assert!(tokens > 1 + 4 + 3, "{tokens}");
}

#[test]
fn invalid_options_fail_permanently_with_a_code() {
    for (key, value, code) in [
        ("language", json!("tlh"), "unknown_language"),
        ("suppress_tokens", json!(["99999"]), "invalid_config"),
        ("temperature", json!(7), "invalid_config"),
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
          engine.process
            engine.recognize
              whisper.features
              whisper.encode
              whisper.detect_language
              whisper.decode
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
