//! The commands that a document shows, run in a shell.
//!
//! They stand in blocks with the language `console`. A line that begins with `$ ` is a command, and
//! goes on in the next line after a backslash. The lines below it are its output:
//!
//! - Numbers, ids and the bars of waterfalls differ from run to run and are not compared.
//! - `…` stands for any text in a line, and alone for any lines.
//! - Without any line, the output is not compared.
//!
//! A block whose first line begins with `# Not run` shows commands that need something that tests
//! lack.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long spans, metrics and log lines may be on their way to the place that a command reads.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(10);

/// A command of a document and the output that the document shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCommand {
    /// The line of the document, from 1.
    pub line: usize,
    /// The command.
    pub text: String,
    /// The lines of its output.
    pub shown: Vec<String>,
}

impl PageCommand {
    /// Compares an output with the one that is shown.
    ///
    /// # Errors
    ///
    /// The first line that is missing, or that is not shown.
    pub fn compare(&self, printed: &str) -> Result<(), String> {
        if self.shown.is_empty() {
            return Ok(());
        }
        let mut printed = printed.trim_end().lines().map(str::trim_end);
        let mut may_skip = false;
        for line in &self.shown {
            if line == "…" {
                may_skip = true;
                continue;
            }
            loop {
                match printed.next() {
                    Some(found) if is_same(line, found) => break,
                    Some(_) if may_skip => {}
                    found => return Err(format!("shown: {line:?}\nprinted: {found:?}")),
                }
            }
            may_skip = false;
        }
        match printed.next() {
            Some(line) if !may_skip => Err(format!("not shown: {line:?}")),
            _ => Ok(()),
        }
    }

    /// Whether the command may run twice.
    fn only_reads(&self) -> bool {
        !["-F ", "-X ", " > "].iter().any(|word| self.text.contains(word))
    }
}

/// The commands of a document that are run.
///
/// # Panics
///
/// If a block has the language of another shell, or does not begin with a command.
#[must_use]
pub fn commands(page: &str) -> Vec<PageCommand> {
    let mut commands: Vec<PageCommand> = Vec::new();
    let mut language = None;
    let mut is_run = false;
    let mut first = 0;
    for (number, line) in page.lines().enumerate() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            language = match language {
                Some(_) => None,
                None => Some(fence),
            };
            assert!(
                !matches!(language, Some("sh" | "bash" | "shell")),
                "line {}: show commands in a block with the language console",
                number + 1
            );
            (is_run, first) = (language == Some("console"), number + 1);
            continue;
        }
        is_run = is_run && !(number == first && line.starts_with("# Not run"));
        if !is_run {
            continue;
        }
        if let Some(text) = line.strip_prefix("$ ") {
            commands.push(PageCommand {
                line: number + 1,
                text: text.to_owned(),
                shown: Vec::new(),
            });
            continue;
        }
        assert_ne!(
            number,
            first,
            "line {}: a block begins with a command",
            number + 1
        );
        let command = commands.last_mut().expect("the block has a command");
        match command.text.ends_with('\\') && command.shown.is_empty() {
            true => {
                let _ = write!(command.text, "\n{line}");
            }
            false => command.shown.push(line.trim_end().to_owned()),
        }
    }
    commands
}

/// Whether a printed line is the shown one, apart from numbers, ids and bars.
fn is_same(shown: &str, printed: &str) -> bool {
    let mut rest = &*plain(printed);
    let parts: Vec<String> = shown.split('…').map(plain).collect();
    let Some((last, parts)) = parts.split_last() else {
        return false;
    };
    for (index, part) in parts.iter().enumerate() {
        let Some(at) = rest.find(part.trim()) else {
            return false;
        };
        if index == 0 && at > 0 {
            return false;
        }
        rest = &rest[at + part.trim().len()..];
    }
    match parts.is_empty() {
        true => rest == last,
        false => rest.ends_with(last.trim()),
    }
}

/// A line without bars, with 0 for each number, id and duration.
fn plain(line: &str) -> String {
    let is_bar = |c: char| ('\u{2588}'..='\u{258f}').contains(&c);
    let line: String = line.chars().filter(|c| !is_bar(*c)).collect();
    let mut text = String::new();
    let mut word = String::new();
    for c in line.chars().chain(std::iter::once(' ')) {
        if c.is_ascii_digit() || matches!(c, 'a'..='f' | '-' | '.') {
            word.push(c);
            continue;
        }
        let is_id = word.len() >= 8 && word.contains(|c: char| c.is_ascii_digit());
        let mut was_number = false;
        for c in word.chars() {
            // The point of a number, but not that of a name.
            let is_number = is_id || c.is_ascii_digit() || (c == '.' && was_number);
            if !is_number {
                text.push(c);
            } else if !was_number {
                text.push('0');
            }
            was_number = is_number;
        }
        word.clear();
        text.push(c);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    // A unit after its number.
    let is_unit = |index: usize| {
        index > 0 && words[index - 1] == "0" && matches!(words[index], "s" | "ms" | "µs" | "ns")
    };
    let words = words.iter().enumerate().filter(|(index, _)| !is_unit(*index));
    words.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

/// A shell that keeps its variables from one command to the next. It ends when this value is
/// dropped.
#[derive(Debug)]
pub struct PageShell {
    process: Child,
    directory: TempDir,
    replacements: Vec<(String, String)>,
}

impl PageShell {
    /// Starts it in a directory. In each command the first text of a pair is replaced by the
    /// second: the ports of the document by those of the test.
    ///
    /// # Panics
    ///
    /// If there is no `bash` on this machine.
    #[must_use]
    pub fn start(directory: &Path, replacements: &[(&str, String)]) -> Self {
        let process = Command::new("bash")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash is needed");
        let mut shell = Self {
            process,
            directory: tempfile::tempdir().unwrap(),
            replacements: replacements
                .iter()
                .map(|(from, to)| ((*from).to_owned(), to.clone()))
                .collect(),
        };
        shell.write("set -o pipefail\n");
        shell
    }

    /// Runs a command and compares its output with the one that the document shows. A command that
    /// only reads runs again until it is the same, because telemetry arrives later than its job.
    /// `page` is the name of the document.
    ///
    /// # Panics
    ///
    /// If the command fails, takes longer than a minute, or prints something else.
    pub fn check(&mut self, command: &PageCommand, page: &str) {
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        loop {
            let (status, printed) = self.run(&command.text);
            let compared = match status {
                0 => command.compare(&printed),
                _ => Err(format!("exit status {status}")),
            };
            let Err(error) = compared else {
                return;
            };
            assert!(
                command.only_reads() && Instant::now() < deadline,
                "{page}:{}: {}\n{error}\n{printed}",
                command.line,
                command.text
            );
            sleep(INTERVAL * 20);
        }
    }

    /// The status and the output of a command.
    fn run(&mut self, text: &str) -> (i32, String) {
        let text = self
            .replacements
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        let path = |name: &str| self.directory.path().join(name);
        let (output, status, written) = (path("output"), path("status"), path("written"));
        let script = format!(
            "{{\n{text}\n}} > {} 2>&1 < /dev/null\necho $? > {}; mv {} {}\n",
            output.display(),
            written.display(),
            written.display(),
            status.display(),
        );
        self.write(&script);
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        while !status.exists() {
            assert!(Instant::now() < deadline, "{text}: takes longer than a minute");
            assert!(
                self.process.try_wait().unwrap().is_none(),
                "{text}: has ended the shell"
            );
            sleep(INTERVAL);
        }
        let found = fs::read_to_string(&status).unwrap().trim().parse().unwrap();
        fs::remove_file(status).unwrap();
        (found, fs::read_to_string(output).unwrap())
    }

    fn write(&mut self, text: &str) {
        let stdin = self.process.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for PageShell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
