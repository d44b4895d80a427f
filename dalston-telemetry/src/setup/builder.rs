use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanProcessor};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;
use tracing_log::AsLog;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::env::{Env, EnvError, EnvWarning};
use crate::error::InitError;
use crate::export::traces::{ExportProcessor, SpanExporter};
use crate::export::{
    self, BatchConfig, Console, Exporter, ExporterConfig, Exporters, NO_LIMIT, OtlpConfig, PushConfig,
    ReportTo, TraceExporters,
};
use crate::logs::{Form, LogConfig, LogFormat, LogWriter};
use crate::metrics::{self, Metrics, TelemetryMetrics};
use crate::resource;
#[cfg(feature = "ec2")]
use crate::resource::cloud::Cloud;
use crate::services::service_name;
use crate::settings::metrics::OTEL_METRICS_EXPORTER;
use crate::settings::otlp::Signal;
use crate::settings::traces::{
    OTEL_PROPAGATORS, OTEL_SDK_DISABLED, OTEL_SEMCONV_STABILITY_OPT_IN, OTEL_TRACES_EXPORTER,
    OTEL_TRACES_SAMPLER,
};
use crate::settings::{INSTANCE_TYPE, OTEL_ENABLED};
use crate::setup::layers::{Layers, TelemetryLayer};
use crate::setup::report::{SetupReport, Warnings};
use crate::setup::telemetry::{Telemetry, Tracing};
use crate::traces::collector::SpanCollector;
use crate::traces::limits::Limits;
use crate::traces::processors::Processors;
use crate::traces::propagate::Propagator;
use crate::traces::sampler;

/// Configures telemetry. Every call is optional: the environment decides what the program leaves
/// open.
///
/// ```no_run
/// use std::time::Duration;
/// use dalston_telemetry::Telemetry;
///
/// # fn main() -> Result<(), dalston_telemetry::InitError> {
/// let telemetry = Telemetry::builder("engine-whisper")
///     .version(env!("CARGO_PKG_VERSION"))
///     .shutdown_timeout(Duration::from_secs(2))
///     .install()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `install` or `into_layer` is called"]
pub struct TelemetryBuilder {
    service: String,
    env: Option<Env>,
    enabled: Option<bool>,
    span_level: LevelFilter,
    attributes: Vec<KeyValue>,
    #[cfg(feature = "ec2")]
    cloud: Cloud,
    processors: Vec<Box<dyn SpanProcessor>>,
    otlp: OtlpConfig,
    otlp_metrics: OtlpConfig,
    metrics: Option<Metrics>,
    logs: Option<LogWriter>,
    log_format: Option<LogFormat>,
    log_level: LevelFilter,
    panic_hook: bool,
    shutdown_timeout: Duration,
}

impl Telemetry {
    /// Configures telemetry for a service: `dalston-gateway`, `dalston-engine-faster-whisper`. The
    /// names of the platform's services are in [`service_name`].
    ///
    /// The field `service` of log lines has the short form of the name: `gateway`,
    /// `engine-faster-whisper`.
    ///
    /// `OTEL_SERVICE_NAME`, or `service.name` in `OTEL_RESOURCE_ATTRIBUTES`, gives it another name:
    /// in spans, in log lines and in `dalston_build_info`.
    pub fn builder(service: impl Into<String>) -> TelemetryBuilder {
        TelemetryBuilder::new(service.into())
    }
}

impl TelemetryBuilder {
    fn new(service: String) -> Self {
        Self {
            service,
            env: None,
            enabled: None,
            span_level: LevelFilter::INFO,
            attributes: Vec::new(),
            #[cfg(feature = "ec2")]
            cloud: Cloud::unknown(),
            processors: Vec::new(),
            otlp: OtlpConfig::new(),
            otlp_metrics: OtlpConfig::new(),
            metrics: None,
            logs: Some(LogWriter::stdout()),
            log_format: None,
            log_level: LevelFilter::INFO,
            panic_hook: true,
            shutdown_timeout: Duration::from_secs(5),
        }
    }

    /// Sets the environment that is read instead of the variables of the process.
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Switches tracing on or off, in place of `OTEL_ENABLED`. `OTEL_SDK_DISABLED=true` still
    /// wins.
    pub fn enabled(mut self, on: bool) -> Self {
        self.enabled = Some(on);
        self
    }

    /// Sets how spans are sent, in place of the environment. Does not switch tracing on.
    pub fn otlp(mut self, config: OtlpConfig) -> Self {
        self.otlp = config;
        self
    }

    /// Sets how metrics are exported, in place of the environment. Does not switch the export on.
    pub fn otlp_metrics(mut self, config: OtlpConfig) -> Self {
        self.otlp_metrics = config;
        self
    }

    /// Sets the version of the service: the resource attribute `service.version`.
    pub fn version(self, version: impl Into<String>) -> Self {
        self.resource_attribute("service.version", version.into())
    }

    /// Adds an attribute to everything that this process reports. Wins over
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub fn resource_attribute(mut self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(key, value));
        self
    }

    /// Adds resource attributes of the cloud that the process runs in, such as `host.type`,
    /// `host.id` and `cloud.availability_zone`. They win over what is detected on the machine, and
    /// `OTEL_RESOURCE_ATTRIBUTES` wins over them. The instance type is also the field
    /// `instance_type` of log lines, unless `INSTANCE_TYPE` is set.
    ///
    /// [`install`](Self::install) logs the result of the detection: as a warning if this is EC2 and
    /// its metadata service did not answer, else at debug level.
    #[cfg(feature = "ec2")]
    pub fn cloud(mut self, cloud: Cloud) -> Self {
        self.cloud = cloud;
        self
    }

    /// Sets the most verbose level at which spans and span events are recorded; `INFO` by default.
    ///
    /// The log filter does not affect spans: a service that only logs warnings still exports its
    /// spans.
    pub fn span_level(mut self, level: LevelFilter) -> Self {
        self.span_level = level;
        self
    }

    /// Also keeps finished spans in memory. Turns tracing on by itself: without an exporter in the
    /// environment, no exporter is started and no socket opened.
    pub fn span_collector(self, collector: SpanCollector) -> Self {
        self.span_processor(collector)
    }

    /// Also passes every span to a processor of the program. Turns tracing on, as
    /// [`span_collector`](Self::span_collector) does.
    pub fn span_processor(mut self, processor: impl SpanProcessor + 'static) -> Self {
        self.processors.push(Box::new(processor));
        self
    }

    /// Sets the registry of metrics; a [new one](Metrics::from_env) by default.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Sets the format of log lines; that of `DALSTON_LOG_FORMAT` by default, else
    /// [`LogFormat::Auto`].
    pub fn log_format(mut self, format: LogFormat) -> Self {
        self.log_format = Some(format);
        self
    }

    /// Sets the most verbose level that is logged while `RUST_LOG`, `LOG_LEVEL` and
    /// `DALSTON_LOG_LEVEL` are unset; `INFO` by default.
    pub fn default_log_level(mut self, level: LevelFilter) -> Self {
        self.log_level = level;
        self
    }

    /// Sets the destination of log lines; standard output by default. [`LogWriter`] says how many
    /// lines may wait for it.
    pub fn log_writer(mut self, writer: LogWriter) -> Self {
        self.logs = Some(writer);
        self
    }

    /// Writes no log lines. For a program whose subscriber has another layer for them.
    pub fn without_logs(mut self) -> Self {
        self.logs = None;
        self
    }

    /// Sets whether [`install`](Self::install) installs a panic hook; on by default.
    ///
    /// The hook logs the panic with its thread, its location and the ids of the current span. It
    /// marks the span as failed, writes the log lines that wait, sends for a second what waits to
    /// be sent, and calls the previous hook.
    pub fn panic_hook(mut self, on: bool) -> Self {
        self.panic_hook = on;
        self
    }

    /// Sets how long [`Telemetry::shutdown`] and dropping [`Telemetry`] may take; 5 s by default, a
    /// day at most. The processors of [`span_processor`](Self::span_processor) and the log lines
    /// get the time that the exporters leave, the log lines 0.2 s at least.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout.min(NO_LIMIT);
        self
    }

    /// Sets up telemetry for the whole process: the global `tracing` subscriber, and
    /// OpenTelemetry's global tracer provider, meter provider and propagator. Records of the `log`
    /// crate become log lines, by the same filter, unless the program has a logger for them.
    ///
    /// # Errors
    ///
    /// When a variable has a wrong value, when this was called before (the error says where), or
    /// when the process has another global subscriber. A collector that can't be reached is not an
    /// error.
    #[track_caller]
    pub fn install(self) -> Result<Telemetry, InitError> {
        static INSTALLED: Mutex<Option<&'static Location<'static>>> = Mutex::new(None);

        // Held to the end, so that the second of two threads gets the error.
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = *installed {
            return Err(InitError::AlreadyInstalled { first });
        }
        let caller = Location::caller();
        let panic_hook = self.panic_hook;
        #[cfg(feature = "ec2")]
        let cloud = self.cloud.clone();
        let (layers, telemetry, propagator) = self.start()?;
        tracing::subscriber::set_global_default(Registry::default().with(layers.build()))
            .map_err(|_| InitError::ForeignSubscriber)?;
        // OpenTelemetry logs these calls at INFO, which would be the first lines of every service.
        tracing::subscriber::with_default(NoSubscriber::new(), || {
            if let Some(tracing) = telemetry.tracing() {
                opentelemetry::global::set_tracer_provider(tracing.provider.clone());
            }
            opentelemetry::global::set_meter_provider(telemetry.metrics().meter_provider());
        });
        // Also while tracing is off: a service that exports nothing must not cut traces in two.
        propagator.install();
        opentelemetry::global::set_text_map_propagator(propagator);
        if panic_hook {
            crate::setup::panic::install(telemetry.handle());
        }
        bridge_log_records();
        telemetry.log_settings();
        #[cfg(feature = "ec2")]
        cloud.log();
        *installed = Some(caller);
        Ok(telemetry)
    }

    /// Sets up telemetry without changing anything global. For tests, and for programs with a
    /// subscriber of their own.
    ///
    /// ```
    /// use dalston_telemetry::{Env, SpanCollector, Telemetry};
    /// use tracing_subscriber::layer::SubscriberExt;
    ///
    /// let spans = SpanCollector::new();
    /// let (layer, _telemetry) = Telemetry::builder("engine-test")
    ///     .env(Env::default())
    ///     .span_collector(spans.clone())
    ///     .into_layer()?;
    /// let subscriber = tracing_subscriber::registry().with(layer);
    /// tracing::subscriber::with_default(subscriber, || tracing::info_span!("work").in_scope(|| {}));
    /// assert_eq!(spans.spans()[0].name, "work");
    /// # Ok::<(), dalston_telemetry::InitError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When a variable has a wrong value.
    pub fn into_layer<S>(self) -> Result<(TelemetryLayer<S>, Telemetry), InitError>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let (layers, telemetry, _) = self.start()?;
        Ok((layers.build(), telemetry))
    }

    fn start(self) -> Result<(Layers, Telemetry, Propagator), InitError> {
        let env = self.env.clone().unwrap_or_else(Env::from_process);
        let span_level = self.span_level;
        let shutdown_timeout = self.shutdown_timeout;
        let serves_metrics = metrics::are_enabled(&env)?;
        let metrics = match &self.metrics {
            Some(metrics) => metrics.clone(),
            None if serves_metrics => Metrics::from_env(&env)?,
            None => Metrics::new(),
        };
        let service = self.service_name(&env);
        metrics::register_build_info(&metrics, &service, &self.service_version());
        metrics::process::register(&metrics);
        // Registered even if nothing is exported, so that the series exist from the start.
        let telemetry_metrics = TelemetryMetrics::register(&metrics);
        // A wrong variable is reported when the resource is built, as with the service name.
        let instance_type = resource::instance_type(&env, &self.attributes, &self.detected());
        let instance_type =
            instance_type.unwrap_or_else(|_| INSTANCE_TYPE.first(&env).map(|(_, name)| name.to_owned()));
        let mut warnings = Warnings::default();
        let logs = match &self.logs {
            Some(writer) => Some(LogConfig::read(
                &env,
                // Lines carry the short form, as those of the platform's services do.
                service_name::short(&service),
                instance_type.as_deref(),
                self.log_format,
                self.log_level,
                writer.clone(),
                telemetry_metrics,
            )?),
            None => None,
        };
        warnings.extend(logs.as_ref().and_then(|logs| logs.warning.clone()));
        let exported = self.exported(&env, &mut warnings)?;
        let exports_spans = exported.spans;
        let push = if exported.metrics {
            Some(self.push_config(&env, &mut warnings)?)
        } else {
            None
        };
        let traces_are_on = exports_spans || !self.processors.is_empty();
        let propagator = propagator(&env, traces_are_on, &mut warnings)?;
        let mut report = SetupReport {
            traces: Vec::new(),
            serves_metrics,
            pushed_metrics: None,
            logs: match logs.as_ref().map(|logs| logs.form) {
                None => SetupReport::OFF,
                Some(Form::Json) => "json",
                Some(Form::Readable { .. }) => "console",
            },
            warnings,
        };
        let resource = if push.is_some() || traces_are_on {
            Some(resource::build(
                &env,
                &self.service,
                &self.attributes,
                &self.detected(),
            )?)
        } else {
            None
        };
        let report_to = ReportTo::default();
        let mut exporters: Vec<Arc<dyn Exporter>> = Vec::new();
        let tracing = match &resource {
            Some(resource) if traces_are_on => {
                let tracing =
                    self.tracing(&env, exports_spans, resource, &metrics, &report_to, &mut report)?;
                exporters.extend(tracing.exporter.as_ref().map(SpanExporter::exporter));
                Some(tracing)
            }
            _ => None,
        };
        if let (Some((otlp, config)), Some(resource)) = (push, &resource) {
            report.pushed_metrics = Some(otlp.destination());
            exporters.push(export::metrics::start(
                &otlp, config, resource, &metrics, report_to,
            )?);
        }
        let tracer = tracing.as_ref().map(|tracing| tracing.tracer.clone());
        let telemetry = Telemetry::new(
            tracing,
            metrics,
            Exporters::new(exporters),
            instance_type,
            logs.as_ref(),
            report,
            shutdown_timeout,
        );
        let layers = Layers {
            tracer,
            span_level,
            logs,
        };
        Ok((layers, telemetry, propagator))
    }

    #[cfg(feature = "ec2")]
    fn detected(&self) -> Vec<KeyValue> {
        self.cloud.attributes()
    }

    #[cfg(not(feature = "ec2"))]
    fn detected(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    /// The service name of spans, log lines and metrics.
    fn service_name(&self, env: &Env) -> String {
        let explicit = self
            .attributes
            .iter()
            .rev()
            .find(|attribute| attribute.key.as_str() == "service.name");
        match explicit {
            Some(attribute) => attribute.value.to_string(),
            // A wrong variable is reported when the resource is built. Without an export there is
            // no resource, and log lines have the program's own name.
            None => resource::service_name(env, &self.service).unwrap_or_else(|_| self.service.clone()),
        }
    }

    fn service_version(&self) -> String {
        let version = self
            .attributes
            .iter()
            .rev()
            .find(|attribute| attribute.key.as_str() == "service.version");
        version.map_or_else(|| "unknown".to_owned(), |attribute| attribute.value.to_string())
    }

    /// Which signals leave the process by an exporter, as the program says, else the environment.
    ///
    /// The export of metrics does not need tracing. An explicit `OTEL_ENABLED=false` switches both
    /// off. While nothing is exported, the variables that decide between ways are not read.
    fn exported(&self, env: &Env, warnings: &mut Warnings) -> Result<Exported, EnvError> {
        let enabled = OTEL_ENABLED.read(env)?;
        let spans = self.enabled.or(enabled).unwrap_or(false);
        let may_push = enabled.unwrap_or(true) && metrics::are_enabled(env)?;
        let disabled = OTEL_SDK_DISABLED.read_or_default(env);
        if disabled == Ok(true) {
            if spans || may_push && OTEL_METRICS_EXPORTER.is_set(env) {
                warnings.extend(OTEL_SDK_DISABLED.warning(env));
            }
            return Ok(Exported {
                spans: false,
                metrics: false,
            });
        }
        let metrics = may_push && PushConfig::are_wanted(env)?;
        if may_push {
            warnings.extend(OTEL_METRICS_EXPORTER.warning(env));
        }
        if spans || metrics {
            disabled?;
            warnings.extend(OTEL_SDK_DISABLED.warning(env));
        }
        Ok(Exported { spans, metrics })
    }

    /// How metrics are exported.
    fn push_config(
        &self,
        env: &Env,
        warnings: &mut Warnings,
    ) -> Result<(ExporterConfig, PushConfig), EnvError> {
        let otlp = ExporterConfig::read(Signal::Metrics, &self.otlp_metrics, env)?;
        warnings.extend(ExporterConfig::warnings(Signal::Metrics, &self.otlp_metrics, env));
        Ok((otlp, PushConfig::read(env)?))
    }

    fn tracing(
        self,
        env: &Env,
        export: bool,
        resource: &Resource,
        metrics: &Metrics,
        report_to: &ReportTo,
        report: &mut SetupReport,
    ) -> Result<Tracing, InitError> {
        let sampler = sampler::from_env(env)?;
        report.warnings.extend(OTEL_TRACES_SAMPLER.warning(env));
        let limits = Limits::read(env)?;
        let exporters = if export {
            report.warnings.extend(OTEL_TRACES_EXPORTER.warning(env));
            TraceExporters::read(env)?
        } else {
            TraceExporters::NONE
        };
        let exporter = match exporters {
            TraceExporters::NONE => {
                report.traces.push(SetupReport::PROCESS.to_owned());
                None
            }
            TraceExporters { otlp, console } => {
                let otlp = if otlp {
                    let otlp = ExporterConfig::read(Signal::Traces, &self.otlp, env)?;
                    let warnings = ExporterConfig::warnings(Signal::Traces, &self.otlp, env);
                    report.warnings.extend(warnings);
                    report.traces.push(otlp.destination());
                    Some(otlp)
                } else {
                    None
                };
                // Where log lines go to standard error, standard output has the program's result.
                let console = console.then(|| match &self.logs {
                    Some(logs) if logs.is_stderr() => Console::Stderr,
                    _ => Console::Stdout,
                });
                if let Some(console) = console {
                    report.traces.push(format!("console ({})", console.name()));
                }
                Some(export::traces::start(
                    otlp.as_ref(),
                    console,
                    BatchConfig::read(env)?,
                    resource,
                    TelemetryMetrics::register(metrics),
                    ReportTo::clone(report_to),
                )?)
            }
        };
        let processor = exporter
            .clone()
            .map(|spans| Box::new(ExportProcessor::new(spans)) as _);
        let processors = Processors::new(self.processors, processor, limits.value_length, resource);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(sampler)
            .with_span_limits(limits.counts)
            .with_span_processor(processors.clone())
            .build();
        let scope = InstrumentationScope::builder("dalston-telemetry")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Tracing {
            tracer: provider.tracer_with_scope(scope),
            provider,
            processors,
            exporter,
            duplicates_http: OTEL_SEMCONV_STABILITY_OPT_IN
                .read(env)?
                .is_some_and(|list| list.split(',').any(|word| word.trim() == "http/dup")),
        })
    }
}

/// Makes events of the records of the `log` crate, unless the program has a logger of its own.
fn bridge_log_records() {
    let level = LevelFilter::current().as_log();
    if tracing_log::LogTracer::builder()
        .with_max_level(level)
        .init()
        .is_err()
    {
        tracing::debug!("records of the log crate go to another logger");
    }
}

/// The signals that leave the process by an exporter.
struct Exported {
    spans: bool,
    metrics: bool,
}

/// Reads `OTEL_PROPAGATORS`. While traces are off, a wrong value is a warning.
fn propagator(env: &Env, traces_are_on: bool, warnings: &mut Warnings) -> Result<Propagator, EnvError> {
    warnings.extend(OTEL_PROPAGATORS.warning(env));
    match Propagator::from_env(env) {
        Err(error) if !traces_are_on => {
            warnings.extend([EnvWarning {
                variable: OTEL_PROPAGATORS.name(),
                value: error.value().unwrap_or_default().to_owned(),
                used: OTEL_PROPAGATORS.default_text().to_owned(),
                accepted: OTEL_PROPAGATORS.accepted(),
            }]);
            Ok(Propagator::default())
        }
        read => read,
    }
}
