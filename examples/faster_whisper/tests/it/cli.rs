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
             \u{20}       whisper.load\n\
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
fn options_are_arguments() {
    let file = root().join("audio/en_three.wav");
    let ran = transcribe(&file)
        .args([
            "--json",
            "--beam-size",
            "2",
            "--max-new-tokens=2",
            "--suppress_tokens",
            "-1",
        ])
        .output()
        .unwrap();
    let line: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(
        line["tokens"].as_array().unwrap().len(),
        2,
        "{line} {}",
        stderr(&ran)
    );

    for (args, problem) in [
        (
            &["--beam-size", "0"][..],
            "invalid value '0' for '--beam-size <VALUE>': expected a whole number from 1 to 64",
        ),
        (
            &["--multilingual=perhaps"],
            "invalid value 'perhaps' for '--multilingual[=<true|false>]': expected true or false",
        ),
    ] {
        let ran = transcribe(&file).args(args).output().unwrap();
        assert_eq!(ran.status.code(), Some(2));
        assert!(stderr(&ran).contains(problem), "{}", stderr(&ran));
    }
}

#[test]
fn transcripts_are_printed_and_written_in_several_formats() {
    let files = ["en_three", "en_one"].map(|name| root().join(format!("audio/{name}.wav")));
    let ran = quickly(&files[0])
        .args(["--output-format", "srt"])
        .output()
        .unwrap();
    let srt = "1\n00:00:00,000 --> 00:00:01,360\nseven three three\n\n";
    assert_eq!(String::from_utf8_lossy(&ran.stdout), srt, "{}", stderr(&ran));

    let ran = quickly(&files[0])
        .args(["--output-format", "srt", "--word-timestamps"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout).matches("-->").count(), 3);

    let directory = tempfile::tempdir().unwrap();
    let ran = quickly(&files[0])
        .arg(&files[1])
        .args([
            "--vad-filter",
            "--output-format",
            "txt,tsv,vtt,json",
            "--output-dir",
        ])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", stderr(&ran));
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(read("en_three.txt"), "seven three three\n");
    assert_eq!(read("en_one.txt"), "five\n");
    assert!(read("en_three.tsv").starts_with("start\tend\ttext\n0\t"));
    assert!(read("en_three.vtt").starts_with("WEBVTT\n\n00:00:00.000 --> "));
    let line: Value = serde_json::from_str(&read("en_one.json")).unwrap();
    assert_eq!(line["text"], "five");

    let ran = transcribe(&files[0])
        .args(["--output-format", "srt,vtt"])
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(stderr(&ran).contains("expected --output-dir"), "{}", stderr(&ran));
}

#[test]
fn progress_bar_appears_only_on_a_terminal() {
    let recording = root().join("audio/en_long_75s.wav");
    let piped = quickly(&recording).output().unwrap();
    assert!(piped.status.success());
    assert_eq!(stderr(&piped), "");

    // Long enough to be in progress for a while on a fast machine.
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("long.wav");
    repeat(&recording, 3, &long);
    // `script` runs its command in a terminal and prints the terminal's content.
    let mut command = quickly(&long);
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

/// `transcribe` without beam search and further temperatures.
fn quickly(file: &Path) -> Command {
    let mut command = transcribe(file);
    command.args([
        "--beam-size=1",
        "--temperature=0",
        "--condition-on-previous-text=false",
    ]);
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
