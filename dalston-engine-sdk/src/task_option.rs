//! An option of tasks that an engine adds: [`TaskOption`].

use std::fmt;

use serde_json::Value;

/// An option of tasks that an engine adds to those of its stage.
///
/// It is a key of a task's configuration. For engines of stage `transcribe` it is also an argument
/// of the command `transcribe` (`beam_size` is `--beam-size`) and a field of the HTTP routes for
/// transcripts. There, a value is JSON, or text if it is not JSON.
///
/// ```
/// use dalston_engine_sdk::{EngineInfo, Stage, TaskOption};
/// use serde_json::Value;
///
/// fn check(value: &Value) -> Result<(), String> {
///     match value.as_u64() {
///         Some(1..=64) => Ok(()),
///         _ => Err("expected a whole number from 1 to 64".to_owned()),
///     }
/// }
///
/// let info = EngineInfo::new("my-asr", "1.4.0")
///     .stage(Stage::Transcribe)
///     .option(TaskOption::new("beam_size", "The width of the beam search. Default: 5", check));
/// assert_eq!(info.options[0].name, "beam_size");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct TaskOption {
    /// The key of the configuration: lower-case letters, digits and underscores.
    pub name: &'static str,
    /// One line for the help.
    pub help: &'static str,
    /// Whether the argument may stand without a value, which is then `true`. Default `false`.
    pub is_flag: bool,
    /// The value of the command line if the argument is not given. Default: the key is left out.
    pub local_default: Option<Value>,
    /// Whether the engine accepts a value. The error says what it expects.
    pub check: fn(&Value) -> Result<(), String>,
}

impl TaskOption {
    /// An option with this name and help.
    ///
    /// `check` says whether the engine accepts a value. Its error says what is expected, and is
    /// shown after the value. The engine gets only values that it accepts from command lines and
    /// HTTP routes, but any value from the queue.
    #[must_use]
    pub fn new(name: &'static str, help: &'static str, check: fn(&Value) -> Result<(), String>) -> Self {
        Self {
            name,
            help,
            is_flag: false,
            local_default: None,
            check,
        }
    }

    /// Sets whether the argument may stand without a value.
    #[must_use]
    pub fn flag(mut self, yes: bool) -> Self {
        self.is_flag = yes;
        self
    }

    /// Sets the value of the command line if the argument is not given.
    #[must_use]
    pub fn local_default(mut self, value: impl Into<Value>) -> Self {
        self.local_default = Some(value.into());
        self
    }

    /// The value of a text: JSON, or text if it is not JSON.
    #[cfg(any(feature = "cli", feature = "worker"))]
    pub(crate) fn read(&self, text: &str) -> Result<Value, String> {
        let value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
        (self.check)(&value).map(|()| value)
    }
}

impl fmt::Debug for TaskOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskOption")
            .field("name", &self.name)
            .field("help", &self.help)
            .field("is_flag", &self.is_flag)
            .field("local_default", &self.local_default)
            .finish_non_exhaustive()
    }
}

/// Two options are the same if all but the check are equal.
impl PartialEq for TaskOption {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.help, self.is_flag, &self.local_default)
            == (other.name, other.help, other.is_flag, &other.local_default)
    }
}
