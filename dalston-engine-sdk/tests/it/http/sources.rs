//! Recordings that a request names by URL.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::{Form, Host, PLATFORM};
use crate::support::free_port;

/// A web server with a recording and several redirects.
struct Web {
    port: u16,
    _serving: JoinSet<()>,
}

impl Web {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let size = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..size]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let path = path.split('?').next().unwrap_or_default();
                let found = |to: &str| format!("302 Found\r\nLocation: {to}");
                let (status, body) = match path {
                    "/talk.wav" => ("200 OK".to_owned(), "from the web"),
                    "/moved" => (found("/talk.wav"), ""),
                    "/round" => (found("/round"), ""),
                    "/to-metadata" => (found("http://169.254.169.254/latest"), ""),
                    _ => ("404 Not Found".to_owned(), "no"),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            port,
            _serving: serving,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recording_is_fetched_from_its_url() {
    let host = Host::start().await;
    host.s3.put("uploads/a/talk.wav", "from storage");
    let answer = host
        .post(
            PLATFORM,
            Form::default().text("audio_url", "s3://uploads/a/talk.wav"),
        )
        .await;
    assert_eq!(
        (answer.status, &answer.json()["text"]),
        (200, &json!("from storage"))
    );
    let answer = host
        .post(
            PLATFORM,
            Form::default().text("audio_url", "s3://uploads/none.wav"),
        )
        .await;
    let detail = "audio_url: s3://uploads/none.wav: there is no such object";
    assert_eq!((answer.status, &answer.json()["detail"]), (400, &json!(detail)));

    let web = Web::start().await;
    let fetch = async |path: &str| {
        let url = format!("http://127.0.0.1:{}{path}", web.port);
        let answer = host.post(PLATFORM, Form::default().text("audio_url", &url)).await;
        (answer.status, answer.json())
    };
    let (status, transcript) = fetch("/talk.wav?signature=hunter2").await;
    assert_eq!((status, &transcript["text"]), (200, &json!("from the web")));
    let (status, transcript) = fetch("/moved").await;
    assert_eq!((status, &transcript["text"]), (200, &json!("from the web")));
    let base = format!("audio_url: http://127.0.0.1:{}", web.port);
    for (path, problem) in [
        ("/none?signature=hunter2", "/none responded with status 404"),
        (
            "/to-metadata",
            "/to-metadata can't be fetched: this worker does not fetch from its address",
        ),
        ("/round", "/round can't be fetched: it redirects too often"),
    ] {
        let (status, answer) = fetch(path).await;
        assert_eq!(
            (status, &answer["detail"]),
            (400, &json!(format!("{base}{problem}")))
        );
    }
    // A closed port, and one that is open for another protocol.
    let other = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = other.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = other.accept().await {
            let _ = stream.write_all(b"-ERR unknown command\r\n").await;
        }
    });
    for port in [free_port(), port] {
        let url = format!("http://127.0.0.1:{port}/talk.wav");
        let answer = host.post(PLATFORM, Form::default().text("audio_url", &url)).await;
        let problem =
            format!("audio_url: {url} can't be fetched: its server does not answer, or not completely");
        assert_eq!((answer.status, &answer.json()["detail"]), (400, &json!(problem)));
    }
    serving.abort();
    let metadata = Form::default().text("audio_url", "http://169.254.169.254/latest/meta-data/iam");
    let answer = host.post(PLATFORM, metadata).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .body
            .contains("this worker does not fetch from its address"),
        "{answer:?}"
    );
}
