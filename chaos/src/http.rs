//! Requests over HTTP beside the queue.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than a suspension and the queue time-out of a worker.
const TIMEOUT: Duration = Duration::from_secs(60);
const BOUNDARY: &str = "chaos";

/// The requests so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: usize,
    /// Its worker was busy, or drained.
    pub(crate) refused: usize,
    /// Its worker was killed.
    pub(crate) broken: usize,
    /// Answers that are not the expected one.
    pub(crate) wrong: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Requests(JoinSet<(String, io::Result<String>)>);

impl Requests {
    /// Sends a file with this content to a worker.
    pub(crate) fn send(&mut self, port: u16, content: String) {
        self.0.spawn(async move {
            let answer = timeout(TIMEOUT, ask(port, &content)).await;
            let answer = answer.unwrap_or_else(|_| Ok("no answer in time".to_owned()));
            (content, answer)
        });
    }

    /// Waits for all answers.
    pub(crate) async fn end(self) -> Counts {
        let mut counts = Counts::default();
        for (content, answer) in self.0.join_all().await {
            match answer {
                Err(_) => counts.broken += 1,
                Ok(answer) if answer.is_empty() => counts.broken += 1,
                Ok(answer) => match answer.split(' ').nth(1) {
                    Some("200") if answer.contains(&content) => counts.answered += 1,
                    Some("429" | "503") => counts.refused += 1,
                    _ => counts.wrong.push(answer),
                },
            }
        }
        counts
    }
}

/// The whole response, which is empty if the connection is closed before it.
async fn ask(port: u16, content: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let body = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n{content}\r\n--{BOUNDARY}--\r\n"
    );
    let head = format!(
        "POST /v1/transcribe HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    let mut response = String::new();
    connection.read_to_string(&mut response).await?;
    Ok(response)
}
