//! Where spans go and how, read from the environment.
//!
//! For every setting: an explicit call, then the variable for traces, then the variable for all signals, then the
//! default.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::config::{OtlpCompression, OtlpConfig, OtlpProtocol};
use crate::env::{Env, EnvError};

/// A limit of "none" in the terms of a program that must end some day.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Seconds for one request.
const DEFAULT_TIMEOUT: u64 = 10;

/// What the variables of one kind of telemetry are called. The ones for all kinds come after them.
pub(crate) struct Variables {
    protocol: &'static str,
    endpoint: &'static str,
    insecure: &'static str,
    headers: &'static str,
    timeout: &'static str,
    compression: &'static str,
    certificate: &'static str,
    client_key: &'static str,
    client_certificate: &'static str,
    /// Appended to a URL that is for all kinds, over HTTP.
    path: &'static str,
}

pub(crate) const TRACES: Variables = Variables {
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    insecure: "OTEL_EXPORTER_OTLP_TRACES_INSECURE",
    headers: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    timeout: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    compression: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    certificate: "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    client_key: "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    client_certificate: "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    path: "v1/traces",
};

pub(crate) const METRICS: Variables = Variables {
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    insecure: "OTEL_EXPORTER_OTLP_METRICS_INSECURE",
    headers: "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    timeout: "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    compression: "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
    certificate: "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE",
    client_key: "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY",
    client_certificate: "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
    path: "v1/metrics",
};

/// Settings in force for one exporter.
#[derive(Clone)]
pub(crate) struct OtlpSettings {
    pub(crate) protocol: OtlpProtocol,
    pub(crate) endpoint: Endpoint,
    /// The values are marked as sensitive.
    pub(crate) headers: HeaderMap,
    /// For one request.
    pub(crate) timeout: Duration,
    pub(crate) gzip: bool,
    pub(crate) tls: TlsFiles,
    pub(crate) proxy: Option<Proxy>,
}

impl OtlpSettings {
    pub(crate) fn read(variables: &Variables, config: &OtlpConfig, env: &Env) -> Result<Self, EnvError> {
        let protocol = match config.protocol {
            Some(protocol) => protocol,
            None => protocol(variables, env)?,
        };
        let insecure = match config.insecure {
            Some(insecure) => insecure,
            None => insecure(variables, env)?,
        };
        let endpoint = Endpoint::read(variables, config, env, protocol, insecure)?;
        let proxy = if endpoint.is_loopback() {
            None
        } else {
            Proxy::read(env, endpoint.is_https())
        };
        Ok(Self {
            protocol,
            headers: headers(variables, config, env)?,
            timeout: match config.timeout {
                Some(timeout) => no_limit_if_zero(Some(timeout), DEFAULT_TIMEOUT),
                None => timeout(variables, env)?,
            },
            gzip: match config.compression {
                Some(compression) => compression == OtlpCompression::Gzip,
                None => gzip(variables, env)?,
            },
            tls: TlsFiles::read(variables, config, env)?,
            endpoint,
            proxy,
        })
    }
}

impl fmt::Debug for OtlpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpSettings")
            .field("protocol", &self.protocol)
            .field("endpoint", &self.endpoint)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("timeout", &self.timeout)
            .field("gzip", &self.gzip)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The limits of the queue between the program and the exporter: `OTEL_BSP_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchSettings {
    /// The longest time that a span waits for others to go with it.
    pub(crate) schedule_delay: Duration,
    pub(crate) max_queue_size: usize,
    pub(crate) max_batch_size: usize,
    /// For one batch, with all its retries.
    pub(crate) export_timeout: Duration,
}

impl BatchSettings {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        const COUNT: &str = "a whole number from 1";
        const BATCH: &str = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE";
        const DEFAULT_BATCH: usize = 512;
        let count = |name: &'static str| match env.parse::<usize>(name, COUNT)? {
            Some(0) => Err(EnvError::new(name, "0", COUNT)),
            count => Ok(count),
        };
        let max_queue_size = count("OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(2048);
        let max_batch_size = match count(BATCH)? {
            Some(size) if size > max_queue_size => {
                let accepted = format!("at most OTEL_BSP_MAX_QUEUE_SIZE, which is {max_queue_size}");
                return Err(EnvError::new(BATCH, size.to_string(), accepted));
            }
            Some(size) => size,
            None => DEFAULT_BATCH.min(max_queue_size),
        };
        Ok(Self {
            schedule_delay: milliseconds(env, "OTEL_BSP_SCHEDULE_DELAY")?
                .map_or(Duration::from_secs(5), |delay| {
                    delay.clamp(Duration::from_millis(1), NO_LIMIT)
                }),
            max_queue_size,
            max_batch_size,
            export_timeout: no_limit_if_zero(milliseconds(env, "OTEL_BSP_EXPORT_TIMEOUT")?, 30),
        })
    }
}

/// The exporters that `OTEL_TRACES_EXPORTER` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exporters {
    pub(crate) otlp: bool,
    pub(crate) console: bool,
}

impl Exporters {
    pub(crate) const NONE: Self = Self {
        otlp: false,
        console: false,
    };

    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        const VARIABLE: &str = "OTEL_TRACES_EXPORTER";
        let Some(list) = env.get(VARIABLE) else {
            return Ok(Self {
                otlp: true,
                console: false,
            });
        };
        let mut exporters = Self::NONE;
        let mut none = false;
        for name in list.split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "otlp" => exporters.otlp = true,
                "console" => exporters.console = true,
                "none" => none = true,
                _ => return Err(EnvError::new(VARIABLE, list, "otlp, console or none")),
            }
        }
        if none && exporters != Self::NONE {
            return Err(EnvError::new(
                VARIABLE,
                list,
                "none alone, or otlp and console without none",
            ));
        }
        Ok(exporters)
    }
}

/// When and how metrics are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PushSettings {
    pub(crate) interval: Duration,
    /// For everything that is sent at once, with all retries.
    pub(crate) export_timeout: Duration,
    /// Whether counters and histograms tell what was added since the last push, rather than since the start.
    pub(crate) delta: bool,
}

impl PushSettings {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
        const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let interval = match milliseconds(env, INTERVAL)? {
            Some(Duration::ZERO) => {
                return Err(EnvError::new(
                    INTERVAL,
                    "0",
                    "a whole number of milliseconds from 1",
                ));
            }
            interval => interval.unwrap_or(Duration::from_secs(60)).min(NO_LIMIT),
        };
        let delta = match env.get(TEMPORALITY).map(str::to_ascii_lowercase).as_deref() {
            None | Some("cumulative") => false,
            // They differ in instruments that ask for their values, of which we have none.
            Some("delta" | "lowmemory") => true,
            Some(other) => {
                return Err(EnvError::new(
                    TEMPORALITY,
                    other,
                    "cumulative, delta or lowmemory",
                ));
            }
        };
        Ok(Self {
            interval,
            export_timeout: no_limit_if_zero(milliseconds(env, "OTEL_METRIC_EXPORT_TIMEOUT")?, 30),
            delta,
        })
    }

    /// Whether `OTEL_METRICS_EXPORTER` asks for a push. Being scraped needs no exporter.
    pub(crate) fn are_wanted(env: &Env) -> Result<bool, EnvError> {
        const VARIABLE: &str = "OTEL_METRICS_EXPORTER";
        let Some(list) = env.get(VARIABLE) else {
            return Ok(false);
        };
        let wrong = || EnvError::new(VARIABLE, list, "otlp, prometheus or both, or none alone");
        let names: Vec<_> = list
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        match names.iter().all(|name| matches!(&**name, "otlp" | "prometheus")) {
            true => Ok(names.iter().any(|name| name == "otlp")),
            false if names == ["none"] => Ok(false),
            false => Err(wrong()),
        }
    }
}

/// An address to send to. Without credentials, which belong into a header.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    uri: Uri,
}

impl Endpoint {
    const ACCEPTED: &str = "an http or https URL without user and password, or host:port";

    fn read(
        variables: &Variables,
        config: &OtlpConfig,
        env: &Env,
        protocol: OtlpProtocol,
        insecure: bool,
    ) -> Result<Self, EnvError> {
        const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let own_path = if protocol == OtlpProtocol::HttpProtobuf {
            Some(variables.path)
        } else {
            None
        };
        if let Some(endpoint) = config.endpoint.as_deref() {
            return Self::parse("OtlpConfig::endpoint", endpoint, insecure, None);
        }
        if let Some(endpoint) = env.get(variables.endpoint) {
            return Self::parse(variables.endpoint, endpoint, insecure, None);
        }
        if let Some(endpoint) = env.get(GENERAL) {
            return Self::parse(GENERAL, endpoint, insecure, own_path);
        }
        let default = match protocol {
            OtlpProtocol::Grpc => "http://localhost:4317",
            OtlpProtocol::HttpProtobuf => "http://localhost:4318",
        };
        Self::parse(GENERAL, default, insecure, own_path)
    }

    /// Reads a URL; `append` is the path to put behind the one that is there.
    fn parse(variable: &str, text: &str, insecure: bool, append: Option<&str>) -> Result<Self, EnvError> {
        // What looks like credentials is not repeated in an error.
        let wrong = || match text.contains(['@', '?']) {
            true => EnvError::secret(variable, Self::ACCEPTED),
            false => EnvError::new(variable, text, Self::ACCEPTED),
        };
        let with_scheme = match (text.contains("://"), insecure) {
            (true, _) => text.to_owned(),
            (false, true) => format!("http://{text}"),
            (false, false) => format!("https://{text}"),
        };
        // `Url` is the judge of what a URL is, `Uri` is what the transports take.
        let mut url = url::Url::parse(&with_scheme).map_err(|_| wrong())?;
        let known = matches!(url.scheme(), "http" | "https");
        if !known || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong());
        }
        if let Some(append) = append {
            let path = format!("{}/{append}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        url.set_fragment(None);
        Ok(Self {
            uri: url.as_str().parse().map_err(|_| wrong())?,
        })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    fn is_loopback(&self) -> bool {
        let host = self.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

/// Without the query, where some services want their key.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self
            .uri
            .authority()
            .map(http::uri::Authority::as_str)
            .unwrap_or_default();
        write!(
            f,
            "{scheme}://{authority}{}",
            self.uri.path().trim_end_matches('/')
        )
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The files that TLS needs, each with the name of the setting that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: Option<TlsFile>,
    pub(crate) identity: Option<TlsIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsIdentity {
    pub(crate) certificate: TlsFile,
    pub(crate) key: TlsFile,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFile {
    pub(crate) setting: &'static str,
    pub(crate) path: String,
}

impl TlsFiles {
    fn read(variables: &Variables, config: &OtlpConfig, env: &Env) -> Result<Self, EnvError> {
        let file = |explicit: &Option<String>, call: &'static str, names: [&'static str; 2]| {
            let explicit = explicit.as_deref().map(|path| (call, path));
            let (setting, path) = explicit.or_else(|| env.first(&names))?;
            Some(TlsFile {
                setting,
                path: path.to_owned(),
            })
        };
        let certificate = file(
            &config.certificate,
            "OtlpConfig::certificate",
            [variables.certificate, "OTEL_EXPORTER_OTLP_CERTIFICATE"],
        );
        let key = file(
            &config.client_key,
            "OtlpConfig::client_identity",
            [variables.client_key, "OTEL_EXPORTER_OTLP_CLIENT_KEY"],
        );
        let client_certificate = file(
            &config.client_certificate,
            "OtlpConfig::client_identity",
            [
                variables.client_certificate,
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            ],
        );
        let alone = |file: TlsFile, other: &str| {
            EnvError::new(file.setting, file.path, format!("{other} to be set beside it"))
        };
        let identity = match (client_certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsIdentity { certificate, key }),
            (None, None) => None,
            (Some(file), None) => return Err(alone(file, "OTEL_EXPORTER_OTLP_CLIENT_KEY")),
            (None, Some(file)) => return Err(alone(file, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")),
        };
        Ok(Self {
            certificate,
            identity,
        })
    }
}

/// The proxy of the environment, as curl and most HTTP clients understand it. Only for OTLP over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) variable: &'static str,
    pub(crate) url: String,
    pub(crate) except: Option<String>,
}

impl Proxy {
    fn read(env: &Env, https: bool) -> Option<Self> {
        // Not HTTP_PROXY in capitals: a CGI server sets that from a header of the request.
        let names: &[&'static str] = match https {
            true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            false => &["http_proxy", "all_proxy", "ALL_PROXY"],
        };
        let (variable, url) = env.first(names)?;
        let except = env
            .first(&["no_proxy", "NO_PROXY"])
            .map(|(_, list)| list.to_owned());
        Some(Self {
            variable,
            url: url.to_owned(),
            except,
        })
    }
}

fn protocol(variables: &Variables, env: &Env) -> Result<OtlpProtocol, EnvError> {
    let set = env.first(&[variables.protocol, "OTEL_EXPORTER_OTLP_PROTOCOL"]);
    let Some((name, protocol)) = set else {
        return Ok(OtlpProtocol::Grpc);
    };
    match protocol.to_ascii_lowercase().as_str() {
        "grpc" => Ok(OtlpProtocol::Grpc),
        "http/protobuf" => Ok(OtlpProtocol::HttpProtobuf),
        _ => Err(EnvError::new(name, protocol, "grpc or http/protobuf")),
    }
}

fn insecure(variables: &Variables, env: &Env) -> Result<bool, EnvError> {
    for name in [variables.insecure, "OTEL_EXPORTER_OTLP_INSECURE"] {
        if let Some(insecure) = env.otel_flag(name)? {
            return Ok(insecure);
        }
    }
    // The platform's own switch, and its default.
    Ok(env.flag("OTEL_INSECURE")?.unwrap_or(true))
}

fn timeout(variables: &Variables, env: &Env) -> Result<Duration, EnvError> {
    let own = milliseconds(env, variables.timeout)?;
    let general = milliseconds(env, "OTEL_EXPORTER_OTLP_TIMEOUT")?;
    Ok(no_limit_if_zero(own.or(general), DEFAULT_TIMEOUT))
}

fn gzip(variables: &Variables, env: &Env) -> Result<bool, EnvError> {
    let set = env.first(&[variables.compression, "OTEL_EXPORTER_OTLP_COMPRESSION"]);
    let Some((name, compression)) = set else {
        return Ok(false);
    };
    match compression.to_ascii_lowercase().as_str() {
        "none" => Ok(false),
        "gzip" => Ok(true),
        _ => Err(EnvError::new(name, compression, "gzip or none")),
    }
}

fn milliseconds(env: &Env, name: &'static str) -> Result<Option<Duration>, EnvError> {
    Ok(env
        .parse(name, "a whole number of milliseconds")?
        .map(Duration::from_millis))
}

fn no_limit_if_zero(limit: Option<Duration>, default_seconds: u64) -> Duration {
    match limit {
        None => Duration::from_secs(default_seconds),
        Some(Duration::ZERO) => NO_LIMIT,
        Some(limit) => limit.min(NO_LIMIT),
    }
}

fn headers(variables: &Variables, config: &OtlpConfig, env: &Env) -> Result<HeaderMap, EnvError> {
    const ACCEPTED: &str = "name=value pairs with commas between, percent-encoded, of headers that the transport \
                            does not set itself";
    let mut headers = HeaderMap::new();
    if let Some((variable, list)) = env.first(&[variables.headers, "OTEL_EXPORTER_OTLP_HEADERS"]) {
        let wrong = || EnvError::secret(variable, ACCEPTED);
        for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .map_err(|_| wrong())?;
            let (name, value) = header(name.trim(), &value).ok_or_else(wrong)?;
            headers.insert(name, value);
        }
    }
    for (name, value) in &config.headers {
        let (name, value) =
            header(name, value).ok_or_else(|| EnvError::secret("OtlpConfig::header", ACCEPTED))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    const OURS: [&str; 9] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    // gRPC keeps `grpc-` for itself, and `-bin` for values in base64.
    if OURS.contains(&name.as_str()) || name.as_str().starts_with("grpc-") || name.as_str().ends_with("-bin")
    {
        return None;
    }
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests;
