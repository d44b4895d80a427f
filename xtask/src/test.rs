//! The steps that CI runs.

use std::fs;
use std::path::Path;
use std::thread;

use crate::chaos;
use crate::error::Error;
use crate::libtorch;
use crate::package;
use crate::steps::{Cmd, Steps, cargo, is_ci, root};
use crate::system::{CHROMIUM, FAKETIME, Need, PROMETHEUS, REDIS, STRACE, require};
use crate::tools;

/// The crates that are published.
pub(crate) const CRATES: [&str; 2] = ["dalston-telemetry", "dalston-engine-sdk"];

/// Packages for tests and benchmarks, whose documentation is not built.
const TEST_PACKAGES: [&str; 5] = ["bench", "chaos", "observability", "reference", "testbed"];

/// A directory without libtorch, for steps that must pass without it.
pub(crate) const NO_LIBTORCH: &str = "/nonexistent/libtorch";

/// The modules of the SDK's integration tests that need libtorch, in the order of `main.rs`.
const TESTS_WITH_LIBTORCH: [&str; 2] = ["silero", "torch"];

const ALERTMANAGER: Need = Need {
    purpose: "test routes and inhibitions of alerts",
    probe: &["amtool", "--version"],
    package: "prometheus-alertmanager",
};

const OPEN_METRICS_PARSER: Need = Need {
    purpose: "test that a strict parser reads the metrics",
    probe: &["/usr/bin/python3", "-c", "import prometheus_client"],
    package: "python3-prometheus-client",
};

const CURL: Need = Need {
    purpose: "run the commands of the guides",
    probe: &["curl", "--version"],
    package: "curl",
};

const JQ: Need = Need {
    purpose: "run the commands of the guides",
    probe: &["jq", "--version"],
    package: "jq",
};

type Step = (&'static str, fn(&Path) -> Result<(), Error>);

/// In an order that finds likely failures early.
const STEPS: [Step; 10] = [
    ("format", |_| cargo().args("fmt --all --check").run()),
    // Code for the absence of a feature is linted by the step of each feature.
    ("clippy of everything", |libtorch| {
        cargo()
            .args("clippy --workspace --all-features --all-targets -- -D warnings")
            .env("LIBTORCH", libtorch)
            .run()
    }),
    ("test without libtorch", |_| {
        // More than `cargo test` tests, so that `chaos` needs no build of its own.
        without_libtorch(cargo_test().args("--workspace --exclude faster_whisper --exclude bench"))
    }),
    ("test with libtorch and all features", with_libtorch),
    ("packages", |_| package::check()),
    ("chaos", |_| chaos::run(&["--minutes", "1.5"])),
    // Without what only their tests select of our crates. `packages` and `chaos` have the others.
    // With `testbed`, most other dependencies are those of clippy's step.
    ("examples", |libtorch| {
        cargo()
            .args("check -p morse_engine -p faster_whisper -p testbed")
            .env("LIBTORCH", libtorch)
            .run()
    }),
    ("documentation without libtorch", |_| documentation()),
    ("clippy of each feature alone", |libtorch| {
        thread::scope(|scope| {
            // Our crates are checked one after the other, which leaves a core for the next step's
            // program. If that can't be built, the next step says so.
            if is_ci() {
                scope.spawn(tools::cargo_deny);
            }
            each_feature(libtorch)
        })
    }),
    ("licences, bans and sources", |_| {
        let deny = tools::cargo_deny()?;
        Cmd::new(deny)
            .args("--workspace --all-features --locked check --hide-inclusion-graph licenses bans sources")
            .run()
    }),
];

/// Runs the steps whose names contain one of `words`, or all if there are none.
pub(crate) fn run(words: &[&str]) -> Result<(), Error> {
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word)))
        .collect();
    if chosen.is_empty() {
        return Err(Error::Usage(format!(
            "no step has a name with \"{}\"; cargo xtask test --list names them",
            words.join("\" or \"")
        )));
    }
    let mut steps = Steps::new();
    let mut libtorch = std::path::PathBuf::new();
    steps.step("set-up", || {
        libtorch = libtorch::set_up(libtorch::Variant::Cpu)?;
        require(&[
            REDIS,
            CHROMIUM,
            PROMETHEUS,
            ALERTMANAGER,
            OPEN_METRICS_PARSER,
            FAKETIME,
            STRACE,
            CURL,
            JQ,
        ])?;
        tools::compose()?;
        match tools::rotel() {
            Err(error) if !is_ci() => {
                println!(
                    "warning: no other OTLP receiver is tried, because Rotel can't be installed: {error}"
                );
            }
            installed => installed?,
        }
        match tools::python() {
            Err(error) if !is_ci() => {
                println!("warning: nothing is compared with Python packages, because they can't be installed: {error}");
                Ok(())
            }
            installed => installed,
        }
    })?;
    for (name, work) in chosen {
        steps.step(name, || work(&libtorch))?;
    }
    steps.summary();
    Ok(())
}

/// Prints the names of the steps.
pub(crate) fn list() {
    for (name, _) in STEPS {
        println!("{name}");
    }
}

/// Tests wait for servers, leases and processes most of the time, so two cores run several at once.
fn cargo_test() -> Cmd {
    cargo().args("test").env("RUST_TEST_THREADS", "4")
}

/// The Whisper engine, and what the SDK does with libtorch. The other packages are tested without
/// it, and with all their features, because some of them need each one.
fn with_libtorch(libtorch: &Path) -> Result<(), Error> {
    // The same packages each time, so that all builds have the same features. Built together first,
    // because each binary alone would keep one core busy.
    let of_sdk = format!("--test it -- {}", TESTS_WITH_LIBTORCH.join(" "));
    for chosen in [
        "--lib --test whisper --test it --no-run",
        "--lib --test whisper",
        "--doc",
        &of_sdk,
    ] {
        cargo_test()
            .args("-p dalston-engine-sdk -p faster_whisper --all-features")
            .args(chosen)
            .env("LIBTORCH", libtorch)
            // Doctests do not get the path to libtorch that build scripts give to other binaries.
            .env("LD_LIBRARY_PATH", libtorch::library_path(libtorch))
            .run()?;
    }
    Ok(())
}

fn without_libtorch(command: Cmd) -> Result<(), Error> {
    command.env("LIBTORCH", NO_LIBTORCH).run()
}

/// The documentation of the crates with all features, as docs.rs builds it, and of the examples.
fn documentation() -> Result<(), Error> {
    // One command, with the features of clippy's step, so that few dependencies are checked again.
    let doc = cargo().args("doc --no-deps --workspace --all-features");
    let doc = TEST_PACKAGES
        .iter()
        .fold(doc, |doc, name| doc.arg("--exclude").arg(name))
        // `doc-only` makes tch's build script leave libtorch alone.
        .args("--features tch/doc-only")
        .env("RUSTDOCFLAGS", "-D warnings");
    without_libtorch(doc)
}

/// Each feature of the published crates must compile without the others, because users select any
/// of them.
fn each_feature(libtorch: &Path) -> Result<(), Error> {
    for name in CRATES {
        let manifest = root().join(name).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).map_err(Error::at(&manifest))?;
        let mut sets = vec![String::new()];
        sets.extend(features(&text));
        for set in sets {
            cargo()
                .args("clippy --lib --no-default-features -p")
                .arg(name)
                .arg(format!("--features={set}"))
                .args("-- -D warnings")
                .env("LIBTORCH", libtorch)
                .run()?;
        }
    }
    Ok(())
}

/// The names of the features that a manifest declares, except `default`.
pub(crate) fn features(manifest: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .filter(|name| !name.starts_with('#') && *name != "default")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_a_manifest() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"a\"]\n# What a = b does.\na = []\nbig-one = [\"dep:y\"]\n\n[dependencies]\nz = \"1\"\n";
        assert_eq!(features(manifest), ["a", "big-one"]);
    }

    #[test]
    fn published_crates_have_features() {
        for name in CRATES {
            let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
            assert!(!features(&manifest).is_empty(), "{name}");
        }
    }

    #[test]
    fn all_modules_of_tests_with_libtorch_are_selected() {
        let main = root().join("dalston-engine-sdk/tests/it/main.rs");
        let text = fs::read_to_string(main).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let modules = lines.windows(2).filter_map(|pair| match pair {
            [condition, module] if condition.contains("feature = \"tch\"") => {
                module.strip_prefix("mod ")?.strip_suffix(';')
            }
            _ => None,
        });
        assert_eq!(modules.collect::<Vec<_>>(), TESTS_WITH_LIBTORCH);
    }

    #[test]
    fn unknown_step_is_a_usage_error() {
        assert!(matches!(run(&["no such step"]), Err(Error::Usage(_))));
    }
}
