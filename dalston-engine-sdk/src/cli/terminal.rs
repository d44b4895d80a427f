//! Output for a person, in the style that the terminal supports.

use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use console::Term;
use dalston_telemetry::settings::{NO_COLOR, TERM};
use dalston_telemetry::{Env, Waterfall};

use crate::config::settings::LOCALE;

/// The style of a terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    color: bool,
    ascii: bool,
    columns: Option<usize>,
}

impl Style {
    /// Plain text.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self {
            color: false,
            ascii: false,
            columns: None,
        }
    }

    /// The style for this terminal, if it is one. `NO_COLOR`, `TERM` and the locale count.
    pub(super) fn of(term: &Term, env: &Env) -> Self {
        let locale = LOCALE.first(env).map(|(_, locale)| locale.to_ascii_uppercase());
        // Containers usually have no locale, but their terminals show Unicode.
        let ascii = locale.is_some_and(|locale| !locale.contains("UTF-8") && !locale.contains("UTF8"));
        let is_dumb = TERM.first(env).is_some_and(|(_, terminal)| terminal == "dumb");
        let color = term.is_term() && !NO_COLOR.is_set(env) && !is_dumb;
        let columns = term.size_checked().map(|(_, columns)| usize::from(columns));
        Self {
            color,
            ascii,
            columns,
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A waterfall for this terminal.
    pub(super) fn waterfall(self) -> Waterfall {
        // Longer lines are hard to read.
        let width = self.columns.unwrap_or(Waterfall::DEFAULT_WIDTH).min(160);
        Waterfall::new().width(width).ascii(self.ascii).color(self.color)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Prints an error as one line on standard error.
pub(super) fn complain(message: &str, env: &Env) {
    let style = Style::of(&Term::stderr(), env);
    to_stderr(&format!("{} {message}\n", style.bad("error:")));
}

/// [`complain`] as the last act of a process, which must end although nothing reads standard error.
pub(super) fn complain_at_exit(message: &str, env: &Env) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (message, env) = (message.to_owned(), env.clone());
    let (done, written) = mpsc::channel();
    let write = move || {
        complain(&message, &env);
        let _ = done.send(());
    };
    if thread::Builder::new().name("stderr".into()).spawn(write).is_ok() {
        let _ = written.recv_timeout(PATIENCE);
    }
}

/// Prints a warning as one line on standard error.
pub(super) fn remark(message: &str, env: &Env) {
    let style = Style::of(&Term::stderr(), env);
    to_stderr(&format!("{} {message}\n", style.warning("warning:")));
}

/// Writes to standard error. A failure has no place to be reported.
pub(super) fn to_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
