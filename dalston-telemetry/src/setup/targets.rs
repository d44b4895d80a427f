//! Log targets with a meaning of their own.

use crate::export::REPORTS;

/// The log target of panics. It is not exported as a span event: the span has an `exception` event.
pub(crate) const PANICS: &str = "dalston_telemetry::panic";

/// The crates that the exporter is made of. Exporting their spans would make more of them.
const EXPORTER_CRATES: [&str; 10] = [
    "h2",
    "hyper",
    "hyper_util",
    "hyper_rustls",
    "reqwest",
    "rustls",
    "tokio_rustls",
    "tonic",
    "tower",
    "tokio_util",
];

/// Whether spans and span events of this target are left out of what is exported.
pub(crate) fn is_of_exporter(target: &str) -> bool {
    let crate_name = target.split("::").next().unwrap_or(target);
    EXPORTER_CRATES.contains(&crate_name)
        || crate_name.starts_with("opentelemetry")
        || target.starts_with(REPORTS)
        || target == PANICS
}
