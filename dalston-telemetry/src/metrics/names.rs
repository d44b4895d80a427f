//! The names that families take up in a text.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use super::label_text::push_label;
use super::lock;
use super::series::{Family, Kind, Number, Series, Value};
use super::shape::{LabelDescription, Shape};

/// The names of families and of their samples, and the family that has each of them.
///
/// Two families clash if they share any of them: the counter `jobs` writes `jobs_total`, which is
/// also the name of a gauge. Prometheus and strict parsers then refuse the whole text.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<String, (String, Kind)>);

impl Names {
    /// Whether no other family has one of the names of this one.
    pub(super) fn are_free(&self, family: &str, kind: Kind) -> bool {
        names(family, kind).all(|name| !self.0.contains_key(&name))
    }

    /// Gives its names to a family. `false` if another one has one of them.
    pub(super) fn take(&mut self, family: &str, kind: Kind) -> bool {
        let is_other = |name: &String| {
            let holder = self.0.get(name);
            holder.is_some_and(|(holder, its_kind)| (&**holder, *its_kind) != (family, kind))
        };
        if names(family, kind).any(|name| is_other(&name)) {
            return false;
        }
        for name in names(family, kind) {
            self.0.entry(name).or_insert_with(|| (family.to_owned(), kind));
        }
        true
    }
}

/// The name of the family, and the suffixes of its samples that OpenMetrics 1.0 reserves.
fn names(family: &str, kind: Kind) -> impl Iterator<Item = String> {
    let suffixes: &[&str] = match kind {
        Kind::Counter => &["", "_total", "_created"],
        Kind::Histogram => &["", "_bucket", "_count", "_sum", "_created"],
        Kind::Info => &["", "_info"],
        Kind::Gauge | Kind::Unknown => &[""],
    };
    suffixes.iter().map(move |suffix| format!("{family}{suffix}"))
}

/// How many refused families are shown: the names of instruments can come from outside.
const MAX_REFUSED: usize = 100;

/// The families that were refused because another one has one of their names, as a metric.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedFamilies(Arc<Mutex<BTreeSet<String>>>);

impl RefusedFamilies {
    pub(super) fn add(&self, family: &str) {
        let mut refused = lock(&self.0);
        if refused.len() < MAX_REFUSED && !refused.contains(family) {
            refused.insert(family.to_owned());
        }
    }
}

impl Family for RefusedFamilies {
    fn kind(&self) -> Kind {
        Kind::Counter
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![LabelDescription::open("metric")])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        for family in lock(&self.0).iter() {
            let mut text = String::new();
            push_label(&mut text, "metric", family);
            each(&Series {
                open: "",
                closed: &text,
                attributes: None,
                value: Value::Counter(Number::Whole(1), None),
            });
        }
    }
}
