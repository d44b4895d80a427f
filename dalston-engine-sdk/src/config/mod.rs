//! How a worker is set up, and the environment variables that it reads.

mod choices;
#[cfg(feature = "worker")]
mod deployment;
mod engine;
mod models;
#[cfg(feature = "realtime")]
mod realtime;
mod runner;
pub mod settings;

#[cfg(feature = "worker")]
pub use self::choices::{ClientSpans, SpotDrain};
pub use self::choices::{DeviceChoice, ModelSource, PrecisionChoice};
#[cfg(feature = "worker")]
pub use self::deployment::DeploymentConfig;
pub use self::engine::EngineConfig;
pub use self::models::ModelConfig;
#[cfg(feature = "realtime")]
pub use self::realtime::RealtimeConfig;
pub use self::runner::RunnerConfig;
