//! The environment as a value.
//!
//! Everything that reads a variable takes an [`Env`], so a test passes the variables it means and two tests never
//! see each other's. Only [`Env::from_process`] looks at the process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::parse_error::Shown;

/// A snapshot of environment variables. Cheap to clone.
///
/// A variable that is empty, or nothing but white space, counts as unset: this is what the OpenTelemetry
/// specification asks for, and what `VARIABLE=${VARIABLE:-}` in a compose file means. White space around a value is
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
    /// Bytes that are not Unicode become replacement characters, so that a broken value is reported where it is used.
    #[must_use]
    pub fn from_process() -> Self {
        Self::from_pairs(std::env::vars_os().map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        }))
    }

    /// Makes an environment of exactly these variables; of equal names the last one counts.
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

    /// The first of several variables that is set, with its name: for "the specific one, else the general one".
    #[must_use]
    pub fn first<'a>(&'a self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        names
            .iter()
            .find_map(|name| self.get(name).map(|value| (*name, value)))
    }

    /// Reads a switch: `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`, in upper or lower case.
    ///
    /// # Errors
    ///
    /// When the variable has any other value.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, EnvError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Some(true)),
            "false" | "0" | "no" | "off" => Ok(Some(false)),
            _ => Err(EnvError::new(name, value, "true or false")),
        }
    }

    /// Reads a switch that the OpenTelemetry specification defines: only `true` and `false`, in upper or lower case.
    ///
    /// The specification takes everything but `true` for false. Whoever writes `OTEL_SDK_DISABLED=1` would then get
    /// the opposite of what they wanted, so we refuse it.
    ///
    /// # Errors
    ///
    /// When the variable has any other value.
    pub fn otel_flag(&self, name: &str) -> Result<Option<bool>, EnvError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(EnvError::new(name, value, "true or false")),
        }
    }

    /// Reads a value of any type that can be parsed; `accepted` completes the sentence "expected …".
    ///
    /// # Errors
    ///
    /// When the variable is set and does not parse.
    ///
    /// ```
    /// use dalston_telemetry::Env;
    ///
    /// let env = Env::from_pairs([("SLOTS", "two")]);
    /// let error = env.parse::<usize>("SLOTS", "a whole number").unwrap_err();
    /// assert_eq!(error.to_string(), r#"SLOTS is "two": expected a whole number"#);
    /// ```
    pub fn parse<T: FromStr>(&self, name: &str, accepted: &'static str) -> Result<Option<T>, EnvError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .parse()
            .map(Some)
            .map_err(|_| EnvError::new(name, value, accepted))
    }
}

impl fmt::Debug for Env {
    /// Names only: values may be passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

/// An environment variable has a value that it can't have.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {}: expected {accepted}", Shown(value.as_deref()))]
pub struct EnvError {
    variable: String,
    value: Option<String>,
    accepted: Cow<'static, str>,
}

impl EnvError {
    /// Says that `variable` has `value` where `accepted` ("a number from 0 to 1") is expected.
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

    /// The same for a variable whose value may be a secret and is therefore not shown.
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

    /// What it holds, unless that may be a secret.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What it may hold.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let env = Env::from_pairs([("A", ""), ("B", "  "), ("C", " x ")]);
        assert_eq!(
            (env.get("A"), env.get("B"), env.get("C")),
            (None, None, Some("x"))
        );
        assert_eq!(env.flag("A"), Ok(None));
        assert_eq!(env.parse::<u32>("B", "a number"), Ok(None));
        assert_eq!(env.first(&["A", "B", "C"]), Some(("C", "x")));
    }

    #[test]
    fn a_switch_understands_the_usual_words_and_refuses_others() {
        for (value, expected) in [
            ("true", true),
            ("TRUE", true),
            ("1", true),
            ("on", true),
            ("no", false),
            ("False", false),
        ] {
            assert_eq!(
                Env::from_pairs([("S", value)]).flag("S"),
                Ok(Some(expected)),
                "{value}"
            );
        }
        let error = Env::from_pairs([("S", "maybe")]).flag("S").unwrap_err();
        assert_eq!(error.to_string(), r#"S is "maybe": expected true or false"#);
        assert!(Env::from_pairs([("S", "1")]).otel_flag("S").is_err());
    }

    #[test]
    fn neither_debug_output_nor_a_secret_error_shows_a_value() {
        let env = Env::from_pairs([("TOKEN", "hunter2")]);
        assert!(!format!("{env:?}").contains("hunter2"));
        let error = EnvError::secret("TOKEN", "name=value pairs");
        assert_eq!(
            error.to_string(),
            "TOKEN is not valid (the value is not shown): expected name=value pairs"
        );
    }

    #[test]
    fn a_long_value_is_shortened_in_the_error() {
        let error = EnvError::new("A", "ä".repeat(500), "less");
        assert!(error.to_string().len() < 300, "{error}");
    }
}
