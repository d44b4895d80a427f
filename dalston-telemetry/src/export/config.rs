use std::fmt;
use std::time::Duration;

#[cfg(not(all(feature = "otlp-grpc", feature = "otlp-http")))]
use crate::{error::InitError, settings::otlp::PROTOCOL};

/// How spans or metrics are sent, in place of the environment.
///
/// Each value that is set here wins over its variable.
///
/// ```
/// use std::time::Duration;
/// use dalston_telemetry::services::service_name;
/// use dalston_telemetry::{OtlpConfig, OtlpProtocol, Telemetry};
///
/// let builder = Telemetry::builder(service_name::GATEWAY).otlp(
///     OtlpConfig::new()
///         .protocol(OtlpProtocol::HttpProtobuf)
///         .endpoint("https://collector.example:4318/v1/traces")
///         .timeout(Duration::from_secs(3)),
/// );
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct OtlpConfig {
    pub(super) protocol: Option<OtlpProtocol>,
    pub(super) endpoint: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) timeout: Option<Duration>,
    pub(super) compression: Option<OtlpCompression>,
    pub(super) insecure: Option<bool>,
    pub(super) certificate: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) client_certificate: Option<String>,
}

impl OtlpConfig {
    /// A configuration without values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the transport; gRPC by default.
    pub fn protocol(mut self, protocol: OtlpProtocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Sets the collector: `http://host:4317`, `https://…`, or `host:4317`. Over HTTP, the URL is
    /// used with its path, and nothing is appended.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Adds a header, such as a key for the collector. Replaces a header of that name from the
    /// environment.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the time limit of one request, 10 s by default; zero means no limit.
    /// `OTEL_BSP_EXPORT_TIMEOUT` limits a request with its retries.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the compression of requests; none by default.
    pub fn compression(mut self, compression: OtlpCompression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Sets whether an endpoint without a scheme gets plain text; true by default. A scheme decides
    /// itself.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = Some(insecure);
        self
    }

    /// Sets a PEM file with the certificates to trust in place of those of the system.
    pub fn certificate(mut self, path: impl Into<String>) -> Self {
        self.certificate = Some(path.into());
        self
    }

    /// Sets the PEM files of the client certificate and its private key.
    pub fn client_identity(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.client_certificate = Some(certificate.into());
        self.client_key = Some(key.into());
        self
    }
}

impl fmt::Debug for OtlpConfig {
    /// Omits the values of headers and the endpoint, which can contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("OtlpConfig")
            .field("protocol", &self.protocol)
            .field("headers", &headers)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// The transports of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtlpProtocol {
    /// gRPC, by default on port 4317.
    Grpc,
    /// Protobuf in HTTP requests, by default on port 4318.
    HttpProtobuf,
}

/// The ways to compress a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtlpCompression {
    /// No compression.
    None,
    /// gzip.
    Gzip,
}

#[cfg(not(all(feature = "otlp-grpc", feature = "otlp-http")))]
impl OtlpProtocol {
    /// The error of a build that lacks the transport.
    pub(super) fn missing_feature(self) -> InitError {
        let (transport, feature) = match self {
            Self::Grpc => ("OTLP over gRPC", "otlp-grpc"),
            Self::HttpProtobuf => ("OTLP over HTTP", "otlp-http"),
        };
        InitError::MissingFeature {
            setting: PROTOCOL.general_name(),
            transport,
            feature,
        }
    }
}
