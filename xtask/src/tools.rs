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
/// For tests: OpenAI's client, clients of Redis and S3 for an engine in Python, and, only for the
/// TorchScript file in it, Silero's detector without what it depends on.
const OF_TESTS: [&str; 2] = [
    "openai[realtime]==3.57.0 redis==8.1.0 boto3==1.44.8",
    "--no-deps silero-vad==6.2.3",
];
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
        &[PEERS],
        "The peers are faster-whisper, and transformers on PyTorch: 2.7 GB of downloads, because PyTorch does not start without CUDA's libraries even \
         where it computes on the CPU.",
    )
}

/// A Python with the programs that check Compose files.
pub(crate) fn compose() -> Result<PathBuf, Error> {
    python_with(
        "compose",
        &[COMPOSE],
        "podman-compose and jsonschema check the Compose file of the example.",
    )
}

/// Rotel, an OTLP receiver that tests send to. There are no wheels for some machines.
pub(crate) fn rotel() -> Result<(), Error> {
    python_with(
        "rotel",
        &[ROTEL],
        "Rotel receives OTLP in tests of the exporters, 10 MB.",
    )
    .map(drop)
}

/// The Python with the packages that tests need.
pub(crate) fn python() -> Result<(), Error> {
    python_with(
        "python",
        &OF_TESTS,
        "OpenAI's client tests the realtime protocol, an engine in Python takes tasks of the development platform, and silero-vad has the \
         voice detector that engines on libtorch can use.",
    )
    .map(drop)
}

/// A Python with the packages of these installations, in `.tools/{name}`.
fn python_with(name: &str, installations: &[&str], purpose: &str) -> Result<PathBuf, Error> {
    let place = root().join(".tools").join(name);
    let python = place.join("bin/python");
    let receipt = place.join("installed");
    let packages = installations.join(" ");
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
    for installation in installations {
        Cmd::new(&python)
            .args("-m pip install --retries 10 --disable-pip-version-check --no-input")
            .args(installation)
            .run()?;
    }
    fs::write(&receipt, packages).map_err(Error::at(&receipt))?;
    Ok(python)
}
