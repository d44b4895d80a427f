use std::borrow::Cow;
use std::time::Duration;

use super::variable::{Declaration, Description};
use super::{Accepts, Milliseconds, OneOf, OtelSwitch, Switch, Text, Variable};
use crate::env::{Env, EnvWarning};
use crate::export::config::{OtlpCompression, OtlpProtocol};

/// A kind of telemetry that OTLP carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Traces,
    Metrics,
}

/// A setting of OTLP: a variable for each signal, and one for all of them that counts where the
/// signal's own is not set.
#[derive(Debug)]
pub(crate) struct SignalVariable<T: 'static> {
    traces: Variable<T>,
    metrics: Variable<T>,
}

impl<T> SignalVariable<T> {
    const fn new(names: SignalNames, accepts: &'static dyn Accepts<T>) -> Self {
        Self {
            traces: Variable::new(names.traces, accepts),
            metrics: Variable::new(names.metrics, accepts),
        }
    }

    const fn default(self, value: &'static str) -> Self {
        Self {
            traces: self.traces.default(value),
            metrics: self.metrics.default(value),
        }
    }

    const fn default_described(self, text: &'static str) -> Self {
        Self {
            traces: self.traces.default_described(text),
            metrics: self.metrics.default_described(text),
        }
    }

    const fn secret(self) -> Self {
        Self {
            traces: self.traces.secret(),
            metrics: self.metrics.secret(),
        }
    }

    const fn unsupported(self, values: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            traces: self.traces.unsupported(values),
            metrics: self.metrics.unsupported(values),
        }
    }

    const fn described(self, text: &'static str) -> Self {
        Self {
            traces: self.traces.described(text),
            metrics: self.metrics.described(text),
        }
    }

    /// The warning of the variable of one signal.
    pub(crate) fn warning(&self, signal: Signal, env: &Env) -> Option<EnvWarning> {
        self.of(signal).warning(env)
    }

    /// The variable of one signal: its own name, then the general one.
    pub(crate) fn of(&self, signal: Signal) -> &Variable<T> {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
        }
    }

    /// The values that it accepts. Completes the sentence "expected …".
    pub(crate) fn accepted(&self) -> Cow<'static, str> {
        self.traces.accepted()
    }

    /// The name of the variable for all signals.
    pub(crate) fn general_name(&self) -> &'static str {
        self.traces.names()[1]
    }
}

impl<T> Declaration for SignalVariable<T> {
    fn describe(&self) -> Description {
        Description {
            names: vec![self.general_name(), self.traces.name(), self.metrics.name()],
            ..self.traces.describe()
        }
    }
}

struct SignalNames {
    traces: &'static [&'static str],
    metrics: &'static [&'static str],
}

macro_rules! names {
    ($setting:literal) => {
        SignalNames {
            traces: &[
                concat!("OTEL_EXPORTER_OTLP_TRACES_", $setting),
                concat!("OTEL_EXPORTER_OTLP_", $setting),
            ],
            metrics: &[
                concat!("OTEL_EXPORTER_OTLP_METRICS_", $setting),
                concat!("OTEL_EXPORTER_OTLP_", $setting),
            ],
        }
    };
}

variables! {
    /// A variable with the name of a signal wins over the one for all signals.
    pub group OTLP = "OTLP";

    /// Where to send to. Without a scheme, `OTEL_EXPORTER_OTLP_INSECURE` decides. Over HTTP,
    /// `/v1/traces` or `/v1/metrics` is appended to the URL for all signals, and one for a signal
    /// is used as it is.
    pub(crate) static ENDPOINT: SignalVariable<String> = SignalVariable::new(
        names!("ENDPOINT"),
        &Text("an http or https URL without user and password, or host:port"),
    )
    .default_described("`http://localhost:4317`; over HTTP `http://localhost:4318`");

    /// The transport.
    pub(crate) static PROTOCOL: SignalVariable<OtlpProtocol> = SignalVariable::new(
        names!("PROTOCOL"),
        &OneOf(&[("grpc", OtlpProtocol::Grpc), ("http/protobuf", OtlpProtocol::HttpProtobuf)]),
    )
    .default("grpc")
    // Collectors accept both forms at one address.
    .unsupported(&[("http/json", "http/protobuf")]);

    /// Headers of each request. They are in no log line.
    pub(crate) static HEADERS: SignalVariable<String> = SignalVariable::new(
        names!("HEADERS"),
        &Text(
            "name=value pairs with commas between, percent-encoded, of headers that the transport does not set itself",
        ),
    )
    .secret();

    /// Milliseconds for one request. 0: a day.
    pub(crate) static TIMEOUT: SignalVariable<Duration> =
        SignalVariable::new(names!("TIMEOUT"), &Milliseconds(0)).default("10000");

    /// How requests are compressed.
    pub(crate) static COMPRESSION: SignalVariable<OtlpCompression> = SignalVariable::new(
        names!("COMPRESSION"),
        &OneOf(&[("gzip", OtlpCompression::Gzip), ("none", OtlpCompression::None)]),
    )
    .default("none")
    .unsupported(&[("deflate", ""), ("snappy", ""), ("zlib", ""), ("zstd", "")]);

    /// Whether an endpoint without a scheme gets plain text.
    pub(crate) static INSECURE: SignalVariable<bool> =
        SignalVariable::new(names!("INSECURE"), &OtelSwitch)
            .default_described("`OTEL_INSECURE`")
            .unsupported(OtelSwitch::WORDS);

    /// The same, as the platform's other services read it.
    pub(crate) static OTEL_INSECURE: Variable<bool> = Variable::new(&["OTEL_INSECURE"], &Switch).default("true");

    /// The certificates to trust.
    pub(crate) static CERTIFICATE: SignalVariable<String> =
        SignalVariable::new(names!("CERTIFICATE"), &Text("a PEM file")).default_described("the system's");

    /// The certificate of this process, for a collector that asks for one.
    pub(crate) static CLIENT_CERTIFICATE: SignalVariable<String> =
        SignalVariable::new(names!("CLIENT_CERTIFICATE"), &Text("a PEM file"));

    /// The private key of that certificate.
    pub(crate) static CLIENT_KEY: SignalVariable<String> =
        SignalVariable::new(names!("CLIENT_KEY"), &Text("a PEM file"));

    /// The proxy for https endpoints, over HTTP. Endpoints on this machine need none.
    pub(crate) static HTTPS_PROXY: Variable<String> =
        Variable::new(&["https_proxy", "HTTPS_PROXY"], &Text("a URL")).default_described("`all_proxy`");

    /// The proxy for http endpoints, over HTTP. Not in capitals: CGI servers set `HTTP_PROXY` from
    /// a header of the request.
    pub(crate) static HTTP_PROXY: Variable<String> =
        Variable::new(&["http_proxy"], &Text("a URL")).default_described("`all_proxy`");

    /// The proxy for endpoints of either kind.
    pub(crate) static ALL_PROXY: Variable<String> = Variable::new(&["all_proxy", "ALL_PROXY"], &Text("a URL"));

    /// Hosts that need no proxy.
    pub(crate) static NO_PROXY: Variable<String> =
        Variable::new(&["no_proxy", "NO_PROXY"], &Text("a list of hosts"));
}
