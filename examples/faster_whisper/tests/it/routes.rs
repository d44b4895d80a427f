//! The HTTP routes of a worker and the command line, with the options of faster-whisper.

use std::process::Stdio;

use faster_whisper::Options;
use serde_json::Value;
use testbed::free_port;
use tokio::process::Command;

use crate::support::root;
use crate::worker::Worker;

const PLATFORM: &str = "v1/transcribe";
const OPENAI: &str = "v1/audio/transcriptions";
const TRANSLATIONS: &str = "v1/audio/translations";

/// An accepted value of each option.
const VALUES: [(&str, &str); 36] = [
    ("language", "en"),
    ("task", "transcribe"),
    ("beam_size", "2"),
    ("best_of", "2"),
    ("patience", "1.5"),
    ("length_penalty", "0.5"),
    ("repetition_penalty", "1.1"),
    ("no_repeat_ngram_size", "3"),
    ("temperature", "0"),
    ("compression_ratio_threshold", "2"),
    ("log_prob_threshold", "-2"),
    ("no_speech_threshold", "null"),
    ("condition_on_previous_text", "false"),
    ("prompt_reset_on_temperature", "0.4"),
    ("initial_prompt", "one two"),
    ("prefix", "five"),
    ("suppress_blank", "false"),
    ("suppress_tokens", "-1"),
    ("without_timestamps", "false"),
    ("max_initial_timestamp", "2"),
    ("word_timestamps", "true"),
    ("prepend_punctuations", "("),
    ("append_punctuations", ")"),
    ("multilingual", "true"),
    ("vad_filter", "true"),
    ("vad_parameters", r#"{"threshold": 0.4}"#),
    ("max_new_tokens", "20"),
    ("chunk_length", "20"),
    ("batch_size", "null"),
    ("clip_timestamps", "0"),
    ("hallucination_silence_threshold", "1"),
    ("hotwords", "nine"),
    ("language_detection_threshold", "0.7"),
    ("language_detection_segments", "2"),
    ("seed", "7"),
    ("chunking_strategy", "null"),
];

/// A worker with its HTTP routes.
struct Routes {
    port: u16,
    _worker: Worker,
}

impl Routes {
    async fn start() -> Self {
        let port = free_port();
        let worker = Worker::start(&[("DALSTON_METRICS_PORT", &port.to_string())]).await;
        Self {
            port,
            _worker: worker,
        }
    }

    /// The head and the body of the response for a recording.
    async fn post(&self, route: &str, file: &str, fields: &[(&str, &str)]) -> (String, String) {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "300",
            "--form",
        ]);
        command.arg(format!("file=@{}", root().join("audio").join(file).display()));
        for (name, value) in fields {
            command.arg("--form-string").arg(format!("{name}={value}"));
        }
        command.arg(format!("http://127.0.0.1:{}/{route}", self.port));
        let output = command.stderr(Stdio::inherit()).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.rsplit_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn json(&self, route: &str, file: &str, fields: &[(&str, &str)]) -> Value {
        let (head, body) = self.post(route, file, fields).await;
        assert!(head.contains(" 200 ok"), "{head} {body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn each_option_is_a_field_and_an_argument() {
    for option in Options::DESCRIBED {
        assert!(
            VALUES.iter().any(|(name, _)| *name == option.name),
            "{}",
            option.name
        );
    }
    let routes = Routes::start().await;
    for route in [PLATFORM, OPENAI, TRANSLATIONS] {
        let mut fields = VALUES.to_vec();
        if route != PLATFORM {
            fields.push(("response_format", "verbose_json"));
        }
        if route == TRANSLATIONS {
            fields.retain(|(name, _)| *name != "task");
        }
        let (head, body) = routes.post(route, "en_one.wav", &fields).await;
        assert!(head.contains(" 200 ok"), "{route}: {head} {body}");
        assert!(!head.contains("is not known"), "{route}: {head}");
        assert!(body.contains("five"), "{route}: {body}");
    }

    let mut command = Command::new(env!("CARGO_BIN_EXE_faster_whisper"));
    command.arg("transcribe").arg(root().join("audio/en_one.wav"));
    command.args(["--json", "--device", "cpu"]);
    for (name, value) in VALUES {
        command.arg(format!("--{}={value}", name.replace('_', "-")));
    }
    let output = command.output().await.unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(line.contains("five"), "{line} {output:?}");

    let problem = "beam_size: \"0\": expected a whole number from 1 to 64";
    let (head, body) = routes.post(OPENAI, "en_one.wav", &[("beam_size", "0")]).await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert!(head.contains(" 400 "), "{head}");
    assert_eq!(error["error"]["message"], problem);
}

#[tokio::test]
async fn words_have_times_in_the_formats_of_openai() {
    let routes = Routes::start().await;
    let ask = async |format: &str| {
        let fields = [
            ("model", "whisper-1"),
            ("response_format", format),
            ("timestamp_granularities[]", "word"),
        ];
        routes.post(OPENAI, "en_three.wav", &fields).await.1
    };
    let verbose: Value = serde_json::from_str(&ask("verbose_json").await).unwrap();
    let words = verbose["words"].as_array().unwrap();
    let texts: Vec<_> = words.iter().map(|word| word["word"].as_str().unwrap()).collect();
    assert_eq!(texts, ["seven", "three", "three"]);
    for word in words {
        assert!(word["start"].as_f64() < word["end"].as_f64(), "{word}");
        assert!(word["probability"].as_f64() > Some(0.5), "{word}");
    }
    assert_eq!(ask("srt").await.matches("-->").count(), 3);
    let vtt = ask("vtt").await;
    assert_eq!(
        (vtt.matches("-->").count(), vtt.matches('<').count()),
        (1, 2),
        "{vtt}"
    );
}

#[tokio::test]
async fn repetitive_text_is_decoded_again_on_every_route() {
    let routes = Routes::start().await;
    // With this threshold each text is repetitive, so the last temperature is reached.
    let again = [("language", "en"), ("compression_ratio_threshold", "0.1")];
    let temperature = |transcript: &Value| {
        let segment = &transcript["segments"][0];
        let fact = segment["metadata"]
            .get("temperature")
            .or(segment.get("temperature"));
        fact.and_then(Value::as_f64)
    };
    for (route, format) in [
        (PLATFORM, None),
        (OPENAI, Some(("response_format", "verbose_json"))),
        (TRANSLATIONS, Some(("response_format", "verbose_json"))),
    ] {
        let plain: Vec<_> = format.into_iter().collect();
        let found = routes.json(route, "en_three.wav", &plain).await;
        assert_eq!(temperature(&found), Some(0.0), "{route}: {found}");
        let fields = [plain.as_slice(), &again].concat();
        let found = routes.json(route, "en_three.wav", &fields).await;
        assert_eq!(temperature(&found), Some(1.0), "{route}: {found}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_faster_whisper"))
        .arg("transcribe")
        .arg(root().join("audio/en_three.wav"))
        .args(["--json", "--device=cpu", "--compression-ratio-threshold=0.1"])
        .output()
        .await
        .unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(temperature(&line), Some(1.0), "{line}");
}
