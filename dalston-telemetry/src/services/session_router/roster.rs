//! A gauge of things that come and go.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::Shape;
use crate::metrics::{Gauge, OTHER, OpenLabel, lock};

/// A gauge with one open label, whose series are there for as long as somebody holds them.
///
/// For names that are made anew all the time, such as those of workers: the values of an [`OpenLabel`] stay, and soon every
/// worker would be one of the others.
#[derive(Clone)]
pub(super) struct Roster {
    shared: Arc<Shared>,
}

struct Shared {
    label: OpenLabel,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    named: BTreeMap<Arc<str>, Weak<Entry>>,
    /// Those that have no place of their own, how many these are, and what they add up to.
    unplaced: BTreeMap<Arc<str>, Weak<Entry>>,
    others: usize,
    of_others: i64,
}

/// One series of a roster.
pub(super) struct Entry {
    roster: Arc<Shared>,
    name: Arc<str>,
    value: Gauge,
    has_place: bool,
}

impl Roster {
    /// With the name and the cap of this label.
    pub(super) fn new(label: &OpenLabel) -> Self {
        Self {
            shared: Arc::new(Shared {
                label: label.clone(),
                state: Mutex::default(),
            }),
        }
    }

    /// The series of this name, at zero if it is new.
    pub(super) fn entry(&self, name: &str) -> Arc<Entry> {
        let mut state = lock(&self.shared.state);
        let known = [&state.named, &state.unplaced];
        let known = known.into_iter().find_map(|entries| entries.get(name)?.upgrade());
        if let Some(entry) = known {
            return entry;
        }
        let is_new = !state.named.contains_key(name);
        let has_room = !is_new || state.named.len() < self.shared.label.cap();
        let has_place = OpenLabel::is_fit(name) && name != OTHER && has_room;
        let entry = Arc::new(Entry {
            roster: self.shared.clone(),
            name: Arc::from(name),
            value: Gauge::default(),
            has_place,
        });
        if has_place {
            state.named.insert(entry.name.clone(), Arc::downgrade(&entry));
        } else {
            state.unplaced.insert(entry.name.clone(), Arc::downgrade(&entry));
            state.others += 1;
            self.shared.label.fold();
        }
        entry
    }
}

impl Entry {
    pub(super) fn set(&self, value: i64) {
        // Also keeps two who set it at the same time from counting one of the values twice.
        let mut state = lock(&self.roster.state);
        if !self.has_place {
            state.of_others += value - self.value.get();
        }
        self.value.set(value);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = lock(&self.roster.state);
        if !self.has_place {
            state.others -= 1;
            state.of_others -= self.value.get();
        }
        let entries = match self.has_place {
            true => &mut state.named,
            false => &mut state.unplaced,
        };
        // Unless somebody has come back under this name meanwhile.
        if entries
            .get(&self.name)
            .is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self))
        {
            entries.remove(&self.name);
        }
    }
}

impl Family for Roster {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![self.shared.label.describe()])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        let mut show = |name: &str, value: i64| {
            let mut open = String::new();
            push_label(&mut open, self.shared.label.name(), name);
            each(&Series {
                open: &open,
                closed: "",
                attributes: None,
                value: Value::Gauge(Number::Signed(value)),
            });
        };
        // Not shown under the lock: the last to hold an entry may be the one who shows it, and its end takes the lock.
        let (entries, others) = {
            let state = lock(&self.shared.state);
            let entries: Vec<_> = state.named.values().filter_map(Weak::upgrade).collect();
            (entries, (state.others > 0).then_some(state.of_others))
        };
        for entry in &entries {
            show(&entry.name, entry.value.get());
        }
        if let Some(value) = others {
            show(OTHER, value);
        }
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster")
            .field("label", &self.shared.label)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}
