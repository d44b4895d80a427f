//! JSON lines.

/// The members that every line has; a field of the same name is renamed.
pub(crate) fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "timestamp" | "level" | "service" | "target" | "event" | "trace_id" | "span_id"
    )
}

/// `,"name":"value"`, escaped.
pub(crate) fn json_member(name: &str, value: &str) -> String {
    let mut member = String::with_capacity(name.len() + value.len() + 6);
    member.push(',');
    push_string(&mut member, name);
    member.push(':');
    push_string(&mut member, value);
    member
}

/// A JSON string with its quotes.
pub(crate) fn push_string(line: &mut String, text: &str) {
    line.push('"');
    push_escaped(line, text);
    line.push('"');
}

fn push_escaped(line: &mut String, text: &str) {
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        line.push_str(&text[done..at]);
        done = at + 1;
        line.push('\\');
        if escape == b'u' {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            line.push_str("u00");
            line.push(char::from(HEX[usize::from(byte >> 4)]));
            line.push(char::from(HEX[usize::from(byte & 15)]));
        } else {
            line.push(char::from(escape));
        }
    }
    line.push_str(&text[done..]);
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
    // Not required by JSON, but a raw DEL still acts on terminals.
    table[0x7f] = b'u';
    table
};
