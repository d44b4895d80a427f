//! The example with its goldens, with generated models and with broken files.

#![allow(clippy::unwrap_used, missing_docs)]

mod bad_models;
mod batches;
mod cli;
mod endings;
mod engine;
mod generated;
mod generated_models;
mod goldens;
mod openai_client;
mod realtime;
mod routes;
mod rules;
mod searches;
mod seeking;
mod silero;
mod support;
mod vad;
mod words;
mod worker;
