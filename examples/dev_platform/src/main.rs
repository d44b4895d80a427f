//! A small platform for one machine, instrumented with `dalston_telemetry` alone.
//!
//! `dev_platform all` is the gateway, the orchestrator and the exporter of the queues' metrics in
//! one process, whose metrics are served together. They can also be three: the first two share the
//! database, and they talk over Redis. `dev_platform prepare` is an engine on
//! `dalston_engine_sdk` like any other, for the stage `prepare`. Redis and the storage are those of
//! the live platform, and so is the wire format: engines cannot tell the difference.
//!
//! | Module | What is in it |
//! |---|---|
//! | `config` | the settings |
//! | `db` | SQLite: jobs and tasks, the only state that must survive |
//! | `platform` | what gateway, orchestrator and page share |
//! | `wire` | Redis: queues, events, the registry of engines |
//! | `gateway` | the HTTP API, and realtime sessions |
//! | `session_router` | chooses the worker of a session, and watches the workers |
//! | `page` | the same for a browser, and the waterfall of a job |
//! | `orchestrator` | plans jobs, queues tasks, follows events, repairs what was lost |
//! | `traces` | receives the spans of all processes and keeps the newest traces |
//! | `demo` | all of it on this machine, with a recording that is submitted |
//! | `engines` | the engine of the stage `prepare`, and one for tests |
//!
//! It is an example and no product: one orchestrator, one optional API key, one tenant.

mod config;
mod db;
mod demo;
mod engines;
mod gateway;
mod orchestrator;
mod page;
mod platform;
mod service;
mod session_router;
mod traces;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dalston_telemetry::Env;
use dalston_telemetry::services::service_name;

/// A small platform for one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The gateway, the orchestrator and the exporter of the queues' metrics in one process.
    All,
    /// The HTTP API, realtime sessions and the page.
    Gateway,
    /// Plans jobs, queues tasks, follows events.
    Orchestrator,
    /// Metrics of the queues in Redis.
    QueueExporter,
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
        Role::All => service::run(service::ALL_IN_ONE, &env, service::Roles::ALL),
        Role::Gateway => service::run(service_name::GATEWAY, &env, service::Roles::GATEWAY),
        Role::Orchestrator => service::run(service_name::ORCHESTRATOR, &env, service::Roles::ORCHESTRATOR),
        Role::QueueExporter => {
            service::run(service_name::QUEUE_EXPORTER, &env, service::Roles::QUEUE_EXPORTER)
        }
        Role::Prepare(arguments) => engines::run_prepare(&arguments, &env),
        Role::MockEngine(arguments) => engines::run_mock(&arguments, &env),
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
