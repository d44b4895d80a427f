//! Metrics: a registry that is passed around, handles that are resolved once, and labels that can't explode.
//!
//! ```
//! use std::time::Duration;
//! use dalston_telemetry::metrics::{EngineLabels, EngineMetrics, Metrics, Outcome};
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
//! not labels.
//!
//! The children of closed labels exist at zero from the start, so that `rate()` sees the first increment.

pub mod buckets;
mod cells;
mod engine;
mod family;
mod label;
mod snapshot;
mod telemetry;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::registry::Registry;

pub use cells::{Counter, Gauge, Histogram};
pub use engine::{
    BusyGuard, Device, EngineLabels, EngineMetrics, ModelMetrics, Outcome, RedeliveryReason, SlotMetrics,
};
pub use family::{BoundedFamily, DenseFamily};
pub use label::{Label, LabelSet, OTHER, OpenLabel};
pub use snapshot::{MetricChange, MetricsSnapshot};
pub use telemetry::{DropReason, Signal, TelemetryMetrics};

/// The crate whose [`Registry`] holds the metrics, for metrics of your own.
pub use prometheus_client;

/// The metrics of a process. Cheap to clone; all clones are the same registry.
///
/// There is no global one: a program makes it, or takes [`Telemetry::metrics`](crate::Telemetry::metrics), and
/// hands it to whatever measures.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    registry: Mutex<Registry>,
    sets: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
    labels: label::OpenLabels,
}

impl Metrics {
    /// What [`encode`](Self::encode) must be served as; with another content type Prometheus fails the whole scrape
    /// once there are exemplars.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All metrics as OpenMetrics text, which Prometheus reads.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = lock(&self.inner.registry);
        // Writing into a string does not fail; a metric that can't be encoded is a bug of that metric, and what
        // stands before it is still worth having.
        let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
        debug_assert!(encoded.is_ok(), "every metric can be encoded");
        text
    }

    /// The present value of every series, to find out later [which of them moved](MetricsSnapshot::diff).
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot::parse(&self.encode())
    }

    /// Registers metrics of your own.
    ///
    /// Register a set of metrics once and keep the handles: the registry does not notice when a name is taken. Names
    /// are given without `_total`, help texts without a full stop: the encoder adds both.
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

    /// The open label of this name, shared by all families that have it. `cap` counts when it is first asked for.
    #[must_use]
    pub fn open_label(&self, name: &'static str, cap: usize) -> OpenLabel {
        self.set(|registry| {
            let help = "Label values that were counted as __other__ because their label had reached its cap";
            registry.register(
                "dalston_telemetry_label_values_folded",
                help,
                self.inner.labels.clone(),
            );
            FoldedValues
        });
        self.inner.labels.get(name, cap)
    }
}

/// Marks that the metric about folded values is registered.
#[derive(Clone)]
struct FoldedValues;

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// `dalston_build_info`: which build of which service this is.
///
/// Called by the set-up of telemetry; a service has one.
pub(crate) fn register_build_info(metrics: &Metrics, service: &str, version: &str) {
    #[derive(Clone)]
    struct BuildInfo;

    let labels = BTreeMap::from([("service", service.to_owned()), ("version", version.to_owned())]);
    metrics.set(|registry| {
        let info = prometheus_client::metrics::info::Info::new(labels.into_iter().collect::<Vec<_>>());
        registry.register("dalston_build", "The service and its version", info);
        BuildInfo
    });
}

/// A panic while the lock was held leaves counters behind, not broken invariants.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
