//! Metrics: a registry that is passed around, handles that are resolved once, and labels that can't explode.
//!
//! ```
//! use std::time::Duration;
//! use dalston_telemetry::metrics::{Metrics, Outcome};
//! use dalston_telemetry::services::engine::{EngineLabels, EngineMetrics};
//!
//! let metrics = Metrics::new();
//! let engine = EngineMetrics::register(&metrics, &EngineLabels::new("my-asr", "transcribe"));
//!
//! let before = metrics.snapshot();
//! engine.model("tiny").task_processed(Outcome::Success);
//! engine.queue_wait(Duration::from_millis(250));
//! for change in metrics.snapshot().diff(&before) {
//!     println!("{change}");
//! }
//! ```
//!
//! # Labels
//!
//! Every label is either *closed*, a type whose values are known when the program is compiled (see
//! [`label!`](crate::label)), or *open* with a cap: once an [`OpenLabel`] has seen as many values as it may have,
//! further ones are counted under [`OTHER`], and how often that happened is itself a metric,
//! `dalston_telemetry_label_values_folded_total`. Ids of tasks and jobs, languages, raw paths and error texts are
//! not labels. A label of the platform takes 100 values, or what `DALSTON_METRICS_LABEL_VALUES` says, and a family with several
//! of them ten times as many combinations.
//!
//! The children of closed labels exist at zero from the start, so that `rate()` sees the first increment.
//!
//! # The services of the platform
//!
//! Each has a set of metrics with the names that its dashboards ask for: [`GatewayMetrics`](crate::services::gateway::GatewayMetrics), [`OrchestratorMetrics`](crate::services::orchestrator::OrchestratorMetrics),
//! [`SessionRouterMetrics`](crate::services::session_router::SessionRouterMetrics), [`RealtimeMetrics`](crate::services::realtime::RealtimeMetrics), [`WebhookMetrics`](crate::services::webhook::WebhookMetrics), [`EngineMetrics`](crate::services::engine::EngineMetrics), [`DirectMetrics`](crate::services::engine::DirectMetrics) and
//! [`AudioPipelineMetrics`](crate::services::audio_pipeline::AudioPipelineMetrics). A process registers those of all services that it is, as often as it likes. What somebody looks up from
//! time to time has a set of its own, too: [`QueueMetrics`](crate::services::queue::QueueMetrics) and [`GpuMetrics`](crate::services::engine::GpuMetrics).
//!
//! # Being scraped
//!
//! [`Metrics::encode_for`] gives the text in the format that a client asks for: OpenMetrics 1.0, or Prometheus text 0.0.4.
//! [`MetricsServer`] serves it on a port of its own, and with the feature `axum` there is a route for a server that is
//! there already.
//!
//! In OpenMetrics, histograms made by [`Histogram::with_exemplars`] and counters counted by [`Counter::inc_in`] show the
//! newest span that each of their values came from, so that a slow bucket leads to a slow trace. Only sampled spans are
//! shown. Times of creation (`_created`) are not: all series are there from the start.

pub mod buckets;
mod cells;
mod client_metrics;
mod describe;
mod exemplar;
mod family;
mod label;
pub(crate) mod label_text;
mod meter;
mod outcome;
mod owned;
mod registry;
// Without a transport nobody pushes.
#[cfg_attr(not(any(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
pub(crate) mod series;
mod server;
pub(crate) mod shape;
mod snapshot;
mod telemetry;
mod text;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use crate::env::{Env, EnvError};
use crate::settings::metrics::{DALSTON_METRICS_ENABLED, DALSTON_METRICS_LABEL_VALUES};
use label_text::push_label;
use meter::Meters;
use series::{Kind, Number, Series, Value, Visitor};
use shape::Shape;
use text::TextWriter;

pub use cells::{Counter, DurationCounter, Gauge, Histogram};
pub use describe::FamilyDescription;
pub use exemplar::Exemplar;
pub use family::{BoundedFamily, DenseFamily};
pub use label::{Label, LabelSet, OTHER, OpenLabel};
pub use outcome::Outcome;
use registry::ClientMetrics;
pub use registry::{PrefixedRegistry, Registry, Unit};
pub use series::{Family, Metric};
pub use server::MetricsServer;
pub use shape::LabelDescription;
pub use snapshot::{MetricChange, MetricsSnapshot};
pub use telemetry::{DropReason, LogLevel, Signal, TelemetryMetrics};
pub use text::TextFormat;

/// For metrics that are made with this crate; see [`Registry::prometheus`].
pub use prometheus_client;

/// The metrics of a process. Cheap to clone; all clones are the same registry.
///
/// There is no global one: a program makes it, or takes [`Telemetry::metrics`](crate::Telemetry::metrics), and
/// hands it to whatever measures.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    created: SystemTime,
    registry: Mutex<Registry>,
    sets: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
    labels: label::OpenLabels,
    /// How many values each label of the platform takes.
    label_values: usize,
    /// Made when it is first asked for.
    meters: OnceLock<Meters>,
    /// Bytes of the longest text so far, so that the next one is written without growing.
    longest: AtomicUsize,
}

impl Metrics {
    /// How many values each open label of the platform's metrics takes, unless it is told otherwise.
    pub const LABEL_VALUES: usize = 100;

    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::with_label_values(Self::LABEL_VALUES)
    }

    /// An empty registry in which each open label of the platform's metrics takes as many values as
    /// `DALSTON_METRICS_LABEL_VALUES` says, from 1 to 10000; [`LABEL_VALUES`](Self::LABEL_VALUES) unless set.
    ///
    /// # Errors
    ///
    /// When the variable has another value.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self::with_label_values(
            DALSTON_METRICS_LABEL_VALUES.read_or_default(env)?,
        ))
    }

    /// An empty registry in which each open label of the platform's metrics takes this many values: tenants, routes, engines,
    /// models, workers. Further ones share [`OTHER`].
    #[must_use]
    pub fn with_label_values(values: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                created: SystemTime::now(),
                registry: Mutex::default(),
                sets: Mutex::default(),
                labels: label::OpenLabels::default(),
                label_values: values,
                meters: OnceLock::new(),
                longest: AtomicUsize::new(0),
            }),
        }
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_as(TextFormat::OpenMetrics)
    }

    /// All metrics in the format that suits a request best, with the content type to serve them as; see
    /// [`TextFormat::negotiate`].
    ///
    /// ```
    /// # let metrics = dalston_telemetry::metrics::Metrics::new();
    /// let (content_type, text) = metrics.encode_for(["text/plain"]);
    /// assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    /// ```
    pub fn encode_for<'a>(&self, accept: impl IntoIterator<Item = &'a str>) -> (&'static str, String) {
        let format = TextFormat::negotiate(accept);
        (format.content_type(), self.encode_as(format))
    }

    /// All metrics in this format.
    #[must_use]
    pub fn encode_as(&self, format: TextFormat) -> String {
        let mut writer = TextWriter::new(format, self.inner.longest.load(Ordering::Relaxed));
        let registry = lock(&self.inner.registry);
        registry.visit(&mut writer);
        let client = registry.client_metrics();
        drop(registry);
        match format {
            TextFormat::OpenMetrics => writer.raw(&client.text),
            TextFormat::Prometheus => client.visit(&mut writer),
        }
        self.visit_meters(&client, &mut writer);
        let text = writer.finish();
        self.inner.longest.fetch_max(text.len(), Ordering::Relaxed);
        text
    }

    /// The present value of every series, to find out later [which of them moved](MetricsSnapshot::diff).
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let mut snapshot = MetricsSnapshot::default();
        self.visit(&mut snapshot);
        snapshot
    }

    /// Registers metrics of your own.
    ///
    /// Register a set of metrics once and keep the handles.
    ///
    /// ```
    /// use dalston_telemetry::metrics::{Counter, DenseFamily, Metrics};
    ///
    /// dalston_telemetry::label! {
    ///     /// What became of a cache look-up.
    ///     pub enum Lookup = "result" { Hit => "hit", Miss => "miss" }
    /// }
    ///
    /// let metrics = Metrics::new();
    /// let lookups = DenseFamily::<Lookup, Counter>::default();
    /// metrics.register(|registry| registry.register("my_cache_lookups", "Cache look-ups", lookups.clone()));
    /// lookups.with(Lookup::Hit).inc();
    /// assert!(metrics.encode().contains("my_cache_lookups_total{result=\"hit\"} 1"));
    /// ```
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut lock(&self.inner.registry))
    }

    /// The set of metrics of this type, made and registered when it is first asked for.
    ///
    /// This is what lets several engines of one process share their families.
    pub fn set<T: Clone + Send + 'static>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        let mut sets = lock(&self.inner.sets);
        let set = sets
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(self.register(register)));
        match set.downcast_ref::<T>() {
            Some(set) => set.clone(),
            None => unreachable!("a set is stored under its own type"),
        }
    }

    /// A meter of OpenTelemetry, for instruments of your own and for libraries that expect one. Its instruments are exposed
    /// and pushed like everything else.
    ///
    /// Prometheus knows them by names that it can read, with unit and `_total`: `http.wait` in `s` is
    /// `http_wait_seconds`, and every series says by `otel_scope_name` whose it is. A push has their own names. An
    /// instrument whose name is taken by a [registered](Self::register) family is left out, and so are exponential
    /// histograms. The SDK folds the label sets of an instrument beyond 2000.
    ///
    /// ```
    /// use dalston_telemetry::metrics::Metrics;
    ///
    /// let metrics = Metrics::new();
    /// metrics.meter("my-service").u64_counter("cache.hits").build().add(1, &[]);
    /// assert!(metrics.encode().contains("cache_hits_total{otel_scope_name=\"my-service\"} 1"));
    /// ```
    #[must_use]
    pub fn meter(&self, scope: &'static str) -> Meter {
        self.meter_provider().meter(scope)
    }

    /// What [`meter`](Self::meter) takes its meters from.
    #[must_use]
    pub fn meter_provider(&self) -> SdkMeterProvider {
        self.inner.meters.get_or_init(Meters::default).provider.clone()
    }

    /// Shows everything that there is.
    pub(crate) fn visit(&self, visitor: &mut dyn Visitor) {
        let registry = lock(&self.inner.registry);
        registry.visit(visitor);
        let client = registry.client_metrics();
        drop(registry);
        client.visit(visitor);
        self.visit_meters(&client, visitor);
    }

    /// Not under the lock: instruments may ask the program for their values.
    fn visit_meters(&self, client: &ClientMetrics, visitor: &mut dyn Visitor) {
        if let Some(meters) = self.inner.meters.get() {
            let is_taken = |name: &str| client.has(name) || lock(&self.inner.registry).has(name);
            meters.visit(is_taken, visitor);
        }
    }

    /// When counting began.
    #[cfg_attr(not(any(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
    pub(crate) fn created(&self) -> SystemTime {
        self.inner.created
    }

    /// What is registered, whether or not anything was counted yet; without what comes from
    /// [`Registry::prometheus`] or a [meter](Self::meter).
    #[must_use]
    pub fn families(&self) -> Vec<FamilyDescription> {
        lock(&self.inner.registry).families()
    }

    /// The open label of this name, shared by all families that have it. `cap` counts when it is first asked for.
    #[must_use]
    pub fn open_label(&self, name: &'static str, cap: usize) -> OpenLabel {
        self.set(|registry| {
            let help = "Label values that were counted as __other__ because there was no room for more";
            registry.register(
                "dalston_telemetry_label_values_folded",
                help,
                self.inner.labels.clone(),
            );
            FoldedValues
        });
        self.inner.labels.get(name, cap)
    }

    /// An open label of the platform's metrics.
    pub(crate) fn label(&self, name: &'static str) -> OpenLabel {
        self.open_label(name, self.inner.label_values)
    }

    /// How many combinations of such labels a family tells apart.
    pub(crate) fn combinations(&self) -> usize {
        self.inner.label_values.saturating_mul(10)
    }
}

/// Marks that the metric about folded values is registered.
#[derive(Clone)]
struct FoldedValues;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Whether metrics are wanted: `DALSTON_METRICS_ENABLED`, else `METRICS_ENABLED`, else yes.
///
/// It decides whether they are served and pushed. They are counted in any case: that costs next to nothing, and nobody who
/// counts has to ask.
///
/// # Errors
///
/// When the variable is neither true nor false.
pub fn are_enabled(env: &Env) -> Result<bool, EnvError> {
    DALSTON_METRICS_ENABLED.read_or_default(env)
}

/// `dalston_build_info`: which build of which service this is.
///
/// Called by the set-up of telemetry; a service has one.
pub(crate) fn register_build_info(metrics: &Metrics, service: &str, version: &str) {
    metrics.set(|registry| {
        let mut labels = String::new();
        push_label(&mut labels, "service", service);
        push_label(&mut labels, "version", version);
        let info = BuildInfo { labels };
        registry.register("dalston_build", "The service and its version", info.clone());
        info
    });
}

#[derive(Clone)]
struct BuildInfo {
    labels: String,
}

impl Family for BuildInfo {
    fn kind(&self) -> Kind {
        Kind::Info
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(["service", "version"].map(LabelDescription::open).into())
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        each(&Series {
            open: "",
            closed: &self.labels,
            attributes: None,
            value: Value::Gauge(Number::Whole(1)),
        });
    }
}

/// A panic while the lock was held leaves counters behind, not broken invariants.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_info_is_there_once_however_often_it_is_registered() {
        let metrics = Metrics::new();
        register_build_info(&metrics, "engine-x", "1.2.3");
        register_build_info(&metrics, "engine-x", "1.2.3");
        assert_eq!(
            metrics.encode(),
            "# HELP dalston_build The service and its version.\n\
             # TYPE dalston_build info\n\
             dalston_build_info{service=\"engine-x\",version=\"1.2.3\"} 1\n\
             # EOF\n"
        );
    }

    #[test]
    fn clones_are_the_same_registry() {
        let metrics = Metrics::new();
        let seen = DenseFamily::<(), Counter>::default();
        metrics
            .clone()
            .register(|registry| registry.register("seen", "Seen", seen.clone()));
        seen.with(()).inc();
        assert!(metrics.encode().contains("seen_total 1\n"));
    }
}
