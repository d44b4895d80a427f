//! One request over plain HTTP/1.1, with bounds on everything. There is no proxy, no redirect and no TLS that would have to be
//! turned off.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::imds::MetadataError;
use super::settings::Endpoint;

/// Metadata services are on this machine, or look as if they were.
const CONNECT: Duration = Duration::from_millis(300);
/// The most that status line and headers may take.
const MAX_HEAD: usize = 16 * 1024;

pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Read only if the status is 200.
    pub(super) body: String,
}

/// Asks, and takes as long as it takes: who calls sees to the time.
pub(super) async fn ask(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    header: Option<(HeaderName, HeaderValue)>,
    max_body: usize,
) -> Result<Answer, MetadataError> {
    let failed = |error: hyper::Error| MetadataError::Broken(error.to_string());
    let connecting = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let stream = match timeout(CONNECT, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(MetadataError::NoConnection(error.to_string())),
        Err(_) => return Err(MetadataError::NoConnection("nobody answered".to_owned())),
    };
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;

    let path = format!("{}{path}", endpoint.path);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, &endpoint.authority);
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| MetadataError::Broken(error.to_string()))?;

    let asking = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        if status != StatusCode::OK {
            let body = String::new();
            return Ok(Answer { status, body });
        }
        let body = Limited::new(answer.into_body(), max_body).collect().await;
        // Besides a connection that breaks, only a body that is too long ends up here.
        let body = body
            .map_err(|error| MetadataError::Broken(error.to_string()))?
            .to_bytes();
        let body = String::from_utf8(body.into()).map_err(|_| MetadataError::Unbelievable)?;
        Ok(Answer { status, body })
    };
    // The end of the connection is for `asking` to notice: its answer may have arrived by then.
    let keeping = async {
        let _ = connection.await;
        pending::<Infallible>().await
    };
    tokio::select! {
        answer = asking => answer,
        never = keeping => match never {},
    }
}
