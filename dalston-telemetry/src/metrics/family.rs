use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use super::label::{LabelSet, OpenLabel};
use super::series::{Family, Kind, Labels, Metric, Series, push_label};

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
    names: Arc<Names>,
    labels: PhantomData<fn(L)>,
}

/// What the cells are called. Apart from them, because who counts need not know.
struct Names {
    /// The open labels, which all cells have in common.
    open: Box<[(&'static str, Arc<str>)]>,
    /// The labels of each cell as they stand in a line: written once, copied by every scrape.
    texts: Box<[Box<str>]>,
}

/// A cell on cache lines of its own: two of them, because processors fetch lines in pairs.
#[repr(align(128))]
struct Padded<M>(M);

impl<L: LabelSet, M> DenseFamily<L, M> {
    /// A family whose cells are made by `make`.
    pub fn new(make: impl Fn() -> M) -> Self {
        Self::below(Box::default(), make)
    }

    /// The closed labels below these values of open ones.
    fn below(open: Box<[(&'static str, Arc<str>)]>, make: impl Fn() -> M) -> Self {
        let texts = (0..L::CARDINALITY).map(|position| {
            let mut text = String::new();
            let mut push = |name: &str, value: &str| push_label(&mut text, name, value);
            open.iter().for_each(|(name, value)| push(name, value));
            L::labels_at(position, &mut |name, value| push(name, value));
            text.into_boxed_str()
        });
        Self {
            cells: (0..L::CARDINALITY).map(|_| Padded(make())).collect(),
            names: Arc::new(Names {
                texts: texts.collect(),
                open,
            }),
            labels: PhantomData,
        }
    }

    /// The cell of a combination of labels.
    #[must_use]
    pub fn with(&self, labels: L) -> &M {
        &self.cells[labels.position()].0
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
            names: self.names.clone(),
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

impl<L: LabelSet, M: Metric> Family for DenseFamily<L, M> {
    fn kind(&self) -> Kind {
        M::KIND
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        for (position, cell) in self.cells.iter().enumerate() {
            let labels = CellLabels {
                open: &self.names.open,
                position,
                closed: PhantomData::<fn(L)>,
            };
            each(&Series {
                text: &self.names.texts[position],
                labels: &labels,
                value: cell.0.value(),
            });
        }
    }
}

struct CellLabels<'a, L> {
    open: &'a [(&'static str, Arc<str>)],
    position: usize,
    closed: PhantomData<fn(L)>,
}

impl<L: LabelSet> Labels for CellLabels<'_, L> {
    fn each(&self, each: &mut dyn FnMut(&str, &str)) {
        self.open.iter().for_each(|(name, value)| each(name, value));
        L::labels_at(self.position, &mut |name, value| each(name, value));
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
        let open = std::array::from_fn::<_, N, _>(|label| {
            let open = &inner.labels[label];
            (open.name(), open.value_at(places[label]))
        });
        let mut children = inner.children.write().unwrap_or_else(PoisonError::into_inner);
        children
            .entry(places)
            .or_insert_with(|| DenseFamily::below(Box::new(open), &inner.make))
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

impl<const N: usize, L: LabelSet, M: Metric> Family for BoundedFamily<N, L, M> {
    fn kind(&self) -> Kind {
        M::KIND
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        /// So many children are copied out at once: whoever makes a new one waits for that and not for a scrape.
        const AT_ONCE: usize = 64;
        let mut copied = Vec::with_capacity(AT_ONCE);
        let mut after = Bound::Unbounded;
        loop {
            let children = self.inner.children.read().unwrap_or_else(PoisonError::into_inner);
            let rest = children.range((after, Bound::Unbounded)).take(AT_ONCE);
            copied.extend(rest.map(|(places, cells)| (*places, cells.clone())));
            drop(children);
            let Some((last, _)) = copied.last() else { return };
            after = Bound::Excluded(*last);
            for (_, cells) in copied.drain(..) {
                cells.visit(each);
            }
        }
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
             wait_bucket{le=\"0.5\"} 1\n\
             wait_bucket{le=\"+Inf\"} 1\n\
             wait_sum 0.25\n\
             wait_count 1\n\
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
