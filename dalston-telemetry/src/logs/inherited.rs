//! The fields that log lines inherit from the spans around an event and from the log context.

/// A field that log lines inherit.
pub(crate) struct InheritedField {
    /// The member of the log line.
    pub(crate) name: &'static str,
    /// The span attribute that holds the same value.
    pub(crate) attribute: &'static str,
    /// The value of a line that inherits none.
    pub(crate) fallback: Fallback,
}

/// The value of an inherited field in a line that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// The line has no such member.
    Absent,
    /// The instance type of the machine.
    InstanceType,
}

/// The inherited fields, one row for each. A new field needs a new row here and nothing else.
pub(crate) const INHERITED: &[InheritedField] = &[
    field("request_id", "dalston.request_id"),
    field("job_id", "dalston.job_id"),
    field("task_id", "dalston.task_id"),
    field("engine_id", "dalston.engine_id"),
    field("instance_type", "dalston.instance_type").or(Fallback::InstanceType),
];

const fn field(name: &'static str, attribute: &'static str) -> InheritedField {
    InheritedField {
        name,
        attribute,
        fallback: Fallback::Absent,
    }
}

impl InheritedField {
    const fn or(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// The row whose field or attribute has this name, by its position in [`INHERITED`].
    pub(crate) fn position(name: &str) -> Option<usize> {
        INHERITED
            .iter()
            .position(|field| name == field.name || name == field.attribute)
    }
}

/// A value for each row of [`INHERITED`].
pub(crate) type PerField<T> = [T; INHERITED.len()];
