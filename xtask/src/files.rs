//! Tests of files against each other: the READMEs, the reference, the manifests and the packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::steps::{cargo, root};

#[test]
fn readme_names_existing_variables_only() {
    let reference = read("docs/reference/environment.md");
    let readme = read("README.md");
    let section = readme.split_once("\n## Environment variables\n").unwrap().1;
    let section = section.split_once("\n## ").unwrap().0;
    let named = section.lines().filter(|line| line.starts_with("| `"));
    for line in named {
        let names = line.split('|').nth(1).unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            assert!(reference.contains(&format!("`{name}`")), "README.md: {name}");
        }
    }
}

#[test]
fn reference_has_every_set_of_metrics() {
    let generator = read("reference/src/metrics.rs");
    let mut sets = 0;
    for file in sources(&root().join("dalston-telemetry/src")) {
        let text = fs::read_to_string(&file).unwrap();
        for set in text.split("\nimpl ").skip(1) {
            let (name, rest) = set.split_once(" {\n").unwrap_or((set, ""));
            let rest = rest.split("\n}\n").next().unwrap_or_default();
            if name.ends_with("Metrics") && rest.contains("pub fn register(") {
                assert!(
                    generator.contains(&format!("{name}::register(")),
                    "{name} is not in reference/src/metrics.rs"
                );
                sets += 1;
            }
        }
    }
    assert!(sets > 5, "{sets}");
}

#[test]
fn readme_lists_every_feature() {
    let readme = read("README.md");
    for package in ["dalston-telemetry", "dalston-engine-sdk"] {
        for feature in crate::test::features(&read(&format!("{package}/Cargo.toml"))) {
            assert!(
                readme.contains(&format!("| `{feature}` |")),
                "{package}: feature {feature} is not in README.md"
            );
        }
    }
}

#[test]
fn every_package_uses_the_lints_of_the_workspace() {
    let workspace = read("Cargo.toml");
    let members = workspace
        .split_once("members = [")
        .unwrap()
        .1
        .split_once(']')
        .unwrap()
        .0;
    for member in members.split('"').skip(1).step_by(2) {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{member}");
    }
}

#[test]
fn packages_contain_sources_and_documents_only() {
    for name in crate::test::CRATES {
        let list = cargo()
            .args("package --list --allow-dirty --offline --package")
            .arg(name)
            .output()
            .expect("cargo lists the package");
        for needed in ["LICENSE", "README.md", "src/lib.rs"] {
            assert!(list.lines().any(|file| file == needed), "{name}: no {needed}");
        }
        for file in list.lines() {
            let made_by_cargo = [
                "Cargo.lock",
                "Cargo.toml",
                "Cargo.toml.orig",
                ".cargo_vcs_info.json",
            ];
            if made_by_cargo.contains(&file) {
                continue;
            }
            let is_code = [".rs", ".lua"].iter().any(|end| file.ends_with(end));
            let is_source = file.starts_with("src/") && is_code && !file.ends_with("tests.rs");
            let is_document = file == "LICENSE" || file.ends_with(".md");
            assert!(is_source || is_document, "{name}: {file}");
            let path = root().join(name).join(file);
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert!(metadata.is_file(), "{} is not a real file", path.display());
        }
        assert_eq!(
            read(&format!("{name}/LICENSE")),
            read("LICENSE"),
            "copy LICENSE into {name}"
        );
    }
}

#[test]
fn dependencies_need_no_newer_rust_than_the_crates() {
    // For one platform, because this machine may lack the packages of others.
    let metadata = cargo()
        .args("metadata --format-version 1 --all-features --filter-platform x86_64-unknown-linux-gnu")
        .output();
    let metadata: Value = serde_json::from_str(&metadata.unwrap()).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let by_id = |list: Vec<Value>| -> BTreeMap<String, Value> {
        let named = list.into_iter();
        named.map(|entry| (text(&entry["id"]), entry)).collect()
    };
    let packages = by_id(list(&metadata["packages"]));
    let nodes = by_id(list(&metadata["resolve"]["nodes"]));
    let version = |package: &Value| -> [u32; 3] {
        let version = package["rust_version"].as_str().unwrap_or("1");
        let mut parts = version.split('.').map(|part| part.parse().unwrap());
        std::array::from_fn(|_| parts.next().unwrap_or(0))
    };
    for name in crate::test::CRATES {
        let published = packages.values().find(|package| package["name"] == name).unwrap();
        let mut todo = vec![text(&published["id"])];
        let mut seen = BTreeSet::new();
        while let Some(id) = todo.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            let needed = list(&nodes[&id]["deps"]).into_iter().filter(|needed| {
                list(&needed["dep_kinds"])
                    .iter()
                    .any(|kind| kind["kind"] != "dev")
            });
            todo.extend(needed.map(|needed| text(&needed["pkg"])));
        }
        assert!(seen.len() > 50, "{name} has {} dependencies", seen.len());
        let newer: Vec<_> = seen
            .iter()
            .map(|id| &packages[id])
            .filter(|package| version(package) > version(published))
            .map(|package| format!("{} {}", package["name"], package["rust_version"]))
            .collect();
        assert!(
            newer.is_empty(),
            "{name} declares Rust {}, and dependencies need more: {newer:?}",
            published["rust_version"]
        );
    }
}

#[test]
fn libtorch_version_is_the_same_everywhere() {
    let version = crate::libtorch::VERSION;
    assert!(read("README.md").contains(&format!("libtorch {version}")));
    assert!(
        read("dalston-engine-sdk/src/torch/libtorch.rs")
            .contains(&format!("WANTED_VERSION: &str = \"{version}\""))
    );
}

#[test]
fn kubernetes_manifest_matches_the_reference() {
    let reference = read("docs/reference/environment.md");
    let deployment = read("examples/kubernetes/deployment.yaml");
    let after = |key: &str| deployment.split_once(key).unwrap().1.trim_start();
    let names = deployment
        .split("- name: ")
        .skip(1)
        .filter_map(|rest| rest.lines().next());
    let unknown: Vec<&str> = names
        .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .filter(|name| !reference.contains(&format!("`{name}`")))
        .collect();
    assert!(
        unknown.is_empty(),
        "not in docs/reference/environment.md: {unknown:?}"
    );
    let number = |text: &str| -> u32 {
        let digits = text.chars().skip_while(|c| !c.is_ascii_digit());
        digits
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap()
    };
    let drain = number(after("name: DALSTON_DRAIN_TIMEOUT_SECONDS"));
    let grace = number(after("terminationGracePeriodSeconds:"));
    assert!(grace >= drain + 20, "{grace} s for a drain of {drain} s");
}

#[test]
fn each_page_has_a_picture_in_the_readme() {
    let parts = |text: &str, start: &str, end: &str| -> BTreeSet<String> {
        let found = text.split(start).skip(1);
        let found = found.filter_map(|rest| rest.split(end).next());
        found.map(str::to_owned).collect()
    };
    let readme = read("examples/dev_platform/README.md");
    let shown = parts(&readme, "(../../docs/images/page-", ".png)");
    let tests = sources(&root().join("examples/dev_platform/tests/it"));
    let tests = tests.iter().map(|test| fs::read_to_string(test).unwrap());
    let taken = parts(&tests.collect::<String>(), ".screenshot(\"", "\")");
    assert_eq!(taken, shown, "taken by the tests, and in the README");
    let kept = fs::read_dir(root().join("docs/images")).unwrap();
    let kept = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap() + " ");
    let kept = parts(&kept.collect::<String>(), "page-", ".png ");
    assert_eq!(kept, shown, "in docs/images, and in the README");
    let pages = parts(&readme, "\n| `/", "` |");
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages {
        let picture = match &*page {
            "" => "jobs",
            "jobs/{id}" => "job",
            other => other,
        };
        assert!(shown.contains(picture), "/{page} has no picture");
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files
}
