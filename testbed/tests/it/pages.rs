//! Commands of documents.

use std::path::Path;

use testbed::pages::{PageShell, commands};

const PAGE: &str = "
Text.

```console
$ WORD=one
$ echo $WORD; \\
  echo two
one
two
```

```console
# Not run here: it needs a server.
$ exit 1
```

```json
{}
```
";

#[test]
fn commands_have_continued_lines_and_output() {
    let found = commands(PAGE);
    let found: Vec<_> = found
        .iter()
        .map(|command| (command.line, &*command.text, command.shown.join("|")))
        .collect();
    let expected = [
        (5, "WORD=one", String::new()),
        (6, "echo $WORD; \\\n  echo two", "one|two".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn shell_keeps_variables() {
    let mut shell = PageShell::start(Path::new("/"), &[("two", "2".to_owned())]);
    let mut commands = commands(PAGE);
    commands[1].shown[1] = "2".to_owned();
    for command in commands {
        shell.check(&command, "page");
    }
}

#[test]
#[should_panic(expected = "language console")]
fn other_shell_block_is_refused() {
    let _ = commands("```sh\nls\n```\n");
}

#[test]
#[should_panic(expected = "exit status 3")]
fn failed_command_is_reported() {
    let mut shell = PageShell::start(Path::new("/"), &[]);
    // Only a command that writes is not repeated.
    shell.check(
        &commands("```console\n$ true > /dev/null; (exit 3)\n```\n")[0],
        "page",
    );
}

#[test]
fn output_is_compared_without_numbers_and_bars() {
    for (shown, printed, is_same) in [
        ("a 5 ms", "a 17.3 µs", true),
        ("a 5 ms", "b 5 ms", false),
        (
            "trace 89efb562d6ebe9979e2f39206187b820 · 4 ms",
            "trace 00000000000000000000000000000001 · 3 s",
            true,
        ),
        (
            "├─ engine.process   1 ms  ▍",
            "├─ engine.process 2.00 ms         ██▎",
            true,
        ),
        ("├─ engine.process", "├─ engine.upload", false),
        (
            "{\"id\":\"…\",\"status\":\"failed\"}",
            "{\"id\":\"x y\",\"status\":\"failed\"}",
            true,
        ),
        (
            "{\"id\":\"…\",\"status\":\"failed\"}",
            "{\"id\":\"x y\",\"status\":\"done\"}",
            false,
        ),
        ("one\n…\nthree", "one\ntwo\ntwo\nthree", true),
        ("one\n…", "one\ntwo", true),
        ("one", "one\ntwo", false),
        ("one\ntwo", "one", false),
        ("dead-letter", "dead-parrot", false),
    ] {
        let page = format!("```console\n$ x\n{shown}\n```\n");
        let compared = commands(&page)[0].compare(printed);
        assert_eq!(compared.is_ok(), is_same, "{shown:?} {printed:?}: {compared:?}");
    }
}
