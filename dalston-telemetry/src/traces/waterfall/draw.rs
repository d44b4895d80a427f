//! Rows as text.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use super::look::Look;
use super::text::{duration_text, printable, shorten, value_text};
use super::tree::{Content, Row};
use crate::traces::collector::CollectedSpan;

/// Draws the rows of a trace. The text is empty if there are no spans.
pub(super) fn draw(spans: &[CollectedSpan], rows: &[Row<'_>], look: &Look) -> String {
    let Some(timeline) = Timeline::of(spans) else {
        return String::new();
    };
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = Painter {
        look,
        timeline,
        layout: Layout::for_rows(rows, look.width),
        out: &mut out,
    }
    .paint(spans, rows);
    out
}

/// The time from the earliest start to the latest end of a trace.
#[derive(Clone, Copy)]
struct Timeline {
    start: SystemTime,
    length: Duration,
}

impl Timeline {
    fn of(spans: &[CollectedSpan]) -> Option<Self> {
        let start = spans.iter().map(|span| span.start).min()?;
        let end = spans.iter().map(|span| span.end).max()?;
        Some(Self {
            start,
            length: end.duration_since(start).unwrap_or_default(),
        })
    }

    fn offset(&self, time: SystemTime) -> Duration {
        time.duration_since(self.start).unwrap_or_default()
    }

    /// The step of an offset on a scale of `steps`.
    fn scale(&self, offset: Duration, steps: usize) -> usize {
        if self.length.is_zero() {
            return 0;
        }
        // Rounded down, so that no span seems to start late.
        let step = offset.as_secs_f64() / self.length.as_secs_f64() * steps as f64;
        (step as usize).min(steps)
    }
}

/// Widths of the columns. A width of zero leaves the column out.
struct Layout {
    width: usize,
    name: usize,
    bar: usize,
}

/// The columns of start and duration, each after a space.
const TIMES: usize = 1 + TIME + 1 + TIME;
const TIME: usize = 9;
const SHORTEST_BAR: usize = 8;
const SHORTEST_NAME: usize = 12;

impl Layout {
    fn for_rows(rows: &[Row<'_>], width: usize) -> Self {
        let longest = rows
            .iter()
            .map(|row| row.branch.chars().count() + row.name.chars().count())
            .max()
            .unwrap_or(0);
        // The name gets the room that it needs, up to half of the line. The bar gets the rest.
        let name = longest.min((width / 2).max(SHORTEST_NAME));
        let bar = width.saturating_sub(name + TIMES + 2);
        if bar >= SHORTEST_BAR {
            return Self { width, name, bar };
        }
        let name = longest.min(width.saturating_sub(TIMES).max(SHORTEST_NAME));
        Self { width, name, bar: 0 }
    }
}

struct Painter<'a> {
    look: &'a Look,
    timeline: Timeline,
    layout: Layout,
    out: &'a mut String,
}

impl Painter<'_> {
    fn paint(&mut self, spans: &[CollectedSpan], rows: &[Row<'_>]) -> fmt::Result {
        self.headline(spans)?;
        for row in rows {
            self.row(row)?;
        }
        Ok(())
    }

    fn headline(&mut self, spans: &[CollectedSpan]) -> fmt::Result {
        let Some(first) = spans.first() else { return Ok(()) };
        let dot = if self.look.ascii { "-" } else { "·" };
        let count = spans.len();
        let length = self.time(self.timeline.length);
        let mut line = format!("trace {} {dot} {length} {dot} {count} span", first.trace_id);
        if count != 1 {
            line.push('s');
        }
        let errors = spans.iter().filter(|span| span.is_error()).count();
        if errors > 0 {
            write!(line, " {dot} {errors} failed")?;
        }
        self.styled(Style::Strong, &line)?;
        self.out.push('\n');
        Ok(())
    }

    fn row(&mut self, row: &Row<'_>) -> fmt::Result {
        let name = shorten(
            &row.name,
            self.layout.name.saturating_sub(row.branch.chars().count()),
            self.look.ascii,
        );
        let used = row.branch.chars().count() + name.chars().count();
        let (style, start, end, duration) = match &row.content {
            Content::Span { span, .. } => {
                let style = if span.is_error() { Style::Error } else { Style::Bar };
                (style, span.start, span.end, span.duration())
            }
            Content::Folded { first, last, total } => (Style::Faint, *first, *last, *total),
        };
        let offset = self.timeline.offset(start);

        self.styled(Style::Faint, &row.branch)?;
        match style {
            Style::Error => self.styled(Style::Error, &name)?,
            _ => self.out.push_str(&name),
        }
        write!(self.out, "{:1$}", "", self.layout.name.saturating_sub(used))?;
        let (at, took) = (self.time(offset), self.time(duration));
        write!(self.out, " {at:>TIME$} {took:>TIME$}")?;
        if self.layout.bar > 0 {
            let (indent, bar) = self.bar(offset, self.timeline.offset(end), style);
            if !bar.is_empty() {
                write!(self.out, "  {:indent$}", "")?;
                self.styled(style, &bar)?;
            }
        }
        self.out.push('\n');

        if let Content::Span { span, notes } = &row.content {
            self.below(row, span, notes)?;
        }
        Ok(())
    }

    /// The further lines of a span: its error, notes, and attributes.
    fn below(&mut self, row: &Row<'_>, span: &CollectedSpan, notes: &[String]) -> fmt::Result {
        let (cross, warning) = if self.look.ascii {
            ("error:", "note:")
        } else {
            ("✗", "⚠")
        };
        if span.is_error() {
            let message = span
                .error_message()
                .map_or_else(|| "failed".to_owned(), |message| printable(&message));
            self.line_below(row, Style::Error, &format!("{cross} {message}"))?;
        }
        for note in notes {
            self.line_below(row, Style::Warning, &format!("{warning} {note}"))?;
        }
        let room = self.room_below(row);
        let mut line = String::new();
        for key in &self.look.attributes {
            let Some(value) = span
                .attribute(key)
                .map(value_text)
                .filter(|value| !value.is_empty())
            else {
                continue;
            };
            let pair = format!("{}={value}", printable(key));
            if !line.is_empty() && line.chars().count() + 2 + pair.chars().count() > room {
                self.line_below(row, Style::Faint, &std::mem::take(&mut line))?;
            }
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&pair);
        }
        if !line.is_empty() {
            self.line_below(row, Style::Faint, &line)?;
        }
        Ok(())
    }

    fn room_below(&self, row: &Row<'_>) -> usize {
        self.layout
            .width
            .saturating_sub(row.continuation.chars().count())
            .max(SHORTEST_NAME)
    }

    fn line_below(&mut self, row: &Row<'_>, style: Style, text: &str) -> fmt::Result {
        let room = self.room_below(row);
        self.styled(Style::Faint, &row.continuation)?;
        let text = shorten(text, room, self.look.ascii);
        self.styled(style, &text)?;
        self.out.push('\n');
        Ok(())
    }

    /// The indentation of a bar, and the bar, which has at least one character.
    fn bar(&self, start: Duration, end: Duration, style: Style) -> (usize, String) {
        const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
        let cells = self.layout.bar;
        let indent = self.timeline.scale(start, cells).min(cells.saturating_sub(1));
        if self.look.ascii {
            let fill = match style {
                Style::Error => "!",
                Style::Faint => ".",
                _ => "=",
            };
            let end = self.timeline.scale(end, cells).max(indent + 1);
            return (indent, fill.repeat(end - indent));
        }
        let eighths = self
            .timeline
            .scale(end, cells * 8)
            .saturating_sub(indent * 8)
            .max(1);
        let full = if matches!(style, Style::Faint) {
            "░"
        } else {
            "█"
        };
        let mut bar = full.repeat(eighths / 8);
        if let Some(partial) = (eighths % 8).checked_sub(1).and_then(|index| EIGHTHS.get(index)) {
            match style {
                Style::Faint => bar.push('░'),
                _ => bar.push(*partial),
            }
        }
        (indent, bar)
    }

    fn time(&self, duration: Duration) -> String {
        duration_text(duration, self.look.ascii)
    }

    fn styled(&mut self, style: Style, text: &str) -> fmt::Result {
        if !self.look.color || text.is_empty() {
            self.out.push_str(text);
            return Ok(());
        }
        write!(self.out, "\u{1b}[{}m{text}\u{1b}[0m", style.code())
    }
}

#[derive(Clone, Copy)]
enum Style {
    Strong,
    Faint,
    Bar,
    Error,
    Warning,
}

impl Style {
    /// Parameter of the ANSI "select graphic rendition" sequence.
    fn code(self) -> &'static str {
        match self {
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Bar => "36",
            Self::Error => "31",
            Self::Warning => "33",
        }
    }
}
