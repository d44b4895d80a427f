//! Whisper on libtorch.
