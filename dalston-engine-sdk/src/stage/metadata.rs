//! Named facts beside the fixed fields of an answer: [`Metadata`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::finite;
use super::validation::ValidationError;

/// Named facts without a fixed field, such as `avg_logprob` of a segment: any JSON under any name.
///
/// ```
/// use dalston_engine_sdk::stage::Metadata;
///
/// let mut metadata = Metadata::new();
/// metadata.insert("avg_logprob", -0.25);
/// metadata.insert("tokens", [50364, 2, 50414]);
/// assert_eq!(metadata.get("avg_logprob"), Some(&serde_json::json!(-0.25)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata {
    map: Map<String, Value>,
    /// The first value that JSON can't represent. `insert` stays infallible, and the validation
    /// fails with this error.
    #[serde(skip)]
    refused: Option<ValidationError>,
}

impl Metadata {
    /// No facts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a fact. It replaces an earlier one of the same name.
    ///
    /// A value that JSON can't represent, such as NaN, makes the answer invalid: see
    /// [`StageOutput::validate`](super::StageOutput::validate).
    pub fn insert(&mut self, name: impl Into<String>, value: impl Serialize) {
        let name = name.into();
        match finite::to_value(&value) {
            Ok(value) => {
                self.map.insert(name, value);
            }
            Err(error) => {
                self.refused.get_or_insert(error.within(name));
            }
        }
    }

    /// The fact of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// Whether there are no facts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// All facts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub(super) fn validate(&self) -> Result<(), ValidationError> {
        match &self.refused {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }
}

impl From<Map<String, Value>> for Metadata {
    fn from(map: Map<String, Value>) -> Self {
        Self { map, refused: None }
    }
}

impl<N: Into<String>, V: Serialize> Extend<(N, V)> for Metadata {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, facts: I) {
        for (name, value) in facts {
            self.insert(name, value);
        }
    }
}

impl<N: Into<String>, V: Serialize> FromIterator<(N, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(facts: I) -> Self {
        let mut metadata = Self::new();
        metadata.extend(facts);
        metadata
    }
}
