//! The spans of a trace in the order in which they are drawn.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::SpanId;

use super::look::Look;
use super::text::{duration_text, printable};
use crate::traces::collector::CollectedSpan;

/// A line of the waterfall, or several for a span with notes or attributes.
pub(super) struct Row<'a> {
    /// The branches of the tree before the name.
    pub(super) branch: String,
    /// The branches of the tree before the further lines of this row.
    pub(super) continuation: String,
    pub(super) name: String,
    pub(super) content: Content<'a>,
}

pub(super) enum Content<'a> {
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

/// The rows in the order in which they are drawn.
pub(super) fn rows<'a>(spans: &'a [CollectedSpan], look: &Look) -> Vec<Row<'a>> {
    let forest = Forest::of(spans);
    let mut rows = Vec::with_capacity(spans.len());
    // Not recursive: a trace may be deeper than the thread's stack.
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

/// The place of a row among its siblings, with the branches before them.
enum Lineage {
    Top,
    Inner(String),
    Last(String),
}

impl Lineage {
    /// The branches before the name of the row, and those before the rows below it.
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

/// Folds the siblings of a name that are too many into one node, in the place of the first of them.
fn fold<'a>(siblings: impl Iterator<Item = &'a CollectedSpan>, look: &Look) -> Vec<Node<'a>> {
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

/// Parents and children. Spans without a known parent are roots, and so is one span of every ring
/// of parents.
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

        // Damaged data may have a ring of parents, which no root leads to. Its earliest span
        // becomes a root.
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

/// Oddities of a span that would mislead a reader.
fn notes(span: &CollectedSpan, forest: &Forest<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(back) = span.start.duration_since(span.end)
        && !back.is_zero()
    {
        notes.push(format!(
            "ends {} before it starts: the clock was set back",
            duration_text(back, true)
        ));
    }
    match forest.parent_of(span) {
        Some(parent) => {
            if let Ok(early) = parent.start.duration_since(span.start)
                && !early.is_zero()
            {
                notes.push(format!(
                    "starts {} before its parent: clocks differ",
                    duration_text(early, true)
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
