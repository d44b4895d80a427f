//! A trace as a text.

mod draw;
mod look;
mod text;
mod tree;

use crate::traces::collector::CollectedSpan;
use look::Look;

/// Draws a trace as a waterfall: one line per span, indented under its parent, with a bar on the
/// trace's time line.
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
/// The columns are the name, the time from the start of the trace, the duration and the bar. A span
/// that ended with an error has its message on a line of its own. Clocks that differ and parents
/// that are missing have such a line too. A long run of spans with one name and parent is folded,
/// so that the trace of an hour of audio fits on a page.
///
/// ```
/// use dalston_telemetry::{SpanCollector, Waterfall};
///
/// let collector = SpanCollector::new();
/// // … spans are made and end …
/// for trace_id in collector.trace_ids() {
///     let waterfall = Waterfall::new().width(100).attributes(["dalston.model"]);
///     let text = waterfall.render(&collector.trace(trace_id));
/// #   let _ = text;
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Waterfall {
    look: Look,
}

impl Waterfall {
    /// The default of [`width`](Self::width), in columns.
    pub const DEFAULT_WIDTH: usize = 100;
    /// The default of [`fold_after`](Self::fold_after).
    pub const DEFAULT_FOLD_AFTER: usize = 8;

    /// A waterfall of [`DEFAULT_WIDTH`](Self::DEFAULT_WIDTH) columns in Unicode, without colours
    /// and attributes.
    pub fn new() -> Self {
        Self {
            look: Look {
                width: Self::DEFAULT_WIDTH,
                ascii: false,
                color: false,
                fold_after: Self::DEFAULT_FOLD_AFTER,
                attributes: Vec::new(),
            },
        }
    }

    /// Sets the width of a line in columns. Bars are left out where they would be too short.
    pub fn width(mut self, columns: usize) -> Self {
        self.look.width = columns;
        self
    }

    /// Draws with ASCII characters only, for terminals and files that can't show others. Off by
    /// default.
    pub fn ascii(mut self, ascii: bool) -> Self {
        self.look.ascii = ascii;
        self
    }

    /// Colours the bars and the errors with ANSI escape sequences, for terminals. Off by default.
    pub fn color(mut self, color: bool) -> Self {
        self.look.color = color;
        self
    }

    /// Shows the first `spans` of siblings with one name, and folds the others into one line with
    /// their number and total duration. Siblings that failed are always shown. 0 folds nothing.
    pub fn fold_after(mut self, spans: usize) -> Self {
        self.look.fold_after = spans;
        self
    }

    /// Shows these attributes, in this order, under each span that has them. None by default.
    pub fn attributes<I>(mut self, keys: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.look.attributes = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Draws the spans of one trace, given in any order. The text is empty if there are none.
    #[must_use]
    pub fn render(&self, spans: &[CollectedSpan]) -> String {
        draw::draw(spans, &tree::rows(spans, &self.look), &self.look)
    }
}

impl Default for Waterfall {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
