//! Admission, cancellation and shutdown.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Form, Host, OPENAI, PLATFORM, TRANSLATIONS, browse};
use crate::support::{exchange, free_port, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_worker_refuses_recordings_and_answers_probes() {
    let mut host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "1")]).await;
    // An upload in progress has the only permit.
    let mut upload = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
        .await
        .unwrap();
    let request = Form::file("wait").request(OPENAI, "");
    let (first, rest) = request.split_at(request.len() - 10);
    upload.write_all(first).await.unwrap();
    let receiving = async || (host.get("/debug/status").await.json()["http_requests"] == 1).then_some(());
    until("upload", receiving).await;

    for path in [OPENAI, PLATFORM] {
        let refused = host.post(path, Form::file("one")).await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    }
    assert_eq!(host.get("/health").await.status, 200);

    upload.write_all(rest).await.unwrap();
    assert_eq!(host.next_progress().await, "begun");
    let status = host.get("/debug/status").await.json();
    assert_eq!(status["tasks"][0]["phase"], "processing");
    assert!(
        status["thread_count"].as_u64() > Some(1) && status["rss_mb"].as_u64() > Some(1),
        "{status}"
    );
    host.open.open();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(r#"{"text":"wait"}"#), "{answer}");
    assert_eq!(host.post(OPENAI, Form::file("one")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recording_without_permit_is_refused_after_timeout() {
    let mut host = Host::with(&[("DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS", "0.1")]).await;
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let request = Form::file("wait").request(OPENAI, "");
        let port = host.port;
        waiting.spawn(async move { exchange(port, &request).await.unwrap() });
        let first = waiting.len() == 1;
        if first {
            host.next_progress().await;
        }
    }
    let both = async || (host.get("/health").await.json()["active_tasks"] == 2).then_some(());
    until("two active tasks", both).await;
    let refused = host.post(OPENAI, Form::file("one")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "busy");
    // Its recording is removed at once, not when a permit is free.
    until("two recordings on disk", async || {
        let kept = std::fs::read_dir(host.temp.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("dalston_http_")
        });
        (kept.count() == 2).then_some(())
    })
    .await;
    host.open.open();
    host.open.open();
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connection_cancels_task() {
    let mut host = Host::start().await;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
        .await
        .unwrap();
    let request = Form::file("wait until cancelled").request(OPENAI, "");
    client.write_all(&request).await.unwrap();
    assert_eq!(host.next_progress().await, "begun");
    drop(client);
    assert_eq!(host.next_progress().await, "cancelled");
    // The thread and the permit are free, and nothing is left on disk.
    assert_eq!(host.post(OPENAI, Form::file("one")).await.status, 200);
    let abandoned = async || {
        let gone = |attribute: &dalston_telemetry::opentelemetry::KeyValue| {
            attribute.value.as_str() == "client_gone"
        };
        let spans = host.telemetry.spans();
        let mut spans = spans.iter();
        let is_abandoned = |span: &dalston_telemetry::CollectedSpan| {
            span.name == "engine.scribe.http_process" && span.attributes.iter().any(gone)
        };
        spans.any(is_abandoned).then_some(())
    };
    until("span of the abandoned request", abandoned).await;
    let gone = [("endpoint", OPENAI), ("status_code", "499")];
    let counted = async || {
        let counted = host.telemetry.metrics().snapshot();
        (counted.sum("dalston_engine_direct_requests_total", &gone) == 1.0).then_some(())
    };
    until("count of the abandoned request", counted).await;
    host.until_temp_is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_worker_answers_old_and_refuses_new_requests() {
    let mut host = Host::start().await;
    let (port, request) = (host.port, Form::file("wait").request(OPENAI, ""));
    let waiting = tokio::spawn(async move { exchange(port, &request).await.unwrap() });
    assert_eq!(host.next_progress().await, "begun");
    host.stop().await;
    let draining = async || (host.get("/health").await.json()["phase"] == "draining").then_some(());
    until("draining", draining).await;

    let refused = host.post(OPENAI, Form::file("one")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    host.open.open();
    (&mut host.running).await.unwrap().unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({"text": "wait"})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_is_bound_when_it_becomes_free() {
    let port = free_port();
    let taken = tokio::net::TcpListener::bind(("0.0.0.0", port)).await.unwrap();
    let host = Host::on(port, &[]).await;
    let registered = async || {
        let status: Option<String> = host
            .redis
            .send(&["HGET", "dalston:engine:instance:scribe-w1", "status"])
            .await;
        status.filter(|status| status == "idle")
    };
    until("worker without an HTTP server", registered).await;
    drop(taken);
    host.until_ready().await;
    assert_eq!(host.get("/health").await.json()["instance"], "scribe-w1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_max_requests_removes_transcription_and_page() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "0")]).await;
    for path in [OPENAI, TRANSLATIONS, PLATFORM] {
        assert_eq!(host.post(path, Form::file("one")).await.status, 404, "{path}");
    }
    for (path, status) in [
        ("/", 404),
        ("/v1/models", 404),
        ("/health", 200),
        ("/metrics", 200),
        ("/v1/capabilities", 200),
        ("/debug/status", 200),
    ] {
        assert_eq!(host.get(path).await.status, status, "{path}");
    }
    let page = browse(host.port, "/").await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (404, Some("application/json"))
    );
    assert!(!page.body.contains("GET /,"), "{}", page.body);
}
