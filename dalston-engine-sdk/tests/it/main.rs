//! Behaviour of the SDK as its users see it.

#![allow(clippy::unwrap_used)] // A failing test may panic.

#[cfg(feature = "audio")]
mod audio;
mod protocol;
mod rig;
mod runner;
mod stage;
