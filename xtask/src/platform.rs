//! A platform on this machine: gateway, orchestrator, preparation, and the Whisper engine.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::Error;
use crate::libtorch;
use crate::steps::{cargo, root, target_directory};
use crate::system::{REDIS, require};

const EXAMPLE: &str = "examples/faster_whisper";

/// Sets up, builds, and runs until Ctrl-C.
pub(crate) fn run() -> Result<(), Error> {
    require(&[REDIS])?;
    let libtorch = libtorch::set_up(libtorch::Variant::Cpu)?;
    println!(
        "\nBuilding the platform and the Whisper engine with optimisations. The first build takes some minutes."
    );
    cargo()
        .args("build --release --package dev_platform --package faster_whisper --bins")
        .env("LIBTORCH", &libtorch)
        .run()?;
    let programs = target_directory().join("release");
    let example = root().join(Path::new(EXAMPLE));
    let mut platform = Command::new(programs.join("dev_platform"));
    platform
        // Built together with the engine, it links libtorch, too.
        .env("LD_LIBRARY_PATH", libtorch::library_path(&libtorch))
        .arg("demo")
        .arg("--engine")
        .arg(programs.join("faster_whisper"))
        .arg("--model")
        .arg(example.join("models/whisper-nano-digits"))
        .arg("--recording")
        .arg(example.join("audio/en_8k_stereo.wav"))
        .arg("--directory")
        .arg(target_directory().join("platform"));
    // In place of this process, so that Ctrl-C reaches a program that ends the others in order.
    let error = platform.exec();
    Err(Error::new(format!("starting the platform: {error}")))
}
