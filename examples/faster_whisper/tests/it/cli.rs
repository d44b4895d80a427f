//! The binary, run from a command line.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use testbed::collector::{Collector, Protocol};

use crate::support::root;

const BINARY: &str = env!("CARGO_BIN_EXE_faster_whisper");

#[test]
fn transcribe_exports_the_whole_trace() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol);
        let mut command = transcribe(&root().join("audio/en_three.wav"));
        let ran = command.args(["--json"]).envs(collector.env()).output().unwrap();
        let line: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(line["text"], "seven three three", "{}", stderr(&ran));
        assert_eq!(stderr(&ran), "");

        let received = collector.rest();
        let service = received[0].resource("service.name");
        assert_eq!(service.as_deref(), Some("dalston-engine-faster-whisper"));
        let spans: Vec<Span> = received
            .iter()
            .flat_map(|received| &received.request.resource_spans)
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect();
        assert_eq!(
            children(&spans, &[]),
            "local.task\n\
             \u{20} engine.queue_wait\n\
             \u{20} engine.faster-whisper.process\n\
             \u{20}   engine.download_input\n\
             \u{20}   engine.model_acquire\n\
             \u{20}     engine.model_load\n\
             \u{20}   engine.process\n\
             \u{20}     engine.recognize\n\
             \u{20}       whisper.features\n\
             \u{20}       whisper.encode\n\
             \u{20}       whisper.decode\n\
             \u{20}   engine.upload_output\n"
        );
    }
}

#[test]
fn progress_bar_appears_only_on_a_terminal() {
    let recording = root().join("audio/en_long_75s.wav");
    let piped = transcribe(&recording).output().unwrap();
    assert!(piped.status.success());
    assert_eq!(stderr(&piped), "");

    // Long enough to be in progress for a while on a fast machine.
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("long.wav");
    repeat(&recording, 3, &long);
    // `script` runs its command in a terminal and prints the terminal's content.
    let mut command = transcribe(&long);
    let command = format!("{:?}", command.env("TERM", "xterm"));
    let on_terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("script is part of every Debian, in the package bsdutils");
    let shown = String::from_utf8_lossy(&on_terminal.stdout);
    assert!(on_terminal.status.success(), "{shown}");
    let bars = shown.matches("long.wav ").count();
    assert!(
        bars > 1 && shown.contains(" % ") && shown.contains(" left)"),
        "{shown}"
    );
    // It is erased before the transcript.
    let (_, after) = shown.rsplit_once(" left)").unwrap();
    assert!(
        after.contains("\u{1b}[2K") && after.contains("language en, 225.00 s of audio"),
        "{shown:?}"
    );
}

/// `transcribe` on the CPU with an empty environment.
fn transcribe(file: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .arg("transcribe")
        .arg(file)
        .args(["--language", "en", "--device", "cpu", "--model"])
        .arg(root().join("models/whisper-nano-digits"))
        .env_clear();
    command
}

fn stderr(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

/// The spans under a parent, in the order of their start.
fn children(spans: &[Span], parent: &[u8]) -> String {
    let mut found: Vec<&Span> = spans
        .iter()
        .filter(|span| span.parent_span_id == parent)
        .collect();
    found.sort_by_key(|span| span.start_time_unix_nano);
    found
        .into_iter()
        .map(|span| {
            let below = children(spans, &span.span_id);
            let below: String = below.lines().map(|line| format!("  {line}\n")).collect();
            format!("{}\n{below}", span.name)
        })
        .collect()
}

/// A WAV file with the samples repeated.
fn repeat(wav: &Path, times: usize, to: &Path) {
    /// Length of the header of the shipped recordings.
    const HEADER: usize = 44;
    let bytes = std::fs::read(wav).unwrap();
    let (header, samples) = bytes.split_at(HEADER);
    assert_eq!(&header[36..40], b"data");
    let length = u32::try_from(samples.len() * times).unwrap();
    let mut header = header.to_vec();
    header[4..8].copy_from_slice(&(length + 36).to_le_bytes());
    header[40..44].copy_from_slice(&length.to_le_bytes());
    std::fs::write(to, [header, samples.repeat(times)].concat()).unwrap();
}
