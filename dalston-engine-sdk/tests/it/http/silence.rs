//! Clients that connect and send no complete request.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Form, Host, OPENAI};

/// Less than any timeout of the server: a response within this time needs none of them to pass.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_do_not_shut_out_others() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "2")]).await;
    let mut silent = Vec::new();
    for number in 0..320 {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
            .await
            .unwrap();
        if number >= 200 {
            let half = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n";
            client.write_all(half).await.unwrap();
        }
        silent.push(client);
    }
    for path in ["/health", "/metrics", "/v1/capabilities"] {
        let answer = timeout(SOON, host.get(path)).await.expect(path);
        assert_eq!(answer.status, 200, "{path}");
    }
    let transcript = timeout(SOON, host.post(OPENAI, Form::file("one"))).await;
    assert_eq!(transcript.expect("a transcript").json()["text"], "one");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_under_way_do_not_shut_out_probes() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "2")]).await;
    let request = Form::file("one two").request(OPENAI, "");
    let half = &request[..request.len() - 20];
    // Two are received. The rest of the others is read, so that they see their refusal.
    let mut uploads = Vec::new();
    for _ in 0..300 {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
            .await
            .unwrap();
        let _ = client.write_all(half).await;
        uploads.push(client);
    }
    let answer = timeout(SOON, host.get("/health")).await.expect("an answer");
    assert_eq!(answer.status, 200);
}
