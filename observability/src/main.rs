//! Writes the generated files: `observability WORKSPACE`.

#![allow(clippy::print_stderr)] // It is a command-line program.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [workspace] = &arguments[..] else {
        eprintln!("usage: observability WORKSPACE");
        return ExitCode::FAILURE;
    };
    for (name, text) in observability::files() {
        let path = Path::new(workspace).join(name);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text));
        if let Err(error) = written {
            eprintln!("writing {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
