//! The demo: shipped speech through the real runner.

use std::path::Path;
use std::time::Instant;

use crate::error::Error;
use crate::libtorch;
use crate::steps::{Cmd, cargo, human, target_directory};

const EXAMPLE: &str = "examples/faster_whisper";
/// English for the first task, which loads the model, and German for the second one.
const SAMPLES: [&str; 2] = ["audio/en_eight.wav", "audio/de_seven.wav"];

/// Sets up, builds, and runs the Whisper engine on the shipped samples.
pub(crate) fn run() -> Result<(), Error> {
    let libtorch = libtorch::set_up(libtorch::Variant::Cpu)?;
    println!(
        "\nBuilding the Whisper engine with optimisations: two crates of this workspace, tch, and their dependencies. \
         The first build takes some minutes."
    );
    let started = Instant::now();
    cargo()
        .args("build --release --package faster_whisper --bin faster_whisper")
        .env("LIBTORCH", libtorch)
        .run()?;
    println!("Built in {}.\n", human(started.elapsed()));

    let program = target_directory().join("release/faster_whisper");
    let example = Path::new(EXAMPLE);
    let transcribe = Cmd::new(program).arg("transcribe");
    SAMPLES
        .iter()
        .fold(transcribe, |command, sample| command.arg(example.join(sample)))
        .arg("--model")
        .arg(example.join("models/whisper-nano-digits"))
        .args("--trace --metrics")
        // The traces contain the events at level info.
        .env("LOG_LEVEL", "warn")
        .run()
}
