//! Write a transcription engine for the Dalston platform.
