//! The commands of the workspace: `cargo xtask <command>`. Without a command, it prints the list.
//!
//! It uses only the standard library, so that it builds in seconds.

#![allow(clippy::print_stdout, clippy::print_stderr)] // It is a command-line program.

mod bench;
mod chaos;
mod demo;
mod error;
#[cfg(test)]
mod files;
mod libtorch;
mod package;
mod platform;
mod reference;
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
                      --cuda: with the CUDA libraries, 2.7 GB of downloads instead of 0.5 GB
  demo                set up, build, and transcribe shipped speech: transcripts, traces, metrics
  platform            set up, build, and run a small platform with the Whisper engine until Ctrl-C
  test [STEP...]      run everything that CI runs, or only the steps whose names contain one of the words;
                      --list: print the names of the steps
  reference           write docs/reference from the code: metrics, spans and attributes, environment variables
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
        ("demo", []) => demo::run(),
        ("platform", []) => platform::run(),
        ("test", ["--list"]) => {
            test::list();
            Ok(())
        }
        ("test", words) if words.iter().all(|word| !word.starts_with('-')) => test::run(words),
        ("reference", []) => reference::write(),
        ("bench", []) => {
            bench::list();
            Ok(())
        }
        ("bench", [name, rest @ ..]) => bench::run(name, rest),
        ("chaos", rest) => chaos::run(rest),
        ("setup" | "demo" | "platform" | "test" | "reference", rest) => Err(Error::Usage(format!(
            "{command} does not accept \"{}\"",
            rest.join(" ")
        ))),
        (other, _) => Err(Error::Usage(format!("there is no command \"{other}\""))),
    }
}
