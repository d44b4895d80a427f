#![cfg_attr(feature = "cli", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "cli"),
    doc = "Write a transcription engine for the Dalston platform: implement one trait, call one function."
)]
//!
//! # Overview
//!
//! | To | use |
//! |---|---|
//! | write an engine | [`Engine`], [`EngineInfo`], [`TaskRequest`], [`TaskContext`], [`TaskError`], and the guide [your first engine](_documentation::first_engine) |
//! | answer a transcribe task | [`stage`]: [`Transcript`], [`Segment`], [`Word`] |
//! | answer a task of another stage | [`stage`]: a request and an answer for each stage |
//! | read audio | `audio` (feature `audio`) |
//! | compute with libtorch | `torch` (feature `tch`) |
//! | test an engine | `testing` (feature `testing`) |
//! | run a worker in a program of your own | [`Runner`], [`RunnerConfig`], [`broker`], [`store`], [`local`] |
//! | bring another queue | [`broker::Broker`], [`registry::Registry`], `testing::broker_suite` (feature `testing`) |
//! | deploy an engine | the guide [from engine to deployment](_documentation::deployment) |
//! | serve realtime sessions | `realtime` (feature `realtime`), [`EngineInfo`]; `TranscriptStream` for a model that streams |
//! | run many workers | the operations guide in `worker` (feature `worker`) |
//! | read or write the platform's documents | [`protocol`] |
//!
//! [`dalston_telemetry`], [`async_trait`] and [`object_store`] stand in signatures of this crate
//! and are re-exported, so that an engine uses the same versions.
//!
//! # Crate features
//!
//! - `cli` (default) adds `main` of an engine binary: `run`, `transcribe`, `describe`, `doctor`.
//! - `redis` (default) reads tasks from the Redis streams of a deployment.
//! - `s3` (default) stores files in S3 and in storage that speaks its protocol.
//! - `worker` (default) adds the command `run`: registry, HTTP server, drain before a spot
//!   interruption. Turns on `redis` and `s3`.
//! - `audio` decodes WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A and WebM and resamples to the
//!   format of the engine.
//! - `realtime` serves realtime sessions over WebSockets. Turns on `audio` and `worker`.
//! - `tch` adds device, precision and memory helpers for engines on libtorch.
//! - `testing` adds `EngineHarness`, which runs a task through the real runner in memory.
//! - `fault-points` is for tests of this crate: points between the steps of a task at which a test
//!   can end the process.
#![cfg_attr(docsrs, feature(doc_cfg))]

/// A place at which a test can make the process fail. No code without the feature `fault-points`.
macro_rules! fault_point {
    ($point:ident) => {
        #[cfg(feature = "fault-points")]
        $crate::fault::reach($crate::fault::Point::$point);
    };
}

#[cfg(feature = "audio")]
pub mod audio;
mod batch;
mod block_on;
pub mod broker;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "worker")]
mod clock;
mod config;
mod context;
mod convert;
mod engine;
mod error;
#[cfg(feature = "fault-points")]
pub mod fault;
pub mod gpu;
mod interruption;
mod load;
pub mod local;
mod log_limit;
mod model_id;
pub mod models;
#[cfg(any(feature = "cli", feature = "worker"))]
mod probe;
pub mod protocol;
#[cfg(feature = "realtime")]
pub mod realtime;
#[cfg(feature = "redis")]
pub mod redis;
pub mod registry;
mod runner;
mod scope;
mod spans;
pub mod stage;
mod start;
pub mod store;
#[cfg(feature = "realtime")]
mod stream;
#[cfg(any(feature = "cli", feature = "worker"))]
mod subtitles;
mod task;
mod task_dir;
mod task_option;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "redis", feature = "s3"))]
mod tls;
#[cfg(feature = "tch")]
pub mod torch;

#[cfg(feature = "worker")]
pub mod worker;

pub use crate::batch::{Batch, BatchItem, Batching};
#[cfg(feature = "cli")]
pub use crate::cli::{main, main_with};
pub use crate::config::settings;
#[cfg(feature = "worker")]
pub use crate::config::{ClientSpans, DeploymentConfig, SpotDrain};
pub use crate::config::{DeviceChoice, EngineConfig, PrecisionChoice, RunnerConfig};
pub use crate::context::{CancelReason, OutputFile, TaskContext};
pub use crate::engine::{Check, CheckStatus, Engine, EngineInfo};
pub use crate::error::{BuildError, RunError, TaskError, TaskErrorKind};
pub use crate::interruption::Interruption;
pub use crate::load::LoadContext;
pub use crate::model_id::ModelId;
pub use crate::runner::{
    Direct, DirectError, DirectTask, Runner, RunnerBuilder, RunnerPhase, RunnerStatus, TaskFailure,
    TaskPhase, TaskStatus,
};
pub use crate::scope::Scope;
pub use crate::stage::{Segment, Stage, StageName, StageOutput, TranscribeRequest, Transcript, Word};
pub use crate::start::StartContext;
#[cfg(feature = "realtime")]
pub use crate::stream::{Hypothesis, TranscriptStream};
pub use crate::task::{Input, TaskInfo, TaskRequest};
pub use crate::task_option::TaskOption;
pub use dalston_telemetry::ParseError;
pub use dalston_telemetry::services::engine::Device;

pub use async_trait;
pub use dalston_telemetry;
pub use object_store;

/// Guides.
pub mod _documentation {
    #[cfg_attr(feature = "cli", doc = include_str!("../docs/guides/first-engine.md"))]
    #[cfg_attr(not(feature = "cli"), doc = "The guide needs the feature `cli`.")]
    pub mod first_engine {}

    #[doc = include_str!("../docs/guides/batching.md")]
    pub mod batching {}

    #[doc = include_str!("../docs/guides/deployment.md")]
    pub mod deployment {}
}
