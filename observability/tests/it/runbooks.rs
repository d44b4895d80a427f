//! The runbooks of the alerts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::files::{read, text, workspace};
use crate::manifest::Manifest;
use crate::rules::{RULES, alerts, rules};

const RUNBOOKS: &str = "docs/runbooks.md";
const PARTS: [&str; 3] = ["**Meaning.** ", "**Check.** ", "**Action.**\n\n1. "];

/// The sections by their headings.
fn sections(page: &str) -> BTreeMap<&str, &str> {
    let sections = page.split("\n## ").skip(1);
    sections
        .map(|section| section.split_once('\n').unwrap())
        .collect()
}

#[test]
fn each_alert_has_a_runbook() {
    let page = read(RUNBOOKS);
    let mut sections = sections(&page);
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let section = sections
            .remove(name)
            .unwrap_or_else(|| panic!("no section {name}"));
        let places = PARTS.map(|part| section.find(part).unwrap_or_else(|| panic!("{name}: no {part}")));
        assert!(places.is_sorted(), "{name}: {PARTS:?} in this order");
        let url = text(&alert["annotations"]["runbook_url"]);
        let anchor = format!("/{RUNBOOKS}#{}", name.to_lowercase());
        assert!(url.ends_with(&anchor), "{url}");
    }
    assert!(sections.is_empty(), "no such alerts: {:?}", sections.keys());
}

#[test]
fn runbooks_name_existing_things_only() {
    let page = read(RUNBOOKS);
    let manifest = Manifest::load();
    let recorded = rules(RULES[0]);
    let variables = read("docs/reference/environment.md");
    let code = [
        "dalston-engine-sdk/src",
        "dalston-telemetry/src",
        "examples/dev_platform/src",
    ]
    .map(|directory| sources(&workspace().join(directory)))
    .concat();
    for quoted in page.split('`').skip(1).step_by(2) {
        let words = quoted.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
        for word in words.filter(|word| word.contains('_')) {
            let exists = match word {
                _ if word.starts_with("DALSTON_") => variables.contains(&format!("`{word}`")),
                _ if word.starts_with("dalston:") => recorded.iter().any(|rule| rule["record"] == *word),
                _ if word.starts_with("dalston_") => {
                    manifest.get(word).is_some() || is_histogram(&manifest, word)
                }
                // Variables of the driver and the programs of others.
                "NVIDIA_DRIVER_CAPABILITIES" | "LOG_LEVEL" => true,
                _ => {
                    // The last part of the name of an attribute, too.
                    code.contains(&format!("\"{word}"))
                        || code.contains(&format!(".{word}\""))
                        || code.contains(&format!("{word}:"))
                        || word.ends_with('_')
                }
            };
            assert!(exists, "{RUNBOOKS}: `{quoted}`: there is no {word}");
        }
    }
}

pub(crate) fn is_histogram(manifest: &Manifest, name: &str) -> bool {
    manifest.get(&format!("{name}_bucket")).is_some()
}

pub(crate) fn sources(directory: &Path) -> String {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let texts = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => fs::read_to_string(&path).unwrap_or_default(),
    });
    texts.collect()
}
