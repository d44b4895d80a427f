//! JSON lines.

use std::time::SystemTime;

use opentelemetry::trace::{SpanId, TraceId};
use tracing::{Level, Metadata};

use super::key::Key;
use super::line::LineForm;
use super::time::push_timestamp;

/// The members that are the same in all lines of a process.
pub(super) struct JsonHead {
    /// From the end of the timestamp to the service, for each level.
    levels: [String; 5],
}

impl JsonHead {
    pub(super) fn new(service: &str) -> Self {
        let service = member("service", service);
        let head = |level| format!("\"{}{service}", member("level", level));
        Self {
            levels: ["error", "warning", "info", "debug", "trace"].map(head),
        }
    }

    fn level(&self, level: Level) -> &str {
        let [error, warning, info, debug, trace] = &self.levels;
        match level {
            Level::ERROR => error,
            Level::WARN => warning,
            Level::INFO => info,
            Level::DEBUG => debug,
            Level::TRACE => trace,
        }
    }
}

/// The line that is being written.
pub(super) struct JsonLine<'a> {
    pub(super) line: &'a mut Vec<u8>,
    pub(super) head: &'a JsonHead,
}

impl LineForm for JsonLine<'_> {
    fn begin(&mut self, time: SystemTime, level: Level) {
        self.push("{\"timestamp\":\"");
        push_timestamp(self.line, time);
        self.push(self.head.level(level));
    }

    fn message(&mut self, text: &str) {
        self.push(",\"event\":");
        push_string(self.line, text);
    }

    fn text(&mut self, key: Key, text: &str) {
        push_member(self.line, key.name, text);
    }

    fn literal(&mut self, key: Key, literal: &str) {
        push_name(self.line, key.name);
        self.push(literal);
    }

    fn trace_id(&mut self, trace_id: TraceId) {
        self.push(",\"trace_id\":\"");
        push_hex(self.line, &trace_id.to_bytes());
        self.push("\"");
    }

    fn span_id(&mut self, span_id: SpanId) {
        self.push(",\"span_id\":\"");
        push_hex(self.line, &span_id.to_bytes());
        self.push("\"");
    }

    fn inherited(&mut self, name: &str, value: &str) {
        push_member(self.line, name, value);
    }

    fn context_field(&mut self, _name: &str, _value: &str, json: &str) {
        self.push(json);
    }

    fn process_field(&mut self, json: &str) {
        self.push(json);
    }

    fn end(&mut self, metadata: &Metadata<'_>) {
        push_member(self.line, "target", metadata.target());
        self.push("}\n");
    }
}

impl JsonLine<'_> {
    fn push(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }
}

/// `,"name":"value"`, escaped.
pub(super) fn member(name: &str, value: &str) -> String {
    let mut member = Vec::with_capacity(name.len() + value.len() + 6);
    push_member(&mut member, name, value);
    String::from_utf8(member).unwrap_or_default()
}

fn push_member(line: &mut Vec<u8>, name: &str, value: &str) {
    push_name(line, name);
    push_string(line, value);
}

fn push_name(line: &mut Vec<u8>, name: &str) {
    line.push(b',');
    push_string(line, name);
    line.push(b':');
}

/// A JSON string with its quotes.
fn push_string(line: &mut Vec<u8>, text: &str) {
    let begin = line.len();
    // Writing a string to a vector does not fail.
    let _ = serde_json::to_writer(&mut *line, text);
    if !text.is_ascii() && text.contains(is_c1) {
        let quoted = line.split_off(begin);
        for character in String::from_utf8_lossy(&quoted).chars() {
            match is_c1(character) {
                true => line.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes()),
                false => line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

/// Whether a terminal takes the character for a control sequence. JSON allows it in strings.
fn is_c1(character: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&character)
}

pub(super) fn push_hex(line: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        line.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}
