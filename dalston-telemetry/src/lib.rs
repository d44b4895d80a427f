//! Traces, metrics and logs for Dalston services.

mod collect;
mod waterfall;

pub use opentelemetry;
pub use opentelemetry_sdk;

pub use collect::{CollectedSpan, SpanCollector};
pub use waterfall::Waterfall;
