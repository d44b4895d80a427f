//! The demo, as a person runs it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::rig::{free_port, stereo};

#[test]
fn demo_shows_transcript_and_waterfall_and_ends_on_interrupt() {
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("call.wav");
    std::fs::write(&recording, stereo(1)).unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_dev_platform"))
        .args(["demo", "--recording"])
        .arg(&recording)
        .arg("--directory")
        .arg(directory.path().join("state"))
        .env("DALSTON_GATEWAY_PORT", free_port().to_string())
        .env_remove("OTEL_ENABLED")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines.map_while(Result::ok) {
        if line.starts_with("Ctrl-C") {
            let id = demo.id().to_string();
            assert!(
                Command::new("kill")
                    .args(["-INT", &id])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        seen.push(line);
    }
    let seen = seen.join("\n");
    assert!(demo.wait().unwrap().success(), "{seen}");
    for text in [
        "[  0.00 ->   1.00]  SPEAKER_01  channel 1 1.0s",
        "engine.mock-asr.process",
        "orchestrator.mark_job_completed",
        "ending",
    ] {
        assert!(seen.contains(text), "{text:?} in\n{seen}");
    }
    // All processes have ended in order, and so none was killed.
    assert!(!seen.contains("is killed"), "{seen}");
}
