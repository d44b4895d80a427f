//! The chores of the workspace: `cargo xtask <chore>`. Run without one, it lists them.
//!
//! It uses the standard library alone, so that it is built in seconds before anything else is.

#![allow(clippy::print_stdout, clippy::print_stderr)] // Talking to a terminal is its purpose.

mod bench;
mod chaos;
mod demo;
mod error;
#[cfg(test)]
mod files;
mod libtorch;
mod reference;
mod steps;
mod system;
mod test;
mod tools;

use std::process::ExitCode;

use error::Error;

const HELP: &str = "\
The chores of this workspace.

usage: cargo xtask <chore> [options]

  setup [--cuda]      put libtorch into .libtorch/ (or check the one that LIBTORCH names);
                      --cuda: with the CUDA libraries, 2.7 GB of downloads instead of 0.5
  demo                set up, build, and transcribe shipped speech: transcripts, traces, metrics
  test [STEP...]      everything that CI runs, or only the steps whose names contain one of the words;
                      --list: name the steps
  reference           write docs/reference from the code: metrics, spans and attributes, environment variables
  bench [NAME]        a benchmark; without a name: say which there are
  chaos [OPTIONS]     kill engines, restart Redis, break network and storage, and count the tasks that are lost: none;
                      --minutes N: how long, --seed S: which things happen, --help: more

Environment: LIBTORCH names a libtorch of your own (version 2.11.0), CARGO_TARGET_DIR works as usual.
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
    let Some((chore, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    match (*chore, rest) {
        ("help" | "--help" | "-h", _) => {
            print!("{HELP}");
            Ok(())
        }
        ("setup", []) => libtorch::set_up(libtorch::Variant::Cpu).map(drop),
        ("setup", ["--cuda"]) => libtorch::set_up(libtorch::Variant::Cuda).map(drop),
        ("demo", []) => demo::run(),
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
        ("setup" | "demo" | "test" | "reference", rest) => Err(Error::Usage(format!(
            "{chore} does not understand \"{}\"",
            rest.join(" ")
        ))),
        (other, _) => Err(Error::Usage(format!("there is no chore \"{other}\""))),
    }
}
