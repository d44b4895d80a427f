//! Why an answer can't leave the engine: [`ValidationError`].

use std::fmt;

/// A field of an answer that is wrong. The task fails with it, because the platform would refuse the whole answer.
///
/// It reads like a sentence: `segments[3].words[1].end is NaN: expected a finite number of seconds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationError {
    path: String,
    problem: String,
}

impl ValidationError {
    /// `path` names the field from the top of the answer. `problem` starts with a verb and says what was expected.
    #[must_use]
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// The field, for example `segments[3].words[1].end`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The same error, seen from the object or list that holds the field.
    pub(super) fn within(mut self, parent: impl fmt::Display) -> Self {
        let join = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{parent}{join}{}", self.path);
        self
    }
}

impl fmt::Display for ValidationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() {
            "answer"
        } else {
            &self.path
        };
        write!(f, "{path} {}", self.problem)
    }
}

impl std::error::Error for ValidationError {}
