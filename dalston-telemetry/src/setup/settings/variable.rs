use std::borrow::Cow;
use std::fmt;

use super::Accepts;
use crate::env::{Env, EnvError, EnvWarning};

/// An environment variable: its names, the values that it accepts, its default, and a description.
///
/// Declared with [`variables!`](crate::variables), which takes the description from the doc
/// comment.
pub struct Variable<T: 'static> {
    names: &'static [&'static str],
    accepts: &'static dyn Accepts<T>,
    default: Default,
    description: &'static str,
    is_secret: bool,
    unsupported: &'static [(&'static str, &'static str)],
}

#[derive(Debug, Clone, Copy)]
enum Default {
    None,
    Value(&'static str),
    Described(&'static str),
}

impl<T> Variable<T> {
    /// A variable with one or more names, of which the first that is set counts.
    #[must_use]
    pub const fn new(names: &'static [&'static str], accepts: &'static dyn Accepts<T>) -> Self {
        Self {
            names,
            accepts,
            default: Default::None,
            description: "",
            is_secret: false,
            unsupported: &[],
        }
    }

    /// Sets the default, as a user would write it.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Default::Value(value);
        self
    }

    /// Says in Markdown what holds where the variable is not set and there is no fixed default:
    /// "the engine's".
    #[must_use]
    pub const fn default_described(mut self, text: &'static str) -> Self {
        self.default = Default::Described(text);
        self
    }

    /// Keeps the value out of errors, because it may hold a password.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// Adds values that OpenTelemetry defines and this crate does not support. Injectors and shared
    /// environments set them, so they are no errors.
    ///
    /// Beside each is the value that is read in its place. If that is empty, the value counts as
    /// not set; in a list, the entry is left out.
    #[must_use]
    pub(crate) const fn unsupported(mut self, values: &'static [(&'static str, &'static str)]) -> Self {
        self.unsupported = values;
        self
    }

    /// Sets the description, as Markdown. [`variables!`](crate::variables) calls it.
    #[must_use]
    pub const fn described(mut self, text: &'static str) -> Self {
        self.description = text;
        self
    }

    /// The first of its names.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.names[0]
    }

    /// All of its names.
    #[must_use]
    pub const fn names(&self) -> &'static [&'static str] {
        self.names
    }

    /// The values that it accepts. Completes the sentence "expected …".
    #[must_use]
    pub fn accepted(&self) -> Cow<'static, str> {
        self.accepts.expected()
    }

    /// The name that is set, with its value as it was written.
    #[must_use]
    pub fn first<'e>(&self, env: &'e Env) -> Option<(&'static str, &'e str)> {
        self.names
            .iter()
            .find_map(|name| env.get(name).map(|value| (*name, value)))
    }

    /// All of its names that are set, with their values as they were written.
    pub fn all<'e>(&self, env: &'e Env) -> impl Iterator<Item = (&'static str, &'e str)> {
        let set = self.names.iter();
        set.filter_map(|name| env.get(name).map(|value| (*name, value)))
    }

    /// Whether one of its names is set.
    #[must_use]
    pub fn is_set(&self, env: &Env) -> bool {
        self.first(env).is_some()
    }

    /// The value, or `None` where the variable is not set.
    ///
    /// # Errors
    ///
    /// If the value is not accepted.
    pub fn read(&self, env: &Env) -> Result<Option<T>, EnvError> {
        for (name, value) in self.all(env) {
            let Some(supported) = self.supported(value) else {
                continue;
            };
            return match self.accepts.parse(&supported) {
                Some(parsed) => Ok(Some(parsed)),
                None => Err(self.error(name, value)),
            };
        }
        Ok(None)
    }

    /// The warning about a value that [`unsupported`](Self::unsupported) lists.
    pub(crate) fn warning(&self, env: &Env) -> Option<EnvWarning> {
        let (name, value) = self.first(env)?;
        let unsupported: Vec<_> = value
            .split(',')
            .map(str::trim)
            .filter(|entry| self.replacement(entry).is_some())
            .collect();
        let used = self.all(env).find_map(|(_, value)| self.supported(value));
        (!unsupported.is_empty()).then(|| EnvWarning {
            variable: name,
            value: unsupported.join(","),
            used: used.unwrap_or(self.default_text().into()).into_owned(),
            accepted: self.accepts.expected(),
        })
    }

    /// The error for the value that is set, if what is left of it after [`read`](Self::read) is
    /// wrong.
    pub(crate) fn error_in(&self, env: &Env) -> EnvError {
        let (name, value) = self.first(env).unwrap_or((self.name(), self.default_text()));
        self.error(name, value)
    }

    /// The default, as a user would write it.
    pub(crate) fn default_text(&self) -> &'static str {
        match self.default {
            Default::None => "",
            Default::Value(text) | Default::Described(text) => text,
        }
    }

    /// The value without its unsupported entries; `None` if there are no others.
    fn supported<'v>(&self, value: &'v str) -> Option<Cow<'v, str>> {
        let entries = || value.split(',').map(|entry| (entry, self.replacement(entry)));
        if entries().all(|(_, replacement)| replacement.is_none()) {
            return Some(value.into());
        }
        let supported: Vec<_> = entries()
            .map(|(entry, replacement)| replacement.unwrap_or(entry.trim()))
            .filter(|entry| !entry.is_empty())
            .collect();
        (!supported.is_empty()).then(|| supported.join(",").into())
    }

    fn replacement(&self, entry: &str) -> Option<&'static str> {
        let mut listed = self.unsupported.iter();
        let (_, replacement) = listed.find(|(value, _)| value.eq_ignore_ascii_case(entry.trim()))?;
        Some(replacement)
    }

    /// The value, or the default where the variable is not set.
    ///
    /// # Errors
    ///
    /// If the value is not accepted.
    ///
    /// # Panics
    ///
    /// As [`default_value`](Self::default_value).
    pub fn read_or_default(&self, env: &Env) -> Result<T, EnvError> {
        Ok(self.read(env)?.unwrap_or_else(|| self.default_value()))
    }

    /// The default.
    ///
    /// # Panics
    ///
    /// If the declaration has no default, or one that the variable itself does not accept.
    #[must_use]
    pub fn default_value(&self) -> T {
        let parsed = match self.default {
            Default::Value(text) => self.accepts.parse(text),
            Default::None | Default::Described(_) => None,
        };
        match parsed {
            Some(value) => value,
            None => panic!("the default of {} is {:?}", self.name(), self.default),
        }
    }

    /// The error for a value that was read with [`first`](Self::first) and is not accepted.
    #[must_use]
    pub fn error(&self, name: &str, value: &str) -> EnvError {
        match self.is_secret {
            true => EnvError::secret(name, self.accepts.expected()),
            false => EnvError::new(name, value, self.accepts.expected()),
        }
    }
}

impl<T> Clone for Variable<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Variable<T> {}

impl<T> fmt::Debug for Variable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Variable").field(&self.names).finish()
    }
}

/// A declared variable of any type: what documentation and tests read.
pub trait Declaration: Sync {
    /// Everything that a table of variables shows.
    fn describe(&self) -> Description;
}

/// A variable, as a table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// All of its names.
    pub names: Vec<&'static str>,
    /// What holds where it is not set, as Markdown.
    pub default: String,
    /// The values that it accepts. Completes the sentence "expected …".
    pub accepted: String,
    /// What it sets, as Markdown on one line.
    pub meaning: String,
    /// Whether the default, if it is a value, is one that the variable accepts.
    pub is_valid: bool,
}

impl<T> Declaration for Variable<T> {
    fn describe(&self) -> Description {
        Description {
            names: self.names.to_vec(),
            default: match self.default {
                Default::None => "none".to_owned(),
                Default::Value(text) => format!("`{text}`"),
                Default::Described(text) => text.to_owned(),
            },
            accepted: self.accepts.expected().into_owned(),
            meaning: one_line(self.description),
            is_valid: match self.default {
                Default::Value(text) => self.accepts.parse(text).is_some(),
                Default::None | Default::Described(_) => true,
            },
        }
    }
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Variables that belong together.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Group {
    /// The heading of its table.
    pub title: &'static str,
    /// What holds for all of them, as Markdown. May be empty.
    pub about: &'static str,
    /// The variables.
    pub variables: &'static [&'static dyn Declaration],
}

impl Group {
    /// A group of variables. [`variables!`](crate::variables) calls it.
    #[must_use]
    pub const fn new(
        title: &'static str,
        about: &'static str,
        variables: &'static [&'static dyn Declaration],
    ) -> Self {
        Self {
            title,
            about,
            variables,
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Group").field(&self.title).finish()
    }
}
