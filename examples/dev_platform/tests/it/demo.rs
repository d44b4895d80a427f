//! The demo, as a person runs it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
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
        .env("DALSTON_OTLP_GRPC_PORT", free_port().to_string())
        .env("DALSTON_OTLP_HTTP_PORT", "off")
        .env_remove("OTEL_ENABLED")
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines.map_while(Result::ok) {
        if line.starts_with("Ctrl-C") {
            // As a terminal does it: to all processes of the group.
            let group = format!("-{}", demo.id());
            assert!(
                Command::new("kill")
                    .args(["-INT", "--", &group])
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
    // All processes have ended in order, and so none was killed, and Redis was the last.
    assert!(!seen.contains("is killed"), "{seen}");
    for name in ["all", "prepare", "engine"] {
        let log = directory.path().join(format!("state/{name}.log"));
        let log = std::fs::read_to_string(log).unwrap();
        let signals = log.matches("shutdown_signal_received").count();
        assert!(signals == 1 && log.contains("SIGTERM"), "{log}");
        assert!(!log.contains("engine_not_deregistered"), "{log}");
    }
}
