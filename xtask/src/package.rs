//! The packages of the published crates, as `cargo publish` would upload them.

use std::fs;

use crate::error::Error;
use crate::steps::{Cmd, cargo, root, target_directory};
use crate::test::{CRATES, NO_LIBTORCH};

/// The profile of the workspace. Packages do not contain it, and with another one cargo would
/// compile all dependencies again.
const PROFILE: [&str; 2] = [
    "profile.dev.debug=\"line-tables-only\"",
    "profile.dev.package.\"*\".debug=false",
];

/// Creates the packages, builds each of them, and builds a project that depends on them.
pub(crate) fn check() -> Result<(), Error> {
    // `--allow-dirty`, because the tests also run before a commit.
    let package = with_profile(cargo().args("package --allow-dirty"));
    CRATES
        .iter()
        .fold(package, |command, name| command.arg("--package").arg(name))
        .env("LIBTORCH", NO_LIBTORCH)
        .run()?;
    build_user()
}

/// Builds the minimal engine in a project of its own, from the contents of the packages.
fn build_user() -> Result<(), Error> {
    let packages = target_directory().join("package");
    let project = packages.join("user");
    let source = project.join("src");
    fs::create_dir_all(&source).map_err(Error::at(&source))?;
    let mut manifest = String::from(
        "[package]\nname = \"user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nserde_json = \"1\"\n",
    );
    let mut patch = String::from("\n[patch.crates-io]\n");
    for name in CRATES {
        let version = env!("CARGO_PKG_VERSION");
        manifest += &format!("{name} = \"{version}\"\n");
        patch += &format!("{name} = {{ path = \"../{name}-{version}\" }}\n");
    }
    manifest += &patch;
    let engine = root().join("examples/minimal_engine/src/main.rs");
    let engine = fs::read_to_string(&engine).map_err(Error::at(&engine))?;
    let (engine, _) = engine.split_once("\n#[cfg(test)]").unwrap_or((&engine, ""));
    // The same versions as in the workspace, so that dependencies are compiled once.
    let lock = root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).map_err(Error::at(&lock))?;
    for (path, text) in [
        (project.join("Cargo.toml"), manifest.as_str()),
        (project.join("Cargo.lock"), &lock),
        (source.join("main.rs"), engine),
    ] {
        fs::write(&path, text).map_err(Error::at(&path))?;
    }
    with_profile(cargo().arg("build"))
        .arg("--manifest-path")
        .arg(project.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_directory())
        .env("LIBTORCH", NO_LIBTORCH)
        .run()
}

fn with_profile(command: Cmd) -> Cmd {
    PROFILE
        .iter()
        .fold(command, |command, setting| command.arg("--config").arg(setting))
}
