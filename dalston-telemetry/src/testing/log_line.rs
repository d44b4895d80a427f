use std::fmt;

use serde_json::{Map, Value};

/// A line that was logged, read back from the JSON that a service writes.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    fields: Map<String, Value>,
}

impl LogLine {
    #[track_caller]
    pub(super) fn parse(line: &str) -> Self {
        match serde_json::from_str(line) {
            Ok(fields) => Self { fields },
            Err(error) => panic!("a log line is not a JSON object: {error}: {line}"),
        }
    }

    /// `debug`, `info`, `warning` or `error`.
    #[must_use]
    pub fn level(&self) -> &str {
        self.text("level")
    }

    /// The message.
    #[must_use]
    pub fn event(&self) -> &str {
        self.text("event")
    }

    /// A field at the top level: an id, or what the event itself carried.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// All fields.
    #[must_use]
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::to_string(&self.fields)
            .map_err(|_| fmt::Error)?
            .fmt(f)
    }
}
