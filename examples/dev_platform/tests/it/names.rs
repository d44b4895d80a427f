//! The platform is instrumented with `dalston_telemetry` alone.

use std::fs;
use std::path::Path;

/// What makes a span, an attribute, a metric or a header with a name of the platform's own. Its
/// handlers also read headers of browsers, whose names are no part of telemetry.
const OWN_NAMES: [&str; 18] = [
    "span!(",
    "#[instrument",
    "SpanBuilder",
    "TimedSpan",
    ".set_attribute(",
    ".set_attributes(",
    ".add_event(",
    ".add_link(",
    "otel.",
    ".meter(",
    ".register(|",
    "Family",
    "BoundedFamily",
    "ConstHistogram",
    "\"dalston_",
    "\"x-request-id",
    "\"x-trace-id",
    "HeaderName::from_",
];

/// Jaeger's format has tags that are no attributes of the platform's spans.
const FORMATS: &str = "src/traces/jaeger.rs";

#[test]
fn source_has_no_name_of_a_span_metric_or_header() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_test = path.ends_with("samples.rs");
            if is_test || path.extension().is_none_or(|kind| kind != "rs") || path.ends_with(FORMATS) {
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for name in OWN_NAMES {
                assert!(!code.contains(name), "{name} in {}", path.display());
            }
        }
    }
    assert!(files > 50, "{files}");
}
