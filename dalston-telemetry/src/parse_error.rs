//! The error of every parser: [`ParseError`].

use std::borrow::Cow;
use std::fmt;

/// A text is not what it should be: a name, a URL, a time, a filter.
///
/// ```
/// use dalston_telemetry::LogFormat;
///
/// let error = "xml".parse::<LogFormat>().unwrap_err();
/// assert_eq!(error.to_string(), r#"log format is "xml": expected json, console or auto"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {}: expected {expected}", Shown(value.as_deref()))]
pub struct ParseError {
    what: Cow<'static, str>,
    value: Option<String>,
    expected: Cow<'static, str>,
}

impl ParseError {
    /// Says that `what` ("log format") is `value` where `expected` ("json, console or auto") is
    /// expected.
    pub fn new(
        what: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            what: what.into(),
            value: Some(value.into()),
            expected: expected.into(),
        }
    }

    /// The same for a text that may hold a password and is therefore not shown.
    pub fn secret(what: impl Into<Cow<'static, str>>, expected: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            value: None,
            expected: expected.into(),
        }
    }

    /// The text, unless it may hold a password.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What is expected.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

/// A value as errors show it: quoted, and never longer than a line.
pub(crate) struct Shown<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 120;
        match self.0 {
            None => f.write_str("not valid (the value is not shown)"),
            Some(value) => match value.char_indices().nth(LONGEST) {
                None => write!(f, "{value:?}"),
                Some((end, _)) => write!(f, "{:?} (shortened)", &value[..end]),
            },
        }
    }
}
