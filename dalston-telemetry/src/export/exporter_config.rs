//! The configuration of exporters.
//!
//! An explicit call wins over the variable of the signal, that over the variable for all signals,
//! and that over the default.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::config::{OtlpCompression, OtlpConfig, OtlpProtocol};
use crate::env::{Env, EnvError, EnvWarning};
use crate::settings::metrics::{self, Temporality};
use crate::settings::otlp::{
    ALL_PROXY, CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, COMPRESSION, ENDPOINT, HEADERS, HTTP_PROXY,
    HTTPS_PROXY, INSECURE, NO_PROXY, OTEL_INSECURE, PROTOCOL, Signal, SignalVariable, TIMEOUT,
};
use crate::settings::traces;

/// Stands for "no limit".
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The configuration of one exporter.
#[derive(Clone)]
pub(crate) struct ExporterConfig {
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

impl ExporterConfig {
    pub(crate) fn read(signal: Signal, config: &OtlpConfig, env: &Env) -> Result<Self, EnvError> {
        let protocol = match config.protocol {
            Some(protocol) => protocol,
            None => PROTOCOL.of(signal).read_or_default(env)?,
        };
        let insecure = match config.insecure {
            Some(insecure) => insecure,
            None => match INSECURE.of(signal).read(env)? {
                Some(insecure) => insecure,
                None => OTEL_INSECURE.read_or_default(env)?,
            },
        };
        let endpoint = Endpoint::read(signal, config, env, protocol, insecure)?;
        let proxy = if endpoint.is_loopback() {
            None
        } else {
            Proxy::read(env, endpoint.is_https())
        };
        Ok(Self {
            protocol,
            headers: headers(signal, config, env)?,
            timeout: no_limit_if_zero(match config.timeout {
                Some(timeout) => timeout,
                None => TIMEOUT.of(signal).read_or_default(env)?,
            }),
            gzip: match config.compression {
                Some(compression) => compression,
                None => COMPRESSION.of(signal).read_or_default(env)?,
            } == OtlpCompression::Gzip,
            tls: TlsFiles::read(signal, config, env)?,
            endpoint,
            proxy,
        })
    }

    /// The warnings about the variables that [`read`](Self::read) reads.
    pub(crate) fn warnings(
        signal: Signal,
        config: &OtlpConfig,
        env: &Env,
    ) -> impl Iterator<Item = EnvWarning> {
        let protocol = config.protocol.is_none().then(|| PROTOCOL.warning(signal, env));
        let insecure = config.insecure.is_none().then(|| INSECURE.warning(signal, env));
        let compression = config.compression.is_none();
        let compression = compression.then(|| COMPRESSION.warning(signal, env));
        [protocol, insecure, compression].into_iter().flatten().flatten()
    }

    /// The transport and the address, without credentials.
    pub(crate) fn destination(&self) -> String {
        let protocol = match self.protocol {
            OtlpProtocol::Grpc => "grpc",
            OtlpProtocol::HttpProtobuf => "http/protobuf",
        };
        format!("{protocol} {}", self.endpoint)
    }
}

impl fmt::Debug for ExporterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExporterConfig")
            .field("protocol", &self.protocol)
            .field("endpoint", &self.endpoint)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("timeout", &self.timeout)
            .field("gzip", &self.gzip)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The limits of a queue and of its batches: `OTEL_BSP_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchConfig {
    /// The longest time that an item waits for others, to be sent with them.
    pub(crate) schedule_delay: Duration,
    pub(crate) max_queue_size: usize,
    pub(crate) max_batch_size: usize,
    /// For one batch with its retries.
    pub(crate) export_timeout: Duration,
}

impl BatchConfig {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        let batch_size = &traces::OTEL_BSP_MAX_EXPORT_BATCH_SIZE;
        let queue_size = &traces::OTEL_BSP_MAX_QUEUE_SIZE;
        let max_queue_size = queue_size.read_or_default(env)?;
        let max_batch_size = match batch_size.read(env)? {
            Some(size) if size > max_queue_size => {
                let accepted = format!("at most {}, which is {max_queue_size}", queue_size.name());
                return Err(EnvError::new(batch_size.name(), size.to_string(), accepted));
            }
            Some(size) => size,
            None => batch_size.default_value().min(max_queue_size),
        };
        let delay = traces::OTEL_BSP_SCHEDULE_DELAY.read_or_default(env)?;
        let timeout = traces::OTEL_BSP_EXPORT_TIMEOUT.read_or_default(env)?;
        Ok(Self {
            schedule_delay: delay.clamp(Duration::from_millis(1), NO_LIMIT),
            max_queue_size,
            max_batch_size,
            export_timeout: no_limit_if_zero(timeout),
        })
    }
}

/// The exporters that `OTEL_TRACES_EXPORTER` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceExporters {
    pub(crate) otlp: bool,
    pub(crate) console: bool,
}

impl TraceExporters {
    pub(crate) const NONE: Self = Self {
        otlp: false,
        console: false,
    };

    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        let variable = &traces::OTEL_TRACES_EXPORTER;
        let list = variable.read_or_default(env)?;
        let mut exporters = Self::NONE;
        let mut none = false;
        for name in list.split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "otlp" => exporters.otlp = true,
                "console" => exporters.console = true,
                "none" => none = true,
                _ => return Err(variable.error_in(env)),
            }
        }
        if none && exporters != Self::NONE {
            return Err(EnvError::new(
                variable.name(),
                list,
                "none alone, or otlp and console without none",
            ));
        }
        Ok(exporters)
    }
}

/// The interval and the form in which metrics are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PushConfig {
    pub(crate) interval: Duration,
    /// For one export with its retries.
    pub(crate) export_timeout: Duration,
    /// Whether counters and histograms have delta temporality.
    pub(crate) delta: bool,
}

impl PushConfig {
    pub(crate) fn read(env: &Env) -> Result<Self, EnvError> {
        let interval = metrics::OTEL_METRIC_EXPORT_INTERVAL.read_or_default(env)?;
        let timeout = metrics::OTEL_METRIC_EXPORT_TIMEOUT.read_or_default(env)?;
        let temporality = metrics::OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE.read_or_default(env)?;
        Ok(Self {
            interval: interval.min(NO_LIMIT),
            export_timeout: no_limit_if_zero(timeout),
            delta: temporality == Temporality::Delta,
        })
    }

    /// Whether `OTEL_METRICS_EXPORTER` contains `otlp`. A scrape needs no exporter.
    pub(crate) fn are_wanted(env: &Env) -> Result<bool, EnvError> {
        let variable = &metrics::OTEL_METRICS_EXPORTER;
        let list = variable.read_or_default(env)?;
        let names: Vec<_> = list
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        match names.iter().all(|name| matches!(&**name, "otlp" | "prometheus")) {
            true => Ok(names.iter().any(|name| name == "otlp")),
            false if names == ["none"] => Ok(false),
            false => Err(variable.error_in(env)),
        }
    }
}

/// The address of a collector. It has no credentials, which belong into a header.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    uri: Uri,
}

impl Endpoint {
    fn read(
        signal: Signal,
        config: &OtlpConfig,
        env: &Env,
        protocol: OtlpProtocol,
        insecure: bool,
    ) -> Result<Self, EnvError> {
        let variable = ENDPOINT.of(signal);
        let own_path = match (protocol, signal) {
            (OtlpProtocol::Grpc, _) => None,
            (OtlpProtocol::HttpProtobuf, Signal::Traces) => Some("v1/traces"),
            (OtlpProtocol::HttpProtobuf, Signal::Metrics) => Some("v1/metrics"),
        };
        if let Some(endpoint) = config.endpoint.as_deref() {
            return Self::parse("OtlpConfig::endpoint", endpoint, insecure, None);
        }
        match variable.first(env) {
            Some((name, endpoint)) if name == ENDPOINT.general_name() => {
                Self::parse(name, endpoint, insecure, own_path)
            }
            Some((name, endpoint)) => Self::parse(name, endpoint, insecure, None),
            None => {
                let default = match protocol {
                    OtlpProtocol::Grpc => "http://localhost:4317",
                    OtlpProtocol::HttpProtobuf => "http://localhost:4318",
                };
                Self::parse(ENDPOINT.general_name(), default, insecure, own_path)
            }
        }
    }

    /// Parses a URL and appends a path to it.
    fn parse(variable: &str, text: &str, insecure: bool, append: Option<&str>) -> Result<Self, EnvError> {
        // An error does not repeat a text that can contain credentials.
        let wrong = || match text.contains(['@', '?']) {
            true => EnvError::secret(variable, ENDPOINT.accepted()),
            false => EnvError::new(variable, text, ENDPOINT.accepted()),
        };
        // A scheme of gRPC, not the name of a host.
        if text
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("unix:"))
        {
            return Err(wrong());
        }
        let with_scheme = match (text.contains("://"), insecure) {
            (true, _) => text.to_owned(),
            (false, true) => format!("http://{text}"),
            (false, false) => format!("https://{text}"),
        };
        // `Url` validates more than `Uri`, which the transports need.
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

/// Omits the query, which is a key for some services.
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

/// The files for TLS, each with the name of its setting.
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
    fn read(signal: Signal, config: &OtlpConfig, env: &Env) -> Result<Self, EnvError> {
        let file = |explicit: &Option<String>, call: &'static str, variable: &SignalVariable<String>| {
            let explicit = explicit.as_deref().map(|path| (call, path));
            let (setting, path) = explicit.or_else(|| variable.of(signal).first(env))?;
            Some(TlsFile {
                setting,
                path: path.to_owned(),
            })
        };
        let certificate = file(&config.certificate, "OtlpConfig::certificate", &CERTIFICATE);
        let key = file(&config.client_key, "OtlpConfig::client_identity", &CLIENT_KEY);
        let client_certificate = file(
            &config.client_certificate,
            "OtlpConfig::client_identity",
            &CLIENT_CERTIFICATE,
        );
        let alone = |file: TlsFile, other: &SignalVariable<String>| {
            let accepted = format!("{} to be set beside it", other.general_name());
            EnvError::new(file.setting, file.path, accepted)
        };
        let identity = match (client_certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsIdentity { certificate, key }),
            (None, None) => None,
            (Some(file), None) => return Err(alone(file, &CLIENT_KEY)),
            (None, Some(file)) => return Err(alone(file, &CLIENT_CERTIFICATE)),
        };
        Ok(Self {
            certificate,
            identity,
        })
    }
}

/// The proxy of the environment, as in curl and most HTTP clients. Only for OTLP over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) variable: &'static str,
    pub(crate) url: String,
    pub(crate) except: Option<String>,
}

impl Proxy {
    fn read(env: &Env, https: bool) -> Option<Self> {
        let variable = if https { &HTTPS_PROXY } else { &HTTP_PROXY };
        let (variable, url) = variable.first(env).or_else(|| ALL_PROXY.first(env))?;
        let except = NO_PROXY.first(env).map(|(_, list)| list.to_owned());
        Some(Self {
            variable,
            url: url.to_owned(),
            except,
        })
    }
}

fn no_limit_if_zero(limit: Duration) -> Duration {
    match limit {
        Duration::ZERO => NO_LIMIT,
        limit => limit.min(NO_LIMIT),
    }
}

fn headers(signal: Signal, config: &OtlpConfig, env: &Env) -> Result<HeaderMap, EnvError> {
    let mut headers = HeaderMap::new();
    let variable = HEADERS.of(signal);
    if let Some((name, list)) = variable.first(env) {
        let wrong = || variable.error(name, list);
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
        let (name, value) = header(name, value).ok_or_else(|| variable.error("OtlpConfig::header", value))?;
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
    // gRPC reserves the prefix `grpc-`, and the suffix `-bin` for values in base64.
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
