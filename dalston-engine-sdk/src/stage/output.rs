//! The answer of a task, and its check: [`StageOutput`].

use serde::Serialize;
use serde_json::Value;

use super::finite;
use super::validation::ValidationError;

/// The answer of a stage: what becomes `data` in `response.json`.
///
/// The [module](super) has a type for each stage of the platform. For another stage, derive
/// [`Serialize`] for your own type and implement the trait with an empty body: the answer is then
/// checked for numbers that JSON can't represent. Override `validate` for further checks.
///
/// ```
/// use dalston_engine_sdk::stage::{StageOutput, ValidationError};
///
/// #[derive(serde::Serialize)]
/// struct Mood {
///     mood: String,
///     confidence: f64,
/// }
///
/// impl StageOutput for Mood {
///     fn validate(&self) -> Result<(), ValidationError> {
///         if !(0.0..=1.0).contains(&self.confidence) {
///             let problem = format!("is {}: expected 0 to 1", self.confidence);
///             return Err(ValidationError::new("confidence", problem));
///         }
///         Ok(())
///     }
/// }
///
/// let mood = Mood { mood: "calm".to_owned(), confidence: 1.5 };
/// assert_eq!(mood.into_data().unwrap_err().to_string(), "confidence is 1.5: expected 0 to 1");
/// ```
pub trait StageOutput: Serialize + Send + 'static {
    /// Fills in facts of the runner that the engine left out. Does nothing unless overridden.
    fn fill_in(&mut self, defaults: &OutputDefaults<'_>) {
        let _ = defaults;
    }

    /// Checks what the types can't ensure. Accepts everything unless overridden.
    ///
    /// [`into_data`](Self::into_data) always refuses numbers that JSON can't represent (NaN,
    /// infinities).
    ///
    /// # Errors
    ///
    /// The path of the first invalid field, and its problem.
    fn validate(&self) -> Result<(), ValidationError> {
        Ok(())
    }

    /// The language of the answer, for the task's span: an ISO 639-1 code. `None` unless
    /// overridden.
    fn language(&self) -> Option<&str> {
        None
    }

    /// The answer as JSON, after [`validate`](Self::validate) and the check of its numbers.
    ///
    /// # Errors
    ///
    /// If the answer is not valid, has a NaN or an infinity, or can't be serialised.
    fn into_data(self) -> Result<Value, ValidationError>
    where
        Self: Sized,
    {
        self.validate()?;
        finite::to_value(&self)
    }
}

impl StageOutput for Value {}

/// Facts of the runner about a task that an answer may leave out, see [`StageOutput::fill_in`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OutputDefaults<'a> {
    /// The id of the engine.
    pub engine_id: &'a str,
    /// The channel of the task.
    pub channel: Option<u32>,
    /// The id of the model.
    pub model_id: Option<&'a str>,
    /// The duration of the input audio in seconds.
    pub duration: Option<f64>,
    /// Problems of the input that did not prevent its use, for example that a file is cut off.
    pub warnings: &'a [String],
}

impl<'a> OutputDefaults<'a> {
    /// The defaults of an engine without facts about the task.
    #[must_use]
    pub fn new(engine_id: &'a str) -> Self {
        Self {
            engine_id,
            ..Self::default()
        }
    }
}
