//! The error of an invalid configuration, and the reader of configurations: [`ConfigError`].

use serde_json::{Map, Value};

use crate::protocol::json::{Object, Wrong};

/// An invalid option of a task. Another attempt does not help: the request has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config key {key} {problem}")]
pub struct ConfigError {
    key: String,
    #[source]
    problem: ConfigProblem,
}

/// The problem without the key. As the source of a [`ConfigError`] it identifies the error also
/// inside an `anyhow::Error`, which does not give the error that it was made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigProblem(String);

impl ConfigError {
    /// The key, for example `temperature[1]`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl From<Wrong> for ConfigError {
    fn from(wrong: Wrong) -> Self {
        Self {
            key: wrong.path,
            problem: ConfigProblem(wrong.problem),
        }
    }
}

/// Reads options from a configuration. Keys that `read` does not take are ignored.
pub(super) fn read<T>(
    config: &Map<String, Value>,
    read: impl FnOnce(&mut Object) -> Result<T, Wrong>,
) -> Result<T, ConfigError> {
    let mut config = Object::new("", Value::Object(config.clone()))?;
    Ok(read(&mut config)?)
}

/// The model that a configuration names.
pub(super) fn model_id(config: &mut Object) -> Result<Option<String>, Wrong> {
    Ok(config.text("loaded_model_id")?.filter(|id| !id.is_empty()))
}
