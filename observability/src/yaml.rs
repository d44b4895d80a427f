//! The few forms of YAML that the generated files need.

use std::fmt::Write as _;

/// The first line of each generated file.
pub(crate) const HEAD: &str = "# Written by cargo xtask rules. Change the crate `observability` instead.\n";

/// A text in double quotes. JSON's escapes are valid in YAML.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes `key: text`, as a block if the text has several lines.
pub(crate) fn entry(out: &mut String, indent: usize, key: &str, text: &str) {
    let text = text.trim();
    if text.contains('\n') {
        let _ = writeln!(out, "{:indent$}{key}: |", "");
        for line in text.lines() {
            let _ = writeln!(out, "{:indent$}  {line}", "");
        }
    } else if is_plain(text) {
        let _ = writeln!(out, "{:indent$}{key}: {text}", "");
    } else {
        let _ = writeln!(out, "{:indent$}{key}: {}", "", quoted(text));
    }
}

/// Whether a text means itself without quotes. It is stricter than YAML.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./ ()>=<+*".contains(c))
}
