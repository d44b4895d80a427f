//! The critical path of a trace: what had to be faster for the trace to end earlier.

use std::time::{Duration, SystemTime};

use super::tree::Node;

/// A time in which nothing but this span kept the trace from ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// The place of the span in the tree.
    pub(super) node: usize,
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

impl Section {
    pub(super) fn duration(&self) -> Duration {
        self.to.duration_since(self.from).unwrap_or_default()
    }
}

/// The sections of the critical path, from the earliest to the latest.
///
/// It is found backwards. The end of a span waited for the child that ended last, together with all
/// below that child; the start of that child waited for the child that had ended last before it;
/// and so on. What lies between is the span's own, as far as the span lasted: a job goes on after
/// the request that began it. Times in which no span of the path was open are in no section.
pub(super) fn critical_path(nodes: &[Node<'_>]) -> Vec<Section> {
    // The ends of spans with all below them. A child comes after its parent.
    let mut ends: Vec<SystemTime> = nodes
        .iter()
        .map(|node| node.span.end.max(node.span.start))
        .collect();
    for (place, node) in nodes.iter().enumerate().rev() {
        if let Some(parent) = node.parent {
            ends[parent] = ends[parent].max(ends[place]);
        }
    }
    let roots: Vec<usize> = (0..nodes.len())
        .filter(|place| nodes[*place].parent.is_none())
        .collect();
    let mut sections = Vec::new();
    let mut pending: Vec<usize> = waited_for(&roots, nodes, &ends).map(|(child, _)| child).collect();
    while let Some(place) = pending.pop() {
        let span = nodes[place].span;
        let mut own = |from: SystemTime, to: SystemTime| {
            let (from, to) = (from.max(span.start), to.min(span.end));
            if from < to {
                sections.push(Section {
                    node: place,
                    from,
                    to,
                });
            }
        };
        let mut until = ends[place];
        for (child, before) in waited_for(&nodes[place].children, nodes, &ends) {
            own(ends[child], until);
            until = before;
            pending.push(child);
        }
        own(span.start, until);
    }
    sections.sort_by_key(|section| (section.from, section.node));
    sections
}

/// The siblings that waited for each other, from the last to the first, with their starts.
fn waited_for(
    siblings: &[usize],
    nodes: &[Node<'_>],
    ends: &[SystemTime],
) -> impl Iterator<Item = (usize, SystemTime)> {
    let mut siblings = siblings.to_vec();
    siblings.sort_by_key(|place| std::cmp::Reverse(ends[*place]));
    let mut until: Option<SystemTime> = None;
    siblings
        .into_iter()
        .map(|place| (place, ends[place], nodes[place].span.start))
        .filter_map(move |(place, end, start)| {
            // One that still ran when the next one started was not waited for.
            if until.is_some_and(|until| end > until) {
                return None;
            }
            until = Some(start);
            Some((place, start))
        })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{START, Sample, spans};
    use super::super::tree::tree;
    use super::*;

    fn path(samples: &[Sample<'_>]) -> Vec<(String, u128, u128)> {
        let spans = spans(samples);
        let nodes = tree(&spans);
        let since = |time: SystemTime| time.duration_since(START).unwrap().as_millis();
        let sections = critical_path(&nodes).into_iter();
        sections
            .map(|section| {
                let name = nodes[section.node].span.name.to_string();
                (name, since(section.from), since(section.to))
            })
            .collect()
    }

    fn section(name: &str, from: u128, to: u128) -> (String, u128, u128) {
        (name.to_owned(), from, to)
    }

    #[test]
    fn children_in_a_row_and_the_gaps_are_on_the_path() {
        let path = path(&[
            ("a", None, 0, 100),
            ("b", Some("a"), 10, 40),
            ("c", Some("a"), 50, 90),
        ]);
        let expected = [
            section("a", 0, 10),
            section("b", 10, 40),
            section("a", 40, 50),
            section("c", 50, 90),
            section("a", 90, 100),
        ];
        assert_eq!(path, expected);
    }

    #[test]
    fn of_children_at_once_the_one_that_ends_last_is_on_it() {
        let path = path(&[
            ("a", None, 0, 100),
            ("short", Some("a"), 10, 50),
            ("long", Some("a"), 10, 100),
            ("before", Some("a"), 0, 9),
        ]);
        let expected = [
            section("before", 0, 9),
            section("a", 9, 10),
            section("long", 10, 100),
        ];
        assert_eq!(path, expected);
    }

    #[test]
    fn work_that_outlives_the_request_is_on_it() {
        let path = path(&[
            ("request", None, 0, 10),
            ("publish", Some("request"), 5, 9),
            ("work", Some("publish"), 20, 80),
            ("answer", Some("work"), 60, 120),
        ]);
        let expected = [
            section("request", 0, 5),
            // It ends at 9, and the work starts at 20.
            section("publish", 5, 9),
            section("work", 20, 60),
            section("answer", 60, 120),
        ];
        assert_eq!(path, expected);
    }

    #[test]
    fn traces_without_a_common_root_have_one_path() {
        let path = path(&[
            ("first", None, 0, 10),
            ("aside", Some("lost"), 5, 30),
            ("second", Some("lost"), 12, 40),
        ]);
        assert_eq!(path, [section("first", 0, 10), section("second", 12, 40)]);
    }

    #[test]
    fn clocks_that_differ_and_empty_traces_do_no_harm() {
        assert_eq!(path(&[]), []);
        // The child is before its parent, and another one ends before it starts.
        let path = path(&[
            ("a", None, 50, 60),
            ("b", Some("a"), 10, 20),
            ("c", Some("a"), 55, 52),
        ]);
        assert_eq!(
            path,
            [section("b", 10, 20), section("a", 50, 55), section("a", 55, 60)]
        );
    }

    #[test]
    fn deep_trace_needs_no_deep_stack() {
        let names: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        let mut samples: Vec<Sample<'_>> = vec![("0", None, 0, 20_000)];
        for (number, pair) in names.windows(2).enumerate() {
            samples.push((&pair[1], Some(&pair[0]), number as u64, 20_000));
        }
        assert_eq!(path(&samples).len(), 19_999);
    }
}
