//! The packages of the published crates, as `cargo publish` would upload them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::steps::{Cmd, cargo, root, target_directory};
use crate::test::{CRATES, NO_LIBTORCH};

/// The profile of the workspace. Packages do not contain it, and with another one cargo would
/// compile all dependencies again.
const PROFILE: [&str; 2] = [
    "profile.dev.debug=\"line-tables-only\"",
    "profile.dev.package.\"*\".debug=false",
];

/// Creates the packages and verifies them: checks a project that adds their contents.
///
/// Cargo's own verification is not enough. It builds the SDK with the telemetry crate of an earlier
/// run, because it caches the sources and the build of an unpublished dependency by its version.
pub(crate) fn check() -> Result<(), Error> {
    // `--allow-dirty`, because the tests also run before a commit.
    let package = cargo().args("package --no-verify --allow-dirty");
    CRATES
        .iter()
        .fold(package, |command, name| command.arg("--package").arg(name))
        .env("LIBTORCH", NO_LIBTORCH)
        .run()?;
    let packages = target_directory().join("package");
    for name in CRATES {
        let directory = packages.join(versioned(name));
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(Error::at(&directory))?;
        }
        Cmd::new("tar")
            // `--touch`, because cargo compares the times of files with those of the last build.
            .args("--extract --gzip --touch --directory")
            .arg(&packages)
            .arg("--file")
            .arg(packages.join(format!("{}.crate", versioned(name))))
            .run()?;
    }
    let check = cargo()
        .arg("check")
        .arg("--manifest-path")
        .arg(write_user(&packages)?);
    PROFILE
        .iter()
        .fold(check, |command, setting| command.arg("--config").arg(setting))
        .env("CARGO_TARGET_DIR", target_directory())
        .env("LIBTORCH", NO_LIBTORCH)
        .run()
}

/// Writes a project that adds the packages and contains the minimal engine. Returns its manifest.
fn write_user(packages: &Path) -> Result<PathBuf, Error> {
    let project = packages.join("user");
    let source = project.join("src");
    fs::create_dir_all(&source).map_err(Error::at(&source))?;
    let mut manifest = String::from(
        "[package]\nname = \"user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nserde_json = \"1\"\n",
    );
    let mut patch = String::from("\n[patch.crates-io]\n");
    for name in CRATES {
        manifest += &format!("{name} = \"{}\"\n", env!("CARGO_PKG_VERSION"));
        patch += &format!("{name} = {{ path = \"../{}\" }}\n", versioned(name));
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
    Ok(project.join("Cargo.toml"))
}

/// The name of a package with its version.
fn versioned(name: &str) -> String {
    format!("{name}-{}", env!("CARGO_PKG_VERSION"))
}
