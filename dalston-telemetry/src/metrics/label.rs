use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::cells::Counter;
use super::label_text::push_label;
use super::lock;
use super::series::{Family, Kind, Metric, Series};
use super::shape::{LabelDescription, Shape};

/// The label value for all values beyond the cap of an [`OpenLabel`].
pub const OTHER: &str = "__other__";

/// A closed label, whose values are known when the program is compiled. Declared by
/// [`label!`](crate::label).
pub trait Label: Copy + Send + Sync + 'static {
    /// The name of the label.
    const NAME: &'static str;
    /// All values, in the order of their [`index`](Self::index).
    const VALUES: &'static [&'static str];
    /// The position of this value in [`VALUES`](Self::VALUES).
    fn index(self) -> usize;
}

/// A set of closed labels: a [`Label`], a tuple of them, or `()` for none.
pub trait LabelSet: Copy + Send + Sync + 'static {
    /// The number of combinations, which is the number of series of a metric with these labels.
    const CARDINALITY: usize;

    /// The position of this combination, below [`CARDINALITY`](Self::CARDINALITY).
    fn position(self) -> usize;

    /// Calls `each` with the name and the value of each label of the combination at a position.
    fn labels_at(position: usize, each: &mut dyn FnMut(&'static str, &'static str));
}

impl LabelSet for () {
    const CARDINALITY: usize = 1;

    fn position(self) -> usize {
        0
    }

    fn labels_at(_position: usize, _each: &mut dyn FnMut(&'static str, &'static str)) {}
}

macro_rules! label_set_for_tuples {
    ($(($($label:ident),+))+) => {$(
        impl<$($label: Label),+> LabelSet for ($($label,)+) {
            const CARDINALITY: usize = 1 $(* $label::VALUES.len())+;

            fn position(self) -> usize {
                #[allow(non_snake_case)]
                let ($($label,)+) = self;
                let mut position = 0;
                $(position = position * $label::VALUES.len() + $label.index();)+
                position
            }

            fn labels_at(position: usize, each: &mut dyn FnMut(&'static str, &'static str)) {
                // The first label has the largest stride.
                let mut stride = Self::CARDINALITY;
                $(
                    stride /= $label::VALUES.len();
                    each($label::NAME, $label::VALUES[position / stride % $label::VALUES.len()]);
                )+
            }
        }
    )+};
}

label_set_for_tuples! { (A) (A, B) (A, B, C) (A, B, C, D) }

/// Declares a closed label: an enum whose variants are the label's values.
///
/// ```
/// use dalston_telemetry::metrics::Label;
///
/// dalston_telemetry::label! {
///     /// The origin of a session.
///     pub enum Origin = "origin" {
///         Web => "web",
///         /// By telephone.
///         Phone => "phone",
///     }
/// }
/// assert_eq!(Origin::VALUES, ["web", "phone"]);
/// assert_eq!(Origin::Phone.as_str(), "phone");
/// ```
#[macro_export]
macro_rules! label {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident = $label:literal {
            $($(#[$variant_meta:meta])* $variant:ident => $value:literal),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        $vis enum $name {
            $(
                $(#[$variant_meta])*
                #[doc = concat!("`", $label, "=\"", $value, "\"`")]
                $variant,
            )+
        }

        impl $name {
            /// The value of the label.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl $crate::metrics::Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($value),+];

            fn index(self) -> usize {
                self as usize
            }
        }

        impl $crate::metrics::LabelSet for $name {
            const CARDINALITY: usize = <Self as $crate::metrics::Label>::VALUES.len();

            fn position(self) -> usize {
                self as usize
            }

            fn labels_at(position: usize, each: &mut dyn FnMut(&'static str, &'static str)) {
                each(
                    <Self as $crate::metrics::Label>::NAME,
                    <Self as $crate::metrics::Label>::VALUES[position],
                );
            }
        }
    };
}

/// A label whose values come from outside, such as the name of a model. Values beyond its cap are
/// counted as [`OTHER`].
///
/// Get it from [`Metrics::open_label`](super::Metrics::open_label), so that all families of a
/// registry share its values. A value that was accepted stays for the life of the process. Values
/// longer than 128 bytes or with control characters are not accepted.
#[derive(Clone)]
pub struct OpenLabel {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    cap: usize,
    /// Whether further values are refused.
    is_closed: bool,
    values: RwLock<Values>,
    folded: Counter,
}

struct Values {
    by_name: HashMap<Arc<str>, u32>,
    /// In the order of their arrival, after [`OTHER`].
    names: Vec<Arc<str>>,
}

impl OpenLabel {
    const LONGEST_VALUE: usize = 128;

    fn new(name: &'static str, cap: usize) -> Self {
        Self::made(name, cap, false, &[])
    }

    /// A label with exactly these values, for families in which most combinations of closed labels
    /// never occur: a combination has a series only if it has occurred.
    pub(crate) fn closed(name: &'static str, values: &[&'static str]) -> Self {
        Self::made(name, values.len(), true, values)
    }

    /// As [`closed`](Self::closed), with the values of a type.
    pub(crate) fn of<L: Label>() -> Self {
        Self::closed(L::NAME, L::VALUES)
    }

    fn made(name: &'static str, cap: usize, is_closed: bool, known: &[&'static str]) -> Self {
        let names: Vec<Arc<str>> = [OTHER]
            .iter()
            .chain(known.iter().filter(|value| **value != OTHER))
            .map(|value| Arc::from(*value))
            .collect();
        let by_name = names.iter().cloned().zip(0..).collect();
        Self {
            inner: Arc::new(Inner {
                name,
                cap,
                is_closed,
                values: RwLock::new(Values { by_name, names }),
                folded: Counter::default(),
            }),
        }
    }

    /// The name of the label.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// The position of a value, or that of [`OTHER`] if the label has reached its cap.
    pub(crate) fn place(&self, value: &str) -> u32 {
        let inner = &*self.inner;
        let values = inner.values.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = values.by_name.get(value) {
            return *place;
        }
        // Refused without the lock for writing, so that a flood of new values blocks no thread.
        if inner.is_closed || !Self::is_fit(value) || values.names.len() > inner.cap {
            drop(values);
            return self.fold();
        }
        drop(values);
        let mut values = inner.values.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have added it.
        if let Some(place) = values.by_name.get(value) {
            return *place;
        }
        let place = values.names.len();
        match u32::try_from(place) {
            // `OTHER` does not count against the cap.
            Ok(id) if place <= inner.cap => {
                let name: Arc<str> = Arc::from(value);
                values.names.push(name.clone());
                values.by_name.insert(name, id);
                id
            }
            _ => self.fold(),
        }
    }

    /// The position of [`OTHER`] instead of that of a value. A label with fixed values keeps it,
    /// because it has few.
    pub(crate) fn fold_place(&self, place: u32) -> u32 {
        // Position 0 is `OTHER`.
        if self.inner.is_closed || place == 0 {
            place
        } else {
            self.fold()
        }
    }

    /// Counts a value beyond the cap.
    pub(crate) fn fold(&self) -> u32 {
        self.inner.folded.inc();
        0
    }

    pub(crate) fn is_fit(value: &str) -> bool {
        value.len() <= Self::LONGEST_VALUE && !value.contains(char::is_control)
    }

    pub(crate) fn cap(&self) -> usize {
        self.inner.cap
    }

    pub(crate) fn describe(&self) -> LabelDescription {
        if !self.inner.is_closed {
            return LabelDescription::open(self.inner.name);
        }
        let values = self.inner.values.read().unwrap_or_else(PoisonError::into_inner);
        // The first is `OTHER`, which is not one of the fixed values.
        let names = values.names.iter().skip(1).map(|name| name.to_string());
        LabelDescription::closed(self.inner.name, names.collect())
    }

    /// The value at a position.
    pub(crate) fn value_at(&self, place: u32) -> Arc<str> {
        let values = self.inner.values.read().unwrap_or_else(PoisonError::into_inner);
        values
            .names
            .get(place as usize)
            .unwrap_or(&values.names[0])
            .clone()
    }
}

impl fmt::Debug for OpenLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenLabel")
            .field("name", &self.inner.name)
            .field("cap", &self.inner.cap)
            .finish_non_exhaustive()
    }
}

/// The open labels of a registry, and the metric of their folded values.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenLabels {
    labels: Arc<Mutex<Vec<OpenLabel>>>,
}

impl OpenLabels {
    pub(crate) fn get(&self, name: &'static str, cap: usize) -> OpenLabel {
        let mut labels = lock(&self.labels);
        if let Some(label) = labels.iter().find(|label| label.name() == name) {
            return label.clone();
        }
        let label = OpenLabel::new(name, cap);
        labels.push(label.clone());
        label
    }
}

impl Family for OpenLabels {
    fn kind(&self) -> Kind {
        Kind::Counter
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![LabelDescription::open("label")])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        for label in lock(&self.labels).iter() {
            let mut text = String::new();
            push_label(&mut text, "label", label.name());
            each(&Series {
                open: "",
                closed: &text,
                attributes: None,
                value: label.inner.folded.value(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    label! { enum Colour = "colour" { Red => "red", Green => "green", Blue => "blue" } }
    label! { enum Size = "size" { Small => "small", Large => "large" } }

    #[test]
    fn each_combination_has_its_own_position() {
        type Set = (Colour, Size);
        let mut seen = Vec::new();
        for colour in [Colour::Red, Colour::Green, Colour::Blue] {
            for size in [Size::Small, Size::Large] {
                let mut labels = Vec::new();
                Set::labels_at((colour, size).position(), &mut |name, value| {
                    labels.push((name, value))
                });
                assert_eq!(labels, [("colour", colour.as_str()), ("size", size.as_str())]);
                seen.push((colour, size).position());
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..Set::CARDINALITY).collect::<Vec<_>>());
    }

    #[test]
    fn values_beyond_the_cap_are_folded_and_counted() {
        let metrics = Metrics::new();
        let label = metrics.open_label("model", 2);
        let values: Vec<_> = ["a", "b", "c", "a", "c"]
            .iter()
            .map(|value| label.value_at(label.place(value)).to_string())
            .collect();
        assert_eq!(values, ["a", "b", OTHER, "a", OTHER]);
        assert!(
            metrics
                .encode()
                .contains("dalston_telemetry_label_values_folded_total{label=\"model\"} 2\n")
        );
    }

    #[test]
    fn families_of_one_registry_share_a_label() {
        let metrics = Metrics::new();
        let first = metrics.open_label("model", 2);
        assert_eq!(first.place("a"), metrics.open_label("model", 50).place("a"));
    }

    #[test]
    fn values_that_are_too_long_or_unprintable_are_folded() {
        let label = Metrics::new().open_label("model", 10);
        assert_eq!(&*label.value_at(label.place(&"x".repeat(129))), OTHER);
        assert_eq!(&*label.value_at(label.place("a\nb")), OTHER);
        assert_eq!(&*label.value_at(label.place("fine")), "fine");
    }
}
