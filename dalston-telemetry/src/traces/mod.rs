//! Spans: sampling, limits, processors, spans in memory, and propagation of their context.

pub(crate) mod collector;
pub(crate) mod limits;
pub(crate) mod monotonic;
pub(crate) mod processors;
pub mod propagate;
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod receive;
pub(crate) mod sampler;
pub(crate) mod waterfall;
