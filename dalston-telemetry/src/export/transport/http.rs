//! OTLP over HTTP, with protobuf.

use std::io::Write;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use prost::Message;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use super::client::{MAX_RESPONSE_BYTES, USER_AGENT, chain};
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
        if !response.status().is_success() {
            return Err(failure(response.status(), response.headers(), Timestamp::now()));
        }
        // The collector has taken the request, even if the body never arrives. A wait that used up
        // the time of the request would send it again.
        let left = self.timeout.saturating_sub(started.elapsed());
        let until = Instant::now() + LONGEST_REST.min(self.timeout / 2).min(left / 2);
        let answer = A::decode(start_of_body(response, until).await);
        Ok(answer.map(A::into).unwrap_or_default())
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

async fn start_of_body(mut response: Response, until: Instant) -> Bytes {
    let mut body = BytesMut::new();
    while body.len() < MAX_RESPONSE_BYTES {
        match timeout_at(until, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    body.freeze()
}

/// Sorts a response by the table of the OTLP specification.
fn failure(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Failure {
    let retry = match status.as_u16() {
        429 | 502 | 503 | 504 => retry_after(headers, now).map_or(Retry::Backoff, Retry::After),
        _ => Retry::Never,
    };
    Failure {
        retry,
        detail: format!("HTTP status {status}"),
    }
}

/// `Retry-After` in seconds or as a date; a date in the past means now.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&'static str>) -> Failure {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let now = "2026-11-20T08:00:00Z".parse().unwrap();
        failure(StatusCode::from_u16(status).unwrap(), &headers, now)
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
        assert_eq!(
            after("Fri, 20 Nov 2026 08:00:30 GMT"),
            Retry::After(Duration::from_secs(30))
        );
        assert_eq!(
            after("Fri, 20 Nov 2026 07:00:00 GMT"),
            Retry::After(Duration::ZERO)
        );
        assert_eq!(after("soon"), Retry::Backoff);
        assert_eq!(after("-1"), Retry::Backoff);
        // Where trying again can't help, the header changes nothing.
        assert_eq!(answer(400, Some("1")).retry, Retry::Never);
    }
}
