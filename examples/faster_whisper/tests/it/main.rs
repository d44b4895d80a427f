//! The example against its goldens, against models made up on the spot, and against bad files.

#![allow(clippy::unwrap_used, missing_docs)]

mod bad_models;
mod cli;
mod engine;
mod goldens;
mod made_up;
mod made_up_models;
mod rules;
mod seeking;
mod support;
