//! The names of fields as a log line has them.

use super::inherited::{INHERITED, InheritedField};
use crate::redact;

/// The name of a field as a log line has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: KeyKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Plain,
    /// The message of the event.
    Message,
    /// A field that lines also inherit.
    Inherited,
    /// A string value is masked.
    Secret,
}

/// The members that the layer itself writes, and the name of an event's field that is called the
/// same.
const RESERVED: [(&str, &str); 7] = [
    ("timestamp", "field.timestamp"),
    ("level", "field.level"),
    ("service", "field.service"),
    ("target", "field.target"),
    ("event", "field.event"),
    ("trace_id", "field.trace_id"),
    ("span_id", "field.span_id"),
];

/// Whether the layer itself writes a member of this name.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|(reserved, _)| *reserved == name)
}

impl Key {
    fn of(field: &'static str) -> Self {
        let name = field.strip_prefix("r#").unwrap_or(field);
        let key = |name, kind| Self { name, kind };
        if name == "message" {
            return key("event", KeyKind::Message);
        }
        if let Some(position) = InheritedField::position(name) {
            return key(INHERITED[position].name, KeyKind::Inherited);
        }
        if let Some((_, renamed)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            return key(renamed, KeyKind::Plain);
        }
        match redact::is_secret_name(name) {
            true => key(name, KeyKind::Secret),
            false => key(name, KeyKind::Plain),
        }
    }
}

/// Remembers the keys of field names, because looking for secrets costs more than the rest of a
/// field.
///
/// Field names are literals of the program: the same address and length mean the same name.
pub(super) struct KeyCache {
    entries: [Option<(&'static str, Key)>; Self::SIZE],
}

impl KeyCache {
    const SIZE: usize = 64;

    pub(super) fn key(&mut self, field: &'static str) -> Key {
        let entry = (field.as_ptr().addr() ^ field.len().rotate_left(3)) % Self::SIZE;
        match &self.entries[entry] {
            Some((known, key)) if std::ptr::eq(*known, field) => *key,
            _ => {
                let key = Key::of(field);
                self.entries[entry] = Some((field, key));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_get_the_names_of_line_members() {
        let table = [
            ("message", "event", KeyKind::Message),
            ("dalston.task_id", "task_id", KeyKind::Inherited),
            ("task_id", "task_id", KeyKind::Inherited),
            ("level", "field.level", KeyKind::Plain),
            ("r#type", "type", KeyKind::Plain),
            ("authorization", "authorization", KeyKind::Secret),
        ];
        for (field, name, kind) in table {
            assert_eq!(Key::of(field), Key { name, kind }, "{field}");
        }
    }

    #[test]
    fn names_at_overlapping_addresses_have_own_keys() {
        let mut cache = KeyCache::default();
        let names: &'static str = "task_id_and_more";
        for _ in 0..3 {
            for name in [&names[..7], &names[..4], names, "task_id"] {
                assert_eq!(cache.key(name), Key::of(name));
            }
        }
    }
}
