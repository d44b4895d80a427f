//! Readable lines, for a terminal.

use std::time::SystemTime;

use opentelemetry::trace::{SpanId, TraceId};
use tracing::{Level, Metadata};

use super::json::push_hex;
use super::key::{Key, KeyKind};
use super::line::LineForm;
use super::time::push_time_of_day;

/// The line that is being written, such as
/// `12:59:59.123  INFO task_received stream=3 task_id=9 dalston_engine_sdk::runner`.
pub(super) struct ReadableLine<'a> {
    pub(super) line: &'a mut Vec<u8>,
    /// The fields of the event, which follow the message.
    pub(super) fields: &'a mut Vec<u8>,
    /// The ids and the target, which stand dimmed at the end.
    pub(super) ids: &'a mut Vec<u8>,
    pub(super) colours: bool,
}

const DIM: &[u8] = b"\x1b[2m";
const RESET: &[u8] = b"\x1b[0m";

impl LineForm for ReadableLine<'_> {
    fn begin(&mut self, time: SystemTime, level: Level) {
        self.coloured(DIM, |line| push_time_of_day(line, time));
        let (name, colour): (_, &[u8]) = match level {
            Level::ERROR => ("ERROR", b"\x1b[31m"),
            Level::WARN => (" WARN", b"\x1b[33m"),
            Level::INFO => (" INFO", b"\x1b[32m"),
            Level::DEBUG => ("DEBUG", b"\x1b[34m"),
            Level::TRACE => ("TRACE", b"\x1b[35m"),
        };
        self.line.push(b' ');
        self.coloured(colour, |line| line.extend_from_slice(name.as_bytes()));
    }

    fn message(&mut self, text: &str) {
        self.line.push(b' ');
        push_message(self.line, text);
    }

    fn text(&mut self, key: Key, text: &str) {
        let place = self.place_of(key);
        push_name(place, key.name);
        push_value(place, text);
    }

    fn literal(&mut self, key: Key, literal: &str) {
        let place = self.place_of(key);
        push_name(place, key.name);
        place.extend_from_slice(literal.as_bytes());
    }

    fn trace_id(&mut self, trace_id: TraceId) {
        push_name(self.ids, "trace_id");
        push_hex(self.ids, &trace_id.to_bytes());
    }

    fn span_id(&mut self, span_id: SpanId) {
        push_name(self.ids, "span_id");
        push_hex(self.ids, &span_id.to_bytes());
    }

    fn inherited(&mut self, name: &str, value: &str) {
        push_name(self.ids, name);
        push_value(self.ids, value);
    }

    fn context_field(&mut self, name: &str, value: &str, _json: &str) {
        self.inherited(name, value);
    }

    // The person at the terminal knows the machine.
    fn process_field(&mut self, _json: &str) {}

    fn end(&mut self, metadata: &Metadata<'_>) {
        self.line.extend_from_slice(self.fields);
        self.ids.push(b' ');
        push_plain(self.ids, metadata.target());
        let ids = std::mem::take(self.ids);
        self.coloured(DIM, |line| line.extend_from_slice(&ids));
        *self.ids = ids;
        self.line.push(b'\n');
    }
}

impl ReadableLine<'_> {
    fn place_of(&mut self, key: Key) -> &mut Vec<u8> {
        match key.kind {
            KeyKind::Inherited => self.ids,
            _ => self.fields,
        }
    }

    fn coloured(&mut self, colour: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        if self.colours {
            self.line.extend_from_slice(colour);
        }
        write(self.line);
        if self.colours {
            self.line.extend_from_slice(RESET);
        }
    }
}

fn push_name(line: &mut Vec<u8>, name: &str) {
    line.push(b' ');
    push_plain(line, name);
    line.push(b'=');
}

/// Writes a value, in quotes if its end would be unclear without.
fn push_value(line: &mut Vec<u8>, text: &str) {
    let is_bare = |character: char| {
        !character.is_whitespace() && !matches!(character, '"' | '=') && !is_unsafe(character)
    };
    if !text.is_empty() && text.chars().all(is_bare) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    line.push(b'"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                line.push(b'\\');
                line.push(character as u8);
            }
            _ => push_character(line, character),
        }
    }
    line.push(b'"');
}

/// Indents all lines of a message but the first, so that none looks like a log line of its own.
fn push_message(line: &mut Vec<u8>, text: &str) {
    for (at, part) in text.lines().enumerate() {
        if at > 0 {
            line.extend_from_slice(b"\n    ");
        }
        push_plain(line, part);
    }
}

fn push_plain(line: &mut Vec<u8>, text: &str) {
    text.chars().for_each(|character| push_character(line, character));
}

/// Escapes characters with which a text could control the terminal.
fn push_character(line: &mut Vec<u8>, character: char) {
    if is_unsafe(character) {
        line.extend(character.escape_default().map(|ascii| ascii as u8));
    } else {
        line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// Control characters, and those that reorder the text around them.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
