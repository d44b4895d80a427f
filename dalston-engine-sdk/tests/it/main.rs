//! Behaviour of the SDK as its users see it.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod protocol;
mod rig;
mod runner;
mod stage;
