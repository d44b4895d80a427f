//! What can go wrong: loading a model is one family of errors, using it another, because two different people read them.

use std::path::PathBuf;

use tch::TchError;
use thiserror::Error;

/// Why a model directory could not be loaded. Every message is one line and names the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The directory holds weights, but not in a format that is read here.
    #[error(
        "{}: no model.safetensors and no model.safetensors.index.json: {hint}",
        path.display()
    )]
    NoWeights {
        /// The model directory.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A JSON file is malformed, or lacks a key.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file was read but says something that cannot be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that the configuration calls for is not among the weights.
    #[error("{}: tensor {name:?} is missing", path.display())]
    MissingTensor {
        /// The file (or the index of its shards).
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
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
    /// A tensor's element type cannot be used.
    #[error("{}: tensor {name:?} is stored as {dtype}: expected F32, F16, BF16 or F64", path.display())]
    UnsupportedDtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: String,
    },
    /// libtorch refused, for example for want of memory.
    #[error("libtorch failed while loading the model: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// Why a recording could not be transcribed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The language is not one of the model's.
    #[error("language {language:?} is not one of this model's: expected {}", known.join(", "))]
    UnknownLanguage {
        /// What was asked for.
        language: String,
        /// What the model knows.
        known: Vec<String>,
    },
    /// Translation was asked of a model that only transcribes.
    #[error("this model cannot translate: it knows {language:?} only")]
    CannotTranslate {
        /// The model's one language.
        language: String,
    },
    /// The samples could not be read.
    #[error("cannot read the samples: {0}")]
    Samples(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network's output was NaN or infinite.
    #[error(
        "the model's output is not a number in the window at {offset:.2} s: \
         try another precision, or check the model files and the recording"
    )]
    NotANumber {
        /// Where in the recording, in seconds.
        offset: f64,
    },
    /// The tokenizer could not turn text into ids or back.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The [`Observer`](crate::Observer) asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// libtorch refused, for example for want of memory.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// libtorch's messages end in a C++ back-trace of dozens of lines.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
