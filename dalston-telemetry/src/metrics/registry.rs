//! The registered metrics.

use std::fmt;

use prometheus_client::registry::Registry as PrometheusRegistry;

use super::client_metrics;
use super::describe::{FamilyDescription, describe};
use super::names::{Names, RefusedFamilies};
use super::series::{Family, Head, Kind, Visitor};

/// The metrics of a process by name. Lent by [`Metrics::register`](super::Metrics::register).
///
/// Names are given without `_total` and without their unit, help texts without a full stop: the
/// text formats add them; a counter's name may also end with `_total`.
///
/// A name can be registered once, and so can the names of samples: the counter `jobs` writes
/// `jobs_total`, the histogram `wait` writes `wait_count`. Prometheus refuses a text in which two
/// families have a name in common. The first one keeps it. The second one panics in debug builds.
/// In others it is left out and counted in `dalston_telemetry_metrics_refused_total`.
#[derive(Default)]
pub struct Registry {
    families: Vec<Registered>,
    names: Names,
    refused: RefusedFamilies,
    /// Created on first use, so that other programs do not pay for it.
    client: Option<PrometheusRegistry>,
}

struct Registered {
    name: String,
    help: &'static str,
    unit: &'static str,
    family: Box<dyn Family>,
}

/// The unit of a metric. Units are base units, so there are no milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// `seconds`
    Seconds,
    /// `bytes`
    Bytes,
    /// `ratio`: a part of a whole, from 0 to 1, or one quantity divided by another of its kind.
    Ratio,
}

impl Unit {
    /// The suffix of names.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
        }
    }
}

impl Registered {
    fn head(&self) -> Head<'_> {
        Head {
            name: &self.name,
            help: self.help,
            unit: self.unit,
            kind: self.family.kind(),
            original: None,
        }
    }
}

impl Registry {
    /// Registers a family of metrics without a unit.
    ///
    /// # Panics
    ///
    /// In debug builds, if the name is taken or invalid.
    pub fn register(&mut self, name: &str, help: &'static str, family: impl Family) {
        self.add(name.to_owned(), help, "", Box::new(family));
    }

    /// Registers a family of metrics with a unit, which is appended to the name.
    ///
    /// # Panics
    ///
    /// As [`register`](Self::register).
    pub fn register_with_unit(&mut self, name: &str, help: &'static str, unit: Unit, family: impl Family) {
        let unit = unit.as_str();
        self.add(format!("{name}_{unit}"), help, unit, Box::new(family));
    }

    /// The same registry, for metrics whose names start with `prefix` and an underscore.
    #[must_use]
    pub fn with_prefix(&mut self, prefix: &'static str) -> PrefixedRegistry<'_> {
        PrefixedRegistry {
            registry: self,
            prefix,
        }
    }

    /// A registry of [`prometheus_client`], for metrics of that crate. They are exposed and pushed
    /// like all others, unless their names are taken.
    pub fn prometheus(&mut self) -> &mut PrometheusRegistry {
        self.client.get_or_insert_default()
    }

    fn add(&mut self, mut name: String, help: &'static str, unit: &'static str, family: Box<dyn Family>) {
        let kind = family.kind();
        if kind == Kind::Counter && name.ends_with("_total") {
            name.truncate(name.len() - "_total".len());
        }
        let is_free = self.is_free(&name, kind);
        debug_assert!(
            is_free,
            "the name of the metric {name}, or of a sample of it, is registered already"
        );
        debug_assert!(is_name(&name), "{name:?} can't be the name of a metric");
        if !is_free {
            return self.refused.add(&name);
        }
        self.names.take(&name, kind);
        self.families.push(Registered {
            name,
            help,
            unit,
            family,
        });
    }

    /// Whether no family of this crate has one of the names of another family.
    pub(crate) fn is_free(&self, family: &str, kind: Kind) -> bool {
        self.names.are_free(family, kind)
    }

    /// The families that were left out, as a metric.
    pub(super) fn refused(&self) -> &RefusedFamilies {
        &self.refused
    }

    /// The families of this crate.
    pub(crate) fn families(&self) -> Vec<FamilyDescription> {
        let families = self.families.iter();
        families
            .map(|registered| describe(&registered.head(), registered.family.shape()))
            .collect()
    }

    /// Visits the families of this crate.
    pub(crate) fn visit(&self, visitor: &mut dyn Visitor) {
        for registered in &self.families {
            let (head, family) = (registered.head(), &registered.family);
            let mut has_begun = false;
            family.visit(&mut |series| {
                if !has_begun {
                    visitor.family(&head);
                    has_begun = true;
                }
                visitor.series(&head, series);
            });
        }
    }

    /// The metrics of [`prometheus`](Self::prometheus), as OpenMetrics text without its last line.
    ///
    /// `prometheus_client` accepts names that are taken, which would invalidate the whole scrape.
    /// Such a family is left out: families of this crate come first, then the order of registration
    /// counts.
    pub(crate) fn client_metrics(&self) -> ClientMetrics {
        let mut metrics = ClientMetrics::default();
        let Some(registry) = &self.client else {
            return metrics;
        };
        let mut text = String::new();
        // Writing to a string does not fail. A metric that can't be encoded is a bug of that
        // metric, and the text before it is still valid.
        let encoded = prometheus_client::encoding::text::encode_registry(&mut text, registry);
        debug_assert!(encoded.is_ok(), "every metric can be encoded");
        let (mut help, mut is_free) = ("", true);
        for line in text.split_inclusive('\n') {
            // The first line of a family. The second one says its kind.
            if line.starts_with("# HELP ") {
                (help, is_free) = (line, false);
                continue;
            }
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let kind = client_metrics::kind(kind.trim_end());
                is_free = self.is_free(name, kind) && metrics.is_free(name, kind);
                if is_free {
                    metrics.names.take(name, kind);
                    metrics.text.push_str(help);
                } else {
                    self.refused.add(name);
                }
            }
            if is_free {
                metrics.text.push_str(line);
            }
        }
        metrics
    }
}

/// The text of metrics of `prometheus_client`.
#[derive(Default)]
pub(crate) struct ClientMetrics {
    pub(crate) text: String,
    names: Names,
}

impl ClientMetrics {
    pub(crate) fn visit(&self, visitor: &mut dyn Visitor) {
        client_metrics::visit(&self.text, visitor);
    }

    /// Whether no family of these has one of the names of another family.
    pub(crate) fn is_free(&self, family: &str, kind: Kind) -> bool {
        self.names.are_free(family, kind)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.families.iter().map(|family| &family.name);
        f.debug_list().entries(names).finish()
    }
}

/// A [`Registry`] for names with a prefix. Made by [`Registry::with_prefix`].
#[derive(Debug)]
pub struct PrefixedRegistry<'a> {
    registry: &'a mut Registry,
    prefix: &'static str,
}

impl PrefixedRegistry<'_> {
    /// Registers a family and returns it.
    pub(crate) fn keep<F: Family + Clone>(&mut self, name: &str, help: &'static str, family: F) -> F {
        self.register(name, help, family.clone());
        family
    }

    /// As [`keep`](Self::keep), with a unit.
    pub(crate) fn keep_with_unit<F: Family + Clone>(
        &mut self,
        name: &str,
        help: &'static str,
        unit: Unit,
        family: F,
    ) -> F {
        self.register_with_unit(name, help, unit, family.clone());
        family
    }

    /// As [`Registry::register`].
    pub fn register(&mut self, name: &str, help: &'static str, family: impl Family) {
        self.registry
            .register(&format!("{}_{name}", self.prefix), help, family);
    }

    /// As [`Registry::register_with_unit`].
    pub fn register_with_unit(&mut self, name: &str, help: &'static str, unit: Unit, family: impl Family) {
        self.registry
            .register_with_unit(&format!("{}_{name}", self.prefix), help, unit, family);
    }
}

fn is_name(name: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.chars().all(is_fit) && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::super::{Counter, DenseFamily};
    use super::*;

    #[test]
    #[should_panic(expected = "the name of the metric jobs, or of a sample of it, is registered already")]
    fn a_name_is_registered_once() {
        let mut registry = Registry::default();
        registry.register("jobs", "Jobs", DenseFamily::<(), Counter>::default());
        registry.register("jobs", "Jobs", DenseFamily::<(), Counter>::default());
    }

    #[test]
    #[should_panic(expected = "can't be the name of a metric")]
    fn an_invalid_name_is_refused() {
        Registry::default().register("jobs-done", "Jobs", DenseFamily::<(), Counter>::default());
    }

    #[test]
    fn all_sources_of_metrics_share_the_names() {
        use super::super::{Metrics, TextFormat};

        let metrics = Metrics::new();
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default;
        metrics.register(|registry| {
            registry.prometheus().register("mine", "Theirs", counter());
            registry.prometheus().register("theirs", "Theirs", counter());
            registry
                .prometheus()
                .register("theirs", "Theirs again", counter());
            registry.register("mine", "Mine", DenseFamily::<(), Counter>::default());
        });
        for name in ["mine", "theirs", "free"] {
            metrics.meter("meter").u64_counter(name).build().add(7, &[]);
        }
        for format in [TextFormat::OpenMetrics, TextFormat::Prometheus] {
            let text = metrics.encode_as(format);
            let helps: Vec<_> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
            let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
            assert_eq!(helps.len(), 2, "{text}");
            assert_eq!(types, 3, "{text}");
            assert!(
                helps[0].ends_with("Mine.") && helps[1].ends_with("Theirs."),
                "{text}"
            );
        }
        let snapshot = metrics.snapshot();
        let value = |name| snapshot.value(name, &[]);
        assert_eq!(
            (value("mine_total"), value("theirs_total")),
            (Some(0.0), Some(0.0))
        );
    }
}
