//! The command line of an engine's binary: [`main`].

mod args;
mod describe;
mod doctor;
mod metrics;
mod output;
mod progress;
#[cfg(feature = "worker")]
mod run;
mod terminal;
mod transcribe;

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use console::Term;
use dalston_telemetry::tracing::level_filters::LevelFilter;
use dalston_telemetry::{Env, LogWriter, Telemetry, TelemetryBuilder};

use self::args::{Command, EngineArgs};
use self::terminal::Style;
use crate::config::RunnerConfig;
use crate::engine::{Check, Engine, EngineInfo};
use crate::load::LoadContext;

/// The whole `main` of an engine's binary.
///
/// ```no_run
/// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId, TaskContext, TaskError, TaskRequest};
/// # struct MyEngine;
/// # impl Engine for MyEngine {
/// #     type Model = ();
/// #     type Output = serde_json::Value;
/// #     fn info(&self) -> EngineInfo { EngineInfo::new("my-engine", "1.0.0") }
/// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn process(&self, _: &mut (), _: &TaskRequest, _: &TaskContext) -> Result<serde_json::Value, TaskError> {
/// #         Ok(serde_json::Value::Null)
/// #     }
/// # }
/// fn main() -> std::process::ExitCode {
///     dalston_engine_sdk::main(MyEngine)
/// }
/// ```
///
/// The binary then understands:
///
/// - `transcribe FILE…`: process files on this machine, through the same runner that works for a deployment, and print
///   the results. `--json` for programs, `--trace` for a waterfall of where the time went;
/// - `run`: join a live deployment and work for it until `SIGTERM` or Ctrl-C, which lets running tasks end; a second one ends
///   the process at once;
/// - `describe`: identity and capabilities as JSON;
/// - `doctor`: what was found on this machine, what is missing, and what to do about it;
/// - `--help` and `--version`.
///
/// Results go to standard output, logs and errors to standard error; `run` has no results and writes its logs to standard
/// output, as the platform's services do. The exit status is 0 if everything went well,
/// 1 if something failed, and 2 if the command line or a variable of the environment makes no sense. Work that a signal cut
/// short ends with what shells report for it: 130 after Ctrl-C, 143 after `SIGTERM`. For `transcribe` that is the first
/// signal, for `run` the second, because after the first it drains and ends with 0.
#[must_use = "the exit status is what main returns"]
pub fn main<E: Engine>(engine: E) -> ExitCode {
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
        Ok(Command::Describe) => {
            let description = serde_json::to_string_pretty(&describe::describe(&info));
            print(&(description.map_err(|error| Failure::Failed(error.to_string()))? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "worker")]
        Ok(Command::Run(args)) => run::run(engine, &args, env),
        Ok(Command::Doctor(args)) => examine(&engine, &args, env),
        Err(help_or_error) => {
            // Help goes to standard output and errors to standard error.
            Failure::of_writing(help_or_error.print())?;
            Ok(ExitCode::from(
                u8::try_from(help_or_error.exit_code()).unwrap_or(FAILED),
            ))
        }
    }
}

/// `doctor`.
fn examine<E: Engine>(engine: &E, args: &EngineArgs, env: &Env) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let mut checks = vec![Check::ok("engine", format!("{} {}", info.id, info.version))];
    let mut config = RunnerConfig::default();
    match RunnerConfig::from_env(env) {
        Ok(read) => config = read,
        Err(error) => {
            checks.push(Check::missing("environment", error.to_string()).advice("correct or unset it"))
        }
    }
    args.apply(&mut config.options);
    checks.push(doctor::temp_dir(&config.temp_root));
    match quiet_telemetry(&info, env)
        .shutdown_timeout(COLLECTOR_PATIENCE)
        .install()
    {
        Ok(telemetry) => checks.push(doctor::collector(telemetry)),
        Err(error) => {
            checks.push(Check::missing("environment", error.to_string()).advice("correct or unset it"));
        }
    }
    let cx = LoadContext::new(config.options);
    // What the engine looks at may be broken in ways that its author did not think of.
    match catch_unwind(AssertUnwindSafe(|| engine.check(&cx))) {
        Ok(own) => checks.extend(own),
        Err(_) => checks.push(Check::missing(
            "engine",
            "its own checks panicked; the panic is shown above",
        )),
    }
    print(&doctor::table(&checks, Style::of(&Term::stdout(), env)))?;
    if doctor::can_work(&checks) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(FAILED))
    }
}

fn telemetry(info: &EngineInfo, env: &Env) -> TelemetryBuilder {
    Telemetry::builder(format!("dalston-engine-{}", info.id))
        .version(&info.version)
        .env(env.clone())
}

/// Telemetry of a command that a person waits for. What went wrong is said in one line; logs are for those who ask for
/// them, with `RUST_LOG` and its like.
fn quiet_telemetry(info: &EngineInfo, env: &Env) -> TelemetryBuilder {
    telemetry(info, env)
        .log_writer(LogWriter::stderr())
        .default_log_level(LevelFilter::OFF)
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    Failure::of_writing(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// How long `doctor` waits for a collector.
const COLLECTOR_PATIENCE: Duration = Duration::from_secs(2);

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Why nothing more is done.
#[derive(Debug)]
enum Failure {
    /// The command line or the environment makes no sense.
    Usage(String),
    /// Something did not work.
    Failed(String),
    /// Nobody reads the results any more, as with `| head`. That is not an error.
    Closed,
}

impl Failure {
    fn of_writing(result: io::Result<()>) -> Result<(), Self> {
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(format!("writing the results: {error}")),
        })
    }

    fn report(self, env: &Env) -> ExitCode {
        let (code, message) = match self {
            Self::Usage(message) => (USAGE, message),
            Self::Failed(message) => (FAILED, message),
            Self::Closed => return ExitCode::SUCCESS,
        };
        complain(&message, env);
        ExitCode::from(code)
    }
}

/// One line on standard error about what failed.
fn complain(message: &str, env: &Env) {
    let style = Style::of(&Term::stderr(), env);
    to_stderr(&format!("{} {message}\n", style.bad("error:")));
}

/// One line on standard error about what could be better.
fn remark(message: &str, env: &Env) {
    let style = Style::of(&Term::stderr(), env);
    to_stderr(&format!("{} {message}\n", style.warning("warning:")));
}

/// If even this can't be written, there is nobody left to tell.
fn to_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
