//! Programs that the commands use, in the git-ignored `.tools/`.

use std::fs;
use std::path::PathBuf;

use crate::error::Error;
use crate::steps::{Cmd, cargo, root};
use crate::system::{Need, require};

const CARGO_DENY: &str = "0.20.2";
const PEERS: &str = "torch==2.11.0 transformers==5.23.0";

/// Finds cargo-deny or builds it, which takes one to three minutes.
pub(crate) fn cargo_deny() -> Result<PathBuf, Error> {
    if Cmd::new("cargo-deny").arg("--version").output().is_some() {
        return Ok("cargo-deny".into());
    }
    let tools = root().join(".tools");
    let program = tools.join("bin/cargo-deny");
    if Cmd::new(&program).arg("--version").output().as_deref() == Some(&format!("cargo-deny {CARGO_DENY}")) {
        return Ok(program);
    }
    println!(
        "cargo-deny checks licences and sources of the dependencies. Building it into .tools/; this happens once."
    );
    // A debug build takes half the time, and the check takes a second in both cases.
    cargo()
        .args("install --locked --debug --version")
        .arg(CARGO_DENY)
        .args("cargo-deny --root")
        .arg(&tools)
        .env("CARGO_TARGET_DIR", tools.join("target"))
        .run()?;
    fs::remove_dir_all(tools.join("target")).ok();
    Ok(program)
}

/// A Python with the peers of the benchmarks.
pub(crate) fn peers() -> Result<PathBuf, Error> {
    let place = root().join(".tools/peers");
    let python = place.join("bin/python");
    let receipt = place.join("installed");
    if fs::read_to_string(&receipt).is_ok_and(|installed| installed == PEERS) {
        return Ok(python);
    }
    println!(
        "The peer is transformers on PyTorch. Installing {PEERS} into {}: 2.7 GB of downloads, because PyTorch does not \
         start without CUDA's libraries even where it computes on the CPU.",
        place.display()
    );
    require(&[Need {
        purpose: "create a Python environment for the peers",
        probe: &["python3", "-c", "import venv, ensurepip"],
        package: "python3-venv",
    }])?;
    Cmd::new("python3").args("-m venv").arg(&place).run()?;
    Cmd::new(&python)
        .args("-m pip install --retries 10 --disable-pip-version-check --no-input")
        .args(PEERS)
        .run()?;
    fs::write(&receipt, PEERS).map_err(Error::at(&receipt))?;
    Ok(python)
}
