//! Transcripts as responses, in the form of each route.

use dalston_engine_sdk::Transcript;
use serde_json::{Value, json};

use super::{Form, Host, OPENAI, PLATFORM, TRANSLATIONS};
use crate::rig::without_waits;
use crate::support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recording_is_answered_in_each_openai_format() {
    let host = Host::start().await;
    let ask = async |form: Form| {
        let answer = host
            .post(OPENAI, form.text("model", "whisper-1").and_file("one two three"))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };

    let answer = ask(Form::default()).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json(), json!({"text": "one two three"}));

    let answer = ask(Form::default().text("response_format", "text")).await;
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.body, "one two three");

    let answer = ask(Form::default().text("response_format", "srt")).await;
    assert_eq!(
        answer.body,
        "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n00:00:01,000 --> 00:00:01,500\nthree\n\n"
    );
    let answer = ask(Form::default().text("response_format", "vtt")).await;
    assert_eq!(
        answer.body,
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none two\n\n00:00:01.000 --> 00:00:01.500\nthree\n\n"
    );

    let verbose = Form::default().text("response_format", "verbose_json");
    let segment = |id, start, end, text| {
        json!({"id": id, "seek": 0, "start": start, "end": end, "text": text, "tokens": [7, 8], "temperature": 0.0,
            "avg_logprob": -0.5, "compression_ratio": 1.0, "no_speech_prob": 0.25})
    };
    let expected = json!({"task": "transcribe", "language": "en", "duration": 1.5, "text": "one two three",
        "segments": [segment(0, 0.0, 1.0, "one two"), segment(1, 1.0, 1.5, "three")]});
    assert_eq!(ask(verbose.clone()).await.json(), expected);

    let words = json!([{"word": "one", "start": 0.0, "end": 0.5}, {"word": "two", "start": 0.5, "end": 1.0},
        {"word": "three", "start": 1.0, "end": 1.5}]);
    let both = verbose
        .clone()
        .text("timestamp_granularities[]", "word")
        .text("timestamp_granularities[]", "segment");
    let mut with_words = expected.clone();
    with_words["words"] = words.clone();
    assert_eq!(ask(both).await.json(), with_words);
    let by_option = verbose.clone().text("word_timestamps", "true");
    assert_eq!(ask(by_option).await.json(), with_words);
    let only = verbose.text("timestamp_granularities", "word");
    with_words.as_object_mut().unwrap().remove("segments");
    assert_eq!(ask(only).await.json(), with_words);
    let srt = Form::default().text("response_format", "srt");
    let answer = ask(srt.text("word_timestamps", "true")).await;
    assert_eq!(answer.body.matches("-->").count(), 3, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transcript_is_streamed_as_openai_events() {
    let host = Host::start().await;
    let form = Form::file("one two three").text("stream", "true");
    let answer = host.post(OPENAI, form).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events: Vec<Value> = answer
        .body
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let expected = json!([
        {"type": "transcript.text.delta", "delta": "one two"},
        {"type": "transcript.text.delta", "delta": " three"},
        {"type": "transcript.text.done", "text": "one two three"},
    ]);
    assert_eq!(Value::from(events), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn block_on_works_for_http_tasks() {
    let host = Host::start().await;
    let answer = host.post(OPENAI, Form::file("await")).await;
    assert_eq!(answer.json(), json!({"text": "await"}), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn translation_is_requested_in_english() {
    let host = Host::start().await;
    let form = Form::file("eins zwei").text("response_format", "verbose_json");
    let answer = host.post(TRANSLATIONS, form).await.json();
    assert_eq!(
        (&answer["task"], &answer["text"]),
        (&json!("translate"), &json!("EINS ZWEI"))
    );
    let form = Form::file("eins zwei").text("response_format", "srt");
    let answer = host
        .post(TRANSLATIONS, form.text("word_timestamps", "true"))
        .await;
    assert_eq!(answer.body.matches("-->").count(), 2, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temperature_0_means_the_list_of_fallbacks() {
    let host = Host::start().await;
    let list = "[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]";
    for (given, used) in [(None, list), (Some("0"), list), (Some("0.3"), "[0.3]")] {
        let mut form = Form::file("temperatures");
        if let Some(given) = given {
            form = form.text("temperature", given);
        }
        let answer = host.post(OPENAI, form).await;
        assert_eq!(answer.json(), json!({"text": used}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_the_engine_are_fields_of_the_form() {
    let host = Host::start().await;
    let answer = host
        .post(PLATFORM, Form::file("one").text("patience", "1.5"))
        .await;
    assert_eq!(answer.json()["metadata"]["config"]["patience"], 1.5);
    let answer = host.post(OPENAI, Form::file("one").text("patience", "1.5")).await;
    let header = answer.header("x-dalston-warnings").unwrap_or_default();
    assert!(!header.contains("the field"), "{header}");
    let answer = host
        .post(OPENAI, Form::file("one").text("patience", "none"))
        .await;
    assert_eq!(answer.status, 400);
    let problem = "patience: \"none\": expected a number above 0";
    assert_eq!(answer.json()["error"]["message"], problem);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_are_in_header_and_verbose_json() {
    let host = Host::start().await;
    let header = r#"["the recording is very quiet \u2013 louder, please","the field \"langauge\" is not known and was ignored"]"#;
    let warnings: Value = serde_json::from_str(header).unwrap();
    for (path, format) in [(OPENAI, "json"), (OPENAI, "verbose_json"), (PLATFORM, "")] {
        let mut form = Form::file("quiet").text("langauge", "de");
        if path == OPENAI {
            form = form.text("response_format", format);
        }
        let answer = host.post(path, form).await;
        assert_eq!(answer.header("x-dalston-warnings"), Some(header), "{path}");
        if format != "json" {
            assert_eq!(answer.json()["warnings"], warnings, "{path}");
        }
    }
    let answer = host.post(OPENAI, Form::file("one")).await;
    assert_eq!(answer.header("x-dalston-warnings"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn platform_route_passes_fields_and_returns_transcript() {
    let host = Host::start().await;
    let form = Form::file("one two")
        .text("model", "small")
        .text("language", "DE")
        .text("word_timestamps", "false")
        .text("vocabulary", "Dalston, Whisper,")
        .text("channel", "1")
        .text("beam_size", "5")
        .text("vad_batch_size", "2");
    let answer = host.post(PLATFORM, form).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let transcript = answer.json();
    let config = json!({"language": "DE", "word_timestamps": false, "vocabulary": ["Dalston", "Whisper"],
        "channel": 1, "beam_size": 5, "vad_batch_size": 2});
    assert_eq!(transcript["metadata"]["config"], config);
    assert_eq!(
        (
            &transcript["text"],
            &transcript["engine_id"],
            &transcript["channel"],
            &transcript["metadata"]["model"]
        ),
        (&json!("one two"), &json!("scribe"), &json!(1), &json!("small"))
    );
    serde_json::from_value::<Transcript>(transcript).unwrap();

    // Absent fields have no defaults, and a name that stands for the engine selects its default
    // model.
    for model in ["auto", "scribe", ""] {
        let answer = host.post(PLATFORM, Form::file("one").text("model", model)).await;
        let metadata = &answer.json()["metadata"];
        assert_eq!(
            (&metadata["config"], &metadata["model"]),
            (&json!({}), &json!("tiny"))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_of_earlier_conventions_are_added_if_asked() {
    let host = Host::with(&[("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup")]).await;
    let answer = host.post(OPENAI, Form::file("one")).await;
    assert_eq!(answer.status, 200);
    host.until_span("POST /v1/audio/transcriptions").await;
    let span = host.telemetry.span("POST /v1/audio/transcriptions");
    let value = |name| span.attribute(name).map(ToString::to_string);
    assert_eq!(value("http.method").as_deref(), Some("POST"));
    assert_eq!(value("http.status_code").as_deref(), Some("200"));
    assert_eq!(value("http.response.status_code").as_deref(), Some("200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_join_callers_trace_and_log_lines_have_request_id() {
    let host = Host::start().await;
    let headers =
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Request-ID: req.7\r\n";
    let answer = host.post_with(OPENAI, headers, Form::file("one")).await;
    assert_eq!(
        (answer.status, answer.header("x-request-id")),
        (200, Some("req.7"))
    );

    // The response is sent a moment before its spans end.
    for span in [
        "engine.scribe.process",
        "engine.scribe.http_process",
        "POST /v1/audio/transcriptions",
    ] {
        host.until_span(span).await;
    }
    let root = host.telemetry.span("POST /v1/audio/transcriptions");
    assert_eq!(root.parent_span_id.unwrap().to_string(), "b7ad6b7169203331");
    let spans = host.telemetry.spans();
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id.to_string() == "0af7651916cd43dd8448eb211c80319c")
    );
    without_waits(&host.telemetry).assert_eq(
        "
        POST /v1/audio/transcriptions {dalston.request_id=req.7, http.request.method=POST, http.response.status_code=200}
          engine.scribe.http_process {dalston.engine_id=scribe, dalston.stage=transcribe, dalston.task_id=*, dalston.job_id=http, dalston.transport=http, dalston.request_id=req.7, http.request.method=POST, http.route=/v1/audio/transcriptions, http.response.status_code=200}
            engine.receive_input
            engine.queue_wait
            engine.scribe.process {dalston.job_id=http, dalston.request_id=req.7, dalston.instance=scribe-w1}
              engine.download_input
              engine.process
              engine.upload_output
        ",
    );
    let labels = [
        ("endpoint", OPENAI),
        ("engine_id", "scribe"),
        ("status_code", "200"),
    ];
    let counted = async || {
        let counted = host.telemetry.metrics().snapshot();
        let value = counted.value("dalston_engine_direct_requests_total", &labels);
        (value == Some(1.0)).then_some(())
    };
    until("count of the request", counted).await;
    let answered = async || {
        let lines = host.telemetry.logs();
        let mut events = lines.iter().map(|line| line.event());
        events
            .any(|event| event == "direct_request_answered")
            .then_some(())
    };
    until("last line", answered).await;
    let lines = host.telemetry.logs();
    for event in ["task_received", "task_completed", "direct_request_answered"] {
        let line = lines.iter().find(|line| line.event() == event).expect(event);
        assert_eq!(line.field("request_id"), Some(&json!("req.7")), "{event}");
    }

    let answer = host
        .post_with(OPENAI, "X-Request-ID: a b\r\n", Form::file("one"))
        .await;
    let made = answer.header("x-request-id").unwrap();
    assert!(made.starts_with("req_") && made.len() == 36, "{made}");
}
