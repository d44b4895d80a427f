//! Programs that the commands use, in the git-ignored `.tools/`.

use std::fs;
use std::path::PathBuf;

use crate::error::Error;
use crate::steps::{Cmd, cargo, root};
use crate::system::{Need, require};

const CARGO_DENY: &str = "0.20.2";
const COMPOSE: &str = "jsonschema==4.26.0 podman-compose==1.6.0";
/// Its wheels are of single versions of Python on Linux.
const ROTEL: &str = "rotel==0.0.1a15";
const OPENAI: &str = "openai[realtime]==3.57.0";
/// Only for the TorchScript file in it: what it depends on is not needed.
const SILERO: &str = "--no-deps silero-vad==6.2.3";
const PEERS: &str = "torch==2.11.0 transformers==5.23.0 faster-whisper==1.2.1";

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
    python_with(
        "peers",
        PEERS,
        "The peers are faster-whisper, and transformers on PyTorch: 2.7 GB of downloads, because PyTorch does not start without CUDA's libraries even \
         where it computes on the CPU.",
    )
}

/// A Python with the programs that check Compose files.
pub(crate) fn compose() -> Result<PathBuf, Error> {
    python_with(
        "compose",
        COMPOSE,
        "podman-compose and jsonschema check the Compose file of the example.",
    )
}

/// Rotel, an OTLP receiver that tests send to. There are no wheels for some machines.
pub(crate) fn rotel() -> Result<(), Error> {
    python_with(
        "rotel",
        ROTEL,
        "Rotel receives OTLP in tests of the exporters, 10 MB.",
    )
    .map(drop)
}

/// Python packages that tests compare with: OpenAI's client, and Silero's voice detector.
pub(crate) fn python() -> Result<(), Error> {
    python_with("openai", OPENAI, "OpenAI's client tests the realtime protocol.")?;
    python_with(
        "silero",
        SILERO,
        "silero-vad has the voice detector that engines on libtorch can use.",
    )?;
    Ok(())
}

/// A Python with these packages, in `.tools/{name}`.
fn python_with(name: &str, packages: &str, purpose: &str) -> Result<PathBuf, Error> {
    let place = root().join(".tools").join(name);
    let python = place.join("bin/python");
    let receipt = place.join("installed");
    if fs::read_to_string(&receipt).is_ok_and(|installed| installed == packages) {
        return Ok(python);
    }
    println!("{purpose} Installing {packages} into {}.", place.display());
    require(&[Need {
        purpose: "create a Python environment for tools",
        probe: &["python3", "-c", "import venv, ensurepip"],
        package: "python3-venv",
    }])?;
    Cmd::new("python3").args("-m venv").arg(&place).run()?;
    Cmd::new(&python)
        .args("-m pip install --retries 10 --disable-pip-version-check --no-input")
        .args(packages)
        .run()?;
    fs::write(&receipt, packages).map_err(Error::at(&receipt))?;
    Ok(python)
}
