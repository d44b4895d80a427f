//! Whisper on libtorch.
//!
//! Loads any Hugging Face Whisper directory (tiny to large-v3 and turbo) and transcribes recordings
//! of any length, on the CPU or a GPU, in float32, float16, bfloat16 or with weights in int8. All
//! differences between models come from their files: shapes, mel bins, token ids, languages,
//! suppressed tokens, the length of a window.
//!
//! [`Whisper`] is a loaded model. [`Whisper::transcribe`] transcribes a recording as its
//! [`Options`] say, and [`Whisper::transcribe_batch`] several at once. [`Window`] gives access to
//! single steps: encoder output, logits, language probabilities, the decoding of one window.
//!
//! The binary of this crate is a Dalston engine.

mod align;
mod chunking;
pub mod config;
pub mod decode;
mod engine;
mod error;
mod features;
mod model;
mod options;
mod precision;
mod request;
mod task;
mod tokenizer;
mod weights;
mod whisper;

pub use align::Alignment;
pub use config::Config;
pub use decode::compression_ratio;
pub use decode::rules::{RuleConfig, Rules};
pub use decode::transcription::{Observer, Recording, Samples, Segment, Transcription, Word};
pub use decode::{Hypothesis, Sampling};
pub use engine::FasterWhisper;
pub use error::{Error, LoadError};
pub use model::Placement;
pub use options::{Clips, Described, OptionError, Options, TextOrTokens, TokenChoice};
pub use task::Task;
pub use tokenizer::{Prompt, Vocabulary};
pub use whisper::{LanguageProbability, Whisper, Window};
