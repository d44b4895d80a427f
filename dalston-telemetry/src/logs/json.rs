//! JSON lines.

use std::time::SystemTime;

use opentelemetry::trace::{SpanId, TraceId};
use tracing::{Level, Metadata};

use super::fields::{FieldForm, IDS, Key};
use super::layer::LineForm;
use super::time::TimeCache;

/// What is the same in all lines of a process, ready to be copied.
pub(super) struct JsonHead {
    /// From the end of the timestamp to the service, for each level.
    levels: [String; 5],
    /// `,"instance_type":"..."`
    instance_type: String,
}

impl JsonHead {
    pub(super) fn new(service: &str, instance_type: &str) -> Self {
        let service = member("service", service);
        let level = |name: &str| format!("\"{}{service}", member("level", name));
        Self {
            levels: [
                level("error"),
                level("warning"),
                level("info"),
                level("debug"),
                level("trace"),
            ],
            instance_type: member(IDS[4], instance_type),
        }
    }
}

/// The line that is being written.
pub(super) struct JsonLine<'a> {
    pub(super) line: &'a mut Vec<u8>,
    pub(super) head: &'a JsonHead,
}

impl FieldForm for JsonLine<'_> {
    fn event(&mut self, text: &str) {
        self.line.extend_from_slice(b",\"event\":");
        push_string(self.line, text);
    }

    fn text(&mut self, key: Key, text: &str) {
        self.push_key(key.name);
        push_string(self.line, text);
    }

    fn literal(&mut self, key: Key, literal: &str) {
        self.push_key(key.name);
        self.line.extend_from_slice(literal.as_bytes());
    }
}

impl LineForm for JsonLine<'_> {
    fn begin(&mut self, time: SystemTime, times: &mut TimeCache, level: Level) {
        self.line.extend_from_slice(b"{\"timestamp\":\"");
        times.push_timestamp(self.line, time);
        let level = match level {
            Level::ERROR => 0,
            Level::WARN => 1,
            Level::INFO => 2,
            Level::DEBUG => 3,
            Level::TRACE => 4,
        };
        self.line.extend_from_slice(self.head.levels[level].as_bytes());
    }

    fn trace_id(&mut self, trace_id: TraceId) {
        self.line.extend_from_slice(b",\"trace_id\":\"");
        push_hex(self.line, &trace_id.to_bytes());
        self.line.push(b'"');
    }

    fn span_id(&mut self, span_id: SpanId) {
        self.line.extend_from_slice(b",\"span_id\":\"");
        push_hex(self.line, &span_id.to_bytes());
        self.line.push(b'"');
    }

    fn inherited(&mut self, name: &str, value: &str, json: Option<&str>) {
        match json {
            Some(json) => self.line.extend_from_slice(json.as_bytes()),
            None => {
                self.push_key(name);
                push_string(self.line, value);
            }
        }
    }

    fn instance_type(&mut self) {
        self.line.extend_from_slice(self.head.instance_type.as_bytes());
    }

    fn end(&mut self, metadata: &Metadata<'_>) {
        self.line.extend_from_slice(b",\"target\":");
        push_string(self.line, metadata.target());
        self.line.extend_from_slice(b"}\n");
    }
}

impl JsonLine<'_> {
    fn push_key(&mut self, name: &str) {
        self.line.push(b',');
        push_string(self.line, name);
        self.line.push(b':');
    }
}

/// `,"name":"value"`, escaped.
pub(crate) fn member(name: &str, value: &str) -> String {
    let mut member = Vec::with_capacity(name.len() + value.len() + 6);
    member.push(b',');
    push_string(&mut member, name);
    member.push(b':');
    push_string(&mut member, value);
    // Made of strings and ASCII only.
    String::from_utf8(member).unwrap_or_default()
}

/// A JSON string with its quotes.
fn push_string(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    let bytes = text.as_bytes();
    if needs_escapes(bytes) {
        push_escaped(line, bytes);
    } else {
        line.extend_from_slice(bytes);
    }
    line.push(b'"');
}

/// Whether there is a control character, a quote or a backslash: eight bytes at a time.
fn needs_escapes(bytes: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The highest bit of a byte is set where it is zero (and perhaps above the first such byte).
    const fn zeros(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word & HIGH
    }
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let Ok(chunk) = chunk.try_into() else { return true };
        let word = u64::from_le_bytes(chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let quote = zeros(word ^ (ONES * b'"' as u64));
        let backslash = zeros(word ^ (ONES * b'\\' as u64));
        if control | quote | backslash != 0 {
            return true;
        }
    }
    chunks
        .remainder()
        .iter()
        .any(|byte| ESCAPES[usize::from(*byte)] != 0)
}

fn push_escaped(line: &mut Vec<u8>, bytes: &[u8]) {
    let mut done = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        line.extend_from_slice(&bytes[done..at]);
        done = at + 1;
        if escape == b'u' {
            line.extend_from_slice(b"\\u00");
            push_hex(line, &[*byte]);
        } else {
            line.extend_from_slice(&[b'\\', escape]);
        }
    }
    line.extend_from_slice(&bytes[done..]);
}

pub(super) fn push_hex(line: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        line.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// What follows the backslash for each byte, or 0 for a byte that stands as it is.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_comes_back_from_a_json_parser() {
        let all: Vec<char> = (0..0x300)
            .filter_map(char::from_u32)
            .chain(['😀', '\u{2028}'])
            .collect();
        for length in 1..20 {
            for window in all.windows(length).step_by(length) {
                let text: String = window.iter().collect();
                let mut json = Vec::new();
                push_string(&mut json, &text);
                assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
            }
        }
    }

    #[test]
    fn an_escape_is_found_at_every_place_of_a_word() {
        for special in ['\0', '\x1f', '"', '\\', '\n'] {
            for at in 0..24 {
                let mut text: Vec<char> = "é~\x7f abcdefghijklmnopqrstu".chars().take(24).collect();
                text[at] = special;
                let text: String = text.into_iter().collect();
                assert!(needs_escapes(text.as_bytes()), "{special:?} at {at}");
            }
        }
        assert!(!needs_escapes(
            "é~\x7f abcdefghijklmnopqrstuvwxyz 😀 \u{80}\u{ff}".as_bytes()
        ));
    }
}
