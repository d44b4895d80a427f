//! What a task answers, and the check before it leaves.

use serde::Serialize;
use serde_json::Value;

use super::{ValidationError, confined};

/// The answer of a stage: what becomes `data` in `response.json`.
///
/// [`Transcript`](super::Transcript) is the answer of `transcribe`. For another stage, derive [`Serialize`] for your own
/// type and implement the trait with an empty body: the answer is then checked for numbers that JSON can't carry. Add
/// `validate` for what only you know.
///
/// ```
/// use dalston_engine_sdk::stage::{StageOutput, ValidationError};
///
/// #[derive(serde::Serialize)]
/// struct Turns {
///     speakers: Vec<String>,
///     overlap_ratio: f64,
/// }
///
/// impl StageOutput for Turns {
///     fn validate(&self) -> Result<(), ValidationError> {
///         if !(0.0..=1.0).contains(&self.overlap_ratio) {
///             return Err(ValidationError::new("overlap_ratio", format!("is {}: expected 0 to 1", self.overlap_ratio)));
///         }
///         Ok(())
///     }
/// }
///
/// let turns = Turns { speakers: vec![], overlap_ratio: 1.5 };
/// assert_eq!(turns.into_data().unwrap_err().to_string(), "overlap_ratio is 1.5: expected 0 to 1");
/// ```
pub trait StageOutput: Serialize + Send + 'static {
    /// Fills in what the runner knows and the engine did not say. Does nothing unless overridden.
    fn fill_in(&mut self, defaults: &OutputDefaults<'_>) {
        let _ = defaults;
    }

    /// Checks what the types can't promise. The default finds nothing wrong.
    ///
    /// Numbers that JSON can't carry (NaN, infinities) are found by [`into_data`](Self::into_data) in any case.
    ///
    /// # Errors
    ///
    /// The path of the first field that is wrong, and what is wrong with it.
    fn validate(&self) -> Result<(), ValidationError> {
        Ok(())
    }

    /// The language of the answer, for the task's span: an ISO 639-1 code. `None` unless overridden.
    fn language(&self) -> Option<&str> {
        None
    }

    /// The answer as JSON, after [`validate`](Self::validate) and a check that every number in it is one for JSON.
    ///
    /// # Errors
    ///
    /// If the answer is not valid, has a NaN or an infinity, or can't be serialised.
    fn into_data(self) -> Result<Value, ValidationError>
    where
        Self: Sized,
    {
        self.validate()?;
        confined::to_value(&self)
    }
}

impl StageOutput for Value {}

/// What the runner knows about a task and an answer may leave out, see [`StageOutput::fill_in`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OutputDefaults<'a> {
    /// The engine's id.
    pub engine_id: &'a str,
    /// The channel that the task was for.
    pub channel: Option<u32>,
    /// The model that worked.
    pub model_id: Option<&'a str>,
    /// Seconds of audio that the task was given.
    pub duration: Option<f64>,
    /// What was wrong with the input and did not keep it from being used, for example that a file is cut off.
    pub warnings: &'a [String],
}

impl<'a> OutputDefaults<'a> {
    /// The defaults of an engine, with nothing known about the task.
    #[must_use]
    pub fn new(engine_id: &'a str) -> Self {
        Self {
            engine_id,
            ..Self::default()
        }
    }
}
