use std::fmt;
use std::time::Duration;

/// How spans are sent, for a program that does not leave it to the environment.
///
/// Whatever is set here wins over the variables; whatever is not set comes from them.
///
/// ```
/// use std::time::Duration;
/// use dalston_telemetry::{OtlpConfig, OtlpProtocol, Telemetry};
///
/// let builder = Telemetry::builder("gateway").otlp(
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
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport; gRPC unless the environment says otherwise.
    pub fn protocol(mut self, protocol: OtlpProtocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Where to send to: `http://host:4317`, `https://…`, or `host:4317`. Over HTTP the URL is used as it is, with its
    /// path.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// A header, such as a key that the collector asks for. Replaces one of the same name from the environment.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// How long one request may take, 10 s by default; zero means no limit. Retries have their own bound, `OTEL_BSP_EXPORT_TIMEOUT`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How requests are compressed; not at all by default.
    pub fn compression(mut self, compression: OtlpCompression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Whether an endpoint without a scheme is spoken to in plain text; true by default. With a scheme, the scheme
    /// decides.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = Some(insecure);
        self
    }

    /// A PEM file with the certificates to trust instead of those of the system.
    pub fn certificate(mut self, path: impl Into<String>) -> Self {
        self.certificate = Some(path.into());
        self
    }

    /// PEM files with the certificate and the private key by which this process identifies itself.
    pub fn client_identity(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.client_certificate = Some(certificate.into());
        self.client_key = Some(key.into());
        self
    }
}

impl fmt::Debug for OtlpConfig {
    /// Without the values of headers, and without the endpoint, which may hold a password.
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
    /// Not at all.
    None,
    /// With gzip.
    Gzip,
}
