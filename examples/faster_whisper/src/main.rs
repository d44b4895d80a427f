//! Whisper as a Dalston engine.

fn main() {}
