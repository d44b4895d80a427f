use std::error::Error;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};

use crate::redact;

/// What is known about the name of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// The message of the event.
    Message,
    /// One of the ids that a line inherits, by its position in [`IDS`].
    Id(u8),
    /// Its string value must not be shown.
    Secret,
}

/// The fields that lines inherit from the spans around them. In spans they have the names of span attributes.
pub(crate) const IDS: [&str; 5] = ["request_id", "job_id", "task_id", "engine_id", "instance_type"];

const ID_ATTRIBUTES: [&str; 5] = [
    "dalston.request_id",
    "dalston.job_id",
    "dalston.task_id",
    "dalston.engine_id",
    "dalston.instance_type",
];

/// The members that every line has by itself, and what a field of the same name becomes.
const RESERVED: [(&str, &str); 7] = [
    ("timestamp", "field.timestamp"),
    ("level", "field.level"),
    ("service", "field.service"),
    ("target", "field.target"),
    ("event", "field.event"),
    ("trace_id", "field.trace_id"),
    ("span_id", "field.span_id"),
];

/// Whether every line has a member of this name.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|(reserved, _)| *reserved == name)
}

/// The id that a span field or log field of this name is.
pub(crate) fn id_of(name: &str) -> Option<u8> {
    let position = |names: &[&str]| names.iter().position(|id| *id == name);
    position(&IDS)
        .or_else(|| position(&ID_ATTRIBUTES))
        .and_then(|id| u8::try_from(id).ok())
}

/// A name as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

impl Key {
    fn of(field: &'static str) -> Self {
        let name = field.strip_prefix("r#").unwrap_or(field);
        if name == "message" {
            return Self {
                name: "event",
                kind: Kind::Message,
            };
        }
        if let Some(id) = id_of(name) {
            return Self {
                name: IDS[usize::from(id)],
                kind: Kind::Id(id),
            };
        }
        if let Some((_, renamed)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            return Self {
                name: renamed,
                kind: Kind::Plain,
            };
        }
        let kind = if redact::is_secret_name(name) {
            Kind::Secret
        } else {
            Kind::Plain
        };
        Self { name, kind }
    }
}

/// Remembers what was found out about names.
///
/// Field names are literals in the program: one that lies at the same place with the same length is the same name.
pub(super) struct KeyCache {
    entries: [Option<(&'static str, Key)>; Self::SIZE],
}

impl KeyCache {
    /// A power of two.
    const SIZE: usize = 64;

    pub(super) fn key(&mut self, field: &'static str) -> Key {
        let place = (field.as_ptr() as usize ^ field.len().rotate_left(3)) % Self::SIZE;
        match &self.entries[place] {
            Some((known, key)) if std::ptr::eq(*known, field) => *key,
            _ => {
                let key = Key::of(field);
                self.entries[place] = Some((field, key));
                key
            }
        }
    }
}

impl Default for KeyCache {
    fn default() -> Self {
        Self {
            entries: [None; Self::SIZE],
        }
    }
}

/// A form in which fields are written.
pub(super) trait FieldForm {
    /// The message.
    fn event(&mut self, text: &str);
    /// A field with a text; secrets are masked already.
    fn text(&mut self, key: Key, text: &str);
    /// A field with a number, a truth value or `null`.
    fn literal(&mut self, key: Key, literal: &str);
}

/// Buffers that are kept from one line to the next.
#[derive(Default)]
pub(super) struct FieldScratch {
    keys: KeyCache,
    /// The text of the value that is being written.
    value: String,
    /// The names that the present line has.
    pub(super) written: Vec<&'static str>,
}

impl FieldScratch {
    pub(super) fn clear(&mut self) {
        const KEEP: usize = 16 * 1024;
        self.written.clear();
        self.value.clear();
        self.value.shrink_to(KEEP);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.written.contains(&name)
    }
}

/// Writes the fields of an event in some form, each name once.
pub(super) struct FieldVisitor<'a, F> {
    pub(super) form: &'a mut F,
    pub(super) scratch: &'a mut FieldScratch,
}

impl<F: FieldForm> FieldVisitor<'_, F> {
    /// The key of a field, unless the line has it already.
    fn key(&mut self, field: &Field) -> Option<Key> {
        let key = self.scratch.keys.key(field.name());
        if self.scratch.has(key.name) {
            return None;
        }
        self.scratch.written.push(key.name);
        Some(key)
    }

    fn text(&mut self, key: Key, text: &str) {
        match key.kind {
            Kind::Secret => self.form.text(key, redact::MASK),
            Kind::Message => self.form.event(&redact::text(text)),
            // An id that is not set is as good as absent.
            Kind::Id(_) if text.is_empty() => self.scratch.written.retain(|name| *name != key.name),
            Kind::Id(_) | Kind::Plain => self.form.text(key, &redact::text(text)),
        }
    }

    fn formatted(&mut self, key: Key, value: fmt::Arguments<'_>) {
        // A message without arguments, the usual one, is there already.
        if let Some(text) = value.as_str() {
            return self.text(key, text);
        }
        let mut text = std::mem::take(&mut self.scratch.value);
        text.clear();
        // A `Display` that says it failed has written what it could.
        let _ = text.write_fmt(value);
        self.text(key, &text);
        self.scratch.value = text;
    }

    fn literal(&mut self, field: &Field, literal: &str) {
        match self.key(field) {
            Some(Key {
                kind: Kind::Message, ..
            }) => self.form.event(literal),
            Some(key) => self.form.literal(key, literal),
            None => {}
        }
    }
}

impl<F: FieldForm> Visit for FieldVisitor<'_, F> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if let Some(key) = self.key(field) {
            self.formatted(key, format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(key) = self.key(field) {
            self.text(key, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if let Some(key) = self.key(field) {
            self.formatted(key, format_args!("{}", ErrorChain(value)));
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.literal(field, if value { "true" } else { "false" });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.literal(field, itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.literal(field, itoa::Buffer::new().format(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.literal(field, itoa::Buffer::new().format(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.literal(field, itoa::Buffer::new().format(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if !value.is_finite() {
            // JSON has no other way to say it.
            return self.literal(field, "null");
        }
        let mut digits = std::mem::take(&mut self.scratch.value);
        digits.clear();
        let _ = write!(digits, "{value:?}");
        self.literal(field, &digits);
        self.scratch.value = digits;
    }
}

/// An error with what caused it: `cannot load the model: file not found`.
struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough for any honest chain, and an end for one that is a ring.
        const LONGEST: usize = 16;
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        for _ in 0..LONGEST {
            let Some(error) = source else { break };
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_mapped_to_what_is_written() {
        let key = |name| Key::of(name);
        assert_eq!(
            key("message"),
            Key {
                name: "event",
                kind: Kind::Message
            }
        );
        assert_eq!(
            key("dalston.task_id"),
            Key {
                name: "task_id",
                kind: Kind::Id(2)
            }
        );
        assert_eq!(
            key("task_id"),
            Key {
                name: "task_id",
                kind: Kind::Id(2)
            }
        );
        assert_eq!(
            key("level"),
            Key {
                name: "field.level",
                kind: Kind::Plain
            }
        );
        assert_eq!(
            key("r#type"),
            Key {
                name: "type",
                kind: Kind::Plain
            }
        );
        assert_eq!(
            key("authorization"),
            Key {
                name: "authorization",
                kind: Kind::Secret
            }
        );
    }

    #[test]
    fn the_cache_never_takes_one_name_for_another() {
        let mut cache = KeyCache::default();
        // Of two names at the same place, one is a part of the other.
        let names: &'static str = "task_id_and_more";
        for _ in 0..3 {
            for name in [&names[..7], &names[..4], names, "task_id"] {
                assert_eq!(cache.key(name), Key::of(name));
            }
        }
    }

    #[test]
    fn attributes_and_ids_go_together() {
        for (id, attribute) in IDS.iter().zip(ID_ATTRIBUTES) {
            assert_eq!(attribute.strip_prefix("dalston."), Some(*id));
            assert_eq!(id_of(attribute), id_of(id));
        }
    }
}
