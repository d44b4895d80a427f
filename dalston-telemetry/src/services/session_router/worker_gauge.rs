//! A gauge of the workers that are registered.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::Shape;
use crate::metrics::{Gauge, OTHER, OpenLabel, lock};

/// A gauge with one open label, whose series exist only while a handle of them exists.
///
/// The values of an [`OpenLabel`] stay for the life of the process. Names of workers are new after
/// each start, so all workers would soon be folded.
#[derive(Clone)]
pub(super) struct WorkerGauge {
    shared: Arc<Shared>,
}

struct Shared {
    label: OpenLabel,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    named: BTreeMap<Arc<str>, Weak<WorkerSeries>>,
    /// Workers beyond the cap, with their number and the sum of their values.
    folded: BTreeMap<Arc<str>, Weak<WorkerSeries>>,
    folded_count: usize,
    folded_sum: i64,
}

/// The series of one worker.
pub(super) struct WorkerSeries {
    gauge: Arc<Shared>,
    name: Arc<str>,
    value: Gauge,
    is_named: bool,
}

impl WorkerGauge {
    /// A gauge with the name and the cap of this label.
    pub(super) fn new(label: &OpenLabel) -> Self {
        Self {
            shared: Arc::new(Shared {
                label: label.clone(),
                state: Mutex::default(),
            }),
        }
    }

    /// The series of this name, at zero if it is new.
    pub(super) fn entry(&self, name: &str) -> Arc<WorkerSeries> {
        let mut state = lock(&self.shared.state);
        let known = [&state.named, &state.folded];
        let known = known.into_iter().find_map(|entries| entries.get(name)?.upgrade());
        if let Some(entry) = known {
            return entry;
        }
        let is_new = !state.named.contains_key(name);
        let has_room = !is_new || state.named.len() < self.shared.label.cap();
        let is_named = OpenLabel::is_fit(name) && name != OTHER && has_room;
        let entry = Arc::new(WorkerSeries {
            gauge: self.shared.clone(),
            name: Arc::from(name),
            value: Gauge::default(),
            is_named,
        });
        if is_named {
            state.named.insert(entry.name.clone(), Arc::downgrade(&entry));
        } else {
            state.folded.insert(entry.name.clone(), Arc::downgrade(&entry));
            state.folded_count += 1;
            self.shared.label.fold();
        }
        entry
    }
}

impl WorkerSeries {
    pub(super) fn set(&self, value: i64) {
        // Under the lock, so that concurrent calls keep the sum correct.
        let mut state = lock(&self.gauge.state);
        if !self.is_named {
            state.folded_sum += value - self.value.get();
        }
        self.value.set(value);
    }
}

impl Drop for WorkerSeries {
    fn drop(&mut self) {
        let mut state = lock(&self.gauge.state);
        if !self.is_named {
            state.folded_count -= 1;
            state.folded_sum -= self.value.get();
        }
        let entries = match self.is_named {
            true => &mut state.named,
            false => &mut state.folded,
        };
        // Another handle may have taken the name meanwhile.
        if entries
            .get(&self.name)
            .is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self))
        {
            entries.remove(&self.name);
        }
    }
}

impl Family for WorkerGauge {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![self.shared.label.describe()])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        let mut visit = |name: &str, value: i64| {
            let mut open = String::new();
            push_label(&mut open, self.shared.label.name(), name);
            each(&Series {
                open: &open,
                closed: "",
                attributes: None,
                value: Value::Gauge(Number::Signed(value)),
            });
        };
        // Visited without the lock: the drop of the last handle, which may be here, takes it.
        let (entries, others) = {
            let state = lock(&self.shared.state);
            let entries: Vec<_> = state.named.values().filter_map(Weak::upgrade).collect();
            (entries, (state.folded_count > 0).then_some(state.folded_sum))
        };
        for entry in &entries {
            visit(&entry.name, entry.value.get());
        }
        if let Some(value) = others {
            visit(OTHER, value);
        }
    }
}

impl fmt::Debug for WorkerGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerGauge")
            .field("label", &self.shared.label)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for WorkerSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerSeries")
            .field("name", &self.name)
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}
