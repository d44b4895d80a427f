//! Behaviour of the SDK as its users see it.

mod protocol;
mod rig;
mod runner;
mod stage;
