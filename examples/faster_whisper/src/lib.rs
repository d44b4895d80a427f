//! Whisper on libtorch.
//!
//! Loads any Hugging Face Whisper directory (tiny to large-v3 and turbo) and transcribes recordings
//! of any length, on the CPU or a GPU, in float32, float16 or bfloat16. All differences between
//! models come from their files: shapes, mel bins, token ids, languages, suppressed tokens, the
//! length of a window.
//!
//! [`Whisper`] is a loaded model. [`Whisper::transcribe`] transcribes a recording as its
//! [`TranscribeConfig`] say. [`Window`] gives access to single steps: encoder output, logits,
//! language probabilities, the decoding of one window.
//!
//! The binary of this crate is a Dalston engine.

pub mod config;
pub mod decode;
mod engine;
mod error;
mod features;
mod model;
mod tokenizer;
mod weights;
mod whisper;

pub use config::Config;
pub use decode::compression_ratio;
pub use decode::greedy::{Hypothesis, Sampling};
pub use decode::rules::{RuleConfig, Rules};
pub use decode::seek::{Observer, Samples, Segment, TranscribeConfig, Transcription};
pub use engine::FasterWhisper;
pub use error::{Error, LoadError};
pub use model::Placement;
pub use tokenizer::{Prompt, Task, Vocabulary};
pub use whisper::{LanguageProbability, Whisper, Window};
