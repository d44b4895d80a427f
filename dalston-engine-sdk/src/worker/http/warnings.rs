//! Warnings about a request and its recording, as a header of the response.

use std::fmt::Write as _;

use axum::http::{HeaderName, HeaderValue};
use serde_json::Value;

/// A list of texts in JSON, with escapes for all characters that are not ASCII.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-dalston-warnings");
/// The most bytes of the header. Proxies accept 8 KiB for all headers together.
const LONGEST: usize = 4 * 1024;
/// The most fields that are named.
const MOST_FIELDS: usize = 8;

/// Adds a warning for each field that the route does not know to a transcript, and returns all
/// warnings as a header, if there are any.
pub(super) fn add(transcript: &mut Value, unknown: &[String]) -> Option<HeaderValue> {
    let transcript = transcript.as_object_mut()?;
    let warnings = transcript
        .entry("warnings")
        .or_insert_with(|| Value::Array(Vec::new()));
    let warnings = warnings.as_array_mut()?;
    for name in unknown.iter().take(MOST_FIELDS) {
        warnings.push(format!("the field {name} is not known and was ignored").into());
    }
    header(warnings)
}

/// The header for these warnings, without the last ones if they are too long.
fn header(warnings: &[Value]) -> Option<HeaderValue> {
    let mut text = String::new();
    for warning in warnings {
        let warning = ascii(&warning.to_string());
        if text.len() + warning.len() > LONGEST {
            break;
        }
        text.push_str(if text.is_empty() { "" } else { "," });
        text.push_str(&warning);
    }
    if text.is_empty() {
        return None;
    }
    HeaderValue::try_from(format!("[{text}]")).ok()
}

/// The same JSON with ASCII characters only.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn warnings_become_one_header_of_ascii_characters() {
        let mut transcript = json!({"text": "x", "warnings": ["ä \"😀\"\n\u{7f}"]});
        let header = add(&mut transcript, &["\"langauge\"".to_owned()]).unwrap();
        let expected =
            r#"["\u00e4 \"\ud83d\ude00\"\n\u007f","the field \"langauge\" is not known and was ignored"]"#;
        assert_eq!(header, expected);
        let read: Value = serde_json::from_slice(header.as_bytes()).unwrap();
        assert_eq!(read, transcript["warnings"]);
        assert_eq!(add(&mut json!({"text": "x"}), &[]), None);
    }

    #[test]
    fn header_of_many_warnings_is_bounded() {
        let mut transcript = json!({"warnings": vec!["x".repeat(300); 100]});
        let header = add(&mut transcript, &vec!["\"a\"".to_owned(); 64]).unwrap();
        assert!((3_000..=LONGEST + 20).contains(&header.len()), "{}", header.len());
        assert_eq!(
            transcript["warnings"].as_array().unwrap().len(),
            100 + MOST_FIELDS
        );
    }
}
