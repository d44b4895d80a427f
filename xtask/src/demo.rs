//! The demo: shipped speech through the real runner.

use std::path::Path;
use std::time::Instant;

use crate::error::Error;
use crate::libtorch;
use crate::steps::{Cmd, cargo, human, target_directory};

const EXAMPLE: &str = "examples/faster_whisper";
/// English and German, which the engine gets as one batch.
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

    let example = Path::new(EXAMPLE);
    let transcribe = |samples: &[&str], options: &str| {
        let program = target_directory().join("release/faster_whisper");
        let command = Cmd::new(program).arg("transcribe");
        samples
            .iter()
            .fold(command, |command, sample| command.arg(example.join(sample)))
            .arg("--model")
            .arg(example.join("models/whisper-nano-digits"))
            .args(options)
            // The traces contain the events at level info.
            .env("LOG_LEVEL", "warn")
            .run()
    };
    transcribe(&SAMPLES, "--trace --metrics")?;
    println!("\nThe same speech as subtitles with the times of words:\n");
    transcribe(&SAMPLES[..1], "--word-timestamps --output-format vtt")
}
