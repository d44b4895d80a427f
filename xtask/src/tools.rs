//! Programs of the Rust world that the chores use, kept in the git-ignored `.tools/`.

use std::path::PathBuf;

use crate::error::Error;
use crate::steps::{Cmd, cargo, root};

const CARGO_DENY: &str = "0.20.2";

/// Finds cargo-deny, or builds it: a minute or three, once.
pub(crate) fn cargo_deny() -> Result<PathBuf, Error> {
    if Cmd::new("cargo-deny").arg("--version").output().is_some() {
        return Ok("cargo-deny".into());
    }
    let tools = root().join(".tools");
    let program = tools.join("bin/cargo-deny");
    if Cmd::new(&program).arg("--version").output().as_deref() == Some(&format!("cargo-deny {CARGO_DENY}")) {
        return Ok(program);
    }
    println!("cargo-deny checks licences and sources of the dependencies. Building it into .tools/, once.");
    // A debug build: half the time to build, and the check takes a second either way.
    cargo()
        .args("install --locked --debug --version")
        .arg(CARGO_DENY)
        .args("cargo-deny --root")
        .arg(&tools)
        .env("CARGO_TARGET_DIR", tools.join("target"))
        .run()?;
    std::fs::remove_dir_all(tools.join("target")).ok();
    Ok(program)
}
