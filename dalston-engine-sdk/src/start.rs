//! The context of the start of an engine: [`StartContext`].

use dalston_telemetry::metrics::Metrics;

use crate::config::EngineConfig;

/// The metrics and the configuration of the worker, for [`Engine::start`](crate::Engine::start).
#[derive(Debug, Clone)]
pub struct StartContext {
    engine_id: String,
    config: EngineConfig,
    metrics: Metrics,
}

impl StartContext {
    /// A context with this configuration and these metrics, for tests.
    #[must_use]
    pub fn new(engine_id: impl Into<String>, config: EngineConfig, metrics: Metrics) -> Self {
        Self {
            engine_id: engine_id.into(),
            config,
            metrics,
        }
    }

    /// The engine id of this worker: that of [`EngineInfo`](crate::EngineInfo), or
    /// `DALSTON_ENGINE_ID`.
    #[must_use]
    pub fn engine_id(&self) -> &str {
        &self.engine_id
    }

    /// Device, precision and the rest of the configuration.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The metrics of this process, the same as in [`TaskContext::metrics`] and
    /// [`LoadContext::metrics`].
    ///
    /// [`TaskContext::metrics`]: crate::TaskContext::metrics
    /// [`LoadContext::metrics`]: crate::LoadContext::metrics
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
