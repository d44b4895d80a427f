//! Invalid requests.

use serde_json::json;

use super::{BOUNDARY, Form, Host, OPENAI, PLATFORM, head};
use crate::support::exchange;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_request_is_refused_in_form_of_its_route() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_UPLOAD_MB", "1")]).await;
    let (file, none) = (|| Form::file("one"), Form::default);
    let table = [
        (OPENAI, none(), 400, "file: missing: expected a recording"),
        (
            PLATFORM,
            none(),
            400,
            "file: missing: expected a recording, or audio_url",
        ),
        (
            OPENAI,
            file().and_file("two"),
            400,
            "file: given twice: expected one recording",
        ),
        (
            PLATFORM,
            file().text("audio_url", "s3://b/k"),
            400,
            "audio_url: given beside file: expected one of them",
        ),
        (
            PLATFORM,
            none().text("audio_url", "file:///etc/hosts"),
            400,
            "audio_url: \"file:hosts\": expected s3://bucket/key, http:// or https://",
        ),
        (
            PLATFORM,
            file().text("beam_size", "many"),
            400,
            "beam_size: \"many\": expected a whole number",
        ),
        (
            PLATFORM,
            file().text("beam_size", "0"),
            400,
            "beam_size: 0: expected a whole number from 1",
        ),
        (
            PLATFORM,
            file().text("word_timestamps", "perhaps"),
            400,
            "word_timestamps: \"perhaps\": expected true or false",
        ),
        (
            PLATFORM,
            file().text("model", "../../etc"),
            400,
            "model: \"../../etc\": that can't be the name of a model",
        ),
        (
            PLATFORM,
            file().text("model", "/etc/passwd"),
            400,
            "model: \"passwd\": that can't be the name of a model",
        ),
        (
            PLATFORM,
            file().text("model", "missing"),
            400,
            "loading model \"missing\": config.json: no such file",
        ),
        (
            OPENAI,
            file().text("language", "a").text("language", "b"),
            400,
            "language: given twice: expected one value",
        ),
        (
            OPENAI,
            file().text("stream", "true").text("response_format", "srt"),
            400,
            "stream: true: expected response_format to be json",
        ),
        (
            OPENAI,
            none().file_in("audio", "one"),
            400,
            "the form has a file in the field \"audio\": expected it in the field \"file\"",
        ),
        (
            OPENAI,
            none().text("audio", "https://host/talk.wav"),
            400,
            "file: missing: expected a recording; not known: \"audio\"",
        ),
        (
            OPENAI,
            Form::file("no words")
                .text("response_format", "verbose_json")
                .text("timestamp_granularities[]", "word"),
            400,
            "timestamp_granularities: word: the engine scribe finds no times of words: expected segment",
        ),
        (
            OPENAI,
            file().text("word_timestamps", "true"),
            400,
            "word_timestamps: true: expected response_format to be verbose_json, srt or vtt",
        ),
        (
            OPENAI,
            file().text("include[]", "logprobs"),
            400,
            "include: not supported, leave it out",
        ),
        (
            OPENAI,
            file().text("temperature", "2"),
            400,
            "temperature: 2: expected a number from 0 to 1",
        ),
        (
            OPENAI,
            file().text("temperature", "NaN"),
            400,
            "temperature: NaN: expected a number from 0 to 1",
        ),
        (
            OPENAI,
            file().text("response_format", "xml"),
            400,
            "response_format: \"xml\": expected one of json, text, srt, verbose_json, vtt",
        ),
        (
            OPENAI,
            file().text("timestamp_granularities[]", "word"),
            400,
            "timestamp_granularities: given: expected response_format to be verbose_json, srt or vtt",
        ),
        (OPENAI, Form::file("noise"), 400, "talk.wav is no audio"),
        (PLATFORM, Form::file("noise"), 400, "talk.wav is no audio"),
        (
            OPENAI,
            Form::file("break"),
            500,
            "the worker failed (error): its log has the reason under the id of this request",
        ),
        (
            OPENAI,
            Form::file(&"x".repeat((1 << 20) + 1)),
            413,
            "the recording has more than 1048576 bytes, the limit of this worker",
        ),
        (
            PLATFORM,
            Form::file(&"x".repeat(3 << 20)),
            413,
            "the recording has more than 1048576 bytes, the limit of this worker",
        ),
    ];
    for (path, form, status, message) in table {
        let answer = host.post(path, form).await;
        let body = answer.json();
        let said = if path == OPENAI {
            &body["error"]["message"]
        } else {
            &body["detail"]
        };
        assert_eq!((answer.status, said), (status, &json!(message)), "{path}");
    }
    let answer = host.post(OPENAI, file().text("temperature", "2")).await;
    let (request_id, trace_id) = (answer.header("x-request-id"), answer.header("x-trace-id"));
    let error = json!({"error": {"message": "temperature: 2: expected a number from 0 to 1",
        "type": "invalid_request_error", "param": "temperature", "code": "invalid_request",
        "request_id": request_id.unwrap(), "trace_id": trace_id.unwrap()}});
    assert_eq!(answer.json(), error);
    let answer = host.post(OPENAI, Form::file("break")).await.json();
    assert_eq!(
        (&answer["error"]["type"], &answer["error"]["code"]),
        (&json!("server_error"), &json!("error"))
    );
    assert!(!answer.to_string().contains("hunter2") && !answer.to_string().contains("secret"));

    let request =
        format!("POST {PLATFORM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(exchange(host.port, request.as_bytes()).await.unwrap().status, 415);
    // A form that ends in the middle, and one with an endless header.
    let mut cut = head(PLATFORM, "", 60);
    cut.extend_from_slice(
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=x\r\n\r\n").as_bytes(),
    );
    cut.truncate(head(PLATFORM, "", 60).len() + 60);
    assert_eq!(exchange(host.port, &cut).await.unwrap().status, 400);
    // It is refused before the limit for pauses ends it.
    let mut endless = head(PLATFORM, "", 900_000);
    endless.extend_from_slice(format!("--{BOUNDARY}\r\n").as_bytes());
    endless.resize(endless.len() + 700_000, b'x');
    assert_eq!(exchange(host.port, &endless).await.unwrap().status, 400);

    // A form in the other encoding.
    let fields = "audio_url=ftp%3A%2F%2Fx";
    let request = format!(
        "POST {PLATFORM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{fields}",
        fields.len()
    );
    let answer = exchange(host.port, request.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("ftp://x"), "{answer:?}");
    host.until_temp_is_empty().await;
}
