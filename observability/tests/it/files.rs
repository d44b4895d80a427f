//! Files of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

/// The directory of the stack.
pub(crate) const STACK: &str = "examples/observability-stack";

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file of the stack, with merged anchors.
pub(crate) fn yaml(name: &str) -> Value {
    let mut value: Value = serde_yaml_ng::from_str(&read(&format!("{STACK}/{name}"))).unwrap();
    value.apply_merge().unwrap();
    value
}

/// The elements of a list, none if it is absent.
pub(crate) fn list(value: &Value) -> Vec<Value> {
    value.as_sequence().cloned().unwrap_or_default()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value:?} is no text"))
}

#[test]
fn checked_in_files_are_those_of_the_generator() {
    for (path, text) in observability::files() {
        assert!(
            read(&path) == text,
            "{path} is out of date: run cargo xtask rules"
        );
    }
}

#[test]
fn generated_directories_contain_nothing_else() {
    let generated: Vec<PathBuf> = observability::files()
        .into_iter()
        .map(|(path, _)| workspace().join(path))
        .collect();
    for path in &generated {
        for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
            let found = entry.unwrap().path();
            assert!(
                generated.contains(&found),
                "{} is not generated: delete it",
                found.display()
            );
        }
    }
}
