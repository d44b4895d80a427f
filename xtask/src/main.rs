//! The commands of the workspace: `cargo xtask <command>`. Without a command, it prints the list.
//!
//! It uses only the standard library, so that it builds in seconds.

#![allow(clippy::print_stdout, clippy::print_stderr)] // It is a command-line program.

mod bench;
mod chaos;
mod dashboards;
mod demo;
mod error;
#[cfg(test)]
mod files;
mod libtorch;
mod package;
mod platform;
mod reference;
mod rules;
mod screenshots;
mod steps;
mod system;
mod test;
mod tools;

use std::process::ExitCode;

use error::Error;

const HELP: &str = "\
The commands of this workspace.

usage: cargo xtask <command> [options]

  setup [--cuda]      install libtorch into .libtorch/ (or check the one that LIBTORCH names);
                      --cuda: with the CUDA libraries, 2.7 GB of downloads instead of 0.5 GB;
                      --compose: instead, the programs that check the Compose file, 1 MB, into .tools/
                      --rotel: instead, an OTLP receiver that tests send to, 10 MB, into .tools/
                      --python: instead, the Python packages that tests need, 90 MB, into .tools/
  demo                set up, build, and transcribe shipped speech: transcripts, traces, metrics
  platform            set up, build, and run a small platform with the Whisper engine until Ctrl-C
  test [STEP...]      run everything that CI runs, or only the steps whose names contain one of the words;
                      --list: print the names of the steps
  rules               write alert rules, their tests and dashboards into examples/observability-stack
  dashboards --render     draw each board into docs/images/boards, with data of the dev platform
  dashboards --typecheck  compare the boards with the types of Grafana's schema; needs Node
  reference           write docs/reference from the code: metrics, spans and attributes, environment variables
  screenshots         write the pictures of the dev platform's page into docs/images
  bench [NAME]        run a benchmark; without a name, list them; --record: write the results into
                      docs/performance.md; NAME all: run and record all of them
  chaos [OPTIONS]     kill engines, break Redis, network, storage and machines, and fail if a task is lost;
                      --minutes N: duration, --seed S: repeat the decisions of a run, --help: more

Environment: LIBTORCH names the directory of an existing libtorch 2.11.0; CARGO_TARGET_DIR works as usual.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(message)) => {
            eprintln!("xtask: {message}; see cargo xtask help");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("\nxtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Error> {
    let Some((command, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    match (*command, rest) {
        ("help" | "--help" | "-h", _) => {
            print!("{HELP}");
            Ok(())
        }
        ("setup", []) => libtorch::set_up(libtorch::Variant::Cpu).map(drop),
        ("setup", ["--cuda"]) => libtorch::set_up(libtorch::Variant::Cuda).map(drop),
        ("setup", ["--compose"]) => tools::compose().map(drop),
        ("setup", ["--rotel"]) => tools::rotel(),
        ("setup", ["--python"]) => tools::python(),
        ("demo", []) => demo::run(),
        ("platform", []) => platform::run(),
        ("test", ["--list"]) => {
            test::list();
            Ok(())
        }
        ("test", words) if words.iter().all(|word| !word.starts_with('-')) => test::run(words),
        ("reference", []) => reference::write(),
        ("rules", []) => rules::write(),
        ("dashboards", ["--render"]) => dashboards::render(),
        ("dashboards", ["--typecheck"]) => dashboards::typecheck(),
        ("dashboards", _) => Err(Error::Usage(
            "dashboards needs --render or --typecheck".to_owned(),
        )),
        ("screenshots", []) => screenshots::write(),
        ("bench", []) => {
            bench::list();
            Ok(())
        }
        ("bench", [name, rest @ ..]) => bench::run(name, rest),
        ("chaos", rest) => chaos::run(rest),
        ("setup" | "demo" | "platform" | "test" | "reference" | "rules" | "screenshots", rest) => Err(
            Error::Usage(format!("{command} does not accept \"{}\"", rest.join(" "))),
        ),
        (other, _) => Err(Error::Usage(format!("there is no command \"{other}\""))),
    }
}
