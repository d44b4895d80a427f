//! What all transports have in common.

use std::error::Error;

pub(super) const USER_AGENT: &str = concat!(
    "dalston-telemetry/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust"
);

/// The longest answer that is read. Answers take a few bytes, unless a collector says a lot about
/// what it rejected. A request whose answer is too long is not sent again.
pub(super) const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// An error with its sources, in which HTTP libraries say what happened.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    for (part, advice) in ADVICE {
        if text.contains(part) {
            text = format!("{text}: {advice}");
        }
    }
    text
}

/// What to do about errors of rustls, by a part of their texts.
const ADVICE: [(&str, &str); 3] = [
    (
        "CaUsedAsEndEntity",
        "the collector uses the certificate of an authority (CA:TRUE) as its own, as `openssl req -x509` makes it; give \
         it one with CA:FALSE that this authority signed",
    ),
    ("UnknownIssuer", NAME_AUTHORITY),
    // Two authorities of one name.
    ("BadSignature", NAME_AUTHORITY),
];

const NAME_AUTHORITY: &str =
    "name the certificate of the authority that signed the collector's in OTEL_EXPORTER_OTLP_CERTIFICATE";

/// The start of a text of a peer for a message: `: ` and up to 200 characters on one line. Empty
/// for an empty text.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut words = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty());
    let mut quoted = String::new();
    while let Some(word) = words.next()
        && quoted.len() <= LONGEST
    {
        quoted.push(' ');
        quoted.push_str(word);
    }
    if quoted.is_empty() {
        return quoted;
    }
    match quoted.char_indices().nth(LONGEST + 1) {
        Some((end, _)) => format!(":{}...", &quoted[..end]),
        None => format!(":{quoted}"),
    }
}
