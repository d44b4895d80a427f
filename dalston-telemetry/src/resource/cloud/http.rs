//! A request to a metadata service: plain HTTP/1.1 with bounds on everything, without proxy,
//! redirects and TLS.

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

use super::error::MetadataError;

/// Metadata services are on this machine or one hop away.
const CONNECT: Duration = Duration::from_millis(300);
/// The longest status line with headers.
const MAX_HEAD: usize = 16 * 1024;

/// An address that answers plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of the header `Host`.
    pub(super) authority: String,
    /// Without a slash at its end.
    pub(super) path: String,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Read only if the status is 200.
    pub(super) body: String,
}

/// Sends a request. The caller limits the time.
pub(super) async fn request(
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
        Err(_) => return Err(MetadataError::NoConnection("no answer within 300 ms".to_owned())),
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
        // A broken connection or a body that is too long.
        let body = body
            .map_err(|error| MetadataError::Broken(error.to_string()))?
            .to_bytes();
        let body = String::from_utf8(body.into()).map_err(|_| MetadataError::InvalidAnswer)?;
        Ok(Answer { status, body })
    };
    // Only `asking` ends on a closed connection, because the answer may have arrived before.
    let driving = async {
        let _ = connection.await;
        pending::<Infallible>().await
    };
    tokio::select! {
        answer = asking => answer,
        never = driving => match never {},
    }
}
