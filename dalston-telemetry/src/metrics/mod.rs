//! Metrics: an explicit registry, handles that are resolved once, and labels with a bounded number
//! of values.
//!
//! ```
//! use std::time::Duration;
//! use dalston_telemetry::metrics::{Metrics, Status};
//! use dalston_telemetry::services::engine::{EngineLabels, EngineMetrics};
//!
//! let metrics = Metrics::new();
//! let engine = EngineMetrics::register(&metrics, &EngineLabels::new("my-asr", "transcribe"));
//!
//! let before = metrics.snapshot();
//! engine.model("tiny").task_processed(Status::Success);
//! engine.queue_wait(Duration::from_millis(250));
//! for change in metrics.snapshot().diff(&before) {
//!     println!("{change}");
//! }
//! ```
//!
//! # Labels
//!
//! A label is either *closed* or *open*. The values of a closed label are known when the program is
//! compiled (see [`label!`](crate::label)). An [`OpenLabel`] takes values from outside up to a cap;
//! further values are counted as [`OTHER`], and their number is a metric:
//! `dalston_telemetry_label_values_folded_total`. Ids of tasks and jobs, languages, raw paths and
//! error texts are no labels.
//!
//! An open label of the platform takes 100 values, or as many as `DALSTON_METRICS_LABEL_VALUES`
//! says. A family with several of them takes ten times as many combinations.
//!
//! All series of closed labels exist at zero from the start, so that `rate()` sees the first
//! increment.
//!
//! # Metrics of services
//!
//! The metrics of each service of the platform are a type in [`services`](crate::services), such as
//! [`EngineMetrics`](crate::services::engine::EngineMetrics), with the names that existing
//! dashboards use. A process registers the metrics of all services that it runs. Registering them
//! again returns the same handles.
//!
//! # Figures of the process
//!
//! On Linux, every process that is set up by [`Telemetry`](crate::Telemetry) has
//! `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
//! `process_open_fds`, `process_max_fds` and `process_start_time_seconds`, as with Prometheus' own
//! clients.
//!
//! # Scrapes
//!
//! [`Metrics::encode_for`] returns the text in the format that a client accepts: OpenMetrics 1.0 or
//! Prometheus text 0.0.4. [`MetricsServer`] serves it on a port of its own. With the feature `axum`
//! there is a route for an existing server.
//!
//! In OpenMetrics, histograms of [`Histogram::with_exemplars`] and counters that use
//! [`Counter::inc_in`] carry exemplars: the newest sampled span of each value, which leads from a
//! slow bucket to a slow trace. Creation times (`_created`) are left out, because all series exist
//! from the start.

pub mod buckets;
mod cells;
mod client_metrics;
mod describe;
mod exemplar;
mod family;
mod label;
pub(crate) mod label_text;
mod meter;
mod meter_provider;
mod names;
mod owned;
pub(crate) mod process;
mod registry;
// Without a transport there is no push.
#[cfg_attr(not(any(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
pub(crate) mod series;
mod server;
pub(crate) mod shape;
mod snapshot;
mod status;
mod telemetry;
mod text;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use opentelemetry::metrics::{Meter, MeterProvider as _};

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
pub use meter_provider::MeterProvider;
use registry::ClientMetrics;
pub use registry::{PrefixedRegistry, Registry, Unit};
pub use series::{Family, Metric};
pub use server::MetricsServer;
pub use shape::LabelDescription;
pub use snapshot::{MetricChange, MetricsSnapshot};
pub use status::Status;
pub use telemetry::{DropReason, LogLevel, Signal, TelemetryMetrics};
pub use text::TextFormat;

/// The crate of metrics for [`Registry::prometheus`].
pub use prometheus_client;

/// The metrics of a process. Cheap to clone; clones share the registry.
///
/// There is no global registry. A program creates one, or takes
/// [`Telemetry::metrics`](crate::Telemetry::metrics), and passes it to the code that measures.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    created: SystemTime,
    registry: Mutex<Registry>,
    sets: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
    labels: label::OpenLabels,
    /// The cap of each open label of the platform.
    label_values: usize,
    /// Created on first use.
    meters: OnceLock<Meters>,
    /// The length of the longest text so far in bytes, which is the capacity of the next one.
    longest: AtomicUsize,
}

impl Metrics {
    /// The default cap of the open labels of the platform's metrics.
    pub const LABEL_VALUES: usize = 100;

    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::with_label_values(Self::LABEL_VALUES)
    }

    /// An empty registry with the cap of `DALSTON_METRICS_LABEL_VALUES`, from 1 to 10000, for the
    /// open labels of the platform's metrics. The default is [`LABEL_VALUES`](Self::LABEL_VALUES).
    ///
    /// # Errors
    ///
    /// When the variable has another value.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self::with_label_values(
            DALSTON_METRICS_LABEL_VALUES.read_or_default(env)?,
        ))
    }

    /// An empty registry with this cap for each open label of the platform's metrics: tenants,
    /// routes, engines, models, workers. Further values share [`OTHER`].
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

    /// All metrics in the best format for the `Accept` headers of a request, with the content type;
    /// see [`TextFormat::negotiate`].
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

    /// The current values of all series, to be [compared](MetricsSnapshot::diff) with later ones.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let mut snapshot = MetricsSnapshot::default();
        self.visit(&mut snapshot);
        snapshot
    }

    /// Registers metrics of your own. Register them once and keep the handles.
    ///
    /// ```
    /// use dalston_telemetry::metrics::{Counter, DenseFamily, Metrics};
    ///
    /// dalston_telemetry::label! {
    ///     /// The result of a cache look-up.
    ///     pub enum Lookup = "result" { Hit => "hit", Miss => "miss" }
    /// }
    ///
    /// let metrics = Metrics::new();
    /// let lookups = DenseFamily::<Lookup, Counter>::default();
    /// metrics.register(|registry| {
    ///     registry.register("my_cache_lookups", "Cache look-ups", lookups.clone());
    /// });
    /// lookups.with(Lookup::Hit).inc();
    /// assert!(metrics.encode().contains("my_cache_lookups_total{result=\"hit\"} 1"));
    /// ```
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut lock(&self.inner.registry))
    }

    /// The set of metrics of this type, which is registered on the first call.
    ///
    /// Several engines of one process share their families by it.
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

    /// A meter of OpenTelemetry, for instruments of your own and for libraries that expect one. Its
    /// instruments are exposed and pushed like all other metrics.
    ///
    /// In a scrape they have names of Prometheus, with unit and `_total`: `http.wait` in `s` is
    /// `http_wait_seconds`. The label `otel_scope_name` of each series is the scope. In a push they
    /// have their own names. An instrument is left out if one of its names is taken by a
    /// [registered](Self::register) family or, in a scrape, by an earlier instrument, and counted
    /// in `dalston_telemetry_metrics_refused_total`. So is an exponential histogram, without a
    /// count. The SDK folds the label sets of an instrument beyond 2000.
    ///
    /// A histogram in `s` that sets no boundaries gets [`buckets::SECONDS`], one in `1` gets
    /// [`buckets::RATIO`]. Others get the SDK's, which suit milliseconds.
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

    /// The provider of the [meters](Self::meter).
    #[must_use]
    pub fn meter_provider(&self) -> MeterProvider {
        self.inner.meters.get_or_init(Meters::default).provider.clone()
    }

    /// Visits all metrics.
    pub(crate) fn visit(&self, visitor: &mut dyn Visitor) {
        let registry = lock(&self.inner.registry);
        registry.visit(visitor);
        let client = registry.client_metrics();
        drop(registry);
        client.visit(visitor);
        self.visit_meters(&client, visitor);
    }

    /// Called without the lock, because observable instruments run code of the program.
    fn visit_meters(&self, client: &ClientMetrics, visitor: &mut dyn Visitor) {
        if let Some(meters) = self.inner.meters.get() {
            let is_free = |family: &str, kind| {
                client.is_free(family, kind) && lock(&self.inner.registry).is_free(family, kind)
            };
            let refused = lock(&self.inner.registry).refused().clone();
            meters.visit(is_free, &refused, visitor);
        }
    }

    /// The start time of all counters.
    #[cfg_attr(not(any(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
    pub(crate) fn created(&self) -> SystemTime {
        self.inner.created
    }

    /// The registered families, also those without series. Metrics of [`Registry::prometheus`] and
    /// of [meters](Self::meter) are left out.
    #[must_use]
    pub fn families(&self) -> Vec<FamilyDescription> {
        lock(&self.inner.registry).families()
    }

    /// The open label of this name, which all families with the label share. The first call sets
    /// the cap.
    #[must_use]
    pub fn open_label(&self, name: &'static str, cap: usize) -> OpenLabel {
        self.set(|registry| {
            let help = "Label values that were counted as __other__ because the label had reached its cap";
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

    /// The cap of the combinations of open labels in a family of the platform.
    pub(crate) fn combinations(&self) -> usize {
        self.inner.label_values.saturating_mul(10)
    }
}

/// Marks that `dalston_telemetry_label_values_folded` is registered.
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

/// Whether metrics are served and pushed: `DALSTON_METRICS_ENABLED`, otherwise `METRICS_ENABLED`,
/// otherwise `true`. They are counted in either case.
///
/// # Errors
///
/// When the variable is neither true nor false.
pub fn are_enabled(env: &Env) -> Result<bool, EnvError> {
    DALSTON_METRICS_ENABLED.read_or_default(env)
}

/// Registers `dalston_build_info`, the service and its version.
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

/// Ignores poisoning: a panic under the lock breaks no invariant of a metric.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_info_is_registered_once() {
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
    fn clones_share_the_registry() {
        let metrics = Metrics::new();
        let seen = DenseFamily::<(), Counter>::default();
        metrics
            .clone()
            .register(|registry| registry.register("seen", "Seen", seen.clone()));
        seen.with(()).inc();
        assert!(metrics.encode().contains("seen_total 1\n"));
    }
}
