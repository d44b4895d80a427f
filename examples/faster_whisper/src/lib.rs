//! Whisper on libtorch.
//!
//! Reads any Hugging Face Whisper directory (tiny to large-v3 and turbo) and transcribes recordings of any length with it,
//! on the CPU or a GPU, in float32, float16 or bfloat16. Everything that distinguishes one model from another is read
//! from its files: shapes, mel bins, token ids, languages, suppressed tokens, the length of a window.
//!
//! [`Whisper`] is the loaded model, [`Whisper::transcribe`] the way through a recording, [`Options`] what can be asked of it.
//! [`Window`] gives access to the steps in between: encoder output, logits, language probabilities, one decoded window.
//!
//! The crate's binary is the same as a Dalston engine.

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
pub use decode::rules::{RuleOptions, Rules};
pub use decode::seek::{Observer, Options, Samples, Segment, Transcription};
pub use engine::FasterWhisper;
pub use error::{Error, LoadError};
pub use model::Placement;
pub use tokenizer::{Prompt, Task, Vocabulary};
pub use whisper::{LanguageProbability, Whisper, Window};
