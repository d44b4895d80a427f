use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use opentelemetry::Value;
use opentelemetry::trace::SpanId;

use crate::traces::collector::CollectedSpan;

/// Draws a trace as a waterfall: one line per span, indented under its parent, with a bar on the trace's time line.
///
/// ```text
/// trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.46 s · 6 spans
/// engine.queue_wait                      0 s    12.0 ms  ▏
/// engine.faster-whisper.process      12.0 ms     1.45 s  ██████████████████████████████
/// ├─ engine.download_input           12.4 ms    3.10 ms  ▏
/// ├─ engine.model_load               15.9 ms     402 ms  ████████▎
/// ├─ engine.process                   418 ms     1.03 s          █████████████████████▏
/// └─ engine.upload_output             1.45 s    5.20 ms                               ▏
/// ```
///
/// The columns are the name, the time from the start of the trace, the duration and the bar. Spans that ended with an
/// error are marked, with the message on a line of its own; so are clocks that disagree and parents that are missing.
/// A long run of spans with the same name and parent is folded, so that the trace of an hour of audio still fits on a
/// page.
///
/// ```
/// use dalston_telemetry::{SpanCollector, Waterfall};
///
/// let collector = SpanCollector::new();
/// // … spans are made and end …
/// for trace_id in collector.trace_ids() {
///     let text = Waterfall::new().width(100).attributes(["dalston.model"]).render(&collector.trace(trace_id));
/// #   let _ = text;
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Waterfall {
    width: usize,
    ascii: bool,
    color: bool,
    fold_after: usize,
    attributes: Vec<String>,
}

impl Waterfall {
    /// The width unless [`width`](Self::width) says otherwise, in columns.
    pub const DEFAULT_WIDTH: usize = 100;
    /// How many spans of one name a parent shows unless [`fold_after`](Self::fold_after) says otherwise.
    pub const DEFAULT_FOLD_AFTER: usize = 8;

    /// A waterfall of [`DEFAULT_WIDTH`](Self::DEFAULT_WIDTH) columns in Unicode, without colours and attributes.
    pub fn new() -> Self {
        Self {
            width: Self::DEFAULT_WIDTH,
            ascii: false,
            color: false,
            fold_after: Self::DEFAULT_FOLD_AFTER,
            attributes: Vec::new(),
        }
    }

    /// The width of a line in columns. Where there is no room for a useful bar, there is none.
    pub fn width(mut self, columns: usize) -> Self {
        self.width = columns;
        self
    }

    /// Draw with ASCII characters only, for terminals and files that can't show others. Off by default.
    pub fn ascii(mut self, ascii: bool) -> Self {
        self.ascii = ascii;
        self
    }

    /// Colour the bars and the errors with ANSI escape sequences. Off by default; meant for terminals.
    pub fn color(mut self, color: bool) -> Self {
        self.color = color;
        self
    }

    /// Of more than `spans` siblings with one name, show the first `spans` and fold the others into one line with
    /// their number and total duration. Siblings that failed are always shown. 0 folds nothing.
    pub fn fold_after(mut self, spans: usize) -> Self {
        self.fold_after = spans;
        self
    }

    /// Show these attributes under each span that has a value for them, in this order. None by default.
    pub fn attributes<I>(mut self, keys: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.attributes = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Draws the spans, which are taken to be of one trace, in any order. Nothing comes of no spans.
    #[must_use]
    pub fn render(&self, spans: &[CollectedSpan]) -> String {
        let Some(timeline) = Timeline::of(spans) else {
            return String::new();
        };
        let rows = rows(spans, self);
        let layout = Layout::for_rows(&rows, self.width);
        let mut out = String::new();
        // Writing to a string can't fail.
        let _ = Painter {
            look: self,
            timeline,
            layout,
            out: &mut out,
        }
        .paint(spans, &rows);
        out
    }
}

impl Default for Waterfall {
    fn default() -> Self {
        Self::new()
    }
}

/// From the earliest start to the latest end of a trace.
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

    /// Where a time falls on a scale of `steps`.
    fn scale(&self, offset: Duration, steps: usize) -> usize {
        if self.length.is_zero() {
            return 0;
        }
        // Rounding down: a span never seems to start after it did.
        let step = offset.as_secs_f64() / self.length.as_secs_f64() * steps as f64;
        (step as usize).min(steps)
    }
}

/// One line of the picture.
struct Row<'a> {
    /// The lines of the tree before the name.
    branch: String,
    /// The lines of the tree before text that continues this row.
    continuation: String,
    name: String,
    content: Content<'a>,
}

enum Content<'a> {
    Span {
        span: &'a CollectedSpan,
        notes: Vec<String>,
    },
    Folded {
        first: SystemTime,
        last: SystemTime,
        total: Duration,
    },
}

/// The tree in drawing order.
fn rows<'a>(spans: &'a [CollectedSpan], look: &Waterfall) -> Vec<Row<'a>> {
    let forest = Forest::of(spans);
    let mut rows = Vec::with_capacity(spans.len());
    // A stack of its own: a trace may be deeper than the thread's stack.
    let mut pending: Vec<(Node<'a>, Lineage)> = Vec::new();
    let tops = fold(forest.roots.iter().copied(), look);
    pending.extend(tops.into_iter().rev().map(|node| (node, Lineage::Top)));

    while let Some((node, lineage)) = pending.pop() {
        let (branch, below) = lineage.draw(look.ascii);
        match node {
            Node::Folded {
                name,
                count,
                first,
                last,
                total,
            } => {
                let name = format!("{} {count} more {name}", if look.ascii { "..." } else { "⋮" });
                let content = Content::Folded { first, last, total };
                rows.push(Row {
                    branch,
                    continuation: below,
                    name,
                    content,
                });
            }
            Node::Span(span) => {
                let children = forest.children_of(span);
                let notes = notes(span, &forest);
                let has_children = !children.is_empty();
                let continuation = match (has_children, look.ascii) {
                    (true, false) => format!("{below}│  "),
                    (true, true) => format!("{below}|  "),
                    (false, _) => format!("{below}   "),
                };
                rows.push(Row {
                    branch,
                    continuation,
                    name: printable(&span.name),
                    content: Content::Span { span, notes },
                });
                let mut children = fold(children.iter().copied(), look);
                let last = children.pop();
                pending.extend(last.map(|node| (node, Lineage::Last(below.clone()))));
                pending.extend(
                    children
                        .into_iter()
                        .rev()
                        .map(|node| (node, Lineage::Inner(below.clone()))),
                );
            }
        }
    }
    rows
}

/// Where a row stands among its siblings, and what stands before them.
enum Lineage {
    Top,
    Inner(String),
    Last(String),
}

impl Lineage {
    /// What comes before the name on the row itself, and before the rows below it.
    fn draw(self, ascii: bool) -> (String, String) {
        match (self, ascii) {
            (Self::Top, _) => (String::new(), String::new()),
            (Self::Inner(above), false) => (format!("{above}├─ "), format!("{above}│  ")),
            (Self::Inner(above), true) => (format!("{above}|- "), format!("{above}|  ")),
            (Self::Last(above), false) => (format!("{above}└─ "), format!("{above}   ")),
            (Self::Last(above), true) => (format!("{above}`- "), format!("{above}   ")),
        }
    }
}

enum Node<'a> {
    Span(&'a CollectedSpan),
    Folded {
        name: String,
        count: usize,
        first: SystemTime,
        last: SystemTime,
        total: Duration,
    },
}

/// Replaces what is too much of one name by one node, in the place of the first that is left out.
fn fold<'a>(siblings: impl Iterator<Item = &'a CollectedSpan>, look: &Waterfall) -> Vec<Node<'a>> {
    let mut nodes: Vec<Node<'a>> = Vec::new();
    let mut seen: HashMap<&str, (usize, Option<usize>)> = HashMap::new();
    for span in siblings {
        let (count, folded_at) = seen.entry(&span.name).or_default();
        if look.fold_after == 0 || span.is_error() || *count < look.fold_after {
            *count += 1;
            nodes.push(Node::Span(span));
            continue;
        }
        match folded_at.and_then(|at| nodes.get_mut(at)) {
            Some(Node::Folded {
                count, last, total, ..
            }) => {
                *count += 1;
                *last = span.end.max(*last);
                *total += span.duration();
            }
            _ => {
                *folded_at = Some(nodes.len());
                nodes.push(Node::Folded {
                    name: printable(&span.name),
                    count: 1,
                    first: span.start,
                    last: span.end,
                    total: span.duration(),
                });
            }
        }
    }
    nodes
}

/// Who is above whom. Spans without a known parent are roots, and so is one span of every ring of parents.
struct Forest<'a> {
    by_id: HashMap<SpanId, &'a CollectedSpan>,
    children: HashMap<SpanId, Vec<&'a CollectedSpan>>,
    roots: Vec<&'a CollectedSpan>,
}

impl<'a> Forest<'a> {
    fn of(spans: &'a [CollectedSpan]) -> Self {
        let mut ordered: Vec<&CollectedSpan> = spans.iter().collect();
        ordered.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));

        let by_id: HashMap<SpanId, &CollectedSpan> =
            ordered.iter().map(|span| (span.span_id, *span)).collect();
        let mut forest = Self {
            by_id,
            children: HashMap::new(),
            roots: Vec::new(),
        };
        let mut below_roots: HashSet<SpanId> = HashSet::new();
        for span in &ordered {
            match forest.parent_of(span) {
                Some(parent) => forest.children.entry(parent.span_id).or_default().push(span),
                None => {
                    forest.roots.push(span);
                    below_roots.insert(span.span_id);
                }
            }
        }

        // Damaged data may name parents in a ring, which no root leads to. The earliest of the ring is made a root.
        let mut reach = forest.roots.clone();
        let mut candidates = ordered.into_iter();
        loop {
            while let Some(span) = reach.pop() {
                for child in forest.children_of(span) {
                    if below_roots.insert(child.span_id) {
                        reach.push(child);
                    }
                }
            }
            let Some(lost) = candidates.find(|span| !below_roots.contains(&span.span_id)) else {
                break;
            };
            if let Some(siblings) = lost
                .parent_span_id
                .and_then(|parent| forest.children.get_mut(&parent))
            {
                siblings.retain(|sibling| sibling.span_id != lost.span_id);
            }
            below_roots.insert(lost.span_id);
            forest.roots.push(lost);
            reach.push(lost);
        }
        forest.roots.sort_by_key(|span| span.start);
        forest
    }

    fn parent_of(&self, span: &CollectedSpan) -> Option<&'a CollectedSpan> {
        let parent = span.parent_span_id.filter(|parent| *parent != span.span_id)?;
        self.by_id.get(&parent).copied()
    }

    fn children_of(&self, span: &CollectedSpan) -> &[&'a CollectedSpan] {
        self.children.get(&span.span_id).map_or(&[], Vec::as_slice)
    }
}

/// What a reader would stumble over.
fn notes(span: &CollectedSpan, forest: &Forest<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(back) = span.start.duration_since(span.end)
        && !back.is_zero()
    {
        notes.push(format!(
            "ends {} before it starts: the clock was set back",
            humane(back, true)
        ));
    }
    match forest.parent_of(span) {
        Some(parent) => {
            if let Ok(early) = parent.start.duration_since(span.start)
                && !early.is_zero()
            {
                notes.push(format!(
                    "starts {} before its parent: clocks differ",
                    humane(early, true)
                ));
            }
        }
        None if span.parent_span_id.is_some() && !span.parent_is_remote => {
            notes.push("its parent is not in this trace: lost, or not ended yet".to_owned());
        }
        None => {}
    }
    notes
}

/// Widths of the columns. A width of zero leaves the column out.
struct Layout {
    width: usize,
    name: usize,
    bar: usize,
}

/// ` `, start, ` `, duration.
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
        // The name gets what it needs, up to half of the line; what is left is the bar's.
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
    look: &'a Waterfall,
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

    /// The lines that belong to the span: what went wrong, what is odd, and the attributes that were asked for.
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
            let Some(value) = span.attribute(key).map(shown).filter(|value| !value.is_empty()) else {
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

    /// How far the bar is indented, and the bar. The bar has at least one character.
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
        humane(duration, self.look.ascii)
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

/// Three significant digits and the unit that suits them.
fn humane(duration: Duration, ascii: bool) -> String {
    let seconds = duration.as_secs_f64();
    // The limits are where rounding to three digits reaches the next unit.
    let (value, unit) = if duration.is_zero() {
        return "0 s".to_owned();
    } else if seconds < 999.5e-9 {
        return format!("{} ns", duration.as_nanos());
    } else if seconds < 999.5e-6 {
        (seconds * 1e6, if ascii { "us" } else { "µs" })
    } else if seconds < 999.5e-3 {
        (seconds * 1e3, "ms")
    } else if seconds < 99.95 {
        (seconds, "s")
    } else {
        let whole = seconds.round() as u64;
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        if hours > 0 {
            return format!("{hours}h{minutes:02}m{seconds:02}s");
        }
        return format!("{minutes}m{seconds:02}s");
    };
    let digits = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// The value of an attribute, numbers with four significant digits.
fn shown(value: &Value) -> String {
    match value {
        Value::F64(number) if number.is_finite() && *number != 0.0 => {
            let digits = 3 - number.abs().log10().floor() as i32;
            let rounded = format!("{number:.*}", usize::try_from(digits).unwrap_or(0).min(12));
            match rounded.contains('.') {
                true => rounded.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => rounded,
            }
        }
        value => printable(&value.as_str()),
    }
}

/// At most `room` characters, with an ellipsis where something is missing.
fn shorten(text: &str, room: usize, ascii: bool) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let ellipsis = if ascii { "~" } else { "…" };
    let mut short: String = text.chars().take(room.saturating_sub(1)).collect();
    short.push_str(ellipsis);
    short
}

/// Names and values come from outside; control characters in them would move the cursor or break the lines.
fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests;
