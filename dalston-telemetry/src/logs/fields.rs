//! The fields of an event.

use std::error::Error;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};

use super::key::{Key, KeyCache, KeyKind};
use super::line::LineForm;
use crate::redact;

/// The buffers of a thread for the fields of an event.
#[derive(Default)]
pub(super) struct FieldScratch {
    keys: KeyCache,
    /// The text of the value that is being written.
    value: String,
    /// The members that the line has.
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

/// Writes the fields of an event, each name once.
pub(super) struct FieldVisitor<'a, F> {
    pub(super) form: &'a mut F,
    pub(super) scratch: &'a mut FieldScratch,
    /// Whether the event is a record of the `log` crate, whose target and location are fields.
    pub(super) is_log_record: bool,
}

impl<F: LineForm> FieldVisitor<'_, F> {
    /// The key of a field; `None` if the line has a member of this name, or does not show it.
    fn key(&mut self, field: &Field) -> Option<Key> {
        if self.is_log_record && field.name().starts_with("log.") {
            return None;
        }
        let key = self.scratch.keys.key(field.name());
        if self.scratch.has(key.name) {
            return None;
        }
        self.scratch.written.push(key.name);
        Some(key)
    }

    fn text(&mut self, key: Key, text: &str) {
        match key.kind {
            KeyKind::Secret => self.form.text(key, redact::MASK),
            KeyKind::Message => self.form.message(&redact::text(text)),
            // An empty id counts as absent, and one may be inherited.
            KeyKind::Inherited if text.is_empty() => self.scratch.written.retain(|name| *name != key.name),
            KeyKind::Inherited | KeyKind::Plain => self.form.text(key, &redact::text(text)),
        }
    }

    fn formatted(&mut self, key: Key, value: fmt::Arguments<'_>) {
        // Most messages have no arguments and need no buffer.
        if let Some(text) = value.as_str() {
            return self.text(key, text);
        }
        let mut text = std::mem::take(&mut self.scratch.value);
        text.clear();
        // The text up to a formatting error is still worth a line.
        let _ = text.write_fmt(value);
        self.text(key, &text);
        self.scratch.value = text;
    }

    fn literal(&mut self, field: &Field, literal: &str) {
        match self.key(field) {
            Some(Key {
                kind: KeyKind::Message,
                ..
            }) => self.form.message(literal),
            Some(key) => self.form.literal(key, literal),
            None => {}
        }
    }
}

impl<F: LineForm> Visit for FieldVisitor<'_, F> {
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
            // JSON has neither infinity nor NaN.
            return self.literal(field, "null");
        }
        let mut digits = std::mem::take(&mut self.scratch.value);
        digits.clear();
        let _ = write!(digits, "{value:?}");
        self.literal(field, &digits);
        self.scratch.value = digits;
    }
}

/// An error with its sources: `cannot load the model: file not found`.
struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A bound for a chain of errors that is a ring.
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
