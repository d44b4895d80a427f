//! The generated files against the metrics of the programs, `promtool` and the runbooks.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod boards;
mod files;
mod gateways;
mod manifest;
mod pages;
mod programs;
mod promql;
mod queries;
mod rows;
mod rules;
mod runbooks;
mod stack;
