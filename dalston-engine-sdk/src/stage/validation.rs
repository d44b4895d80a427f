//! The error of an invalid answer: [`ValidationError`].

use std::fmt;

/// An invalid field of an answer. The task fails with it, because the platform would refuse the
/// whole answer.
///
/// The message is a sentence: `segments[3].words[1].end is NaN: expected a finite number of
/// seconds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationError {
    path: String,
    problem: String,
}

impl ValidationError {
    /// `path` names the field from the top of the answer. `problem` starts with a verb and names
    /// the expected value.
    #[must_use]
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// A piece of audio that starts before the previous one in its list.
    pub(super) fn out_of_order(start: f64, previous: f64) -> Self {
        let problem =
            format!("is {start}, before the start of the previous one, {previous}: expected them in order");
        Self::new("start", problem)
    }

    /// The field, for example `segments[3].words[1].end`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The problem of the field.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The error with the path of the object or list that holds the field in front.
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
