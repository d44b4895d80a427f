//! Write a transcription engine for the Dalston platform.

pub mod protocol;
pub mod stage;
