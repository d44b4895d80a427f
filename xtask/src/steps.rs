//! Commands and steps that run one after the other, with their times.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::Error;

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    // The manifest of this package is one level below it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The cargo that runs this program, so that a selected toolchain stays selected.
pub(crate) fn cargo() -> Cmd {
    let cargo = Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A clone that is tested once has no use for what makes the next build faster, or for debuggers.
    if is_ci() {
        cargo
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
    } else {
        cargo
    }
}

pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The directory of cargo's build results.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |directory| root().join(directory))
}

/// A command that runs in the workspace root and prints to the terminal.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
    shown: String,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command.current_dir(root()).stdin(Stdio::null());
        // `cargo run` sets these for this package. Build scripts must not see them for other
        // packages, and would run again if a later cargo does not set them.
        for (name, _) in std::env::vars_os() {
            let of_package = name.to_str().is_some_and(|name| {
                name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR"
            });
            if of_package {
                command.env_remove(name);
            }
        }
        let shown = Path::new(program)
            .file_name()
            .unwrap_or(program)
            .to_string_lossy()
            .into_owned();
        Self { command, shown }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = argument.as_ref();
        self.shown.push(' ');
        self.shown.push_str(&argument.to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// Adds arguments that contain no spaces.
    pub(crate) fn args(self, arguments: &str) -> Self {
        arguments.split_whitespace().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{name}={} {}", value.as_ref().to_string_lossy(), self.shown);
        self.command.env(name, value);
        self
    }

    /// Shows the command and runs it.
    pub(crate) fn run(self) -> Result<(), Error> {
        println!("$ {}", self.shown);
        self.run_unshown()
    }

    /// Runs the command without showing it, for scripts too long to show.
    pub(crate) fn run_unshown(mut self) -> Result<(), Error> {
        let status = self.command.status().map_err(|error| self.failure(error))?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failure(status))
        }
    }

    /// Runs the command silently and returns its standard output if it succeeded.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stderr(Stdio::null()).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn failure(&self, why: impl std::fmt::Display) -> Error {
        let program = self.shown.lines().next().unwrap_or_default();
        Error::new(format!("`{program}` failed: {why}"))
    }
}

/// The steps of a longer command. Each prints its name and time, and the summary lists them.
#[derive(Debug)]
pub(crate) struct Steps {
    started: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs a step. If it fails, lists the completed steps.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = work();
        let time = started.elapsed();
        match &result {
            Ok(()) => {
                println!("=== {name}: {}", human(time));
                self.done.push((name.to_owned(), time));
            }
            Err(_) => {
                println!("=== {name}: failed after {}", human(time));
                self.list();
                println!("   failed  {name}");
            }
        }
        result
    }

    /// Lists the steps with their times.
    pub(crate) fn summary(&self) {
        self.list();
        println!(
            "all {} steps passed in {}",
            self.done.len(),
            human(self.started.elapsed())
        );
    }

    fn list(&self) {
        println!();
        for (name, time) in &self.done {
            println!("{:>9}  {name}", human(*time));
        }
    }
}

pub(crate) fn human(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted() {
        assert_eq!(human(Duration::from_millis(1_230)), "1.2 s");
        assert_eq!(human(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn error_names_the_failed_command() {
        let error = Cmd::new("sh").arg("-c").arg("exit 3").run().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` failed: exit status: 3");
    }

    #[test]
    fn failed_step_returns_its_error() {
        let mut steps = Steps::new();
        steps.step("first", || Ok(())).unwrap();
        steps.step("second", || Err(Error::new("no"))).unwrap_err();
        assert_eq!(steps.done.len(), 1);
    }
}
