//! Metrics, in a build without a transport.

use std::sync::Arc;

use opentelemetry_sdk::Resource;

use super::delivery::{Exporter, ReportTo};
use super::exporter_config::{ExporterConfig, PushConfig};
use crate::error::InitError;
use crate::metrics::Metrics;

/// Refuses: no transport can send them.
pub(crate) fn start(
    otlp: &ExporterConfig,
    _: PushConfig,
    _: &Resource,
    _: &Metrics,
    _: ReportTo,
) -> Result<Arc<dyn Exporter>, InitError> {
    Err(otlp.protocol.missing_feature())
}
