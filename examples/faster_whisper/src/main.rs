//! Whisper as a Dalston engine: `transcribe FILE…`, `describe`, `doctor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dalston_engine_sdk::main(faster_whisper::FasterWhisper)
}
