//! The command line of an engine's binary: [`main`].

mod args;
mod catalog;
mod describe;
mod doctor;
mod failure;
mod language;
mod metrics;
mod output;
mod progress;
#[cfg(feature = "worker")]
mod run;
mod setup;
mod signals;
mod terminal;
mod transcribe;

use std::ffi::OsString;
use std::process::ExitCode;

use dalston_telemetry::Env;

use self::args::Command;
use self::failure::{FAILED, Failure, print};
use crate::engine::Engine;

/// The whole `main` of an engine's binary.
///
/// ```no_run
/// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId};
/// # use dalston_engine_sdk::{TaskContext, TaskError, TaskRequest};
/// # use serde_json::Value;
/// # struct MyEngine;
/// # impl Engine for MyEngine {
/// #     type Model = ();
/// #     type Output = Value;
/// #     fn info(&self) -> EngineInfo { EngineInfo::new("my-engine", "1.0.0") }
/// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn process(
/// #         &self, _: &mut (), _: &TaskRequest, _: &TaskContext,
/// #     ) -> Result<Value, TaskError> {
/// #         Ok(Value::Null)
/// #     }
/// # }
/// fn main() -> std::process::ExitCode {
///     dalston_engine_sdk::main(MyEngine)
/// }
/// ```
///
/// The binary then understands:
///
/// - `transcribe FILE…`: process files on this machine with the runner of a deployment, and print
///   the results. `--json` is for programs, `--trace` prints a waterfall of the spans;
/// - `run`: join a live deployment and process tasks until `SIGTERM` or Ctrl-C. Then running tasks
///   may end; a second signal ends the process at once;
/// - `describe`: identity and capabilities as JSON. `--engine-yaml` and `--model-yaml` print the
///   files that the platform reads about an engine and its model;
/// - `doctor`: the state of this machine, with advice for missing parts;
/// - `--help` and `--version`.
///
/// Results go to standard output, logs and errors to standard error; `run` has no results and
/// writes its logs to standard output, as the platform's services do.
///
/// Unless the program has chosen one before, ring becomes the process's provider of cryptography
/// for TLS, so an HTTP client of the engine's own works, too (feature `redis` or `s3`).
///
/// The exit status is 0 for success, 1 if something failed, and 2 if the command line or a variable
/// of the environment is invalid. After a signal it is the value that shells report: 130 after
/// Ctrl-C, 143 after `SIGTERM`. For `transcribe` the first signal counts, for `run` the second,
/// because it drains after the first and ends with 0.
#[must_use = "the exit status is what main returns"]
pub fn main<E: Engine>(engine: E) -> ExitCode {
    #[cfg(any(feature = "redis", feature = "s3"))]
    crate::tls::use_ring();
    let env = Env::from_process();
    match run(engine, std::env::args_os(), &env) {
        Ok(code) => code,
        Err(failure) => failure.report(&env),
    }
}

fn run<E: Engine>(
    engine: E,
    args: impl IntoIterator<Item = OsString>,
    env: &Env,
) -> Result<ExitCode, Failure> {
    let info = engine.info();
    match args::parse(&info, args) {
        Ok(Command::Transcribe(args)) => transcribe::transcribe(engine, &args, env),
        Ok(Command::Describe(args)) => {
            print(&describe::describe(&info, &args)?)?;
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "worker")]
        Ok(Command::Run(args)) => run::run(engine, &args, env),
        Ok(Command::Doctor(args)) => doctor::doctor(&engine, &args, env),
        Err(help_or_error) => {
            // Help goes to standard output and errors to standard error.
            Failure::of_writing(help_or_error.print())?;
            Ok(ExitCode::from(
                u8::try_from(help_or_error.exit_code()).unwrap_or(FAILED),
            ))
        }
    }
}
