//! The pages that show this engine show it as it is.

use crate::{Engine, names_in};

pub(crate) const DEPLOYMENT: &str = include_str!("../../../../dalston-engine-sdk/docs/guides/deployment.md");
const README: &str = include_str!("../../../../README.md");

#[test]
fn pages_contain_the_program() {
    let source = include_str!("../../src/main.rs");
    // Without the comment at the top and the tests.
    let (_, program) = source.split_once("\n\n").unwrap();
    let (program, _) = program.split_once("\n#[cfg(test)]").unwrap();
    for (page, text) in [
        ("README.md", README),
        (
            "dalston-engine-sdk/README.md",
            include_str!("../../../../dalston-engine-sdk/README.md"),
        ),
        (
            "dalston-engine-sdk/docs/guides/first-engine.md",
            include_str!("../../../../dalston-engine-sdk/docs/guides/first-engine.md"),
        ),
    ] {
        assert!(
            text.contains(&format!("\n{program}```\n")),
            "{page} shows another program than examples/minimal_engine/src/main.rs: copy it from there"
        );
    }
}

/// Words in capitals with this start.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
    words.filter(|word| {
        ["DALSTON_", "OTEL_", "REDIS_", "AWS_", "HF_"]
            .iter()
            .any(|start| word.starts_with(start))
    })
}

#[test]
fn deployment_guide_names_existing_variables() {
    const OF_THE_GATEWAY: [&str; 2] = ["DALSTON_MODELS_DIR", "DALSTON_SECURITY_MODE"];
    let reference = include_str!("../../../../docs/reference/environment.md");
    let unknown: Vec<_> = variables(DEPLOYMENT)
        .filter(|name| !reference.contains(&format!("`{name}`")) && !OF_THE_GATEWAY.contains(name))
        .collect();
    assert_eq!(unknown, [] as [&str; 0]);
    assert!(variables(DEPLOYMENT).count() > 20);
}

#[test]
fn readme_shows_the_output_of_transcribe() {
    let shown = README
        .split_once("$ cargo run -q -p minimal_engine -- transcribe notes.txt --trace\n")
        .unwrap()
        .1;
    let shown = shown.split_once("```").unwrap().0;
    let printed = Engine::new()
        .with_file("notes.txt", "one two three\n")
        .run("transcribe notes.txt --trace")
        .stdout;
    let parts = |output: &str| {
        let (result, waterfall) = output.split_once("trace ").unwrap();
        let attributes = waterfall.lines().filter(|line| line.contains('='));
        let attributes: Vec<String> = attributes.map(str::to_owned).collect();
        let names: Vec<String> = names_in(waterfall).into_iter().map(str::to_owned).collect();
        (result.to_owned(), names, attributes)
    };
    assert_eq!(parts(shown), parts(&printed), "\n{printed}");
}
