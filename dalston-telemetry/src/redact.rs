//! Masks secrets in log lines, errors and span attributes.
//!
//! Log lines and exported spans are masked by this crate. Mask other texts yourself where a URL or
//! a set of headers becomes text:
//!
//! ```
//! use dalston_telemetry::redact;
//!
//! let url = "redis://user:hunter2@cache:6379/0";
//! assert_eq!(redact::text(url), "redis://***@cache:6379/0");
//! let request = "GET /a.wav?X-Amz-Signature=f00d&part=2";
//! assert_eq!(redact::text(request), "GET /a.wav?X-Amz-Signature=***&part=2");
//!
//! let mut headers = http::HeaderMap::new();
//! headers.insert("authorization", "Bearer abc".parse().unwrap());
//! headers.insert("accept", "*/*".parse().unwrap());
//! let shown = format!("{:?}", redact::headers(&headers));
//! assert_eq!(shown, r#"{"authorization": "***", "accept": "*/*"}"#);
//! ```
//!
//! These secrets are recognised:
//! - user and password in a URL
//! - query parameters that sign or authorise: `X-Amz-Signature`, `token`, `sig`, `api_key` and
//!   others
//! - `name=value` and `"name": "value"` where the [name](is_secret_name) is that of a secret
//! - headers such as `Authorization: Bearer …`
//!
//! A secret that is a bare word in running text can't be recognised. Don't log it.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

/// The text that replaces a secret.
pub const MASK: &str = "***";

/// Masks all secrets in a text that can be recognised. The text is borrowed if it has none.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    let masks = find_secrets(text);
    if masks.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end) in masks {
        // Ranges are ordered by their start, and one can lie within another.
        if start >= done {
            clean.push_str(&text[done..start]);
            clean.push_str(MASK);
            done = end;
        } else if end > done {
            done = end;
        }
    }
    clean.push_str(&text[done..]);
    Cow::Owned(clean)
}

/// Headers for a log line. Values of secret headers are masked as a whole, secrets in other values
/// as in any [`text`].
#[must_use]
pub fn headers(headers: &HeaderMap) -> impl fmt::Debug + '_ {
    RedactedHeaders(headers)
}

/// Whether a header, field or parameter of this name holds a secret: `authorization`, `cookie`,
/// `x-api-key`, `password`, `access_token` and similar names. Case and separators do not matter.
///
/// Speech models have tokens too: `tokens`, `token_count` and `no_speech_token` are no secrets.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    with_normalised(name, |name| {
        SECRET_NAMES.contains(&name)
            || SECRET_ENDINGS.iter().any(|(last, before)| {
                name.strip_suffix(last)
                    .is_some_and(|rest| before.iter().any(|word| rest.ends_with(word)))
            })
    })
}

/// The names of secrets, as [`with_normalised`] gives them.
const SECRET_NAMES: &[&str] = &[
    "apikey",
    "auth",
    "authorization",
    "awsaccesskeyid",
    "cookie",
    "credential",
    "credentials",
    "passwd",
    "password",
    "pwd",
    "secret",
    "setcookie",
    "token",
    "xamzcredential",
    "xamzsignature",
    "xgoogcredential",
    "xgoogsignature",
];

/// The last word of a longer name that is a secret, and the words of which one stands before it.
const SECRET_ENDINGS: &[(&str, &[&str])] = &[
    ("authorization", &[""]),
    ("key", &["access", "api", "private", "secret", "signing"]),
    ("passphrase", &[""]),
    ("password", &[""]),
    ("secret", &["client", "webhook"]),
    (
        "token",
        &[
            "access", "api", "auth", "bearer", "csrf", "hf", "id", "refresh", "security", "session",
        ],
    ),
];

/// Names that are secrets in a query string only.
const SECRET_PARAMETERS: &[&str] = &["key", "sas", "sig", "signature"];
const SECRET_PARAMETER_ENDINGS: &[&str] = &["credential", "secret", "signature", "token"];

fn is_secret_parameter(name: &str) -> bool {
    is_secret_name(name)
        || with_normalised(name, |name| {
            SECRET_PARAMETERS.contains(&name)
                || SECRET_PARAMETER_ENDINGS.iter().any(|end| name.ends_with(end))
        })
}

/// Calls `f` with the name in lower case, percent-decoded and without separators. Allocates
/// nothing.
fn with_normalised(name: &str, f: impl FnOnce(&str) -> bool) -> bool {
    const LONGEST: usize = 64;
    let mut buffer = [0; LONGEST];
    let mut length = 0;
    for byte in percent_decode_str(name).filter(u8::is_ascii_alphanumeric) {
        if length == LONGEST {
            // The end of a long name says whether it is a secret.
            buffer.copy_within(1.., 0);
            length -= 1;
        }
        buffer[length] = byte.to_ascii_lowercase();
        length += 1;
    }
    std::str::from_utf8(&buffer[..length]).is_ok_and(f)
}

/// Byte ranges to mask, ordered by their start. All boundaries are next to ASCII characters.
fn find_secrets(text: &str) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut word = Word::default();
    let mut at = 0;
    while at < bytes.len() {
        let next = match bytes[at] {
            b':' if bytes[at + 1..].starts_with(b"//") => user_info(bytes, at + 3, &mut word),
            b':' => header_value(text, at),
            b'=' => parameter_value(text, at),
            _ => None,
        };
        match next {
            Some((start, end)) if end > start => {
                found.push((start, end));
                at = end.max(at + 1);
            }
            _ => at += 1,
        }
    }
    found
}

/// A part of the text without white space. It is searched once, however many URLs it has: a
/// megabyte of `://` must not take time that grows with its square.
#[derive(Default)]
struct Word {
    end: usize,
    last_at_sign: Option<usize>,
}

impl Word {
    /// Moves to the word that contains `start`, which is this one or a later one.
    fn reach(&mut self, bytes: &[u8], start: usize) {
        if start < self.end {
            return;
        }
        let rest = &bytes[start..];
        let length = rest
            .iter()
            .position(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
            .unwrap_or(rest.len());
        self.end = start + length;
        let at_sign = rest[..length].iter().rposition(|byte| *byte == b'@');
        self.last_at_sign = at_sign.map(|at_sign| start + at_sign);
    }
}

/// `user:password` between `://` and `@`.
fn user_info(bytes: &[u8], start: usize, word: &mut Word) -> Option<(usize, usize)> {
    word.reach(bytes, start);
    let rest = &bytes[start..word.end];
    let authority = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    if let Some(at_sign) = rest[..authority].iter().rposition(|byte| *byte == b'@') {
        return Some((start, start + at_sign));
    }
    // An unescaped `/`, `?` or `#` in a password ends the authority early. Such an authority is
    // told from `host:port` by its port, which has other characters than digits.
    let colon = rest[..authority].iter().rposition(|byte| *byte == b':')?;
    let is_bracketed = rest[..authority].iter().skip(colon).any(|byte| *byte == b']');
    let port = &rest[colon + 1..authority];
    if is_bracketed || port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let at_sign = word.last_at_sign.filter(|at_sign| *at_sign >= start)?;
    Some((start, at_sign))
}

/// The value in `Authorization: Bearer abc` and in `"authorization": "Bearer abc"`.
fn header_value(text: &str, colon: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    // The quote is escaped where one text quotes another.
    let name_end = trim_end_of(bytes, colon, |byte| matches!(byte, b'"' | b'\'' | b'\\' | b' '));
    let name = &text[name_start(bytes, name_end)..name_end];
    if name.is_empty() || !is_secret_name(name) {
        return None;
    }
    let padding = bytes[colon + 1..]
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    let start = colon + 1 + padding;
    quoted_value(bytes, start).or_else(|| {
        // Header values contain spaces (`Bearer abc`, `a=1; b=2`), so the value ends with the line.
        let end = bytes[start..]
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))
            .unwrap_or(bytes.len() - start);
        Some((start, start + end))
    })
}

/// The value in `?name=value&`, `name=value` and `name="value"`.
fn parameter_value(text: &str, equals: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let name_end = trim_end_of(bytes, equals, |byte| byte == b' ');
    let name_start = name_start(bytes, name_end);
    let name = &text[name_start..name_end];
    if name.is_empty() {
        return None;
    }
    let in_query = name_start > 0 && matches!(bytes[name_start - 1], b'?' | b'&' | b';' | b'#');
    let is_secret = if in_query {
        is_secret_parameter(name)
    } else {
        is_secret_name(name)
    };
    if !is_secret {
        return None;
    }
    let start = equals + 1;
    quoted_value(bytes, start).or_else(|| {
        let ends = |byte: &u8| {
            byte.is_ascii_whitespace()
                || byte.is_ascii_control()
                || matches!(
                    byte,
                    b'&' | b'"' | b'\'' | b'<' | b'>' | b')' | b']' | b'}' | b'\\' | b'#'
                )
                || (!in_query && matches!(byte, b',' | b';'))
        };
        let value = &bytes[start..];
        Some((start, start + value.iter().position(ends).unwrap_or(value.len())))
    })
}

/// The text between quotes, if it starts at `start`. The quotes are escaped where one text quotes
/// another.
fn quoted_value(bytes: &[u8], start: usize) -> Option<(usize, usize)> {
    let escapes = bytes[start..].iter().take_while(|byte| **byte == b'\\').count();
    let open = start + escapes;
    let quote = *bytes.get(open).filter(|byte| matches!(byte, b'"' | b'\''))?;
    let start = open + 1;
    let mut backslashes = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match *byte {
            b'\\' => backslashes += 1,
            byte if byte == quote && (backslashes == escapes || (escapes == 0 && backslashes % 2 == 0)) => {
                return Some((start, at - backslashes.min(escapes)));
            }
            _ => backslashes = 0,
        }
    }
    Some((start, bytes.len()))
}

/// A name consists of letters, digits, `-`, `_`, `.` and percent escapes.
fn name_start(bytes: &[u8], end: usize) -> usize {
    const LONGEST: usize = 128;
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'%');
    let length = bytes[..end]
        .iter()
        .rev()
        .take(LONGEST)
        .take_while(|byte| is_name(byte))
        .count();
    end - length
}

fn trim_end_of(bytes: &[u8], end: usize, is_padding: impl Fn(u8) -> bool) -> usize {
    bytes[..end]
        .iter()
        .rposition(|byte| !is_padding(*byte))
        .map_or(0, |at| at + 1)
}

struct RedactedHeaders<'a>(&'a HeaderMap);

impl fmt::Debug for RedactedHeaders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (name, value) in self.0 {
            let value = match value.is_sensitive() || is_secret_name(name.as_str()) {
                true => Cow::Borrowed(MASK),
                false => String::from_utf8_lossy(value.as_bytes()),
            };
            map.entry(&name.as_str(), &text(&value));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_recognised_in_every_spelling() {
        let endings = SECRET_ENDINGS
            .iter()
            .flat_map(|(last, before)| before.iter().map(move |word| format!("{word}{last}")));
        let names = SECRET_NAMES.iter().map(ToString::to_string).chain(endings);
        for name in names {
            let (start, last) = name.split_at(name.len() - 1);
            let written = [
                name.clone(),
                name.to_uppercase(),
                format!("{start}_{last}"),
                format!("{start}%{:x}", last.as_bytes()[0]),
            ];
            assert!(written.iter().all(|name| is_secret_name(name)), "{written:?}");
            // One letter escaped, or followed by separators.
            for at in 0..name.len() {
                let (start, end) = (&name[..at], &name[at + 1..]);
                let escaped = format!("{start}%{:x}{end}", name.as_bytes()[at]);
                let apart = format!("{}{}{end}", &name[..=at], "_-.".repeat(at % 3));
                assert!(
                    is_secret_name(&escaped) && is_secret_name(&apart),
                    "{escaped} {apart}"
                );
            }
        }
        for name in [
            "",
            "e",
            "%",
            "%%%",
            "%6",
            "t%6",
            "ok",
            "name",
            "number",
            "dalston.task_id",
            "tokens",
            "n%6fname",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    /// Texts whose only secret is the word "hunter2".
    const SECRETS: &[&str] = &[
        "redis://:hunter2@cache:6379/0",
        "redis://default:hunter2@cache:6379",
        "rediss://hunter2@cache",
        "amqp://user:p%40hunter2@host/vhost",
        "postgres://user:hunter2@[::1]:5432/db?sslmode=require",
        "postgres://user:p@hunter2@host/db",
        "postgres://user:hunter2/x@host/db",
        "redis://:hunter2#x@host",
        "redis://:a?hunter2@host/0",
        "redis://u:p\"hunter2@host",
        "https://x:hunter2@host/path?a=b",
        "https://host/audio.wav?X-Amz-Algorithm=AWS4&X-Amz-Signature=hunter2&X-Amz-Expires=60",
        "https://host/audio.wav?X-Amz-Credential=hunter2%2F20260101%2Feu",
        "https://host/a?x-amz-security-token=hunter2",
        "https://host/a?X%2DAmz%2DSignature=hunter2",
        "https://host/a?X-Goog-Signature=hunter2",
        "https://blob/a?sv=2020&sig=hunter2&se=2026",
        "https://host/a?AWSAccessKeyId=hunter2&Signature=hunter2&Expires=1",
        "https://host/a?token=hunter2",
        "https://host/a?x=1&access_token=hunter2#frag",
        "https://host/cb#access_token=hunter2&state=1",
        "https://host/a?api_key=hunter2",
        "https://host/a?key=hunter2",
        "https://host/a?TOKEN=hunter2",
        "wss://host/v1/audio?session=1;token=hunter2",
        "/v1/audio?token=hunter2",
        "s3://key:hunter2@bucket",
        "failed to fetch 'https://u:hunter2@h/x': timed out",
        "(http://h/?token=hunter2)",
        "{\"url\":\"redis://:hunter2@h\",\"n\":1}",
        "password=hunter2 host=db",
        "host=db password='hunter2 with space'",
        "Authorization: Bearer hunter2",
        "authorization: Basic hunter2",
        "Cookie: session=hunter2; other=hunter2",
        "{\"authorization\": \"Bearer hunter2\", \"accept\": \"*/*\"}",
        "{\"x-api-key\": \"hunter2\"}",
        "{\"set-cookie\":\"a=hunter2\"}",
        "HeaderMap { \\\"authorization\\\": \\\"Bearer hunter2\\\" }",
        "HF_TOKEN=hunter2",
        "Error(\"bad dsn: password=\\\"hunter2 x\\\" host\")",
        "{\"password\": \"a\\\"hunter2\"}",
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "Config { password: \"hunter2\", host: \"h\" }",
        "http://a http://b:hunter2@c http://d?sig=hunter2",
    ];

    #[test]
    fn every_known_form_of_a_secret_is_masked() {
        for secret in SECRETS {
            let clean = text(secret);
            assert!(!clean.contains("hunter2"), "{secret} -> {clean}");
            assert!(clean.contains(MASK), "{secret} -> {clean}");
            assert_eq!(text(&clean), clean, "masking twice changes nothing: {secret}");
        }
    }

    #[test]
    fn secrets_are_masked_in_any_surrounding_text() {
        let around = [
            ("", ""),
            ("see ", " and more"),
            ("[", "]"),
            ("é", "é"),
            ("a=b ", "\nnext: line"),
            ("x:y ", "\t"),
        ];
        for secret in SECRETS {
            for (before, after) in around {
                let dirty = format!("{before}{secret}{after}");
                assert!(!text(&dirty).contains("hunter2"), "{dirty} -> {}", text(&dirty));
            }
            for other in SECRETS {
                let dirty = format!("{secret} {other}");
                assert!(!text(&dirty).contains("hunter2"), "{dirty} -> {}", text(&dirty));
            }
        }
    }

    #[test]
    fn texts_without_secrets_stay_unchanged() {
        let harmless = [
            "",
            "task_received",
            "http://localhost:4317",
            "http://[::1]:4317/v1/traces",
            "https://host:8080/a@b/c",
            "mail to someone@example.com: done",
            "s3://bucket/jobs/1/audio.wav",
            "https://host/a?part=2&size=10",
            "12:30:00",
            "tokens=12 token_count=3 no_speech_token=50362",
            "a = b, c == d",
            "crate::module::function",
            "{\"tokens\": [1, 2], \"key\": \"value\"}",
            "the word: token, is fine",
            "signature=fn(usize) -> u8",
            "C:\\temp\\audio.wav",
        ];
        for line in harmless {
            assert!(
                matches!(text(line), Cow::Borrowed(clean) if clean == line),
                "{line} -> {}",
                text(line)
            );
        }
    }

    #[test]
    fn text_around_a_secret_stays_unchanged() {
        let cases = [
            ("redis://u:p@cache:6379/0", "redis://***@cache:6379/0"),
            (
                "https://h/a?X-Amz-Signature=ab&part=2",
                "https://h/a?X-Amz-Signature=***&part=2",
            ),
            (
                "Authorization: Bearer abc\nHost: h",
                "Authorization: ***\nHost: h",
            ),
            (
                "{\"cookie\": \"a=1\", \"host\": \"h\"}",
                "{\"cookie\": \"***\", \"host\": \"h\"}",
            ),
            ("password=x, host=y", "password=***, host=y"),
        ];
        for (dirty, clean) in cases {
            assert_eq!(text(dirty), clean);
        }
    }

    #[test]
    fn speech_tokens_are_no_secrets() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "COOKIE",
            "set-cookie",
            "x-api-key",
            "api_key",
            "hf_token",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "accept",
            "tokens",
            "token_count",
            "eot_token",
            "task_id",
            "key",
            "author",
            "",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn time_for_hostile_text_grows_linearly() {
        const LENGTH: usize = 256 * 1024;
        let started = std::time::Instant::now();
        for part in [
            "://", "://a:b", "://a:b/", "://a:1/", "://@", "://a:b ", ":", "=", "a=\"", "token=\\",
        ] {
            let _ = text(&part.repeat(LENGTH / part.len()));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(30));
    }

    #[test]
    fn random_text_does_not_panic() {
        let alphabet: Vec<char> = "a:/@?&=;#\"'\\ %2\n[]{}é😀tokenpassword".chars().collect();
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..50_000 {
            let mut line = String::new();
            for _ in 0..24 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                line.push(alphabet[(random % alphabet.len() as u64) as usize]);
            }
            let _ = text(&line);
        }
    }
}
