//! An engine with settings of its own, and the options of `transcribe` for its inputs and results.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{Engine, Finished, files_in, finish, lines_of_json};

/// The answer of the stage `transcribe`.
const TRANSCRIPT: &str =
    r#"{"text": "one two Two three", "segments": [], "language": "en", "engine_id": "asr"}"#;
const KEYWORDS: &str = r#"--set keywords=["two"]"#;

impl Engine {
    fn with_transcript() -> Self {
        Self::new().with_file("talk.json", TRANSCRIPT)
    }

    fn find(&self, args: &str) -> Finished {
        finish(&mut self.command_of(env!("CARGO_BIN_EXE_keyword_finder"), args))
    }

    fn found(&self, args: &str) -> Value {
        let ran = self.find(args);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{args}");
        lines_of_json(&ran.stdout)[0]["data"]["found"].clone()
    }

    /// Expects no results, and returns the exit status and the error.
    fn refusal(&self, args: &str) -> (Option<i32>, String) {
        let ran = self.find(args);
        assert_eq!(ran.stdout, "", "{args}");
        (ran.status, ran.stderr)
    }
}

#[test]
fn settings_come_from_arguments_and_environment() {
    let engine = Engine::with_transcript();
    let args = "transcribe --previous transcribe=talk.json --json";
    assert_eq!(engine.found(&format!("{args} {KEYWORDS}")), json!(["two"]));
    assert_eq!(
        engine.found(&format!("--set ignore_case=true {args} {KEYWORDS}")),
        json!(["two", "Two"])
    );
    let variable = r#"{"keywords": ["one"], "ignore_case": true}"#;
    let mut command = engine.command_of(env!("CARGO_BIN_EXE_keyword_finder"), args);
    let ran = finish(command.env("DALSTON_ENGINE_SETTINGS", variable));
    assert_eq!(lines_of_json(&ran.stdout)[0]["data"]["found"], json!(["one"]));
}

#[test]
fn wrong_settings_exit_with_2_and_are_named() {
    let engine = Engine::new();
    for (args, text) in [
        (
            "describe",
            "error: the settings of the engine (--set, DALSTON_ENGINE_SETTINGS): missing field `keywords`\n",
        ),
        (
            "describe --set keywords=[]",
            "error: keywords is empty: expected at least one\n",
        ),
        (
            r#"describe --set keywords=["a"] --set case=1"#,
            "error: the settings of the engine (--set, DALSTON_ENGINE_SETTINGS): unknown field `case`, \
             expected `keywords` or `ignore_case`\n",
        ),
    ] {
        assert_eq!(engine.refusal(args), (Some(2), text.to_owned()), "{args}");
    }
    let (status, text) = engine.refusal("describe --set keywords");
    assert_eq!(status, Some(2));
    assert!(
        text.contains("expected a name, an equals sign and a value"),
        "{text}"
    );
}

#[test]
fn help_shows_own_settings_and_needs_none() {
    for args in ["--help", "transcribe --help"] {
        let help = Engine::new().find(args);
        assert_eq!((help.status, help.stderr.as_str()), (Some(0), ""), "{args}");
        assert!(help.stdout.contains("--set <KEY=VALUE>"), "{}", help.stdout);
    }
    let help = Engine::new().find(&format!("{KEYWORDS} --help"));
    assert!(help.stdout.contains("keyword-finder"), "{}", help.stdout);
    let plain = Engine::new().run("transcribe --help");
    assert!(!plain.stdout.contains("--set"), "{}", plain.stdout);
    assert!(plain.stdout.contains("--config <KEY=VALUE>"), "{}", plain.stdout);
}

#[test]
fn metrics_of_the_engine_are_shown() {
    let engine = Engine::with_transcript();
    let args = format!("transcribe --previous transcribe=talk.json --metrics {KEYWORDS}");
    let ran = engine.find(&args);
    let moved = ran
        .stdout
        .lines()
        .find(|line| line.contains("keyword_finder_found_total"));
    assert!(moved.is_some_and(|line| line.ends_with("  +1")), "{}", ran.stdout);
}

#[test]
fn config_is_json_or_text_and_checked_like_that_of_a_task() {
    let engine = Engine::with_transcript();
    let args = format!("transcribe --previous transcribe=talk.json --json --set ignore_case=true {KEYWORDS}");
    assert_eq!(
        engine.found(&format!("{args} --config at_most=1")),
        json!(["two"])
    );
    // A key that the engine does not know is passed on, as in a deployment.
    assert_eq!(
        engine.found(&format!("{args} --config other=x=y")),
        json!(["two", "Two"])
    );
    let wrong = engine.refusal(&format!("{args} --config at_most=few"));
    let text = "error: talk.json: the task's config: invalid type: string \"few\", expected usize\n";
    assert_eq!(wrong, (Some(1), text.to_owned()));
    for (again, text) in [
        (
            "--config at_most=1 --config at_most=2",
            "error: the key at_most of the configuration is given twice\n",
        ),
        (
            "--language de --config language=en",
            "error: the key language of the configuration is given twice\n",
        ),
    ] {
        assert_eq!(
            engine.refusal(&format!("{args} {again}")),
            (Some(2), text.to_owned())
        );
    }
}

#[test]
fn inputs_of_other_slots_reach_the_engine() {
    let engine = Engine::with_transcript()
        .with_file("more", "three\n")
        .with_file("notes", "");
    let args = format!("transcribe --previous transcribe=talk.json --json {KEYWORDS}");
    assert_eq!(
        engine.found(&format!("{args} --input keywords=more")),
        json!(["two", "three"])
    );
    // Also beside FILE, which has the slot `input`.
    assert_eq!(
        engine.found(&format!("{args} notes --input keywords=more")),
        json!(["two", "three"])
    );
    // An input takes the place of FILE, and an engine that lacks one names it.
    let ran = engine.run("transcribe --input text=notes");
    let text = "error: notes: the task has no input \"input\", only [\"text\"]\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), text));
    assert_eq!(engine.run("transcribe --input input=notes").status, Some(0));
}

#[test]
fn wrong_inputs_are_named_before_any_work() {
    let engine = Engine::with_transcript()
        .with_file("more", "three")
        .with_file("broken", "{");
    for (args, status, text) in [
        (
            "--input keywords=gone",
            1,
            "--input keywords=gone: there is no such file",
        ),
        (
            "--input keywords=more --input keywords=more",
            2,
            "--input keywords is given twice",
        ),
        (
            "more --input input=more",
            2,
            "--input input=more: FILE is the input input already: give only one of them",
        ),
        (
            "--input a/b=more",
            2,
            "--input a/b=more: expected a slot of letters, digits, dots, dashes and underscores",
        ),
        (
            "--previous transcribe=gone",
            1,
            "--previous transcribe=gone: there is no such file",
        ),
        (
            "--previous transcribe=broken",
            1,
            "--previous transcribe=broken: is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "--previous transcribe=talk.json --previous transcribe=talk.json",
            2,
            "--previous transcribe is given twice",
        ),
    ] {
        let refusal = engine.refusal(&format!("transcribe {KEYWORDS} {args}"));
        assert_eq!(refusal, (Some(status), format!("error: {text}\n")), "{args}");
    }
    let (status, text) = engine.refusal(&format!("transcribe {KEYWORDS} --previous Trans=talk.json"));
    assert_eq!(status, Some(2));
    assert!(text.starts_with("error: --previous Trans=talk.json: "), "{text}");
}

#[test]
fn results_are_written_and_replace_earlier_ones() {
    let engine = Engine::with_transcript().with_file("a", "").with_file("b", "");
    let args = format!("transcribe a b --previous transcribe=talk.json --out results/new --json {KEYWORDS}");
    let _ = engine.found(&args);
    let results = engine.dir.path().join("results/new");
    let names = ["a.found.txt", "a.response.json", "b.found.txt", "b.response.json"];
    let mut written = files_in(&results);
    written.sort();
    assert_eq!(written, names);
    let read = |name: &str| std::fs::read_to_string(results.join(name)).unwrap();
    assert_eq!(read("a.found.txt"), "two");
    let response: Value = serde_json::from_str(&read("a.response.json")).unwrap();
    assert_eq!(response["data"], json!({ "found": ["two"] }));
    // The places of the files are those in the directory.
    let locator = response["produced_artifacts"][0]["storage_locator"]
        .as_str()
        .unwrap();
    let path = PathBuf::from(locator.strip_prefix("file://").unwrap());
    assert_eq!(
        path.canonicalize().unwrap(),
        results.join("a.found.txt").canonicalize().unwrap()
    );

    std::fs::write(results.join("kept"), "").unwrap();
    let _ = engine.found(&format!("{args} --config at_most=0"));
    assert_eq!(read("a.found.txt"), "");
    assert_eq!(files_in(&results).len(), 5);
    // A response is the answer of an earlier stage, too.
    let words = engine.dir.path().join("words.response.json");
    let document = format!(r#"{{"task_id": "T", "data": {TRANSCRIPT}}}"#);
    std::fs::write(words, document).unwrap();
    let args = format!("transcribe --previous transcribe=words.response.json --json {KEYWORDS}");
    assert_eq!(engine.found(&args), json!(["two"]));
}

#[test]
fn results_that_cannot_be_written_fail_their_files() {
    let engine = Engine::with_transcript().with_file("a", "");
    std::fs::create_dir(engine.dir.path().join("d")).unwrap();
    let engine = engine.with_file("d/a", "").with_file("file", "");
    let args = format!("transcribe --previous transcribe=talk.json {KEYWORDS}");
    let text = "error: --out: two files are named a: the results of one would replace those of the other\n";
    assert_eq!(
        engine.refusal(&format!("{args} a d/a --out d")),
        (Some(2), text.to_owned())
    );
    let (status, text) = engine.refusal(&format!("{args} a --out file"));
    assert_eq!(status, Some(1));
    assert!(text.starts_with("error: --out file: "), "{text}");
    std::fs::create_dir(engine.dir.path().join("d/a.found.txt")).unwrap();
    let (status, text) = engine.refusal(&format!("{args} a --out d"));
    assert_eq!(status, Some(1));
    assert!(text.contains("d/a.found.txt"), "{text}");
}
