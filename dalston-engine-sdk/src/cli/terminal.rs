//! What the terminal can show.

use console::Term;
use dalston_telemetry::{Env, Waterfall};

/// Words in colour, or without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    color: bool,
    ascii: bool,
    columns: Option<usize>,
}

impl Style {
    /// Text and nothing else.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self {
            color: false,
            ascii: false,
            columns: None,
        }
    }

    /// What suits this terminal, if it is one. `NO_COLOR`, `TERM` and the locale have a say.
    pub(super) fn of(term: &Term, env: &Env) -> Self {
        let locale = env
            .first(&["LC_ALL", "LC_CTYPE", "LANG"])
            .map(|(_, value)| value.to_ascii_uppercase());
        // No locale at all is the rule in containers, whose terminals show Unicode nevertheless.
        let ascii = locale.is_some_and(|locale| !locale.contains("UTF-8") && !locale.contains("UTF8"));
        let color = term.is_term() && env.get("NO_COLOR").is_none() && env.get("TERM") != Some("dumb");
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
        // Wider than this the eye loses the line.
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
