//! The example with its goldens, with generated models and with broken files.

#![allow(clippy::unwrap_used, missing_docs)]

mod bad_models;
mod cli;
mod engine;
mod generated;
mod generated_models;
mod goldens;
mod rules;
mod seeking;
mod support;
