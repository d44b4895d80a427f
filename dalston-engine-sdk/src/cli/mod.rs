//! The command line of an engine's binary: [`main`] and [`main_with`].

mod args;
mod catalog;
mod describe;
mod doctor;
mod failure;
mod language;
mod metrics;
mod output;
mod own_settings;
mod progress;
#[cfg(feature = "worker")]
mod run;
mod setup;
mod signals;
mod task_options;
mod terminal;
mod transcribe;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use dalston_telemetry::Env;
use serde::de::DeserializeOwned;

use self::args::{Command, OwnSettings};
use self::failure::{FAILED, Failure, print};
use crate::engine::{Engine, EngineInfo};
use crate::error::TaskError;

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
///   the results. `--json` is for programs, `--trace` prints a waterfall of the spans.
///   `--config KEY=VALUE` sets a key of the tasks' configuration, `--input SLOT=FILE` gives them a
///   further input and `--previous STAGE=FILE` the answer of an earlier stage. `--out DIR` writes
///   `FILE.response.json` and the output files `FILE.NAME` to a directory, over files of these
///   names. `--output-format` prints transcripts as `srt`, `vtt`, `txt`, `tsv` or `json`, or writes
///   them to `--output-dir`. The options that the engine adds are arguments, too;
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
    let args = std::env::args_os().collect();
    run(engine, OwnSettings::No, args, &env).unwrap_or_else(|failure| failure.report(&env))
}

/// [`main`] for an engine with settings of its own. `build` makes the engine from them.
///
/// The settings are a type of the engine that implements [`Deserialize`](serde::Deserialize). Its
/// fields come from `--set KEY=VALUE`, which all commands then have, and from the JSON object in
/// `DALSTON_ENGINE_SETTINGS`. A value of `--set` is JSON, or text if it is not JSON: the text `5`
/// is `--set 'name="5"'`. `#[serde(default)]` gives a field a default, and
/// `#[serde(deny_unknown_fields)]` makes a wrong name an error.
///
/// ```no_run
/// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId};
/// # use dalston_engine_sdk::{TaskContext, TaskError, TaskRequest};
/// # use serde_json::Value;
/// # struct MyEngine { settings: Settings }
/// # impl Engine for MyEngine {
/// #     type Model = ();
/// #     type Output = Value;
/// #     fn info(&self) -> EngineInfo { EngineInfo::new("my-engine", "1.0.0") }
/// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn process(
/// #         &self, _: &mut (), _: &TaskRequest, _: &TaskContext,
/// #     ) -> Result<Value, TaskError> {
/// #         let _ = self.settings.beams;
/// #         Ok(Value::Null)
/// #     }
/// # }
/// #[derive(serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct Settings {
///     beams: u32,
/// }
///
/// impl Default for Settings {
///     fn default() -> Self {
///         Self { beams: 5 }
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     // my-engine run --set beams=8
///     dalston_engine_sdk::main_with(|settings: Settings| {
///         if settings.beams == 0 {
///             return Err("beams is 0: expected at least 1".into());
///         }
///         Ok(MyEngine { settings })
///     })
/// }
/// ```
///
/// Settings that are no such type, and an error of `build`, end the process with the status 2 and a
/// line that names them. Arguments are visible in the list of processes, so a secret belongs in a
/// variable or a file that `build` reads.
///
/// The options are no arguments of clap, so that its version is no part of this crate's API, and
/// the same settings come from a deployment's environment.
#[must_use = "the exit status is what main returns"]
pub fn main_with<S, E>(build: impl FnOnce(S) -> Result<E, TaskError>) -> ExitCode
where
    S: DeserializeOwned,
    E: Engine,
{
    #[cfg(any(feature = "redis", feature = "s3"))]
    crate::tls::use_ring();
    let env = Env::from_process();
    let args: Vec<OsString> = std::env::args_os().collect();
    let failed = |error: TaskError| Failure::Usage(error.to_string());
    let engine = own_settings::read(&args, &env).and_then(|settings| build(settings).map_err(failed));
    let ended = match engine {
        Ok(engine) => run(engine, OwnSettings::Yes, args, &env),
        Err(failure) => without_engine(failure, args),
    };
    ended.unwrap_or_else(|failure| failure.report(&env))
}

/// Prints the help if the arguments ask for it, or their own error. Neither needs an engine.
fn without_engine(failure: Failure, args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let unknown = EngineInfo::new("engine", "");
    match args::parse(&unknown, OwnSettings::Yes, args) {
        Err(help_or_error) if help_or_error.kind() != ErrorKind::DisplayVersion => end(&help_or_error),
        _ => Err(failure),
    }
}

fn run<E: Engine>(
    engine: E,
    settings: OwnSettings,
    args: Vec<OsString>,
    env: &Env,
) -> Result<ExitCode, Failure> {
    let info = engine.info();
    match args::parse(&info, settings, args) {
        Ok(Command::Transcribe(args)) => transcribe::transcribe(engine, &args, env),
        Ok(Command::Describe(args)) => {
            print(&describe::describe(&info, &args)?)?;
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "worker")]
        Ok(Command::Run(args)) => run::run(engine, &args, env),
        Ok(Command::Doctor(args)) => doctor::doctor(&engine, &args, env),
        Err(help_or_error) => end(&help_or_error),
    }
}

/// Prints help to standard output and an error to standard error.
fn end(help_or_error: &clap::Error) -> Result<ExitCode, Failure> {
    Failure::of_writing(help_or_error.print())?;
    let code = u8::try_from(help_or_error.exit_code());
    Ok(ExitCode::from(code.unwrap_or(FAILED)))
}
