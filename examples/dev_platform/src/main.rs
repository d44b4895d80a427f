//! A small platform for one machine, instrumented with `dalston_telemetry` alone.
//!
//! `dev_platform all` is the gateway and the orchestrator in one process. They can also be two:
//! they share the database, and they talk over Redis. `dev_platform prepare` is an engine on
//! `dalston_engine_sdk` like any other, for the stage `prepare`. Redis and the storage are those of
//! the live platform, and so is the wire format: engines cannot tell the difference.
//!
//! | Module | What is in it |
//! |---|---|
//! | `config` | the settings |
//! | `db` | SQLite: jobs and tasks, the only state that must survive |
//! | `wire` | Redis: queues, events, the registry of engines |
//! | `gateway` | the HTTP API |
//! | `orchestrator` | plans jobs, queues tasks, follows events, repairs what was lost |
//! | `demo` | all of it on this machine, with a recording that is submitted |
//! | `engines` | the engine of the stage `prepare`, and one without a model for tests |
//!
//! It is an example and no product: one orchestrator, one optional API key, one tenant.

mod config;
mod db;
mod demo;
mod engines;
mod gateway;
mod orchestrator;
mod service;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dalston_telemetry::Env;

/// A small platform for one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The gateway and the orchestrator in one process.
    All,
    /// The HTTP API.
    Gateway,
    /// Plans jobs, queues tasks, follows events.
    Orchestrator,
    /// The engine of the stage `prepare`.
    Prepare(engines::Arguments),
    /// An engine of the stage `transcribe` without a model, for tests: it measures the audio.
    MockEngine(engines::Arguments),
    /// All of it on this machine, with a Redis of its own, until Ctrl-C.
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let env = Env::from_process();
    let ended = match arguments.role {
        Role::All => service::run("platform", &env, service::Roles::ALL),
        Role::Gateway => service::run("gateway", &env, service::Roles::GATEWAY),
        Role::Orchestrator => service::run("orchestrator", &env, service::Roles::ORCHESTRATOR),
        Role::Prepare(arguments) => engines::run(engines::Prepare, &arguments, &env),
        Role::MockEngine(arguments) => engines::run(engines::Mock::from(&arguments), &arguments, &env),
        Role::Demo(arguments) => demo::run(&arguments, &env),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "without telemetry there is no log")]
fn print_error(text: &str) {
    eprintln!("dev_platform: {text}");
}
