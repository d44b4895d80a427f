//! OTLP over HTTP, with protobuf.

use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use prost::Message;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use super::client::{MAX_RESPONSE_BYTES, USER_AGENT, chain, quoted};
use super::tls::TlsMaterial;
use crate::env::EnvError;
use crate::error::InitError;
use crate::export::delivery::{Accepted, Failure, Retry};
use crate::export::exporter_config::ExporterConfig;

/// The time for the body of an answer, after a status that says that the request was taken.
const LONGEST_REST: Duration = Duration::from_secs(1);

pub(crate) struct Http {
    client: Client,
    url: Url,
    headers: HeaderMap,
    gzip: bool,
    /// For one request; the caller enforces it.
    timeout: Duration,
}

impl Http {
    /// Checks the configuration and builds a client. Opens no connection and needs no runtime.
    pub(super) fn new(config: &ExporterConfig) -> Result<Self, InitError> {
        let wrong = |reason: String, source: Option<reqwest::Error>| InitError::Exporter {
            endpoint: config.endpoint.to_string(),
            reason,
            source: source.map(|error| Box::new(error) as _),
        };
        let url = Url::parse(&config.endpoint.uri().to_string())
            .map_err(|_| wrong("the URL can't be used".into(), None))?;
        // Also for plain text: without it, the client requires a process-wide TLS provider.
        let tls = match config.endpoint.is_https() {
            true => TlsMaterial::read(&config.tls)?.client_config(&config.endpoint)?,
            false => TlsMaterial::nothing_trusted(),
        };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(USER_AGENT)
            .connect_timeout(config.timeout)
            .redirect(Policy::none())
            // The proxy comes from the configuration, and not from the variables of the process.
            .no_proxy();
        if let Some(proxy) = &config.proxy {
            let except = proxy.except.as_deref().and_then(reqwest::NoProxy::from_string);
            let proxy = reqwest::Proxy::all(&proxy.url)
                .map_err(|_| EnvError::secret(proxy.variable, "the URL of a proxy"))?
                .no_proxy(except);
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|error| {
            let error = error.without_url();
            wrong(chain(&error), Some(error))
        })?;
        let mut headers = config.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if config.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self {
            client,
            url,
            headers,
            gzip: config.gzip,
            timeout: config.timeout,
        })
    }

    /// Sends an encoded request, which is answered with an `A`.
    pub(super) async fn send<A: Message + Default + Into<Accepted>>(
        &self,
        request: Bytes,
    ) -> Result<Accepted, Failure> {
        let started = Instant::now();
        let body = self.body(request)?;
        let sent = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .body(body)
            .send()
            .await;
        let response = sent.map_err(|error| {
            let detail = format!("no connection: {}", chain(&error.without_url()));
            Failure {
                retry: Retry::Backoff,
                detail,
            }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        // The status says whether the collector has taken the request, even if the body never
        // arrives. A wait that used up the time of the request would send it again.
        let left = self.timeout.saturating_sub(started.elapsed());
        let until = Instant::now() + LONGEST_REST.min(self.timeout / 2).min(left / 2);
        let body = start_of_body(response, until).await;
        match status.is_success() {
            true => accepted::<A>(&headers, body),
            false => Err(failure(status, &headers, &body, SystemTime::now())),
        }
    }

    fn body(&self, body: Bytes) -> Result<Bytes, Failure> {
        if !self.gzip {
            return Ok(body);
        }
        let compress = || {
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
            encoder.write_all(&body)?;
            encoder.finish()
        };
        compress()
            .map(Bytes::from)
            .map_err(|error: std::io::Error| Failure {
                retry: Retry::Never,
                detail: format!("the request could not be compressed: {error}"),
            })
    }
}

/// The body of a response.
struct Body {
    start: Bytes,
    is_whole: bool,
}

async fn start_of_body(mut response: Response, until: Instant) -> Body {
    let mut start = BytesMut::new();
    let mut is_whole = false;
    while start.len() < MAX_RESPONSE_BYTES {
        match timeout_at(until, response.chunk()).await {
            Ok(Ok(Some(chunk))) => start.extend_from_slice(&chunk),
            Ok(Ok(None)) => {
                is_whole = true;
                break;
            }
            Ok(Err(_)) | Err(_) => break,
        }
    }
    Body {
        start: start.freeze(),
        is_whole,
    }
}

/// Reads the answer to a request that was taken. A proxy or a web page also answers 200, and has
/// taken nothing.
fn accepted<A: Message + Default + Into<Accepted>>(
    headers: &HeaderMap,
    body: Body,
) -> Result<Accepted, Failure> {
    let kind = headers
        .get(CONTENT_TYPE)
        .map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    let is_protobuf = kind.as_deref().is_none_or(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        ["application/x-protobuf", "application/protobuf"].contains(&kind)
    });
    match A::decode(body.start.clone()) {
        Ok(answer) => Ok(answer.into()),
        Err(_) if is_protobuf && !body.is_whole => Ok(Accepted::default()),
        _ => Err(Failure {
            retry: Retry::Never,
            detail: format!(
                "HTTP status 200, but the answer is not OTLP ({}{}): check the address, and whether a proxy answers for \
                 the collector",
                kind.as_deref().unwrap_or("without a content type"),
                quoted(&String::from_utf8_lossy(&body.start)),
            ),
        }),
    }
}

/// Sorts a response by the table of the OTLP specification.
fn failure(status: StatusCode, headers: &HeaderMap, body: &Body, now: SystemTime) -> Failure {
    let retry = match status.as_u16() {
        429 | 502 | 503 | 504 => retry_after(headers, now).map_or(Retry::Backoff, Retry::After),
        _ => Retry::Never,
    };
    // A collector explains itself in a `google.rpc.Status`, a proxy in text.
    let said = match RpcStatus::decode(body.start.clone()) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8_lossy(&body.start).into_owned(),
    };
    Failure {
        retry,
        detail: format!("HTTP status {status}{}", quoted(&said)),
    }
}

/// The part of `google.rpc.Status` that is for people.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
}

/// `Retry-After` in seconds or as a date in one of the three forms of HTTP; a date in the past
/// means now.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&'static str>) -> Failure {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let now = httpdate::parse_http_date("Fri, 20 Nov 2026 08:00:00 GMT").unwrap();
        failure(StatusCode::from_u16(status).unwrap(), &headers, &body(b""), now)
    }

    fn body(text: &'static [u8]) -> Body {
        Body {
            start: Bytes::from_static(text),
            is_whole: true,
        }
    }

    #[test]
    fn only_retryable_statuses_are_retried() {
        for status in 300..600 {
            let expected = if [429, 502, 503, 504].contains(&status) {
                Retry::Backoff
            } else {
                Retry::Never
            };
            assert_eq!(answer(status, None).retry, expected, "{status}");
        }
    }

    #[test]
    fn retry_after_may_be_seconds_or_a_date() {
        let after = |value| answer(503, Some(value)).retry;
        assert_eq!(after("7"), Retry::After(Duration::from_secs(7)));
        for date in [
            "Fri, 20 Nov 2026 08:00:30 GMT",
            "Friday, 20-Nov-26 08:00:30 GMT",
            "Fri Nov 20 08:00:30 2026",
        ] {
            assert_eq!(after(date), Retry::After(Duration::from_secs(30)), "{date}");
        }
        assert_eq!(
            after("Fri, 20 Nov 2026 07:00:00 GMT"),
            Retry::After(Duration::ZERO)
        );
        assert_eq!(after("soon"), Retry::Backoff);
        assert_eq!(after("-1"), Retry::Backoff);
        // Where trying again can't help, the header changes nothing.
        assert_eq!(answer(400, Some("1")).retry, Retry::Never);
    }

    #[test]
    fn the_explanation_of_a_refusal_is_in_the_message() {
        let said = |text: &'static [u8]| {
            let headers = HeaderMap::new();
            failure(
                StatusCode::BAD_REQUEST,
                &headers,
                &body(text),
                SystemTime::UNIX_EPOCH,
            )
            .detail
        };
        assert_eq!(said(b""), "HTTP status 400 Bad Request");
        assert_eq!(
            said(b"\x08\x03\x12\x0bno such key"),
            "HTTP status 400 Bad Request: no such key"
        );
        assert_eq!(
            said(b"<html>\n  <b>\x1b[31mno</b>\xff"),
            "HTTP status 400 Bad Request: <html> <b> [31mno</b>\u{fffd}"
        );
        static LONG: [u8; 1000] = [b'x'; 1000];
        assert!(said(&LONG).ends_with(&format!(": {}...", "x".repeat(200))));
    }

    #[test]
    fn an_answer_that_is_not_otlp_is_no_success() {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse as Answer;

        let read = |kind: Option<&'static str>, text: &'static [u8], is_whole: bool| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            accepted::<Answer>(
                &headers,
                Body {
                    is_whole,
                    ..body(text)
                },
            )
        };
        let protobuf = Some("application/x-protobuf; charset=binary");
        for (kind, text, is_whole) in [
            (None, &b""[..], true),
            (Some("text/plain"), b"", true),
            (protobuf, b"", true),
            // Not all of the answer has arrived.
            (protobuf, b"\x0a\x7f", false),
        ] {
            assert!(read(kind, text, is_whole).is_ok(), "{kind:?} {text:?}");
        }
        for (kind, text) in [
            (Some("text/html"), &b"<html>Sign in</html>"[..]),
            (Some("application/json"), b"{}"),
            (protobuf, b"\xff\xff\xff"),
            (None, b"hello"),
        ] {
            let failure = read(kind, text, true).unwrap_err();
            assert_eq!(failure.retry, Retry::Never);
            assert!(
                failure.detail.contains("the answer is not OTLP"),
                "{}",
                failure.detail
            );
        }
        let failure = read(Some("text/html"), b"<html>Sign in</html>", true).unwrap_err();
        assert!(
            failure.detail.contains("(text/html: <html>Sign in</html>)"),
            "{}",
            failure.detail
        );
    }
}
