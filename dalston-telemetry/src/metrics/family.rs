use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::label::{LabelSet, OpenLabel};
use super::label_text::push_label;
use super::series::{Family, Kind, Metric, Series, Value};
use super::shape::{LabelDescription, Shape};

/// A metric with closed labels: one cell for each combination, all of which exist from the start.
///
/// A look-up is an index into an array. Cheap to clone; clones share the cells.
///
/// ```
/// use dalston_telemetry::metrics::{Counter, DenseFamily, Status};
///
/// let tasks = DenseFamily::<Status, Counter>::default();
/// tasks.with(Status::Failure).inc();
/// assert_eq!(tasks.with(Status::Failure).get(), 1);
/// assert_eq!(tasks.with(Status::Success).get(), 0);
/// ```
pub struct DenseFamily<L, M> {
    cells: Arc<[Padded<M>]>,
    texts: ClosedTexts,
    labels: PhantomData<fn(L)>,
}

/// The text of the closed labels of each cell, which scrapes copy.
type ClosedTexts = Arc<[Box<str>]>;

fn closed_texts<L: LabelSet>() -> ClosedTexts {
    let texts = (0..L::CARDINALITY).map(|position| {
        let mut text = String::new();
        L::labels_at(position, &mut |name, value| push_label(&mut text, name, value));
        text.into_boxed_str()
    });
    texts.collect()
}

/// A cell on two cache lines of its own, because processors fetch lines in pairs.
#[repr(align(128))]
struct Padded<M>(M);

impl<L: LabelSet, M> DenseFamily<L, M> {
    /// A family whose cells `make` creates.
    pub fn new(make: impl Fn() -> M) -> Self {
        Self::with_texts(closed_texts::<L>(), make)
    }

    fn with_texts(texts: ClosedTexts, make: impl Fn() -> M) -> Self {
        Self {
            cells: (0..L::CARDINALITY).map(|_| Padded(make())).collect(),
            texts,
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
            texts: self.texts.clone(),
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

    fn shape(&self) -> Shape {
        Shape {
            labels: closed_labels::<L>(),
            buckets: self
                .cells
                .first()
                .map_or_else(Vec::new, |cell| bounds_of(&cell.0)),
        }
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        visit_cells(&self.cells, "", &self.texts, each);
    }
}

/// The labels, in the order of the text.
fn closed_labels<L: LabelSet>() -> Vec<LabelDescription> {
    let mut labels: Vec<(&'static str, Vec<String>)> = Vec::new();
    for position in 0..L::CARDINALITY {
        L::labels_at(position, &mut |name, value| {
            let at = labels.iter().position(|(known, _)| *known == name);
            let at = at.unwrap_or_else(|| {
                labels.push((name, Vec::new()));
                labels.len() - 1
            });
            if !labels[at].1.iter().any(|known| known == value) {
                labels[at].1.push(value.to_owned());
            }
        });
    }
    let described = labels.into_iter();
    described
        .map(|(name, values)| LabelDescription::closed(name, values))
        .collect()
}

fn bounds_of(cell: &impl Metric) -> Vec<f64> {
    match cell.value() {
        Value::Histogram(buckets) => buckets.bounds().to_vec(),
        _ => Vec::new(),
    }
}

fn visit_cells<M: Metric>(
    cells: &[Padded<M>],
    open: &str,
    closed: &[Box<str>],
    each: &mut dyn FnMut(&Series<'_>),
) {
    for (cell, closed) in cells.iter().zip(closed) {
        each(&Series {
            open,
            closed,
            attributes: None,
            value: cell.0.value(),
        });
    }
}

/// A metric with `N` open labels, and closed labels below them.
///
/// Each combination of open values has a [`DenseFamily`] over the closed labels. Get it once by
/// [`with`](Self::with) and keep it. The caps of the labels limit the number of combinations (two
/// labels of a hundred values have ten thousand), and so does
/// [`with_room_for`](Self::with_room_for).
pub struct BoundedFamily<const N: usize, L, M> {
    inner: Arc<Inner<N, L, M>>,
}

struct Inner<const N: usize, L, M> {
    labels: [OpenLabel; N],
    texts: ClosedTexts,
    room: usize,
    children: RwLock<Children<N, L, M>>,
    make: Box<dyn Fn() -> M + Send + Sync>,
}

struct Children<const N: usize, L, M> {
    by_places: BTreeMap<[u32; N], DenseFamily<L, M>>,
    /// In the order of their creation, which is the order in memory: a scrape visits them in it.
    in_order: Vec<Child<M>>,
    /// The texts of the open labels of all children, one after the other.
    texts: String,
}

struct Child<M> {
    cells: Arc<[Padded<M>]>,
    /// Its range in the texts.
    text: Range<usize>,
}

impl<const N: usize, L: LabelSet, M> BoundedFamily<N, L, M> {
    /// A family with these open labels, whose cells `make` creates.
    pub fn new(labels: [&OpenLabel; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self::with_room_for(usize::MAX, labels, make)
    }

    /// A family with at most this many combinations of open labels. Further ones are counted as
    /// [`OTHER`](super::OTHER) in each of the labels.
    pub fn with_room_for(
        combinations: usize,
        labels: [&OpenLabel; N],
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> Self {
        let labels = labels.map(Clone::clone);
        Self {
            inner: Arc::new(Inner {
                labels,
                texts: closed_texts::<L>(),
                room: combinations,
                children: RwLock::new(Children {
                    by_places: BTreeMap::new(),
                    in_order: Vec::new(),
                    texts: String::new(),
                }),
                make: Box::new(make),
            }),
        }
    }

    /// The cells for these values of the open labels, which are created if they are new.
    #[must_use]
    pub fn with(&self, values: [&str; N]) -> DenseFamily<L, M> {
        self.with_or_create(values, || ())
    }

    /// The cells of [`with`](Self::with). Calls `created` if they are new.
    pub(crate) fn with_or_create(&self, values: [&str; N], created: impl FnOnce()) -> DenseFamily<L, M> {
        let inner = &*self.inner;
        let places = std::array::from_fn(|label| inner.labels[label].place(values[label]));
        if let Some(cells) = inner.find(&places) {
            return cells;
        }
        let cells = match inner.insert(places, inner.room) {
            Some(cells) => cells,
            None => {
                let places = std::array::from_fn(|label| inner.labels[label].fold_place(places[label]));
                if let Some(cells) = inner.find(&places) {
                    return cells;
                }
                inner
                    .insert(places, usize::MAX)
                    .unwrap_or_else(|| DenseFamily::with_texts(inner.texts.clone(), &inner.make))
            }
        };
        created();
        cells
    }
}

impl<const N: usize, L: LabelSet, M> Inner<N, L, M> {
    fn find(&self, places: &[u32; N]) -> Option<DenseFamily<L, M>> {
        let children = self.children.read().unwrap_or_else(PoisonError::into_inner);
        children.by_places.get(places).cloned()
    }

    /// `None` if the family has reached its cap.
    fn insert(&self, places: [u32; N], room: usize) -> Option<DenseFamily<L, M>> {
        let is_full = |children: &Children<N, L, M>| children.by_places.len() >= room;
        {
            let children = self.children.read().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have created it as the last one.
            if let Some(cells) = children.by_places.get(&places) {
                return Some(cells.clone());
            }
            // Refused without the lock for writing, so that no scrape waits.
            if is_full(&children) {
                return None;
            }
        }
        let mut text = String::new();
        for (label, place) in self.labels.iter().zip(places) {
            push_label(&mut text, label.name(), &label.value_at(place));
        }
        // The closed labels follow without a change.
        if !text.is_empty() && self.texts.iter().any(|closed| !closed.is_empty()) {
            text.push(',');
        }
        let mut children = self.children.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have created it.
        if let Some(cells) = children.by_places.get(&places) {
            return Some(cells.clone());
        }
        if is_full(&children) {
            return None;
        }
        let family = DenseFamily::with_texts(self.texts.clone(), &self.make);
        let begin = children.texts.len();
        children.texts.push_str(&text);
        let text = begin..children.texts.len();
        children.in_order.push(Child {
            cells: family.cells.clone(),
            text,
        });
        children.by_places.insert(places, family.clone());
        Some(family)
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

    fn shape(&self) -> Shape {
        let mut labels: Vec<_> = self.inner.labels.iter().map(OpenLabel::describe).collect();
        labels.extend(closed_labels::<L>());
        Shape {
            labels,
            buckets: bounds_of(&(self.inner.make)()),
        }
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        /// Children that are visited under one lock: a new child waits for these, not for a scrape.
        const AT_ONCE: usize = 64;
        let mut shown = 0;
        loop {
            let children = self.inner.children.read().unwrap_or_else(PoisonError::into_inner);
            let rest = &children.in_order[shown..];
            if rest.is_empty() {
                return;
            }
            for child in rest.iter().take(AT_ONCE) {
                let open = &children.texts[child.text.clone()];
                visit_cells(&child.cells, open, &self.inner.texts, each);
                shown += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Counter, Histogram, Metrics, Status};
    use super::*;

    #[test]
    fn a_new_open_value_has_all_closed_series_at_zero() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 1);
        let tasks = BoundedFamily::<1, Status, Counter>::new([&model], Counter::default);
        metrics.register(|registry| registry.register("tasks", "Tasks", tasks.clone()));
        tasks.with(["tiny"]).with(Status::Success).inc();
        for unknown in ["large", "huge"] {
            tasks.with([unknown]).with(Status::Failure).inc();
        }
        let text = metrics.encode();
        let series: Vec<_> = text.lines().filter(|line| line.starts_with("tasks")).collect();
        assert_eq!(
            series,
            [
                r#"tasks_total{model="tiny",status="success"} 1"#,
                r#"tasks_total{model="tiny",status="failure"} 0"#,
                r#"tasks_total{model="__other__",status="success"} 0"#,
                r#"tasks_total{model="__other__",status="failure"} 2"#,
            ]
        );
    }

    #[test]
    fn a_family_without_labels_has_no_braces() {
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
    fn cells_share_no_cache_line() {
        assert_eq!(size_of::<Padded<Counter>>(), 128);
        assert_eq!(align_of::<Padded<Counter>>(), 128);
    }
}
