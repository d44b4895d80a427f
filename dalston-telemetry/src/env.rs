//! The environment as a value.
//!
//! All code that reads a variable takes an [`Env`], so that a test passes its own variables. Only
//! [`Env::from_process`] reads those of the process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::parse_error::Shown;

/// A snapshot of environment variables. Cheap to clone.
///
/// A variable that is empty or white space counts as unset: the OpenTelemetry specification demands
/// it, and `VARIABLE=${VARIABLE:-}` in a compose file relies on it. White space around a value is
/// removed.
///
/// ```
/// use dalston_telemetry::Env;
///
/// let env = Env::from_pairs([("OTEL_ENABLED", "true"), ("OTEL_SERVICE_NAME", "")]);
/// assert_eq!(env.get("OTEL_ENABLED"), Some("true"));
/// assert_eq!(env.get("OTEL_SERVICE_NAME"), None);
/// ```
#[derive(Clone, Default)]
pub struct Env {
    variables: Arc<BTreeMap<String, String>>,
}

impl Env {
    /// Takes a copy of the variables of this process.
    ///
    /// Bytes that are not Unicode become replacement characters, so that the reader of a broken
    /// value reports it.
    #[must_use]
    pub fn from_process() -> Self {
        Self::from_pairs(std::env::vars_os().map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        }))
    }

    /// An environment of exactly these variables. Of equal names the last one counts.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        let variables = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self {
            variables: Arc::new(variables),
        }
    }

    /// The value of a variable, or `None` when it is unset or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Env {
    /// Shows names only, because values may be passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

/// An environment variable has a value that it does not accept.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {}: expected {accepted}", Shown(value.as_deref()))]
pub struct EnvError {
    variable: String,
    value: Option<String>,
    accepted: Cow<'static, str>,
}

impl EnvError {
    /// An error for `variable` with `value`, where `accepted` ("a number from 0 to 1") is expected.
    pub fn new(
        variable: impl Into<String>,
        value: impl Into<String>,
        accepted: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            variable: variable.into(),
            value: Some(value.into()),
            accepted: accepted.into(),
        }
    }

    /// The same for a variable whose value may be a secret. The error does not show it.
    pub fn secret(variable: impl Into<String>, accepted: impl Into<Cow<'static, str>>) -> Self {
        Self {
            variable: variable.into(),
            value: None,
            accepted: accepted.into(),
        }
    }

    /// The name of the variable.
    #[must_use]
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// The value, unless it may be a secret.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// The accepted values.
    #[must_use]
    pub fn accepted(&self) -> &str {
        &self.accepted
    }
}

impl fmt::Debug for EnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvError({self})")
    }
}

/// An environment variable has a value that is ignored instead of being an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnvWarning {
    pub(crate) variable: &'static str,
    /// The ignored value; of a list, the ignored entries.
    pub(crate) value: String,
    /// The value that is used in its place.
    pub(crate) used: String,
    /// The accepted values.
    pub(crate) accepted: Cow<'static, str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variable_counts_as_unset() {
        let env = Env::from_pairs([("A", ""), ("B", "  "), ("C", " x ")]);
        assert_eq!(
            (env.get("A"), env.get("B"), env.get("C")),
            (None, None, Some("x"))
        );
    }

    #[test]
    fn secrets_are_in_no_debug_output_and_no_error() {
        let env = Env::from_pairs([("TOKEN", "hunter2")]);
        assert!(!format!("{env:?}").contains("hunter2"));
        let error = EnvError::secret("TOKEN", "name=value pairs");
        assert_eq!(
            error.to_string(),
            "TOKEN is not valid (the value is not shown): expected name=value pairs"
        );
    }

    #[test]
    fn long_value_is_shortened_in_error() {
        let error = EnvError::new("A", "ä".repeat(500), "less");
        assert!(error.to_string().len() < 300, "{error}");
    }
}
