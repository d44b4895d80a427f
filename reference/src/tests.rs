//! The pages are up to date. Each environment variable is declared once, and only declarations name
//! it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dalston_telemetry::settings::{Description, Group};

use super::*;

/// The places of declarations, from the root of the workspace.
const DECLARATIONS: [(&str, &[&Group]); 2] = [
    (
        "dalston-telemetry/src/setup/settings",
        dalston_telemetry::settings::VARIABLES,
    ),
    (
        "dalston-engine-sdk/src/config/settings.rs",
        dalston_engine_sdk::settings::VARIABLES,
    ),
];

#[test]
fn pages_are_up_to_date() {
    let stale: Vec<_> = pages()
        .unwrap()
        .into_iter()
        .filter(|(name, page)| fs::read_to_string(workspace().join(name)).ok().as_ref() != Some(page))
        .map(|(name, _)| name)
        .collect();
    assert!(
        stale.is_empty(),
        "out of date: {stale:?}; run cargo xtask reference"
    );
}

fn declared() -> impl Iterator<Item = Description> {
    let groups = DECLARATIONS.into_iter().flat_map(|(_, groups)| groups);
    groups.flat_map(|group| group.variables.iter().map(|variable| variable.describe()))
}

#[test]
fn each_default_is_an_accepted_value() {
    let wrong: Vec<_> = declared().filter(|variable| !variable.is_valid).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_variable_has_a_description() {
    for variable in declared() {
        assert!(!variable.meaning.is_empty(), "{:?}", variable.names);
        assert!(!variable.accepted.is_empty(), "{:?}", variable.names);
    }
}

#[test]
fn each_name_is_declared_once() {
    let mut names = BTreeSet::new();
    for name in declared().flat_map(|variable| variable.names) {
        assert!(names.insert(name), "{name} is declared twice");
    }
}

#[test]
fn each_group_is_listed() {
    for (place, groups) in DECLARATIONS {
        let declared: usize = sources(&workspace().join(place))
            .iter()
            .map(|file| code(file).matches("pub group ").count())
            .sum();
        assert_eq!(declared, groups.len(), "{place}: list each group in VARIABLES");
    }
}

#[test]
fn only_declarations_name_variables() {
    let names: BTreeSet<&str> = declared().flat_map(|variable| variable.names).collect();
    let mut found = Vec::new();
    for package in ["dalston-telemetry", "dalston-engine-sdk"] {
        for file in sources(&workspace().join(package).join("src")) {
            let is_declaration = DECLARATIONS
                .iter()
                .any(|(place, _)| file.starts_with(workspace().join(place)));
            if is_declaration {
                continue;
            }
            let code = code(&file);
            for literal in code.split('"') {
                let is_name = names.contains(literal) || has_name_of_variable(literal);
                if is_name {
                    found.push(format!("{}: \"{literal}\"", file.display()));
                }
            }
            if code.contains("env::var") && !file.ends_with("dalston-telemetry/src/env.rs") {
                found.push(format!("{}: env::var", file.display()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "declare the variable in one of {:?} and read it from its declaration: {found:#?}",
        DECLARATIONS.map(|(place, _)| place)
    );
}

fn has_name_of_variable(literal: &str) -> bool {
    let rest = ["OTEL_", "DALSTON_"]
        .iter()
        .find_map(|prefix| literal.strip_prefix(prefix));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    })
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The source files below a directory, or this file, without those that hold only tests.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        return paths.iter().flat_map(|path| sources(path)).collect();
    }
    let is_source =
        path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs");
    if is_source {
        vec![path.to_owned()]
    } else {
        Vec::new()
    }
}

/// The code of a file, without comments and tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let (code, _) = text.split_once("#[cfg(test)]\nmod ").unwrap_or((&text, ""));
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}
