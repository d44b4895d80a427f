//! Writes the pages of `docs/reference` from the declarations in the crates, or lists the pages
//! that are out of date.

#![allow(clippy::print_stderr)] // It is a command-line program.

mod environment;
mod markdown;
mod metrics;
mod spans;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

const USAGE: &str = "usage: reference write|check DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["write", directory] => write(Path::new(directory)),
        ["check", directory] => check(Path::new(directory)),
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

fn write(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    for (name, page) in pages()? {
        fs::write(directory.join(name), page)?;
    }
    Ok(())
}

fn check(directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut stale = Vec::new();
    for (name, page) in pages()? {
        let path = directory.join(name);
        if fs::read_to_string(&path).ok().as_ref() != Some(&page) {
            stale.push(path.display().to_string());
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("out of date: {}; run cargo xtask reference", stale.join(", ")).into())
}

/// The files and their contents.
fn pages() -> Result<[(&'static str, String); 4], Box<dyn Error>> {
    let families = metrics::families()?;
    Ok([
        ("metrics.md", metrics::page(&families)),
        ("metrics.json", metrics::manifest(&families)?),
        ("spans.md", spans::page()),
        ("environment.md", environment::page()),
    ])
}
