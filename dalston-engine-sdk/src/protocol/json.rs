//! Readers for JSON values whose errors name the path, the value that was found, and the accepted
//! ones.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A value of a document that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The path of its key, for example `request_bindings[0].slot`. `document` stands for the whole
    /// document.
    pub(crate) path: String,
    /// Begins with a verb: `is 7: expected a string`, `is missing`.
    pub(crate) problem: String,
}

impl Wrong {
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn expected(path: &str, found: &Value, expected: &str) -> Self {
        Self::new(path, format!("is {}: expected {expected}", describe(found)))
    }
}

/// An object of a document, read key by key. A `null` is an absent key.
#[derive(Debug)]
pub(crate) struct Object {
    path: String,
    map: Map<String, Value>,
}

impl Object {
    /// `path` is empty for the whole document.
    pub(crate) fn new(path: impl Into<String>, value: Value) -> Result<Self, Wrong> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => {
                let shown = if path.is_empty() { "document" } else { &path };
                Err(Wrong::expected(shown, &other, "an object"))
            }
        }
    }

    pub(crate) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// A value of any type.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Wrong::expected(&self.path_of(key), &other, "a string")),
        }
    }

    /// A required string that is not empty.
    pub(crate) fn name(&mut self, key: &str) -> Result<String, Wrong> {
        const EXPECTED: &str = "a non-empty string";
        match self.take(key) {
            None => Err(Wrong::new(
                self.path_of(key),
                format!("is missing: expected {EXPECTED}"),
            )),
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(other) => Err(Wrong::expected(&self.path_of(key), &other, EXPECTED)),
        }
    }

    /// An integer of at least `least`.
    pub(crate) fn integer<N: TryFrom<u64>>(&mut self, key: &str, least: u64) -> Result<Option<N>, Wrong> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = whole(&value)
            .filter(|&n| n >= least)
            .and_then(|n| N::try_from(n).ok());
        let expected = || {
            Wrong::expected(
                &self.path_of(key),
                &value,
                &format!("an integer of at least {least}"),
            )
        };
        number.map(Some).ok_or_else(expected)
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Result<Option<bool>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(on)),
            Some(other) => Err(Wrong::expected(&self.path_of(key), &other, "true or false")),
        }
    }

    /// A number in a range.
    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Wrong> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| range.contains(number));
        let expected = || {
            let (least, most) = (range.start(), range.end());
            let expected = match most.is_finite() {
                true => format!("a number from {least} to {most}"),
                false => format!("a number of at least {least}"),
            };
            Wrong::expected(&self.path_of(key), &value, &expected)
        };
        number.map(Some).ok_or_else(expected)
    }

    /// One of these names.
    pub(crate) fn one_of<T: DeserializeOwned>(
        &mut self,
        key: &str,
        names: &[&str],
    ) -> Result<Option<T>, Wrong> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let known = value.as_str().is_some_and(|name| names.contains(&name));
        let choice = known.then(|| T::deserialize(&value).ok()).flatten();
        let expected = || {
            let expected = format!("one of {}", names.join(", "));
            Wrong::expected(&self.path_of(key), &value, &expected)
        };
        choice.map(Some).ok_or_else(expected)
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(Wrong::expected(&self.path_of(key), &other, "an object")),
        }
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(Wrong::expected(&self.path_of(key), &other, "a list")),
        }
    }

    pub(crate) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, Wrong> {
        let Some(values) = self.list(key)? else {
            return Ok(None);
        };
        let path = self.path_of(key);
        let texts = values
            .into_iter()
            .enumerate()
            .map(|(index, value)| string(&format!("{path}[{index}]"), value));
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// The keys that were not read, in order.
    pub(crate) fn rest(self) -> impl Iterator<Item = String> {
        self.map.into_iter().map(|(key, _)| key)
    }
}

/// The value at `path`, which has to be a string.
pub(crate) fn string(path: &str, value: Value) -> Result<String, Wrong> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Wrong::expected(path, &other, "a string")),
    }
}

/// A short form of a value for a message: documents may be large, and come from outside.
pub(crate) fn describe(value: &Value) -> String {
    const LONGEST: usize = 40;
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() <= LONGEST => format!("{text:?}"),
        Value::String(text) => format!("a string of {} characters", text.chars().count()),
        Value::Array(values) if values.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Accepts `5.0`: Python's `json` writes it for an integral float, and the platform's models read
/// it as an integer.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..=MAX_EXACT).contains(&number)).then_some(number as u64)
    })
}

/// The largest integer below which an `f64` holds every integer.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The JSON text of a document, with two spaces of indent.
pub(crate) fn pretty<T: serde::Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(document).expect("the keys are strings and no field fails to serialize")
}
