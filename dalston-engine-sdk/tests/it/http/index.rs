//! The routes about the server itself, and requests for no route.

use serde_json::json;

use super::{Form, Host, OPENAI, browse};
use crate::support::exchange;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index_and_models_are_served() {
    let host = Host::start().await;
    let index = host.get("/").await.json();
    assert_eq!(
        (&index["engine_id"], &index["version"], &index["instance"]),
        (&json!("scribe"), &json!("1.0.0"), &json!("scribe-w1"))
    );
    for route in index["routes"].as_array().unwrap() {
        let (method, path) = route.as_str().unwrap().split_once(' ').unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let answer = exchange(host.port, request.as_bytes()).await.unwrap();
        let expected = if method == "GET" { 200 } else { 415 };
        assert_eq!(answer.status, expected, "{route}");
    }

    let entry = |id: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": "dalston"});
    let models = host.get("/v1/models").await.json();
    assert_eq!(models, json!({"object": "list", "data": [entry("scribe")]}));
    host.post(OPENAI, Form::file("one").text("model", "small")).await;
    let models = host.get("/v1/models").await.json();
    assert_eq!(models["data"], json!([entry("scribe"), entry("small")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browser_gets_a_page_with_tasks_models_and_failures() {
    let mut host = Host::start().await;
    let page = async |host: &Host| {
        let answer = browse(host.port, "/").await;
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        answer.body
    };
    let empty = page(&host).await;
    assert!(
        empty.contains("<h1>scribe 1.0.0</h1><p>scribe-w1: running</p>"),
        "{empty}"
    );
    assert_eq!(empty.matches("<p class=\"none\">none</p>").count(), 3, "{empty}");
    for link in ["/health", "/metrics", "/debug/status"] {
        assert!(empty.contains(&format!("<a href=\"{link}\">")), "{link}");
    }

    let broken = host
        .post(OPENAI, Form::file("break").text("model", "small"))
        .await;
    assert_eq!(broken.status, 500);
    let (port, request) = (host.port, Form::file("wait").request(OPENAI, ""));
    let waiting = tokio::spawn(async move { exchange(port, &request).await.unwrap() });
    assert_eq!(host.next_progress().await, "begun");
    let busy = page(&host).await;
    let (_, age) = busy.split_once("<td>processing</td><td>").unwrap();
    let (age, _) = age.split_once(" s</td>").unwrap();
    assert!(age.parse::<u32>().unwrap() < 60, "{busy}");
    assert!(busy.contains("<td>small</td><td>in memory</td>"), "{busy}");
    assert!(busy.contains("<h2>Last failures</h2><table>"), "{busy}");
    assert!(!busy.contains("hunter2"), "{busy}");
    host.open.open();
    assert_eq!(waiting.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_route_is_answered_in_json() {
    let host = Host::start().await;
    let answer = host.get("/v1/audio/transcription").await;
    let message = "GET /v1/audio/transcription: there is no such route: expected one of GET /, GET /health, \
        GET /v1/capabilities, GET /debug/status, GET /metrics, GET /v1/models, POST /v1/transcribe, \
        POST /v1/audio/transcriptions, POST /v1/audio/translations";
    let error =
        json!({"message": message, "type": "invalid_request_error", "param": null, "code": "not_found"});
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(
        (answer.status, answer.json()),
        (404, json!({"detail": message, "error": error}))
    );
    let answer = host.get(OPENAI).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("post")));
    assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_configured_origins_may_read_responses() {
    let ask = async |host: &Host| {
        let request = "OPTIONS /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
            Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n\r\n";
        let answer = exchange(host.port, request.as_bytes()).await.unwrap();
        let allowed = answer.header("access-control-allow-origin").map(str::to_owned);
        (answer.status, allowed)
    };
    let host = Host::start().await;
    assert_eq!(ask(&host).await, (405, None));
    for (origins, allowed) in [
        (
            "https://app.example,http://localhost:3000",
            Some("https://app.example"),
        ),
        ("http://localhost:3000", None),
        ("*", Some("*")),
    ] {
        let host = Host::with(&[("DALSTON_HTTP_CORS_ORIGINS", origins)]).await;
        assert_eq!(ask(&host).await, (200, allowed.map(str::to_owned)), "{origins}");
    }
}
