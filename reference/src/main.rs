//! Writes the reference pages from the declarations in the crates. Its tests fail while a page is
//! out of date.

#![allow(clippy::print_stderr)] // It is a command-line program.

mod environment;
mod markdown;
mod metrics;
mod spans;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

const USAGE: &str = "usage: reference WORKSPACE";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [workspace] => write(Path::new(workspace)),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write(workspace: &Path) -> Result<(), Box<dyn Error>> {
    for (name, page) in pages()? {
        let path = workspace.join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, page).map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    Ok(())
}

/// The files, by their paths in the workspace, and their contents.
fn pages() -> Result<[(&'static str, String); 6], Box<dyn Error>> {
    let families = metrics::families()?;
    Ok([
        ("docs/reference/metrics.md", metrics::page(&families)),
        ("docs/reference/metrics.json", metrics::manifest(&families)?),
        ("docs/reference/spans.md", spans::page()),
        ("docs/reference/environment.md", environment::page()),
        (
            "dalston-telemetry/docs/environment.md",
            environment::page_of_telemetry(),
        ),
        (
            "dalston-engine-sdk/docs/environment.md",
            environment::page_of_sdk(),
        ),
    ])
}

#[cfg(test)]
mod tests;
