//! Errors of loading a model ([`LoadError`], read by operators) and of transcribing ([`Error`],
//! read by clients).

use std::path::PathBuf;

use dalston_engine_sdk::torch::SileroError;
use tch::TchError;
use thiserror::Error;

use crate::options::OptionError;

/// Why a model directory could not be loaded. Every message is one line and names the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The directory belongs to another program.
    #[error("{} is {kind}, not a Hugging Face Whisper directory: {advice}", path.display())]
    Foreign {
        /// The model directory.
        path: PathBuf,
        /// Whose it is.
        kind: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The directory has no weights in the safetensors format.
    #[error(
        "{}: no model.safetensors and no model.safetensors.index.json: {hint}",
        path.display()
    )]
    NoWeights {
        /// The model directory.
        path: PathBuf,
        /// How to fix it.
        hint: &'static str,
    },
    /// A JSON file is malformed, or lacks a key.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The position and the reason.
        source: serde_json::Error,
    },
    /// A file contains an invalid value.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The invalid value.
        problem: String,
    },
    /// The weights lack a tensor that the configuration requires.
    #[error("{}: tensor {name:?} is missing", path.display())]
    MissingTensor {
        /// The file (or the index of its shards).
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The shape of a tensor contradicts the configuration.
    #[error("{}: tensor {name:?} has shape {found:?}, but config.json calls for {expected:?}", path.display())]
    WrongShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that `config.json` implies.
        expected: Vec<i64>,
        /// The shape in the file.
        found: Vec<i64>,
    },
    /// The element type of a tensor is not supported.
    #[error("{}: tensor {name:?} is stored as {dtype}: expected F32, F16, BF16 or F64", path.display())]
    UnsupportedDtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: String,
    },
    /// libtorch failed, for example because memory is exhausted.
    #[error("libtorch failed while loading the model: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// Why a recording could not be transcribed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The model does not know the language.
    #[error("this model does not know the language {language:?}: expected {}", known.join(", "))]
    UnknownLanguage {
        /// The requested language.
        language: String,
        /// The languages of the model.
        known: Vec<String>,
    },
    /// The task is translation, and the model only transcribes.
    #[error("this model cannot translate: it only knows the language {language:?}")]
    CannotTranslate {
        /// The only language of the model.
        language: String,
    },
    /// The model can't honour an option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The samples could not be read.
    #[error("cannot read the samples: {0}")]
    Samples(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The output of the network is NaN or infinite.
    #[error(
        "the output of the model is not a number in the window at {offset:.2} s: \
         try another precision, or check the model files and the recording"
    )]
    NotANumber {
        /// Start of the window, in seconds from the start of the recording.
        offset: f64,
    },
    /// The tokenizer could not turn text into ids or back.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The [`Observer`](crate::Observer) stopped the transcription.
    #[error("the transcription was stopped")]
    Stopped,
    /// libtorch failed, for example because memory is exhausted.
    #[error("libtorch failed while transcribing: {}", first_line(.0))]
    Torch(#[from] TchError),
    /// The voice detector could not be made.
    #[error(transparent)]
    VoiceDetector(#[from] SileroError),
}

/// libtorch's messages end with a C++ back-trace of dozens of lines.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
