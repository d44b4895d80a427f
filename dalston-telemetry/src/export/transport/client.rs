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
    text
}
