//! The spans of a trace in the order in which they are drawn.

use std::collections::HashMap;
use std::time::Duration;

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::trace::SpanId;

/// A span and its place. Its parent comes before it.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) span: &'a CollectedSpan,
    pub(super) parent: Option<usize>,
    pub(super) children: Vec<usize>,
    /// 0 for a span without a parent.
    pub(super) depth: usize,
}

/// A span whose parent is unknown has none here. Of a ring of parents, which only damaged data has,
/// the earliest span has none.
pub(super) fn tree(spans: &[CollectedSpan]) -> Vec<Node<'_>> {
    let mut ordered: Vec<&CollectedSpan> = spans.iter().collect();
    ordered.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
    let places: HashMap<SpanId, usize> = ordered.iter().map(|span| span.span_id).zip(0..).collect();
    let mut children = vec![Vec::new(); ordered.len()];
    let mut roots = Vec::new();
    for (place, span) in ordered.iter().enumerate() {
        let parent = span.parent_span_id.and_then(|id| places.get(&id));
        match parent {
            Some(parent) if *parent != place => children[*parent].push(place),
            _ => roots.push(place),
        }
    }
    let mut nodes: Vec<Node<'_>> = Vec::with_capacity(ordered.len());
    let mut is_drawn = vec![false; ordered.len()];
    // All places at the end: what no root leads to is in a ring.
    for root in roots.into_iter().chain(0..ordered.len()) {
        // Not recursive: a trace may be deeper than the thread's stack.
        let mut pending = vec![(root, None, 0)];
        while let Some((place, parent, depth)) = pending.pop() {
            if std::mem::replace(&mut is_drawn[place], true) {
                continue;
            }
            let node = nodes.len();
            nodes.push(Node {
                span: ordered[place],
                parent,
                children: Vec::new(),
                depth,
            });
            if let Some(parent) = parent {
                let parent: &mut Node<'_> = &mut nodes[parent];
                parent.children.push(node);
            }
            let below = children[place].iter().rev();
            pending.extend(below.map(|child| (*child, Some(node), depth + 1)));
        }
    }
    nodes
}

impl Node<'_> {
    /// Oddities that would mislead a reader.
    pub(super) fn notes(&self, nodes: &[Self]) -> Vec<String> {
        let mut notes = Vec::new();
        let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let span = self.span;
        if let Ok(back) = span.start.duration_since(span.end)
            && !back.is_zero()
        {
            notes.push(format!(
                "It ends {} before it starts: the clock was set back.",
                milliseconds(back)
            ));
        }
        match self.parent {
            Some(parent) => {
                if let Ok(early) = nodes[parent].span.start.duration_since(span.start)
                    && !early.is_zero()
                {
                    notes.push(format!(
                        "It starts {} before its parent: the clocks of the two machines differ.",
                        milliseconds(early)
                    ));
                }
            }
            None if span.parent_span_id.is_some() => {
                notes.push(
                    "Its parent is not here: it was lost, belongs to a caller, or has not ended yet."
                        .to_owned(),
                );
            }
            None => {}
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::spans;
    use super::*;

    fn drawn(spans: &[CollectedSpan]) -> Vec<(usize, &str)> {
        tree(spans)
            .iter()
            .map(|node| (node.depth, &*node.span.name))
            .collect()
    }

    #[test]
    fn children_follow_their_parent_by_start() {
        let spans = spans(&[
            ("b", Some("a"), 20, 30),
            ("a", None, 0, 100),
            ("c", Some("a"), 10, 40),
            ("d", Some("b"), 21, 22),
            ("lost", Some("unknown"), 5, 6),
        ]);
        assert_eq!(
            drawn(&spans),
            [(0, "a"), (1, "c"), (1, "b"), (2, "d"), (0, "lost")]
        );
        let nodes = tree(&spans);
        assert!(nodes[4].notes(&nodes)[0].starts_with("Its parent is not here"));
        assert!(nodes[1].notes(&nodes).is_empty());
    }

    #[test]
    fn ring_of_parents_is_drawn_once() {
        let spans = spans(&[
            ("a", Some("b"), 0, 1),
            ("b", Some("a"), 1, 2),
            ("c", Some("b"), 2, 3),
        ]);
        assert_eq!(drawn(&spans), [(0, "a"), (1, "b"), (2, "c")]);
    }

    #[test]
    fn child_that_starts_before_its_parent_has_a_note() {
        let spans = spans(&[("a", None, 10, 20), ("b", Some("a"), 7, 15)]);
        let nodes = tree(&spans);
        let note = "It starts 3.0 ms before its parent: the clocks of the two machines differ.";
        assert_eq!(nodes[1].notes(&nodes), [note]);
    }
}
