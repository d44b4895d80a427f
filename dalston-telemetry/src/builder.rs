use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits, SpanProcessor};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::collect::SpanCollector;
use crate::env::{Env, EnvError};
use crate::error::InitError;
use crate::metrics::{self, Metrics};
use crate::propagate::Propagator;
use crate::telemetry::{Telemetry, Tracing};
use crate::{resource, sampler};

/// What [`TelemetryBuilder::into_layer`] gives: a layer for a subscriber of your own.
///
/// An alias rather than a type of ours, because a wrapper could not pass on the downcasts by which
/// `tracing-opentelemetry` and per-layer filters find each other.
pub type TelemetryLayer<S> = Box<dyn Layer<S> + Send + Sync + 'static>;

/// Puts telemetry together. Every setting is optional; what is not set comes from the environment.
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
    processors: Vec<Box<dyn SpanProcessor>>,
    metrics: Metrics,
    shutdown_timeout: Duration,
}

impl TelemetryBuilder {
    pub(crate) fn new(service: String) -> Self {
        Self {
            service,
            env: None,
            enabled: None,
            span_level: LevelFilter::INFO,
            attributes: Vec::new(),
            processors: Vec::new(),
            metrics: Metrics::new(),
            shutdown_timeout: Duration::from_secs(5),
        }
    }

    /// The environment to read instead of the variables of the process.
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Switches tracing on or off, whatever `OTEL_ENABLED` says. `OTEL_SDK_DISABLED=true` still wins.
    pub fn enabled(mut self, on: bool) -> Self {
        self.enabled = Some(on);
        self
    }

    /// The version of the service, as the resource attribute `service.version`.
    pub fn version(self, version: impl Into<String>) -> Self {
        self.resource_attribute("service.version", version.into())
    }

    /// An attribute of everything that this process reports. Wins over `OTEL_RESOURCE_ATTRIBUTES`.
    pub fn resource_attribute(mut self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(key, value));
        self
    }

    /// The most verbose level whose spans and span events are recorded; `INFO` by default.
    ///
    /// The log filter has no say in this: a service that logs warnings only still exports its spans.
    pub fn span_level(mut self, level: LevelFilter) -> Self {
        self.span_level = level;
        self
    }

    /// Also keeps finished spans in memory. Turns tracing on by itself: nothing is exported unless the environment
    /// says so, no thread is started and no socket opened.
    pub fn span_collector(self, collector: SpanCollector) -> Self {
        self.span_processor(collector)
    }

    /// Also shows every span to a processor of your own. Turns tracing on, as [`span_collector`](Self::span_collector)
    /// does.
    pub fn span_processor(mut self, processor: impl SpanProcessor + 'static) -> Self {
        self.processors.push(Box::new(processor));
        self
    }

    /// The registry to use; a new one unless set.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// How long [`Telemetry::shutdown`], and dropping [`Telemetry`], may take in total; 5 s by default.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets up telemetry for the whole process: the global `tracing` subscriber and OpenTelemetry's global tracer
    /// provider and propagator.
    ///
    /// # Errors
    ///
    /// When a variable has a wrong value, when this was called before (the error says where), or when the process has
    /// a global subscriber of somebody else. A collector that can't be reached is not an error.
    #[track_caller]
    pub fn install(self) -> Result<Telemetry, InitError> {
        static INSTALLED: Mutex<Option<&'static Location<'static>>> = Mutex::new(None);

        // Held to the end, so that of two threads one gets the error and not half a set-up.
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = *installed {
            return Err(InitError::AlreadyInstalled { first });
        }
        let caller = Location::caller();
        let propagator = Propagator::from_env(self.env.as_ref().unwrap_or(&Env::from_process()))?;
        let (layer, telemetry) = self.into_layer::<Registry>()?;
        tracing::subscriber::set_global_default(Registry::default().with(layer))
            .map_err(|_| InitError::ForeignSubscriber)?;
        if let Some(tracing) = telemetry.tracing() {
            opentelemetry::global::set_tracer_provider(tracing.provider.clone());
        }
        // With tracing off too: a service that exports nothing must not cut the traces that pass through it.
        propagator.install();
        opentelemetry::global::set_text_map_propagator(propagator);
        *installed = Some(caller);
        Ok(telemetry)
    }

    /// Sets up telemetry without touching anything global: for tests, and for programs that own their subscriber.
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
        let env = self.env.clone().unwrap_or_else(Env::from_process);
        let span_level = self.span_level;
        let shutdown_timeout = self.shutdown_timeout;
        let metrics = self.metrics.clone();
        metrics::register_build_info(&metrics, &self.service, &self.service_version());
        Propagator::from_env(&env)?;
        let tracing = self.tracing(&env)?;
        let span_layer = tracing.as_ref().map(|tracing| {
            tracing_opentelemetry::layer()
                .with_tracer(tracing.tracer.clone())
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_filter(ExportedSpans { level: span_level })
        });
        let layer: TelemetryLayer<S> = match span_layer {
            Some(spans) => spans.boxed(),
            None => Box::new(tracing_subscriber::layer::Identity::new()),
        };
        Ok((layer, Telemetry::new(tracing, metrics, shutdown_timeout)))
    }

    fn service_version(&self) -> String {
        let version = self
            .attributes
            .iter()
            .rev()
            .find(|attribute| attribute.key.as_str() == "service.version");
        version.map_or_else(|| "unknown".to_owned(), |attribute| attribute.value.to_string())
    }

    /// The tracer provider, when the program or the environment wants one.
    fn tracing(self, env: &Env) -> Result<Option<Tracing>, InitError> {
        let settings = TraceSettings::read(&self, env)?;
        if !settings.export && self.processors.is_empty() {
            return Ok(None);
        }
        let mut builder = SdkTracerProvider::builder()
            .with_resource(resource::build(env, &self.service, &self.attributes)?)
            .with_sampler(settings.sampler)
            .with_span_limits(settings.limits);
        for processor in self.processors {
            builder = builder.with_span_processor(AnyProcessor(processor));
        }
        let provider = builder.build();
        let scope = InstrumentationScope::builder("dalston-telemetry")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let tracer = provider.tracer_with_scope(scope);
        Ok(Some(Tracing { provider, tracer }))
    }
}

/// Everything about traces that the environment decides, except how they are sent.
///
/// Read in full also when tracing is off, so that a wrong value is found by the first start and not by the first
/// start with tracing.
struct TraceSettings {
    export: bool,
    sampler: opentelemetry_sdk::trace::Sampler,
    limits: SpanLimits,
}

impl TraceSettings {
    fn read(builder: &TelemetryBuilder, env: &Env) -> Result<Self, EnvError> {
        let disabled = env.otel_flag("OTEL_SDK_DISABLED")?.unwrap_or(false);
        let enabled = env.flag("OTEL_ENABLED")?.unwrap_or(false);
        Ok(Self {
            export: builder.enabled.unwrap_or(enabled) && !disabled,
            sampler: sampler::from_env(env)?,
            limits: limits(env)?,
        })
    }
}

fn limits(env: &Env) -> Result<SpanLimits, EnvError> {
    const ACCEPTED: &str = "a whole number";
    let general = env.parse("OTEL_ATTRIBUTE_COUNT_LIMIT", ACCEPTED)?;
    let mut limits = SpanLimits::default();
    let set = |name, field: &mut u32, general: Option<u32>| -> Result<(), EnvError> {
        if let Some(limit) = env.parse(name, ACCEPTED)?.or(general) {
            *field = limit;
        }
        Ok(())
    };
    set(
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        &mut limits.max_attributes_per_span,
        general,
    )?;
    set(
        "OTEL_SPAN_EVENT_COUNT_LIMIT",
        &mut limits.max_events_per_span,
        None,
    )?;
    set("OTEL_SPAN_LINK_COUNT_LIMIT", &mut limits.max_links_per_span, None)?;
    set(
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
        &mut limits.max_attributes_per_event,
        general,
    )?;
    set(
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
        &mut limits.max_attributes_per_link,
        general,
    )?;
    Ok(limits)
}

/// Decides by the callsite alone which spans and span events reach OpenTelemetry.
///
/// Left out are the crates that an exporter is made of: what they do while they export would itself be exported.
struct ExportedSpans {
    level: LevelFilter,
}

impl ExportedSpans {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        const EXPORTER_CRATES: [&str; 10] = [
            "h2",
            "hyper",
            "hyper_util",
            "hyper_rustls",
            "reqwest",
            "rustls",
            "tokio_rustls",
            "tonic",
            "tower",
            "tokio_util",
        ];
        let target = metadata.target();
        let name = target.split("::").next().unwrap_or(target);
        *metadata.level() <= self.level
            && !EXPORTER_CRATES.contains(&name)
            && !name.starts_with("opentelemetry")
            && !target.starts_with(crate::telemetry::REPORTS)
    }
}

impl<S> Filter<S> for ExportedSpans {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        if self.wants(metadata) {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }
}

/// The SDK takes processors by type, we keep them boxed.
#[derive(Debug)]
struct AnyProcessor(Box<dyn SpanProcessor>);

impl SpanProcessor for AnyProcessor {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, cx: &opentelemetry::Context) {
        self.0.on_start(span, cx);
    }

    fn on_end(&self, span: opentelemetry_sdk::trace::SpanData) {
        self.0.on_end(span);
    }

    fn force_flush(&self) -> opentelemetry_sdk::error::OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> opentelemetry_sdk::error::OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &opentelemetry_sdk::Resource) {
        self.0.set_resource(resource);
    }
}
