//! The commands of the engine developer guide, with the binary.

#![allow(clippy::unwrap_used)] // A failing test may panic.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use testbed::pages::{PageShell, commands};

const GUIDE: &str = include_str!("../../../../docs/engine-developer-guide.md");

/// The start of the commands of the binary.
const RUN: &str = "cargo run -q -p morse_engine --";

#[test]
fn guide_shows_commands_that_work() {
    let directory = tempfile::tempdir().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    symlink(workspace.join("examples"), directory.path().join("examples")).unwrap();
    let binary = [(RUN, env!("CARGO_BIN_EXE_morse_engine").to_owned())];
    let mut shell = PageShell::start(directory.path(), &binary);
    let commands = commands(GUIDE);
    assert!(commands.len() > 5, "{commands:#?}");
    for command in commands {
        shell.check(&command, "docs/engine-developer-guide.md");
    }
}

#[test]
fn guide_shows_the_code_of_this_engine() {
    let code = ["Cargo.toml", "src/main.rs", "src/signal.rs", "src/tests.rs"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        fs::read_to_string(path).unwrap()
    });
    let blocks: Vec<&str> = ["```rust\n", "```toml\n"]
        .iter()
        .flat_map(|start| GUIDE.split(start).skip(1))
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() > 4, "{blocks:?}");
    for block in blocks {
        // Parts with a line `// …` between them follow each other in one file.
        let parts: Vec<&str> = block.split("    // …\n").collect();
        let is_shown = |file: &String| {
            let mut rest = &**file;
            parts
                .iter()
                .all(|part| match rest.split_once(part.trim_matches('\n')) {
                    Some((_, after)) => {
                        rest = after;
                        true
                    }
                    None => false,
                })
        };
        assert!(
            code.iter().any(is_shown),
            "no file has this code: copy it from there\n{block}"
        );
    }
}
