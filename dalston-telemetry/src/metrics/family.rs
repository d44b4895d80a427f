use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::label::{LabelSet, OpenLabel, encode_label};

/// A metric with closed labels: one cell for every combination, all there from the start.
///
/// Finding a cell is an index into an array. Cheap to clone; clones are the same cells.
///
/// ```
/// use dalston_telemetry::metrics::{Counter, DenseFamily, Outcome};
///
/// let tasks = DenseFamily::<Outcome, Counter>::default();
/// tasks.with(Outcome::Failure).inc();
/// assert_eq!(tasks.with(Outcome::Failure).get(), 1);
/// assert_eq!(tasks.with(Outcome::Success).get(), 0);
/// ```
pub struct DenseFamily<L, M> {
    cells: Arc<[Padded<M>]>,
    labels: PhantomData<fn(L)>,
}

/// A cell on cache lines of its own: two of them, because processors fetch lines in pairs.
#[repr(align(128))]
struct Padded<M>(M);

impl<L: LabelSet, M> DenseFamily<L, M> {
    /// A family whose cells are made by `make`.
    pub fn new(make: impl Fn() -> M) -> Self {
        Self {
            cells: (0..L::CARDINALITY).map(|_| Padded(make())).collect(),
            labels: PhantomData,
        }
    }

    /// The cell of a combination of labels.
    #[must_use]
    pub fn with(&self, labels: L) -> &M {
        self.with_position(labels.position())
    }

    fn with_position(&self, position: usize) -> &M {
        &self.cells[position].0
    }

    fn encode_cells(&self, encoder: &mut MetricEncoder<'_>, open: &[(&str, Arc<str>)]) -> fmt::Result
    where
        M: EncodeMetric,
    {
        for (position, cell) in self.cells.iter().enumerate() {
            let labels = CellLabels {
                open,
                position,
                closed: PhantomData::<fn(L)>,
            };
            cell.0.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl<L: LabelSet, M: Default> Default for DenseFamily<L, M> {
    fn default() -> Self {
        Self::new(M::default)
    }
}

impl<L, M> Clone for DenseFamily<L, M> {
    fn clone(&self) -> Self {
        Self {
            cells: self.cells.clone(),
            labels: PhantomData,
        }
    }
}

impl<L, M> fmt::Debug for DenseFamily<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenseFamily")
            .field("cells", &self.cells.len())
            .finish_non_exhaustive()
    }
}

impl<L: LabelSet, M: EncodeMetric + TypedMetric> EncodeMetric for DenseFamily<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut has_labels = false;
        L::labels_at(0, &mut |_, _| has_labels = true);
        match has_labels {
            true => self.encode_cells(&mut encoder, &[]),
            // As a family it would be written with empty braces.
            false => self.with_position(0).encode(encoder),
        }
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// A metric with `N` open labels, and closed ones below them.
///
/// For every combination of open values there is a [`DenseFamily`] over the closed labels: ask for it once with
/// [`with`](Self::with) and keep it. How many combinations there can be is bounded by the caps of the labels.
pub struct BoundedFamily<const N: usize, L, M> {
    inner: Arc<Inner<N, L, M>>,
}

struct Inner<const N: usize, L, M> {
    labels: [OpenLabel; N],
    children: RwLock<BTreeMap<[u32; N], DenseFamily<L, M>>>,
    make: Box<dyn Fn() -> M + Send + Sync>,
}

impl<const N: usize, L: LabelSet, M> BoundedFamily<N, L, M> {
    /// A family with these open labels, whose cells are made by `make`.
    pub fn new(labels: [&OpenLabel; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        let labels = labels.map(Clone::clone);
        Self {
            inner: Arc::new(Inner {
                labels,
                children: RwLock::default(),
                make: Box::new(make),
            }),
        }
    }

    /// The cells for these values of the open labels, made if they are new.
    #[must_use]
    pub fn with(&self, values: [&str; N]) -> DenseFamily<L, M> {
        let inner = &*self.inner;
        let places = std::array::from_fn(|label| inner.labels[label].place(values[label]));
        if let Some(cells) = inner
            .children
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&places)
        {
            return cells.clone();
        }
        let mut children = inner.children.write().unwrap_or_else(PoisonError::into_inner);
        children
            .entry(places)
            .or_insert_with(|| DenseFamily::new(&inner.make))
            .clone()
    }
}

impl<const N: usize, L, M> Clone for BoundedFamily<N, L, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<const N: usize, L, M> fmt::Debug for BoundedFamily<N, L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedFamily")
            .field("labels", &self.inner.labels)
            .finish_non_exhaustive()
    }
}

impl<const N: usize, L, M> EncodeMetric for BoundedFamily<N, L, M>
where
    L: LabelSet,
    M: EncodeMetric + TypedMetric + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // Copied out, so that a scrape does not hold up whoever makes a new child.
        let children = self
            .inner
            .children
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (places, cells) in children {
            let open: [_; N] = std::array::from_fn(|label| {
                let open = &self.inner.labels[label];
                (open.name(), open.value_at(places[label]))
            });
            cells.encode_cells(&mut encoder, &open)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.inner
            .children
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

struct CellLabels<'a, L> {
    open: &'a [(&'a str, Arc<str>)],
    position: usize,
    closed: PhantomData<fn(L)>,
}

impl<L: LabelSet> EncodeLabelSet for CellLabels<'_, L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.open {
            encode_label(encoder, name, value)?;
        }
        let mut result = Ok(());
        L::labels_at(self.position, &mut |name, value| {
            result = result.and_then(|()| encode_label(encoder, name, value));
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Counter, Histogram, Metrics, Outcome};
    use super::*;

    #[test]
    fn a_bounded_family_has_all_closed_children_of_a_value_at_zero() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 1);
        let tasks = BoundedFamily::<1, Outcome, Counter>::new([&model], Counter::default);
        metrics.register(|registry| registry.register("tasks", "Tasks", tasks.clone()));
        tasks.with(["tiny"]).with(Outcome::Success).inc();
        for unknown in ["large", "huge"] {
            tasks.with([unknown]).with(Outcome::Failure).inc();
        }
        let text = metrics.encode();
        let series: Vec<_> = text.lines().filter(|line| line.starts_with("tasks")).collect();
        assert_eq!(
            series,
            [
                r#"tasks_total{model="__other__",status="success"} 0"#,
                r#"tasks_total{model="__other__",status="failure"} 2"#,
                r#"tasks_total{model="tiny",status="success"} 1"#,
                r#"tasks_total{model="tiny",status="failure"} 0"#,
            ]
        );
    }

    #[test]
    fn a_family_without_labels_is_exposed_without_braces() {
        let metrics = Metrics::new();
        let wait = DenseFamily::<(), Histogram>::new(|| Histogram::new(&[0.5]));
        metrics.register(|registry| registry.register("wait", "Wait", wait.clone()));
        wait.with(()).observe(0.25);
        assert_eq!(
            metrics.encode(),
            "# HELP wait Wait.\n\
             # TYPE wait histogram\n\
             wait_sum 0.25\n\
             wait_count 1\n\
             wait_bucket{le=\"0.5\"} 1\n\
             wait_bucket{le=\"+Inf\"} 1\n\
             # EOF\n"
        );
    }

    #[test]
    fn label_values_are_escaped() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 5);
        let tasks = BoundedFamily::<1, (), Counter>::new([&model], Counter::default);
        metrics.register(|registry| registry.register("tasks", "Tasks", tasks.clone()));
        tasks.with([r#"C:\"x""#]).with(()).inc();
        assert!(
            metrics.encode().contains(r#"tasks_total{model="C:\\\"x\""} 1"#),
            "{}",
            metrics.encode()
        );
    }

    #[test]
    fn the_cells_of_a_family_share_no_cache_line() {
        assert_eq!(size_of::<Padded<Counter>>(), 128);
        assert_eq!(align_of::<Padded<Counter>>(), 128);
    }
}
